"""A link over a socket: the shell of infra/link/channel.py.

What is sent within one turn of the loop leaves as one write, or as one for each FLUSH_BYTES: the
peer begins with those while we gather the rest, and a socket that is full is noticed. A peer that
shows no sign of life for SILENCE_S is given up, and so is one that lets more than BACKLOG_BYTES_MAX
pile up. Whoever waits for an answer when the link ends hears LinkLost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, assert_never, cast

import msgspec

from infra import clock
from infra.errors import HoldfastError
from infra.link.channel import (
    Answered,
    Arrived,
    Cancelled,
    Channel,
    Credited,
    Event,
    Failed,
    Finished,
    Heard,
    Opened,
    Ready,
    State,
)
from infra.link.errors import DeadlinePassed, LinkLost
from infra.link.frames import NOTHING, LinkError

log = logging.getLogger("holdfast.link")

SILENCE_S: Final = 15.0
PING_EVERY_S: Final = 5.0
GREETING_WAIT_S: Final = 5.0
BACKLOG_BYTES_MAX: Final = 256 << 20
WRITE_HIGH_BYTES: Final = 4 << 20
FLUSH_BYTES: Final = 64 << 10


class Caller(Protocol):
    """Who asked on a stream of ours."""

    def part(self, payload: msgspec.Raw) -> None:
        """A part of the answer came; call `Link.taken` once it is dealt with."""

    def done(self, payload: msgspec.Raw) -> None:
        """The answer."""

    def failed(self, error: HoldfastError) -> None:
        """The answer is an error, or LinkLost."""


class Answerer(Protocol):
    """Who answers on a stream of the peer's."""

    def part(self, payload: msgspec.Raw) -> None:
        """The peer sent a part; call `Link.taken` once it is dealt with."""

    def finished(self) -> None:
        """No more parts."""

    def credited(self) -> None:
        """There is credit to send again."""

    def gone(self) -> None:
        """Nobody waits any more, or the link is lost: let go of everything."""


class Service(Protocol):
    """What a side offers."""

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        """A request; who hears of its stream, if anybody need. Must not raise."""

    def lost(self, link: Link) -> None:
        """The link ended; its answerers have been told."""


class Link(asyncio.Protocol):
    """One end, greeted or not yet: `ready` says when. Every method is for the loop thread."""

    def __init__(self, channel: Channel, service: Service | None = None) -> None:
        self.channel = channel
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[str] = loop.create_future()
        self.ended = asyncio.Event()
        self.error: HoldfastError | None = None
        self.congested = False
        self.on_ready: Callable[[Link], None] | None = None
        self._loop = loop
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._callers: dict[int, Caller] = {}
        self._answerers: dict[int, Answerer] = {}
        self._moved = asyncio.Event()  # some stream has credit again, or the socket has drained
        self._flushing = False
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._pings = 0

    @property
    def peer(self) -> str:
        """The other side's name."""
        return self.channel.peer

    @property
    def open(self) -> bool:
        """Whether it can be used now."""
        return self.channel.state is State.OPEN and not self.ended.is_set()

    # -- asking ------------------------------------------------------------------------------------

    def ask(
        self, method: str, payload: msgspec.Raw, caller: Caller, *, deadline_ms: int = 0
    ) -> int:
        """Open a stream. Raises LinkLost or Busy: nothing was asked."""
        if not self.open:
            raise LinkLost("the link is not open")
        stream = self.channel.open(method, payload, deadline_ms)
        self._callers[stream] = caller
        self._flush_later()
        return stream

    async def call(self, method: str, payload: msgspec.Raw, *, within_s: float) -> msgspec.Raw:
        """One answer. Raises what the peer raised, LinkLost, DeadlinePassed."""
        waiter = _Waiter(self._loop)
        stream = self.ask(method, payload, waiter, deadline_ms=int(within_s * 1000))
        try:
            async with asyncio.timeout(within_s):
                return await waiter.future
        except TimeoutError as error:
            raise DeadlinePassed(f"no answer to {method} within {within_s:g} s") from error
        finally:
            self.cancel(stream)

    def send(self, stream: int, payload: msgspec.Raw) -> bool:
        """A part, within the credit; False where there is none."""
        sent = self.channel.send(stream, payload)
        self._flush_later()
        return sent

    def notify(self, stream: int, payload: msgspec.Raw) -> None:
        """A small part whatever the credit."""
        self.channel.notify(stream, payload)
        self._flush_later()

    async def credit(self, stream: int) -> None:
        """Returns once a part may be sent on the stream. Raises LinkLost."""
        while self.congested or not self.channel.credit_of(stream):
            if self.ended.is_set():
                raise LinkLost("the link ended")
            self._moved.clear()
            await self._moved.wait()

    def end(self, stream: int) -> None:
        """No more parts of ours on a stream of ours."""
        self.channel.end(stream)
        self._flush_later()

    def cancel(self, stream: int) -> None:
        """Wait no longer. Harmless once answered."""
        if self._callers.pop(stream, None) is not None:
            self.channel.cancel(stream)
            self._flush_later()

    def taken(self, stream: int, payload: msgspec.Raw) -> None:
        """A part was dealt with."""
        self.channel.taken(stream, memoryview(payload).nbytes)
        self._flush_later()

    # -- answering ---------------------------------------------------------------------------------

    def done(self, stream: int, payload: msgspec.Raw = NOTHING) -> None:
        """Answer."""
        self._answerers.pop(stream, None)
        try:
            self.channel.done(stream, payload)
        except LinkError as error:  # too large for a frame
            self.channel.fail(stream, error)
        self._flush_later()

    def fail(self, stream: int, error: BaseException) -> None:
        """Answer with an error."""
        self._answerers.pop(stream, None)
        self.channel.fail(stream, error)
        self._flush_later()

    def answerer(self, stream: int) -> Answerer | None:
        """Who answers on the stream, until it is answered."""
        return self._answerers.get(stream)

    # -- the socket --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of asyncio's
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._heard_at = clock.monotonic()
        self._timer = self._loop.call_later(GREETING_WAIT_S, self._late)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._heard_at = clock.monotonic()
        try:
            events = self.channel.receive(data)
        except LinkError as error:
            log.warning("link broken peer=%s error=%s", self.peer, error)
            self._end(error)
            return
        for event in events:
            if self.ended.is_set():
                return
            self._happened(event)
        self._flush_later()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(None)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        self._moved.set()
        for answerer in tuple(self._answerers.values()):
            answerer.credited()

    def flush(self) -> None:
        """Write what has gathered."""
        self._flushing = False
        transport = self._transport
        groups = self.channel.take()
        if not groups or transport is None or transport.is_closing():
            return
        transport.write(groups[0] if len(groups) == 1 else b"".join(groups))
        if self.congested and transport.get_write_buffer_size() > BACKLOG_BYTES_MAX:
            self._end(LinkLost("the peer does not read"))

    def close(self) -> None:
        """End the link; what was written still leaves."""
        self.flush()
        self._end(None, abort=False)

    async def wait_ended(self) -> None:
        """Returns once the link is over."""
        await self.ended.wait()

    def _flush_later(self) -> None:
        if self.channel.gathered >= FLUSH_BYTES:
            self.flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def _late(self) -> None:
        if not self.ready.done():
            self._end(LinkLost("the peer did not greet in time"))

    def _tick(self) -> None:
        if self.ended.is_set():
            return
        if clock.monotonic() - self._heard_at > SILENCE_S:
            self._end(LinkLost(f"no sign of life from {self.peer} for {SILENCE_S:g} s"))
            return
        self._pings += 1
        self.channel.ping(self._pings)
        self._flush_later()
        self._timer = self._loop.call_later(PING_EVERY_S, self._tick)

    def _end(self, error: HoldfastError | None, *, abort: bool = True) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        self._moved.set()
        self.error = error
        lost = LinkLost(f"the link to {self.peer or 'the peer'} ended: {error or 'closed'}")
        if self._timer is not None:
            self._timer.cancel()
        if not self.ready.done():
            self.ready.set_exception(error or lost)
            self.ready.exception()  # nobody need wait for it
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if abort:
                transport.abort()
            else:
                transport.close()
        callers, self._callers = self._callers, {}
        answerers, self._answerers = self._answerers, {}
        for answerer in answerers.values():
            answerer.gone()
        for caller in callers.values():
            caller.failed(lost)
        if self._service is not None:
            self._service.lost(self)

    # -- events ------------------------------------------------------------------------------------

    def _happened(self, event: Event) -> None:  # noqa: PLR0912 - one branch for each event
        match event:
            case Answered(stream=stream, payload=payload):
                if (caller := self._callers.pop(stream, None)) is not None:
                    caller.done(payload)
            case Arrived(stream=stream, payload=payload):
                self._part(stream, payload)
            case Opened():
                self._asked(event)
            case Failed(stream=stream, error=error):
                if (caller := self._callers.pop(stream, None)) is not None:
                    caller.failed(error)
            case Credited(stream=stream):
                self._moved.set()
                if (answerer := self._answerers.get(stream)) is not None:
                    answerer.credited()
            case Cancelled(stream=stream):
                if (answerer := self._answerers.pop(stream, None)) is not None:
                    answerer.gone()
            case Finished(stream=stream):
                if (answerer := self._answerers.get(stream)) is not None:
                    answerer.finished()
            case Heard():
                pass  # that something came is all that counts
            case Ready(peer=peer):
                self._greeted(peer)
            case _:
                assert_never(event)

    def _greeted(self, peer: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(PING_EVERY_S, self._tick)
        if not self.ready.done():
            self.ready.set_result(peer)
        if self.on_ready is not None:
            self.on_ready(self)

    def _asked(self, event: Opened) -> None:
        if self._service is None:
            self.channel.fail(event.stream, LinkError(f"{event.method!r} is not answered here"))
            return
        answerer = self._service.opened(
            self, event.stream, event.method, event.payload, event.deadline_ms
        )
        if answerer is not None:
            self._answerers[event.stream] = answerer

    def _part(self, stream: int, payload: msgspec.Raw) -> None:
        other: Caller | Answerer | None = self._callers.get(stream) or self._answerers.get(stream)
        if other is None:
            self.channel.taken(stream, memoryview(payload).nbytes)
        else:
            other.part(payload)


class _Waiter:
    """A caller that waits for one answer."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[msgspec.Raw] = loop.create_future()

    def part(self, payload: Any) -> None:
        """One answer has no parts."""

    def done(self, payload: msgspec.Raw) -> None:
        if not self.future.done():
            self.future.set_result(payload)

    def failed(self, error: HoldfastError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
