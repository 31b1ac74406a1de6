"""What is said beside a scope's history: who is here, what they point at, messages. Pure, in
memory only.

A party speaks and listens: a dialect of this process, or a link to another one. What a party says
every other party of the scope hears. What is `kept` stands until its party takes it back or ends;
whoever comes later finds it. Nothing here opens, wakes or keeps awake a scope.

Always true: of a sender in a topic one value is held, the last by stamp, whichever party said it,
so all processes hold the same one in the end; and while it is held it is its user's: what another
user says under that name is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from actors.types import Address
from infra.errors import Busy, ProtocolError, ScopeError

BODY_BYTES_MAX: Final = 1 << 20
KEPT_MAX: Final = 20_000  # in one scope
KEPT_BYTES_MAX: Final = 64 << 20

Key = tuple[str, str]  # (topic, sender)


class Said(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """`at` and `by` are its stamp: wall milliseconds, at least those of all heard before, and the
    process where it was said first. `body` is the speaker's text.
    """

    topic: str
    sender: str
    body: str
    user: str
    kept: bool
    at: int
    by: str

    @property
    def key(self) -> Key:
        """Of what it is the last value."""
        return self.topic, self.sender

    @property
    def stamp(self) -> tuple[int, str]:
        """Greater is later."""
        return self.at, self.by


class Taken(ScopeError):
    """Another user is that sender already."""

    code = "forbidden"


class Party(Protocol):
    """Who hears. Both are called within `say`, `take_back` or `close` of another's line."""

    def heard(self, said: Said) -> None:
        """Another party has said it. A kept one may be a sender's of this party's own: it speaks
        elsewhere now, and this party's value holds no more.
        """

    def withdrawn(self, said: Said) -> None:
        """What another party kept is gone."""


class Line:
    """A party's place in a scope, until closed."""

    def __init__(
        self, ephemera: Ephemera, address: Address, party: Party, *, overrides: bool = False
    ) -> None:
        self.address = address
        self.party = party
        self.overrides = overrides  # it leads to who decides which user a sender is
        self.wait: Callable[[], Awaitable[None]] | None = None
        self.on_close: Callable[[], None] | None = None
        self._ephemera = ephemera
        self._room: _Room | None = ephemera.enter(self)

    @property
    def closed(self) -> bool:
        """Whether it says and hears no more."""
        return self._room is None

    async def settled(self) -> None:
        """Returns once what others keep is known, or nobody could say within a short while."""
        if self.wait is not None:
            await self.wait()

    def say(
        self, topic: str, sender: str, body: str, *, user: str = "", kept: bool = False
    ) -> None:
        """Have the others hear it. A passing one may be lost, and so may a kept one that a later
        one replaces; the last kept one arrives.

        Raises Taken, Busy where too much is kept, ProtocolError for what is too large.
        """
        room = self._room
        if room is None:
            return
        if (size := len(body.encode("utf-8", "replace"))) > BODY_BYTES_MAX:
            raise ProtocolError(f"{size} bytes; a message has at most {BODY_BYTES_MAX}")
        if kept:
            held = room.held.get((topic, sender))
            if held is not None and held.said.user != user:
                raise Taken(f"{sender[:80]!r} is another user")
            if not room.fits(held, len(body)):
                raise Busy(f"too much is kept in {self.address.scope[:80]!r}")
        said = Said(topic, sender, body, user, kept, self._ephemera.next_at(), self._ephemera.name)
        room.say(self, said)

    def take_back(self, topic: str, sender: str) -> None:
        """It holds no more. Harmless where this party does not keep it."""
        room = self._room
        held = None if room is None else room.held.get((topic, sender))
        if room is not None and held is not None and held.line is self:
            room.drop(held.said)

    def close(self, *, quietly: bool = False) -> None:
        """Take back everything and hear no more. May be called twice.

        `quietly`: the others are not told; they find out elsewhere.
        """
        room, self._room = self._room, None
        if room is None:
            return
        room.leave(self, tell=not quietly)
        self._ephemera.left(self.address)
        if self.on_close is not None:
            self.on_close()

    # -- what is held ------------------------------------------------------------------------------

    def others(self) -> list[Said]:
        """What other parties keep."""
        held = () if self._room is None else self._room.held.values()
        return [one.said for one in held if one.line is not self]

    def other(self, key: Key) -> Said | None:
        """One of them."""
        held = None if self._room is None else self._room.held.get(key)
        return None if held is None or held.line is self else held.said

    def mine(self) -> list[Said]:
        """What this party keeps."""
        held = () if self._room is None else self._room.held.values()
        return [one.said for one in held if one.line is self]

    # -- a line to another process -----------------------------------------------------------------

    def pass_on(self, said: Said) -> Said | None:
        """What was said at the other end. What is held under the name for another user comes back:
        it stays, or, on a line that overrides, it is replaced.
        """
        room = self._room
        if room is None:
            return None
        self._ephemera.seen(said.at)
        if not said.kept:
            room.say(self, said)
            return None
        held = room.held.get(said.key)
        # What this line has said itself it may replace by another user's: the one before has left.
        free = held is None or held.line is self or held.said.user == said.user
        against = None if held is None or free else held.said
        if held is not None and free and said.stamp <= held.said.stamp:
            if said.stamp == held.said.stamp:
                held.line = self  # the same, by another way: the one before is about to end
            return None
        if (free or self.overrides) and room.fits(held, len(said.body)):
            room.say(self, said)
        return against

    def pass_back(self, topic: str, sender: str, stamp: tuple[int, str]) -> None:
        """What was said at that stamp or before has been taken back at the other end."""
        room = self._room
        held = None if room is None else room.held.get((topic, sender))
        if room is None or held is None or held.line is not self:
            return
        if held.said.stamp <= stamp:
            room.drop(held.said)


class Ephemera:
    """What is said in the scopes of one process. `name` is no other process's."""

    def __init__(self, name: str, now_ms: Callable[[], int]) -> None:
        self.name = name
        self._now_ms = now_ms
        self._last = 0
        self._rooms: dict[Address, _Room] = {}

    def __len__(self) -> int:
        return len(self._rooms)

    def open(self, address: Address, party: Party) -> Line:
        """A place in the scope for the party; see actors.port.StatePort.ephemeral."""
        return Line(self, address, party)

    def enter(self, line: Line) -> _Room:
        """The scope's room, with the line in it."""
        room = self._rooms.setdefault(line.address, _Room())
        room.lines[line] = None
        return room

    def left(self, address: Address) -> None:
        """A line has gone from the room."""
        room = self._rooms.get(address)
        if room is not None and not room.lines:
            del self._rooms[address]

    @property
    def shared(self) -> bool:
        """Whether parties would hear no more of each other without this process."""
        return any(len(room.lines) > 1 for room in self._rooms.values())

    def lines_in(self, address: Address) -> int:
        """How many parties there are."""
        room = self._rooms.get(address)
        return 0 if room is None else len(room.lines)

    def next_at(self) -> int:
        """Later than everything said or heard here."""
        self._last = max(self._last + 1, self._now_ms())
        return self._last

    def seen(self, at: int) -> None:
        """Something was said elsewhere at that time."""
        self._last = max(self._last, at)


class _Held:
    __slots__ = ("line", "said")

    def __init__(self, line: Line, said: Said) -> None:
        self.line = line
        self.said = said


class _Room:
    """One scope's."""

    __slots__ = ("chars", "held", "lines")

    def __init__(self) -> None:
        self.lines: dict[Line, None] = {}
        self.held: dict[Key, _Held] = {}
        self.chars = 0

    def fits(self, held: _Held | None, size: int) -> bool:
        """Whether a body of so many characters may be kept in that one's place."""
        if held is None:
            return len(self.held) < KEPT_MAX and self.chars + size <= KEPT_BYTES_MAX
        return self.chars + size - len(held.said.body) <= KEPT_BYTES_MAX

    def say(self, line: Line, said: Said) -> None:
        if said.kept:
            before = self.held.get(said.key)
            self.chars += len(said.body) - (0 if before is None else len(before.said.body))
            self.held[said.key] = _Held(line, said)
        for other in tuple(self.lines):
            if other is not line:
                other.party.heard(said)

    def drop(self, said: Said, *, tell: bool = True) -> None:
        line = self.held.pop(said.key).line
        self.chars -= len(said.body)
        for other in tuple(self.lines):
            if tell and other is not line:
                other.party.withdrawn(said)

    def leave(self, line: Line, *, tell: bool) -> None:
        self.lines.pop(line, None)
        for held in [one for one in self.held.values() if one.line is line]:
            self.drop(held.said, tell=tell)
