"""The scopes of this process for edges at the other end of links: the host's port, and what it
knows about itself, method by method.

What is sent keeps the order in which it became true: an answer to a read follows every batch it
rests on. An edge that takes too little is told where the head is instead of being sent batches: it
reads what it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from actors import link_wire as w
from actors import works
from actors.ephemeral_serving import Served
from actors.host import Host
from actors.inspection import Inspection
from actors.types import Address, Batch, Bounds, Draft, Outcome
from infra.errors import Closed, HoldfastError
from infra.link.connection import Answerer, Link
from infra.link.errors import DeadlinePassed, LinkLost
from infra.link.frames import LinkError
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.serving")

PART_BYTES: Final = 256 << 10
MOVED_RETRY_MS: Final = 50
RING_WAIT_S: Final = 60.0
SLEEP_WAIT_S: Final = 5.0
SUPERVISOR: Final = "supervisor"

Method = Callable[["Serving", Link, int, msgspec.Raw], Awaitable[msgspec.Raw]]


class Moved(Closed):
    """The scope belongs to another process now. Nothing was taken; ask its owner."""

    code = "moved"


class Serving:
    """Fits infra.link.connection.Service. `owns` says which scopes are this process's."""

    def __init__(
        self, host: Host, owns: Callable[[Address], bool] = lambda _address: True,
        *, more: Mapping[str, Method] | None = None,
    ) -> None:  # fmt: skip
        self._methods = {**_METHODS, **(more or {})}
        self.host = host
        self.owns = owns
        self.links: set[Link] = set()
        self._replies: dict[Link, _LinkReply] = {}
        self.inspection = Inspection(host)
        self.stopping = False
        self.linked = asyncio.Event()
        self._tasks = TaskOwner()
        self._taps: set[LinkTap | Served] = set()

    # -- infra.link.connection.Service -----------------------------------------------------------

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        self.greeted(link)
        try:
            if method == "append":
                self._append(link, stream, payload)
                return None
            if method == "subscribe":
                return self._subscribe(link, stream, payload)
            if method == "ephemeral":
                served = Served(self, link, stream, payload)
                self._taps.add(served)
                return served
            answer = self._methods.get(method)
            if answer is None:
                raise LinkError(f"no method {method[:40]!r}")
            running = _Running(link, stream)
            work = self._answer(running, answer, payload, deadline_ms)
            running.task = self._tasks.spawn(work, name=f"serve {method}")
            return running
        except HoldfastError as error:
            link.fail(stream, error)
        except Exception as error:  # the top of a request: the link and its other requests go on
            log.exception("request failed method=%s", method)
            link.fail(stream, error)
        return None

    def greeted(self, link: Link) -> None:
        """An edge is there. A supervisor asks and goes: it runs no handlers."""
        if link.peer == SUPERVISOR:
            return
        if link not in self.links:
            self.links.add(link)
            self.linked.set()

    def lost(self, link: Link) -> None:
        self.links.discard(link)
        self._replies.pop(link, None)

    def move(self, which: Callable[[Address], bool]) -> None:
        """Tell edges that these scopes are no longer here: they ask their owner from now on."""
        for tap in [tap for tap in self._taps if which(tap.address)]:
            tap.leave(Moved("the scope moves", retry_after_ms=MOVED_RETRY_MS))

    async def ring(
        self, address: Address, name: str, due_at: int, payload: str | None, attempt: int
    ) -> None:
        """Have an edge run the application's handler: its code lives there. Raises where none
        takes it: the alarm comes again.
        """
        async with asyncio.timeout(RING_WAIT_S):
            while not self.links:  # they are about to dial
                self.linked.clear()
                await self.linked.wait()
        link = next(iter(self.links))
        asked = w.AlarmAsk(*address, "ring", name, due_at, payload, attempt)
        await link.call("ring", w.encode(asked), within_s=RING_WAIT_S)

    async def sleep(self) -> bool:
        """Ask every edge whether this process may end now; whether it may. Edges then find it
        again when somebody wants something, and answer for it until then.
        """
        # Clients of several edges see each other by way of this process: it stays, scopes sleep.
        if self.host.open_scopes or len(self._tasks) or self.host.ephemera.shared:
            return False
        for link in tuple(self.links):
            try:
                answer = await link.call("sleep", w.encode(True), within_s=SLEEP_WAIT_S)
            except LinkLost:
                continue
            except HoldfastError:
                break
            if not w.decode_bool(answer):
                break
        else:
            if not self.host.open_scopes and not len(self._tasks):
                return True
        for link in tuple(self.links):
            with contextlib.suppress(HoldfastError):
                await link.call("sleep", w.encode(False), within_s=SLEEP_WAIT_S)
        return False

    async def aclose(self) -> None:
        """End what is under way; the host stays."""
        self.stopping = True
        self.move(lambda _address: True)
        await self._tasks.aclose()

    def address(self, tenant: str, scope: str) -> Address:
        """Raises Moved for a scope that is not this process's."""
        address = Address(tenant, scope)
        if self.stopping or not self.owns(address):
            raise Moved(f"{scope[:80]!r} is not here", retry_after_ms=MOVED_RETRY_MS)
        return address

    # -- requests --------------------------------------------------------------------------------

    def _append(self, link: Link, stream: int, payload: msgspec.Raw) -> None:
        asked: w.Append = w.decode_append(payload)
        address = self.address(asked.tenant, asked.scope)
        drafts = w.drafts_of(asked.drafts)
        self.host.append(
            address, drafts, self._reply_to(link), (stream, drafts), replicated=asked.replicated
        )

    def _reply_to(self, link: Link) -> _LinkReply:
        """One for each link: it is flushed once for all it answers in a turn."""
        reply = self._replies.get(link)
        if reply is None:
            reply = _LinkReply(link)
            if link in self.links:  # else it was lost, and nobody forgets the reply
                self._replies[link] = reply
        return reply

    def _subscribe(self, link: Link, stream: int, payload: msgspec.Raw) -> Answerer:
        asked: w.Ask = w.decode_ask(payload)
        tap = LinkTap(self, link, stream, self.address(asked.tenant, asked.scope))
        self._taps.add(tap)
        self._tasks.spawn(tap.begin(), name="serve subscribe")
        return tap

    def forget(self, tap: LinkTap | Served) -> None:
        """It follows no longer."""
        self._taps.discard(tap)

    async def _answer(
        self, running: _Running, method: Method, payload: msgspec.Raw, deadline_ms: int
    ) -> None:
        link, stream = running.link, running.stream
        try:
            async with asyncio.timeout(deadline_ms / 1000 if deadline_ms else None):
                link.done(stream, await method(self, link, stream, payload))
        except TimeoutError:
            link.fail(stream, DeadlinePassed("not within the deadline"))
        except HoldfastError as error:
            link.fail(stream, error)
        except Exception as error:  # as above
            log.exception("request failed")
            link.fail(stream, error)


class _LinkReply:
    """Sends the answers to appends of one link; fits actors.types.Reply."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def settle(self, tag: tuple[int, list[Draft]], outcomes: list[Outcome], bounds: Bounds) -> None:
        stream, drafts = tag
        try:
            payload = w.encode_settled(outcomes, drafts, bounds)
        except (HoldfastError, TypeError, ValueError) as error:
            self._link.fail(stream, error)
            return
        self._link.done(stream, payload)

    def flush(self) -> None:
        self._link.flush()


class LinkTap:
    """One edge's stream of one scope; fits actors.types.Tap and infra.link.connection.Answerer."""

    def __init__(self, serving: Serving, link: Link, stream: int, address: Address) -> None:
        self.address = address
        self._serving = serving
        self._link = link
        self._stream = stream
        self._ended = False

    async def begin(self) -> None:
        """Join the scope's followers and say where it begins."""
        try:
            bounds = await self._serving.host.subscribe(self.address, self)
        except HoldfastError as error:
            self.leave(error)
            return
        if self._ended:
            self._serving.host.unsubscribe(self.address, self)
            return
        self._link.notify(self._stream, w.encode(w.Following(w.where(bounds))))

    def deliver(self, batch: Batch) -> None:
        link = self._link
        # A batch that may not be sent now is not kept: the edge reads it when it gets round to it.
        if link.congested or not link.send(self._stream, w.encode_batch(batch)):
            self.moved(batch.bounds)

    def durable(self, bounds: Bounds) -> None:
        self._link.notify(self._stream, w.encode(w.DurableMoved(w.where(bounds))))

    def moved(self, bounds: Bounds) -> None:
        self._link.notify(self._stream, w.encode(w.HeadMoved(w.where(bounds))))

    def reset(self, bounds: Bounds) -> None:
        self._link.notify(self._stream, w.encode(w.WasReset(w.where(bounds))))

    # -- Answerer --------------------------------------------------------------------------------

    def part(self, payload: msgspec.Raw) -> None:
        self._link.taken(self._stream, payload)

    def finished(self) -> None:
        """The edge has nothing to send anyway."""

    def credited(self) -> None:
        """Later batches are sent again."""

    def gone(self) -> None:
        if not self._ended:
            self._ended = True
            self._serving.forget(self)
            self._serving.host.unsubscribe(self.address, self)

    def leave(self, error: HoldfastError) -> None:
        """End the stream with a reason."""
        self.gone()
        self._link.fail(self._stream, error)


class _Running:
    """A request with a task; fits Answerer."""

    def __init__(self, link: Link, stream: int) -> None:
        self.link = link
        self.stream = stream
        self.task: asyncio.Task[None] | None = None
        self.more = asyncio.Event()
        self.parts: asyncio.Queue[msgspec.Raw | None] = asyncio.Queue()  # bounded by the credit

    def part(self, payload: msgspec.Raw) -> None:
        self.parts.put_nowait(payload)

    def finished(self) -> None:
        self.parts.put_nowait(None)

    def credited(self) -> None:
        self.more.set()

    def gone(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def incoming(self) -> AsyncIterator[msgspec.Raw]:
        """What the edge sends along, as it comes."""
        while (payload := await self.parts.get()) is not None:
            yield payload
            self.link.taken(self.stream, payload)


# -- methods -------------------------------------------------------------------------------------


async def _read(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.Read = w.decode_read(payload)
    address = serving.address(asked.tenant, asked.scope)
    limits = asked.limits
    page: Any
    if asked.groups is None:
        page = await serving.host.read(
            address, asked.after, entries_max=limits.entries_max, bytes_max=limits.bytes_max,
            joined=limits.joined,
        )  # fmt: skip
    else:
        page = await serving.host.visible(
            address, asked.after, asked.groups, entries_max=limits.entries_max,
            bytes_max=limits.bytes_max,
        )  # fmt: skip
    return w.encode(w.wire_page(page))


async def _bounds(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.Ask = w.decode_ask(payload)
    bounds = await serving.host.bounds(serving.address(asked.tenant, asked.scope))
    return w.encode(w.where(bounds))


async def _clear(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.Ask = w.decode_ask(payload)
    bounds = await serving.host.clear(serving.address(asked.tenant, asked.scope))
    return w.encode(w.where(bounds))


async def _get(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.Get = w.decode_get(payload)
    rows = await serving.host.get(serving.address(asked.tenant, asked.scope), asked.keys)
    return w.encode(w.wire_rows(rows))


async def _scan(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.Scan = w.decode_scan(payload)
    host = serving.host
    spool = await host.scan(
        serving.address(asked.tenant, asked.scope), works.decode_work(asked.work)
    )
    if spool is None:
        return w.encode(None)
    try:
        result = works.encode_result(spool.result)

        async def read() -> bytes:
            if spool.in_memory:
                return spool.read(PART_BYTES)
            data: bytes = await host.run(lambda: spool.read(PART_BYTES))
            return data

        await send_parts(link, stream, read)
        return w.encode(w.Spooled(spool.epoch, spool.seq, spool.floor, spool.bytes, result))
    finally:
        spool.close()


async def _snapshot(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.Scan = w.decode_scan(payload)
    host = serving.host
    taken = await host.snapshot(serving.address(asked.tenant, asked.scope), asked.coll or "")
    if taken is None:
        return w.encode(None)
    try:
        taken.rewind()
        size = 0

        async def read() -> bytes:
            nonlocal size
            data: bytes = await host.run(lambda: taken.read(PART_BYTES))
            size += len(data)
            return data

        await send_parts(link, stream, read)
        return w.encode(w.Spooled(taken.epoch, taken.seq, taken.floor, size, b"", taken.count))
    finally:
        taken.close()


async def _alarms(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.AlarmAsk = w.decode_alarm(payload)
    address = serving.address(asked.tenant, asked.scope)
    alarms = serving.host.alarms
    if asked.what == "set":
        await alarms.set(address, asked.name, asked.due_at, asked.payload)
        return w.encode(True)
    if asked.what == "cancel":
        return w.encode(await alarms.cancel(address, asked.name))
    return w.encode(await alarms.of(address))


async def _scopes(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.ScopesAsk = w.decode_scopes(payload)
    found = await serving.inspection.scopes(asked.tenant, asked.prefix, asked.after, asked.limit)
    return w.encode(found)


async def _show(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    asked: w.Ask = w.decode_ask(payload)
    found = await serving.inspection.show(serving.address(asked.tenant, asked.scope))
    return w.encode(found)


async def _report(serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
    return w.encode(await serving.inspection.report())


def incoming(link: Link, stream: int) -> AsyncIterator[msgspec.Raw]:
    """The parts that come with a request of a method."""
    running = link.answerer(stream)
    assert isinstance(running, _Running)
    return running.incoming()


async def send_parts(link: Link, stream: int, read: Callable[[], Awaitable[bytes]]) -> None:
    """Everything `read` gives, within the credit."""
    while data := await read():
        part = w.encode(data)
        while not link.send(stream, part):
            await link.credit(stream)


_METHODS: Final[dict[str, Method]] = {
    "read": _read,
    "bounds": _bounds,
    "clear": _clear,
    "get": _get,
    "scan": _scan,
    "snapshot": _snapshot,
    "alarms": _alarms,
    "scopes": _scopes,
    "show": _show,
    "report": _report,
}
