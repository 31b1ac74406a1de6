"""What is said beside scopes that are elsewhere: the parties of this process hear each other at
once, and one stream a scope leads to the process that has it, which tells the other edges.

When a link ends its process takes back what this one kept, and here what came over it stands for a
while: until it is told again, or ABSENT_S have passed. A tenant's process is started for it only
where there are other edges.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from actors import link_wire as w
from actors.ephemeral import Ephemera, Key, Line, Party, Said
from actors.ephemeral_wire import Exchange
from actors.types import Address
from infra import clock, ids
from infra.errors import HoldfastError
from infra.link.connection import Link
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    from actors.remote import RemotePort

ABSENT_S: Final = 45.0  # what was heard stands without a link
RETURN_S: Final = 5.0  # and, with a new one, until the other edges have had time to tell it again
SETTLE_S: Final = 2.0
LINGER_S: Final = 10.0  # a stream without parties is kept: they come and go
AGAIN_S: Final = 0.05
_AGAIN: Final = frozenset({"moved", "closed", "fenced", "try_later", "busy"})


class RemoteEphemera:
    """`open` is the port's `ephemeral`. Use `aclose` at the end."""

    def __init__(
        self, port: RemotePort, *, absent_s: float = ABSENT_S, return_s: float = RETURN_S,
        linger_s: float = LINGER_S,
    ) -> None:  # fmt: skip
        self.port = port
        self.absent_s, self.return_s, self.linger_s = absent_s, return_s, linger_s
        self.ephemera = Ephemera(ids.new_id(), clock.now_ms)
        self.closed = False
        self.wakes = False  # there are other edges, and a process for each tenant
        self.tasks = TaskOwner()
        self._uplinks: dict[Address, Uplink] = {}

    def __len__(self) -> int:
        return len(self._uplinks)

    def open(self, address: Address, party: Party) -> Line:
        """See actors.port.StatePort.ephemeral."""
        line = self.ephemera.open(address, party)
        uplink = self._uplinks.get(address)
        if uplink is None:
            uplink = self._uplinks[address] = Uplink(self, address)
            uplink.look()
            if self.wakes and not uplink.joined:
                self.port.tenant(address.tenant).wake()
        uplink.entered()
        line.wait, line.on_close = uplink.settled, uplink.parted
        return line

    def look(self) -> None:
        """A link is there (again), or scopes have moved: speak where each scope is."""
        for uplink in list(self._uplinks.values()):
            uplink.look()

    def awake(self, tenant: str) -> None:
        """The tenant's process was started: another edge may speak over it."""
        for address, uplink in self._uplinks.items():
            if address.tenant == tenant and not uplink.joined:
                self.port.tenant(tenant).wake()
                return

    def drop(self, uplink: Uplink) -> None:
        """Nobody is there any more."""
        if self._uplinks.get(uplink.address) is uplink:
            del self._uplinks[uplink.address]
            uplink.end()

    async def aclose(self) -> None:
        """End every stream."""
        self.closed = True
        for uplink in list(self._uplinks.values()):
            self.drop(uplink)
        await self.tasks.aclose()


class Uplink(Exchange):
    """The party that stands for everybody elsewhere."""

    def __init__(self, owner: RemoteEphemera, address: Address) -> None:
        super().__init__()
        self.address = address
        self.line = Line(owner.ephemera, address, self, overrides=True)
        self._owner = owner
        self._parties = 0
        self._known = asyncio.Event()
        self._stream: _Stream | None = None
        self._ended = False
        self._stale: set[Key] = set()  # heard over a link that has ended, and not again
        self._stale_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    # -- parties -----------------------------------------------------------------------------------

    def entered(self) -> None:
        """One more party."""
        self._parties += 1
        _cancel(self._linger_timer)

    def parted(self) -> None:
        """One party less."""
        self._parties -= 1
        if not self._parties and not self._owner.closed:
            loop = asyncio.get_running_loop()
            self._linger_timer = loop.call_later(self._owner.linger_s, self._owner.drop, self)

    async def settled(self) -> None:
        """See Line."""
        if self._known.is_set() or self._owner.port.resting(self.address):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self._known.wait()

    # -- the stream --------------------------------------------------------------------------------

    def look(self) -> None:
        """Speak where the scope is now; where nobody can be reached, whoever can later calls it."""
        if self._ended:
            return
        place = self._owner.port.speaks_over(self.address)
        if place is None or (self._stream is not None and self._stream.place is place):
            return
        self._leave()
        try:
            stream = _Here(self, place) if isinstance(place, Ephemera) else _Over(self, place)
        except HoldfastError:
            return  # the link has ended, or is full
        self._stream = stream
        self.send = stream.send
        self.begin()
        self._flush()

    @property
    def joined(self) -> bool:
        """Whether there is a stream."""
        return self._stream is not None

    def _leave(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.leave()
            self._stale = {said.key for said in self.line.mine()}
            self._expire_in(self._owner.absent_s)

    def end(self) -> None:
        """Leave for good."""
        self._ended = True
        self._leave()
        _cancel(self._stale_timer)
        _cancel(self._linger_timer)
        self.line.close()

    def ended(self, stream: _Stream, error: HoldfastError) -> None:
        """The stream is over."""
        if stream is not self._stream:
            return
        self._leave()
        if error.code in _AGAIN:  # the link stands: the scope moves
            asyncio.get_running_loop().call_later(AGAIN_S, self.look)

    def came(self, stream: _Stream, payload: msgspec.Raw) -> None:
        """A part."""
        if stream is self._stream:
            self.receive(payload)

    # -- Exchange ----------------------------------------------------------------------------------

    def heard(self, said: Said) -> None:
        """See Party. Without a link nothing is gathered: the next one is told everything."""
        if self._stream is not None:
            super().heard(said)
            self._flush_later()

    def withdrawn(self, said: Said) -> None:
        """See Party."""
        if self._stream is not None:
            super().withdrawn(said)
            self._flush_later()

    def said(self, said: Said) -> None:
        """See Exchange. Where two users claimed a name, the scope's process has decided."""
        self._stale.discard(said.key)
        against = self.line.pass_on(said)
        if against is not None:
            self.withdrawn(against)

    def whole(self, missing: list[Said]) -> None:
        """See Exchange. The other edges may be about to join as well: they are given time."""
        self._stale = {said.key for said in missing}
        self._expire_in(self._owner.return_s)
        self._known.set()

    def _expire_in(self, delay_s: float) -> None:
        _cancel(self._stale_timer)
        if self._stale:
            loop = asyncio.get_running_loop()
            self._stale_timer = loop.call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._stale_timer = None
        if self._stream is None and self._owner.port.resting(self.address):
            self._expire_in(self._owner.absent_s)  # the process ended because nobody had a wish
            return
        stale, self._stale = self._stale, set()
        for said in [said for said in self.line.mine() if said.key in stale]:
            self.line.pass_back(said.topic, said.sender, said.stamp)

    def _flush(self) -> None:
        self.flush()
        self._flush_later()

    def _flush_later(self) -> None:
        stream = self._stream
        if self.waiting and isinstance(stream, _Over) and stream.flushing is None:
            work = self._credited(stream)
            stream.flushing = self._owner.tasks.spawn(work, name="ephemeral")

    async def _credited(self, stream: _Over) -> None:
        with contextlib.suppress(HoldfastError):  # the link has ended
            while self.waiting and stream is self._stream:
                await stream.place.credit(stream.number)
                self.flush()
        stream.flushing = None


class _Stream(Protocol):
    """What leads to the others, for as long as the scope is there."""

    @property
    def place(self) -> Link | Ephemera: ...

    def send(self, payload: msgspec.Raw) -> bool: ...

    def leave(self) -> None: ...


class _Over:
    """A stream of a link; fits infra.link.connection.Caller."""

    def __init__(self, uplink: Uplink, link: Link) -> None:
        self.place = link
        self.flushing: asyncio.Task[None] | None = None
        self._uplink = uplink
        self.number = link.ask("ephemeral", w.encode(w.Ask(*uplink.address)), self)

    def send(self, payload: msgspec.Raw) -> bool:
        """Within the credit."""
        return not self.place.congested and self.place.send(self.number, payload)

    def leave(self) -> None:
        """Say and hear no more over it."""
        if self.flushing is not None:
            self.flushing.cancel()
        self.place.cancel(self.number)

    def part(self, payload: msgspec.Raw) -> None:
        try:
            self._uplink.came(self, payload)
        except HoldfastError as error:
            self._uplink.ended(self, error)
            return
        self.place.taken(self.number, payload)

    def done(self, payload: msgspec.Raw) -> None:
        self._uplink.ended(self, HoldfastError("ended", code="moved"))

    def failed(self, error: HoldfastError) -> None:
        self._uplink.ended(self, error)


class _Here:
    """The scope is this process's own: other hosts' edges are parties of its host."""

    def __init__(self, uplink: Uplink, ephemera: Ephemera) -> None:
        self.place = ephemera
        self._uplink = uplink
        self._there = Exchange()
        self._there.line = ephemera.open(uplink.address, self._there)
        self._there.send = self._back
        self._there.begin()

    def send(self, payload: msgspec.Raw) -> bool:
        """At once."""
        self._there.receive(payload)
        if self._there.waiting:
            self._there.flush()  # the first that is heard is asked for everything
        return True

    def _back(self, payload: msgspec.Raw) -> bool:
        self._uplink.came(self, payload)
        return True

    def leave(self) -> None:
        """The scope goes elsewhere, and so does everybody who heard of this one."""
        self._there.line.close(quietly=True)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
