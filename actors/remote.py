"""The port into scopes of other processes; fits actors.port.StatePort.

Who has a scope is a local computation. An append that a lost link leaves in doubt is sent again
under its cause, which the scope recognises: a draft without one is given one here. One stream a
scope is shared by all its taps; after a break it is joined again, and what was missed is told as
`moved` or `reset`, so that readers catch up from the ledger: no gap, no repeat.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import msgspec

from actors import link_wire as w
from actors import works
from actors.ephemeral import Ephemera
from actors.ephemeral_remote import RemoteEphemera
from actors.followed import Followed
from actors.inspection import COUNTERS, Report, merged
from actors.peer import Find, Peer
from actors.pins import Placed
from actors.receiving import At, Receiving
from actors.repinning import Repinning
from actors.reply import FutureReply
from actors.rows import Key, Row
from actors.scan import MEMORY_BYTES_MAX, Spool, Work
from actors.sent import ANSWER_WAIT_S, ELSEWHERE, EMPTY, Sent, rejected
from actors.snapshot import Snapshot
from actors.types import (
    Address,
    Bounds,
    Draft,
    EntryPage,
    Outcome,
    Page,
    Rejected,
    Reply,
    Resync,
    Tap,
)  # fmt: skip
from infra import clock, ids
from infra.errors import Busy, Closed, HoldfastError, TryLater
from infra.link.connection import Link, Service
from infra.link.errors import DeadlinePassed
from infra.tasks import TaskOwner

T = TypeVar("T")
SCAN_WAIT_S: Final = 600.0
ALL_WAIT_S: Final = 10.0  # of each process, where all are asked
MAKE_TRIES_MAX: Final = 16


class RemotePort:
    """Use as `async with`. `members` are the processes, by name, with where each listens.

    With `find` there is a process for each tenant instead, which is asked for when it is wanted:
    `find` starts it and says where.
    """

    def __init__(
        self, members: Mapping[str, str], key: bytes, me: str, *, spool_dir: Path,
        service: Service | None = None, find: Find | None = None,
    ) -> None:  # fmt: skip
        self._key = key
        self._me = me
        self._find = find
        self._places = dict(members)
        self.closed = False
        self.alarms = RemoteAlarms(self)
        self.beside = RemoteEphemera(self)
        self.ephemeral = self.beside.open
        self.placed = Placed(me, members)
        self.moves = Repinning(self)
        self._numbered = 0
        self._peers = {name: Peer(self, name, self._place_of, key, me) for name in members}
        self._followed: dict[Address, Followed] = {}
        self._touched: dict[Reply, None] = {}
        self._spool_dir = spool_dir
        self._service = service
        self._causes = f"~{ids.new_id()}"
        self._caused = 0
        self._tasks = TaskOwner()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="holdfast-edge")

    async def start(self) -> None:
        """Begin to dial."""
        for peer in self._peers.values():
            self._tasks.spawn(peer.run(self._service), name=f"peer {peer.name}")

    async def aclose(self) -> None:
        """Whoever still waits is told."""
        self.closed = True
        await self.beside.aclose()
        for peer in self._peers.values():
            peer.close()
        await self._tasks.aclose()
        self._pool.shutdown()

    async def _place_of(self, name: str) -> str:
        return self._places[name]

    def peer_of(self, address: Address) -> Peer:
        """The process that has the scope."""
        if self._find is not None:
            return self.tenant(address.tenant)
        return self._peers[self.placed.of(address)]

    def tenant(self, name: str) -> Peer:
        """The tenant's process."""
        assert self._find is not None
        peer = self._peers.get(name)
        if peer is None:
            peer = Peer(self, name, self._find, self._key, self._me, lazy=True)
            self._peers[name] = peer
            self._tasks.spawn(peer.run(self._service), name="peer")
        return peer

    def asleep(self, tenant: str) -> bool:
        """Whether the tenant's process has told us that it ends, and nobody wants it since."""
        peer = self._peers.get(tenant)
        return peer is not None and peer.asleep and peer.link is None

    def sleeps(self, name: str, *, asleep: bool) -> bool:
        """A process is about to end (or not, after all); whether nothing here speaks against it."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.asleep = asleep
        return peer is None or peer.idle

    def _known(self, address: Address) -> Bounds | None:
        """Where a sleeping scope stands that is followed here."""
        followed = self._followed.get(address)
        if self._find is None or followed is None or not followed.ready.is_set():
            return None
        peer = self.peer_of(address)
        return followed.bounds if peer.asleep and peer.link is None else None

    def connected(self, peer: Peer) -> None:
        """A link is there (again): follow what was followed, before anything else is asked."""
        for address, followed in list(self._followed.items()):
            if self.peer_of(address) is peer and peer.link is not None:
                followed.join(peer.link)
        self.beside.look()

    def speaks_over(self, address: Address) -> Link | Ephemera | None:
        """Where what is said beside the scope is passed on now."""
        return self.peer_of(address).link

    def resting(self, address: Address) -> bool:
        """Whether the scope's process has ended until somebody wants something of it."""
        return self._find is not None and self.tenant(address.tenant).asleep

    # -- writing ---------------------------------------------------------------------------------

    def append(
        self, address: Address, drafts: list[Draft], reply: Reply, tag: Any,
        *, replicated: bool = False,
    ) -> None:  # fmt: skip
        if self.closed:
            raise Closed("the server is closing", retry_after_ms=1000)
        if any([draft.make for draft in drafts]):
            work = self._make(address, drafts, reply, tag, replicated)
            self._tasks.spawn(work, name="make")
            return
        peer = self.peer_of(address)
        request = Sent(self, peer, address, drafts, reply, tag)
        sent = []
        for at, draft in enumerate(drafts):
            cause = draft.cause
            if not cause:
                self._caused += 1
                cause = f"{self._causes}/{self._caused}"
                request.own.add(at)
            sent.append(w.wire_draft(draft, cause))
        request.payload = w.encode(w.Append(*address, replicated, sent))
        if self.moves.held and self.moves.hold(request):
            return
        peer.put(request)

    def next_number(self) -> int:
        """Of an append, in the order in which they came."""
        self._numbered += 1
        return self._numbered

    async def _make(
        self, address: Address, drafts: list[Draft], reply: Reply, tag: Any, replicated: bool
    ) -> None:
        """One by one: each is made for the seq it will have, or made again."""
        outcomes: list[Outcome] = []
        bounds = EMPTY
        for draft in drafts:
            try:
                outcome, bounds = await self._made(address, draft, replicated)
            except HoldfastError as error:
                outcome = rejected(error)
            except Exception as error:  # the caller's factory: it reaches the caller
                outcome = Rejected("internal", "the draft could not be planned", error=error)
            outcomes.append(outcome)
        reply.settle(tag, outcomes, bounds)
        reply.flush()

    async def _made(
        self, address: Address, draft: Draft, replicated: bool
    ) -> tuple[Outcome, Bounds]:
        for _ in range(MAKE_TRIES_MAX):
            bounds = await self.bounds(address)
            made = draft
            if draft.make is not None:
                made = draft.make(bounds.head + 1, clock.now_ms())
                made.expect = bounds.head
            waiting = FutureReply()
            self.append(address, [made], waiting, None, replicated=replicated)
            (outcome,), bounds = await waiting.future
            if not (isinstance(outcome, Rejected) and outcome.code == "conflict"):
                return outcome, bounds
        raise Busy("others write to the scope faster than this", retry_after_ms=100)

    def flush_later(self, reply: Reply) -> None:
        """One flush a turn for each."""
        if not self._touched:
            asyncio.get_running_loop().call_soon(self._flush)
        self._touched[reply] = None

    def _flush(self) -> None:
        touched, self._touched = self._touched, {}
        for reply in touched:
            reply.flush()

    # -- asking ----------------------------------------------------------------------------------

    async def call(
        self, address: Address, method: str, asked: Any, within_s: float = ANSWER_WAIT_S
    ) -> msgspec.Raw:
        """One answer of the scope's process, whichever life of it. Raises TryLater."""
        payload = w.encode(asked)
        return await self.with_link(
            lambda: self.peer_of(address),
            lambda link: link.call(method, payload, within_s=within_s), within_s,
        )  # fmt: skip

    async def with_link(
        self, find: Callable[[], Peer], use: Callable[[Link], Awaitable[T]], within_s: float
    ) -> T:
        """What `use` returns with a link to a process, again where that is lost or moved. Raises
        TryLater.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    peer = find()
                    peer.wake()
                    await peer.up.wait()
                    try:
                        if peer.link is not None:
                            return await use(peer.link)
                    except HoldfastError as error:
                        if error.code not in ELSEWHERE or self.closed:
                            raise
                    await asyncio.sleep(0.02)
        except (TimeoutError, DeadlinePassed) as error:
            raise TryLater("the scope's process does not answer", retry_after_ms=1000) from error

    async def read(
        self, address: Address, after: int, *, entries_max: int, bytes_max: int, joined: bool
    ) -> Page | Resync:
        known = self._known(address)
        if known is not None and after == known.head:
            return Page(after + 1, after, [], "", known)
        limits = w.Limits(entries_max, bytes_max, joined)
        answer = await self.call(address, "read", w.Read(*address, after, limits))
        found = w.page_of(w.decode_page(answer))
        assert not isinstance(found, EntryPage)
        return found

    async def visible(
        self, address: Address, after: int, groups: str, *, entries_max: int, bytes_max: int
    ) -> EntryPage | Resync:
        known = self._known(address)
        if known is not None and after == known.head:
            return EntryPage(after, [], known)
        limits = w.Limits(entries_max, bytes_max)
        answer = await self.call(address, "read", w.Read(*address, after, limits, groups))
        found = w.page_of(w.decode_page(answer))
        assert not isinstance(found, Page)
        return found

    async def bounds(self, address: Address) -> Bounds:
        if (known := self._known(address)) is not None:
            return known
        found: w.Where = w.decode_where(await self.call(address, "bounds", w.Ask(*address)))
        return found.bounds()

    async def clear(self, address: Address) -> Bounds:
        found: w.Where = w.decode_where(await self.call(address, "clear", w.Ask(*address)))
        return found.bounds()

    async def get(self, address: Address, keys: Sequence[Key]) -> list[Row | None]:
        answer = await self.call(address, "get", w.Get(*address, list(keys)))
        return w.rows_of(w.decode_rows(answer))

    async def scan(self, address: Address, work: Work) -> Spool | None:
        asked = w.Scan(*address, works.encode_work(work))
        found = await self._spooled(address, "scan", asked)
        if found is None:
            return None
        ended, file = found
        spool = Spool(At(ended), file)
        spool.bytes = ended.size
        spool.result = works.decode_result(work, ended.result)
        spool.rewind()
        return spool

    async def snapshot(self, address: Address, coll: str) -> Snapshot | None:
        found = await self._spooled(address, "snapshot", w.Scan(*address, coll=coll))
        return None if found is None else Snapshot(At(found[0]), found[1], found[0].count)

    async def _spooled(
        self, address: Address, method: str, asked: Any
    ) -> tuple[w.Spooled, IO[bytes]] | None:
        payload = w.encode(asked)

        async def receive(link: Link) -> tuple[w.Spooled, IO[bytes]] | None:
            file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - returned
                max_size=MEMORY_BYTES_MAX, dir=str(self._spool_dir)
            )
            receiving = Receiving(link, file)
            receiving.stream = link.ask(
                method, payload, receiving, deadline_ms=int(SCAN_WAIT_S * 1000)
            )
            try:
                ended = w.decode_spooled(await receiving.future)
            except BaseException:
                link.cancel(receiving.stream)
                file.close()
                raise
            if ended is None:
                file.close()
                return None
            return ended, file

        return await self.with_link(lambda: self.peer_of(address), receive, SCAN_WAIT_S)

    async def run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    # -- following -------------------------------------------------------------------------------

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        followed = self._followed.get(address)
        if followed is None:
            followed = self._followed[address] = Followed(address, self._rejoin)
            self._join(followed)
        followed.waiting += 1
        try:
            async with asyncio.timeout(ANSWER_WAIT_S):
                await followed.ready.wait()
            if followed.error is not None:
                raise followed.error
            followed.taps.append(tap)
        except TimeoutError as error:
            raise TryLater("the scope's process does not answer", retry_after_ms=1000) from error
        finally:
            followed.waiting -= 1
            self._let_go(followed)
        return followed.bounds

    def _join(self, followed: Followed) -> None:
        peer = self.peer_of(followed.address)
        peer.wake()
        if peer.link is not None:  # else `connected` does it
            followed.join(peer.link)

    def unsubscribe(self, address: Address, tap: Tap) -> None:
        followed = self._followed.get(address)
        if followed is not None and tap in followed.taps:
            followed.taps.remove(tap)
            self._let_go(followed)

    def _let_go(self, followed: Followed) -> None:
        unused = not followed.taps and not followed.waiting
        if unused and self._followed.get(followed.address) is followed:
            del self._followed[followed.address]
            followed.leave()

    def follow_again(self, address: Address) -> None:
        """The scope is another process's now."""
        if (followed := self._followed.get(address)) is not None:
            self._rejoin(followed)

    def _rejoin(self, followed: Followed) -> None:
        """Its stream ended though the link stands: the scope moves."""
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, self._join_again, followed)

    def _join_again(self, followed: Followed) -> None:
        if not self.closed and self._followed.get(followed.address) is followed:
            self._join(followed)

    # -- inspection (actors.inspection.Inspector) ------------------------------------------------

    async def scopes(self, tenant: str, prefix: str, after: str, limit: int) -> list[Report]:
        asked = w.ScopesAsk(tenant, prefix, after, limit)
        found: list[Report] = []
        if self._find is not None:  # they are all one process's
            answer = await self.call(Address(tenant, ""), "scopes", asked)
            return list(w.decode_plain(answer))
        for answer in await self.ask_all("scopes", asked):
            found += answer
        found.sort(key=lambda outline: str(outline["scope"]))
        return found[:limit]

    async def show(self, address: Address) -> Report | None:
        found: Report | None = w.decode_plain(await self.call(address, "show", w.Ask(*address)))
        return found

    async def report(self) -> Report:
        nothing: Report = {"scopes_open": 0, "counters": dict.fromkeys(COUNTERS, 0), "bucket": None}
        return merged([nothing, *await self.ask_all("report", None)])

    async def ask_all(self, method: str, asked: Any) -> list[Any]:
        """The answers of all processes, but for those of tenants that sleep."""
        payload = w.encode(asked)
        answers = []
        for peer in list(self._peers.values()):
            if self._find is not None and peer.link is None:
                continue  # a tenant that sleeps: nobody is woken to be looked at
            # It may be starting, or starting again.
            answer = await self.with_link(
                lambda peer=peer: peer,  # type: ignore[misc]
                lambda link: link.call(method, payload, within_s=ALL_WAIT_S), ALL_WAIT_S,
            )  # fmt: skip
            answers.append(w.decode_plain(answer))
        return answers

    async def __aenter__(self) -> RemotePort:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class RemoteAlarms:
    """Alarms of scopes elsewhere."""

    def __init__(self, port: RemotePort) -> None:
        self._port = port

    async def set(self, address: Address, name: str, due_at_ms: int, payload: str | None) -> None:
        """Durable on return."""
        asked = w.AlarmAsk(*address, "set", name, due_at_ms, payload)
        await self._port.call(address, "alarms", asked)

    async def cancel(self, address: Address, name: str) -> bool:
        """Take an alarm back; whether there was one."""
        asked = w.AlarmAsk(*address, "cancel", name)
        found: bool = w.decode_bool(await self._port.call(address, "alarms", asked))
        return found
