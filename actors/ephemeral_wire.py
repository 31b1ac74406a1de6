"""One end of a stream of ephemeral traffic between two processes (actors/ephemeral.py). Pure.

Each side first tells all that its other parties keep, between `Begin` and `Whole`, then what
changes. Without credit nothing waits but the names of what has changed: once there is some again
the last values are told, and what was passing is lost. So a slow link costs neither memory nor an
old value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from actors.ephemeral import KEPT_MAX, Key, Line, Said
from actors.link_wire import Decoding, encode


class Unsaid(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What was said at that stamp or before is taken back."""

    topic: str
    sender: str
    at: int
    by: str


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """What follows up to `Whole` is all that is kept on this side."""


class Whole(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """See Begin."""


Told = Said | Unsaid | Begin | Whole
decode_told = Decoding(Told)
_BEGIN: Final = encode(Begin())
_WHOLE: Final = encode(Whole())


class Exchange:
    """Fits actors.ephemeral.Party. `line` is its place among the parties of this process.

    `send` gives a part to the stream, and says whether there was credit. `flush` is to be called
    once there is some again.
    """

    def __init__(self) -> None:
        self.line: Line
        self.send: Callable[[msgspec.Raw], bool] = _nowhere
        self._due: dict[Key, Said] = {}  # what the other side may not know the last of
        self._beginning = self._ending = False
        self._listed: set[Key] | None = None

    @property
    def waiting(self) -> bool:
        """Whether something is still to be told."""
        return self._beginning or self._ending or bool(self._due)

    # -- to the other side -------------------------------------------------------------------------

    def begin(self) -> None:
        """Tell everything, from the beginning."""
        self._due = {said.key: said for said in self.line.others()}
        self._beginning = self._ending = True

    def heard(self, said: Said) -> None:
        """See Party."""
        told = not self.waiting and self.send(encode(said))
        if not told and said.kept:
            self._later(said)

    def withdrawn(self, said: Said) -> None:
        """See Party."""
        if self.waiting or not self.send(encode(_unsaid(said))):
            self._later(said)

    def _later(self, said: Said) -> None:
        self._due[said.key] = said
        if len(self._due) > KEPT_MAX:
            self.begin()  # names of what is gone are no longer gathered: the list says it

    def flush(self) -> None:
        """Tell what waits, as far as there is credit."""
        if self._beginning:
            if not self.send(_BEGIN):
                return
            self._beginning = False
        while self._due:
            key, said = next(iter(self._due.items()))
            held = self.line.other(key)
            if not self.send(encode(_unsaid(said) if held is None else held)):
                return
            self._due.pop(key, None)
        if self._ending and self.send(_WHOLE):
            self._ending = False

    # -- from the other side -----------------------------------------------------------------------

    def receive(self, payload: msgspec.Raw) -> None:
        """A part came. Raises LinkError."""
        told: Told = decode_told(payload)
        match told:
            case Said():
                if told.kept and self._listed is not None:
                    self._listed.add(told.key)
                self.said(told)
            case Unsaid(topic=topic, sender=sender, at=at, by=by):
                self.line.pass_back(topic, sender, (at, by))
            case Begin():
                self._listed = set()
            case Whole():
                listed, self._listed = self._listed or set(), None
                self.whole([one for one in self.line.mine() if one.key not in listed])

    def said(self, said: Said) -> None:
        """At the other end."""
        self.line.pass_on(said)

    def whole(self, missing: list[Said]) -> None:
        """All has been told, and these, told earlier, were not among it."""
        for said in missing:
            self.line.pass_back(said.topic, said.sender, said.stamp)


def _unsaid(said: Said) -> Unsaid:
    return Unsaid(said.topic, said.sender, said.at, said.by)


def _nowhere(_payload: msgspec.Raw) -> bool:
    return False
