"""The journal service: messages in, numbers out, whatever carries them (section 10).

What arrives together is one batch, one transaction: `opportunistic` batches close with the turn of
the event loop, `fixed` ones after `batch_window` seconds, and both with 256 messages or 256 KiB.
A message is checked here, whatever the room is; what depends on the room is decided by its writer,
in order. Answers come after the batch is on disk, ascending.

Rooms keep a base and the messages since. The writer moves the base up by itself
(actors/dialects/vuer/plan.py); besides, this service asks for it every `snapshot_interval` seconds,
where anything is new, and as it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from actors.dialects.vuer.hashing import state_hash_of
from actors.dialects.vuer.message import Message
from actors.dialects.vuer.plan import compact_draft, message_draft
from actors.dialects.vuer.reads import HashWork, LamportWork, RoomRead, RoomWork
from actors.dialects.vuer.sessions import user_mark
from actors.dialects.vuer.validate import check_message
from actors.reply import FutureReply
from actors.scan import Spool, Work
from actors.types import (
    Address,
    Appended,
    Bounds,
    Draft,
    Duplicate,
    Entry,
    EntryPage,
    Outcome,
    Rejected,
    Reply,
    Resync,
)  # fmt: skip
from edge.dialects.vuer import limits
from edge.dialects.vuer.frames import is_beyond
from edge.dialects.vuer.repositories import InMemoryRepository, LedgerRepository
from edge.dialects.vuer.rooms import room_address
from infra.errors import HoldfastError, StorageError
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.vuer")
T = TypeVar("T")

CLOSE_WAIT_S = 5.0
HASHES_MAX = 1000  # rooms whose hash is remembered
_EMPTY = (
    '{"graph":{"nodes":{},"rootKey":""},"journalIndex":0,"vectorClock":{},"lamportTime":0,'
    '"epoch":""}'
)


class Processed(msgspec.Struct, frozen=True):
    """What became of a message. `msg` is it as stored; None where it was rejected, or retention
    took it. `error` is a code of docs/vuer-rtc.md.
    """

    status: Literal["applied", "duplicate", "rejected"]
    server_seq: int | None = None
    msg: dict[str, Any] | None = None
    error: str | None = None
    message: str | None = None


class Bootstrap(msgspec.Struct, frozen=True):
    """What a join is answered with: a snapshot (None: go on from where you are) and what follows.

    `last` is the position after `entries`; beyond it the reader goes on by itself.
    """

    bounds: Bounds
    lamport: int
    snapshot: str | None
    entries: list[Entry]
    last: int


class JournalService:
    """Use as `async with`, or call `start` and `close`; safe to share between servers."""

    def __init__(
        self, repository: LedgerRepository | None = None, *,
        batch_window: float = limits.BATCH_WINDOW_S,
        batch_mode: Literal["opportunistic", "fixed"] = "opportunistic",
        snapshot_every: int | None = None, keep_tail: int | None = None,
        snapshot_interval: float = limits.SNAPSHOT_INTERVAL_S,
    ) -> None:  # fmt: skip
        """`snapshot_every` and `keep_tail` are for a repository with rooms of its own; those of a
        port keep what its dialect says. Raises ValueError for anything else.
        """
        self.repository = repository or InMemoryRepository()
        if snapshot_every is not None or keep_tail is not None:
            if not isinstance(self.repository, InMemoryRepository):
                raise ValueError("snapshot_every and keep_tail are the port's dialect's to say")
            every = limits.SNAPSHOT_EVERY if snapshot_every is None else snapshot_every
            keep = min(limits.KEEP_TAIL, every) if keep_tail is None else keep_tail
            self.repository.keep(every, keep)
        self._window_s = batch_window if batch_mode == "fixed" else 0.0
        self._interval_s = snapshot_interval
        self._gathering: dict[Address, _Gathering] = {}
        self._written: dict[Address, None] = {}  # since their base was last asked to move
        self._hashes: dict[Address, _Hash] = {}
        self._tasks = TaskOwner()
        self._starting: asyncio.Future[None] | None = None
        self._closed = False

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the repository; whoever comes meanwhile waits for it."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_future()
            await self.repository.start()
            self._tasks.spawn(self._compact_forever(), name="vuer-compaction")
            self._starting.set_result(None)
        else:
            await asyncio.shield(self._starting)

    async def close(self) -> None:
        """Compact what was written, within a few seconds, and close."""
        if self._closed:
            return
        self._closed = True
        for address in list(self._gathering):
            self._put(address)
        if self._starting is not None:
            try:
                async with asyncio.timeout(CLOSE_WAIT_S):
                    await self._compact_written()
            except TimeoutError:
                log.warning("compaction at the end took too long")
        await self._tasks.aclose()
        await self.repository.aclose()

    async def __aenter__(self) -> JournalService:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- one room, by name -------------------------------------------------------------------------

    async def load(self, room_id: str, *, verify: bool = False) -> dict[str, Any]:
        """The room's snapshot, as `get_state`. With `verify` base and journal are folded anew and
        have to give the graph that is kept; raises StorageError where they do not.
        """
        address = room_address(room_id)
        await self.start()
        if verify:
            spool = await self._scanned(address, HashWork(refold=True))
            if spool is not None:
                kept, folded = spool.result
                if kept != folded:
                    raise StorageError(f"room {room_id!r}: its journal folds to another graph")
        return await self.get_state(room_id)

    async def process_message(
        self, room_id: str, msg: dict[str, Any], user: Any = None, *, undo_any: bool = False
    ) -> Processed:
        """Sequence one message for its own session, which is `user`'s then, where one is given.
        Never raises for what is wrong with it.
        """
        address = room_address(room_id)
        await self.start()
        reply = FutureReply()
        try:
            mark = None if user is None else user_mark(str(user))
            draft = self.draft(msg, undo_any=undo_any, user=mark)
            self.submit(address, draft, reply, None)
            (outcome,), _ = await reply.future
        except HoldfastError as error:
            return Processed("rejected", error=error.code, message=str(error))
        match outcome:
            case Appended(last=seq):
                page = await self.repository.range(address, seq - 1)
                body = "" if isinstance(page, Resync) else page.entries[0].body
                return Processed("applied", seq, msgspec.json.decode(body) if body else None)
            case Duplicate(seq=seq, body=kept):
                stored = None if kept is None else msgspec.json.decode(kept)
                return Processed("duplicate", seq, stored)
            case Rejected(code=code, message=message):
                return Processed("rejected", error=code, message=message)

    async def get_state(self, room_id: str) -> dict[str, Any]:
        """`{graph, journalIndex, vectorClock, lamportTime, epoch}` at the head."""
        await self.start()
        found = await self.bootstrap(room_address(room_id), None, None, graph=True)
        state: dict[str, Any] = msgspec.json.decode(found.snapshot or _EMPTY)
        return state

    async def get_messages_since(self, room_id: str, seq: int) -> list[dict[str, Any]]:
        """All kept messages after a position. Raises StorageError (`bad_since`) where some of them
        are not kept any more, or it is beyond the head.
        """
        address = room_address(room_id)
        await self.start()
        found: list[dict[str, Any]] = []
        while True:
            page = await self.repository.range(address, seq)
            if isinstance(page, Resync):
                raise StorageError(f"cannot go on from {seq}: {page.reason}", code="bad_since")
            found += [msgspec.json.decode(entry.body) for entry in page.entries]
            if page.last >= page.bounds.head:
                return found
            seq = page.last

    async def compact(self, room_id: str) -> Bounds:
        """Move the base up as far as undo allows; what the room holds then. Nothing else changes.

        Raises HoldfastError.
        """
        await self.start()
        return await self._compact(room_address(room_id))

    async def clear(self, room_id: str) -> Bounds:
        """Begin a new, empty history under a new epoch; its numbers lie above all before."""
        await self.start()
        return await self.repository.clear(room_address(room_id))

    # -- what connections ask ----------------------------------------------------------------------

    def draft(
        self, msg: dict[str, Any], *, session_id: str | None = None, prev: str | None = None,
        undo_any: bool = False, user: str | None = None,
    ) -> Draft:  # fmt: skip
        """The checked message, ready to be submitted. Raises VuerRefusal."""
        message: Message = check_message(msg, session_id=session_id)
        return message_draft(message, prev=prev, undo_any=undo_any, user=user)

    def submit(self, address: Address, draft: Draft, reply: Reply, tag: Any) -> None:
        """Have it decided with the next batch; the reply hears of it once. Never raises."""
        held = self._gathering.get(address)
        if held is None:
            held = self._gathering[address] = _Gathering()
            loop = asyncio.get_running_loop()
            if self._window_s:
                held.timer = loop.call_later(self._window_s, self._put, address)
            else:
                held.timer = loop.call_soon(self._put, address)
        held.drafts.append(draft)
        held.waiting.append((reply, tag))
        held.size += draft.size
        if len(held.drafts) >= limits.BATCH_MESSAGES_MAX or held.size >= limits.BATCH_BYTES_MAX:
            self._put(address)

    def _put(self, address: Address) -> None:
        held = self._gathering.pop(address, None)
        if held is None:
            return
        assert held.timer is not None
        held.timer.cancel()
        self._written[address] = None
        spread = _Spread(held.waiting)
        try:
            self.repository.append(address, held.drafts, spread, None)
        except HoldfastError as error:
            refused = Rejected(error.code, str(error), retry_after_ms=error.retry_after_ms)
            spread.settle(None, [refused] * len(held.drafts), Bounds("", 0, 0, 0))
            spread.flush()

    async def page(self, address: Address, after: int) -> EntryPage | Resync:
        """The next messages after a position."""
        return await self.repository.range(address, after)

    async def beyond(
        self, address: Address, clock: Mapping[str, int]
    ) -> AsyncIterator[tuple[int, list[str]]]:
        """(position, messages up to it whose session has counted further than the clock knows),
        page by page from the oldest that is kept.
        """
        after, head = (await self.bounds(address)).floor, -1
        while after != head:
            page = await self.page(address, after)
            if isinstance(page, Resync):  # compacted meanwhile
                after = page.bounds.floor
                continue
            after, head = page.last, page.bounds.head
            yield after, [entry.body for entry in page.entries if is_beyond(entry, clock)]

    async def bounds(self, address: Address) -> Bounds:
        """What the room holds."""
        return await self.repository.bounds(address)

    async def bootstrap(
        self, address: Address, since: int | None, epoch: str | None, *, graph: bool
    ) -> Bootstrap:
        """What a reader that holds `since` of `epoch` needs: what follows, or the whole room.

        `graph`: the room at its head without any messages.
        """
        bounds = await self.bounds(address)
        resumes = since is not None and epoch == bounds.epoch
        if resumes and since is not None and bounds.floor <= since <= bounds.head:
            page = await self.page(address, since)
            if isinstance(page, EntryPage):
                scanned = await self._scanned(address, LamportWork())
                lamport = 0 if scanned is None else scanned.result
                return Bootstrap(page.bounds, lamport, None, page.entries, page.last)
        work = RoomWork(graph, limits.JOURNAL_MESSAGES_MAX, limits.JOURNAL_BYTES_MAX)
        spool = await self.repository.snapshot(address, work)
        if spool is None:
            return Bootstrap(Bounds("", 0, 0, 0), 0, _EMPTY, [], 0)
        with contextlib.closing(spool):
            size = spool.bytes
            text = spool.read(size) if spool.in_memory else await self.run(lambda: spool.read(size))
        found: RoomRead = spool.result
        durable = (await self.bounds(address)).durable
        about = msgspec.structs.replace(found.bounds, durable=min(durable, found.bounds.head))
        last = found.entries[-1].seq if found.entries else found.journal_index
        return Bootstrap(about, found.lamport, text.decode(), found.entries, last)

    async def status(self, address: Address) -> tuple[int, str]:
        """(serverSeq, state hash there). Computed once for each head."""
        held = self._hashes.setdefault(address, _Hash())
        async with held.lock:
            bounds = await self.bounds(address)
            if held.known is None or held.at != (bounds.epoch, bounds.head):
                found = await self._scanned(address, HashWork(refold=False))
                if found is None:
                    held.at, held.known = ("", 0), state_hash_of("", [])
                else:
                    held.at, (held.known, _) = (found.epoch, found.seq), found.result
            result = held.at[1], held.known
        if len(self._hashes) > HASHES_MAX:
            self._hashes.clear()
        return result

    async def run(self, work: Callable[[], T]) -> T:
        """Slow work, beside the loop."""
        found: T = await self.repository.port.run(work)
        return found

    async def _scanned(self, address: Address, work: Work) -> Spool | None:
        """The work's result and where it was read; nothing that was spooled."""
        spool = await self.repository.snapshot(address, work)
        if spool is not None:
            spool.close()
        return spool

    # -- compaction --------------------------------------------------------------------------------

    async def _compact_forever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._compact_written()

    async def _compact_written(self) -> None:
        written, self._written = self._written, {}
        for address in written:
            try:
                await self._compact(address)
            except HoldfastError as error:
                log.warning("compaction failed scope=%s error=%s", address.scope, error)

    async def _compact(self, address: Address) -> Bounds:
        if not (await self.bounds(address)).epoch:
            return Bounds("", 0, 0, 0)  # never written: nothing is created for this
        reply = FutureReply()
        self.repository.append(address, [compact_draft()], reply, None)
        (outcome,), bounds = await reply.future
        if isinstance(outcome, Rejected):
            raise StorageError(outcome.message, code=outcome.code)
        return bounds


class _Hash:
    __slots__ = ("at", "known", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.known: str | None = None
        self.at: tuple[str, int] = ("", -1)


class _Gathering:
    __slots__ = ("drafts", "size", "timer", "waiting")

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.waiting: list[tuple[Reply, Any]] = []
        self.size = 0
        self.timer: asyncio.Handle | None = None


class _Spread:
    """The answers to one batch, each to who asked."""

    __slots__ = ("_waiting",)

    def __init__(self, waiting: list[tuple[Reply, Any]]) -> None:
        self._waiting = waiting

    def settle(self, tag: Any, outcomes: list[Outcome], bounds: Bounds) -> None:
        """See actors.types.Reply."""
        for (reply, mark), outcome in zip(self._waiting, outcomes, strict=True):
            reply.settle(mark, [outcome], bounds)

    def flush(self) -> None:
        """See actors.types.Reply."""
        for reply in dict.fromkeys(reply for reply, _ in self._waiting):
            reply.flush()
