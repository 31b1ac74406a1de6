"""Who is in a room over other edges (actors/ephemeral.py): members and presence, told and heard.

A member is `kept` under its session for as long as this edge knows it, in its user's name, and so
is what it points at. `clear` passes by: nobody is a member any more until the next heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from actors.ephemeral import Line, Party, Said, Taken
from actors.types import Address
from edge.dialects.vuer.roster import MemberState, SessionTaken
from infra.errors import HoldfastError

MEMBER: Final = "member"
PRESENCE: Final = "presence"
CLEAR: Final = "clear"


class Shared(msgspec.Struct, frozen=True, array_like=True):
    """A member as edges tell each other. `listed`: whether a `state` names it."""

    state: MemberState
    listed: bool


_decode_member: Final = msgspec.json.Decoder(Shared).decode


class Rooms(Protocol):
    """What hears of it."""

    def member_elsewhere(self, address: Address, user: str, shared: Shared) -> None:
        """A member of another edge, new or changed."""

    def left_elsewhere(self, address: Address, session: str) -> None:
        """It is a member no more."""

    def presence_elsewhere(self, address: Address, session: str, state: Any) -> None:
        """What it points at; None for nothing."""

    def cleared_elsewhere(self, address: Address) -> None:
        """The room was begun anew."""


class Unheard:
    """A party that only speaks."""

    def heard(self, said: Said) -> None:
        """Nobody listens."""

    def withdrawn(self, said: Said) -> None:
        """As above."""


def tell_cleared(address: Address, ephemeral: Callable[[Address, Party], Line]) -> None:
    """The room is about to be begun anew; all of its edges hear it, this one as well."""
    line = ephemeral(address, Unheard())
    line.say(CLEAR, "", "")
    line.close()


class Elsewhere:
    """Of one room; fits actors.ephemeral.Party. `waiting`: who is about to enter."""

    def __init__(
        self, rooms: Rooms, address: Address, ephemeral: Callable[[Address, Party], Line]
    ) -> None:
        self.waiting = 0
        self._rooms = rooms
        self._address = address
        self.line = ephemeral(address, self)
        for said in self.line.others():
            self.heard(said)

    # -- told --------------------------------------------------------------------------------------

    def member(self, user: str, state: MemberState, *, listed: bool = True) -> None:
        """The session is this edge's now. Raises SessionTaken."""
        body = msgspec.json.encode(Shared(state, listed)).decode()
        try:
            self.line.say(MEMBER, state.session_id, body, user=user, kept=True)
        except Taken as error:
            raise SessionTaken("this session is another user's") from error
        except HoldfastError:
            return  # the room is full of members: the other edges do not see this one

    def presence(self, user: str, session: str, state: Any) -> None:
        """What it points at; None for nothing."""
        if state is None:
            self.line.take_back(PRESENCE, session)
            return
        body = msgspec.json.encode(state).decode()
        try:
            self.line.say(PRESENCE, session, body, user=user, kept=True)
        except HoldfastError:
            return  # too much is pointed at in this room: the others do not see it

    def left(self, session: str) -> None:
        """It is nobody's any more."""
        self.line.take_back(PRESENCE, session)
        self.line.take_back(MEMBER, session)

    # -- heard -------------------------------------------------------------------------------------

    def heard(self, said: Said) -> None:
        if said.topic == MEMBER:
            shared = _decode_member(said.body)
            self._rooms.member_elsewhere(self._address, said.user, shared)
            pointed = self.line.other((PRESENCE, said.sender))
            if pointed is not None and shared.listed:
                self.heard(pointed)  # it may have come before its member
        elif said.topic == PRESENCE:
            state = msgspec.json.decode(said.body)
            self._rooms.presence_elsewhere(self._address, said.sender, state)
        elif said.topic == CLEAR:
            self._rooms.cleared_elsewhere(self._address)

    def withdrawn(self, said: Said) -> None:
        if said.topic == MEMBER:
            self._rooms.left_elsewhere(self._address, said.sender)
        elif said.topic == PRESENCE:
            self._rooms.presence_elsewhere(self._address, said.sender, None)
