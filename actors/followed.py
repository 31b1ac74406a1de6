"""A scope that this edge follows: one stream, shared by all its taps.

Always true: `bounds` is what the taps have been told last; of a stream that was joined again they
hear `moved` or `reset` before anything else, and nothing twice. Within an epoch the head never goes
back: who offers less than was seen has been away, and has not noticed yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from actors import link_wire as w
from actors.types import Address, Bounds, Tap
from infra.errors import HoldfastError
from infra.link.connection import Link

_AGAIN = frozenset({"moved", "closed", "fenced", "try_later", "busy"})


class Stream(Protocol):
    """One life of what is followed. `source` names who has the scope."""

    source: str

    def leave(self) -> None:
        """Nobody listens any more."""


class Followed:
    """`rejoin` is called where the stream ended and the link did not."""

    def __init__(self, address: Address, rejoin: Callable[[Followed], None]) -> None:
        self.address = address
        self.bounds = Bounds("", 0, 0, 0)
        self.taps: list[Tap] = []
        self.waiting = 0  # who will be a tap once it is ready
        self.ready = asyncio.Event()
        self.error: HoldfastError | None = None
        self._rejoin = rejoin
        self.stream: Stream | None = None

    def join(self, link: Link) -> None:
        """Follow over this link from now on."""
        stream = _LinkStream(self, link)
        self.follow(stream)
        try:
            stream.number = link.ask("subscribe", w.encode(w.Ask(*self.address)), stream)
        except HoldfastError:
            self.stream = None  # the link has ended: the next one joins

    def follow(self, stream: Stream) -> None:
        """Listen to this one instead of what there was."""
        self.leave()
        self.stream = stream

    def leave(self) -> None:
        """Follow no longer."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.leave()

    def heard(self, stream: Stream, payload: msgspec.Raw) -> None:
        """A notice came."""
        if stream is not self.stream:
            return
        notice: w.Notice = w.decode_notice(payload)
        bounds = notice.where.bounds()
        if isinstance(notice, w.Following):
            self.began(bounds)
            return
        self.bounds = bounds
        match notice:
            case w.Delivered():
                batch = w.batch_of(notice)
                for tap in tuple(self.taps):
                    tap.deliver(batch)
            case w.DurableMoved():
                for tap in tuple(self.taps):
                    tap.durable(bounds)
            case w.HeadMoved():
                for tap in tuple(self.taps):
                    tap.moved(bounds)
            case w.WasReset():
                for tap in tuple(self.taps):
                    tap.reset(bounds)

    def began(self, bounds: Bounds) -> None:
        """A stream begins at `bounds`; taps hear what happened since the one before. One that
        begins in the past is left, for another to be joined.
        """
        before = self.bounds
        if self.is_past(bounds):
            self.leave()
            self._rejoin(self)
            return
        self.bounds = bounds
        self.error = None
        if self.ready.is_set():
            cut = before.epoch not in ("", bounds.epoch)
            for tap in tuple(self.taps):
                if cut:
                    tap.reset(bounds)
                elif bounds.head > before.head:
                    tap.moved(bounds)
                elif bounds != before:
                    tap.durable(bounds)
        self.ready.set()

    def is_past(self, bounds: Bounds) -> bool:
        """Whether more than this was seen of the same history."""
        return bounds.epoch == self.bounds.epoch and bounds.head < self.bounds.head

    def ended(self, stream: Stream, error: HoldfastError) -> None:
        """The stream is over."""
        if stream is not self.stream:
            return
        self.stream = None
        if error.code == "link_lost":
            return  # joined again with the next link
        if error.code in _AGAIN or self.ready.is_set():
            self._rejoin(self)
            return
        self.error = error
        self.ready.set()


class _LinkStream:
    """Of a scope in another process; fits infra.link.connection.Caller."""

    def __init__(self, followed: Followed, link: Link) -> None:
        self.link = link
        self.number = 0
        self.source = link.peer
        self._followed = followed

    def leave(self) -> None:
        self.link.cancel(self.number)

    def part(self, payload: msgspec.Raw) -> None:
        self._followed.heard(self, payload)
        self.link.taken(self.number, payload)

    def done(self, payload: msgspec.Raw) -> None:
        self._followed.ended(self, HoldfastError("ended", code="moved"))

    def failed(self, error: HoldfastError) -> None:
        self._followed.ended(self, error)
