"""Who is in a room, and what each points at (section 12). Pure: the time is an argument.

A session belongs to one user for as long as it is known here: from its join until it leaves, or
MEMBER_TTL_S after its socket is gone. The newest socket of a session wins; another user's is
refused. Presence is the last state a session has sent, told to the others at most once in
PRESENCE_EVERY_S. Members whose sockets other processes have are `elsewhere`: those say when they
go.

Always true: a member without a holder has `gone_at` or is elsewhere; a held one neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from edge.dialects.vuer.limits import MEMBER_TTL_S, MEMBERS_MAX, PRESENCE_EVERY_S
from infra.errors import ProtocolError

H = TypeVar("H")  # what holds a member's place: a connection


class MemberState(msgspec.Struct, frozen=True, rename="camel"):
    """One session as others see it. `last_seen` is wall time in milliseconds."""

    session_id: str
    vector_clock: dict[str, int]
    last_seen: int
    connected: bool


class SessionTaken(ProtocolError):
    """The session is another user's."""

    code = "session_taken"


class _Member(Generic[H]):
    __slots__ = (
        "due", "elsewhere", "gone_at", "holder", "listed", "sent_at", "state", "told", "unsent",
        "user",
    )  # fmt: skip

    def __init__(self, user: str, state: MemberState) -> None:
        self.user = user
        self.state = state
        self.holder: H | None = None
        self.gone_at: float | None = None
        self.elsewhere = False
        self.listed = True
        self.told: Any = None  # presence as the others know it
        self.unsent: Any = None
        self.due = False  # `unsent` waits for its time
        self.sent_at = float("-inf")


class Roster(Generic[H]):
    """The members of one room. `now` is monotonic seconds, `at` wall milliseconds."""

    def __init__(self) -> None:
        self._members: dict[str, _Member[H]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def states(self) -> list[MemberState]:
        """Everyone, in the order of joining."""
        return [member.state for member in self._members.values() if member.listed]

    def state(self, session: str) -> MemberState | None:
        """One of them."""
        member = self._members.get(session)
        return member.state if member is not None and member.listed else None

    def holder(self, session: str) -> H | None:
        """Whose socket speaks for the session."""
        member = self._members.get(session)
        return None if member is None else member.holder

    def holders(self) -> list[H]:
        """The sockets of everyone who has one."""
        return [m.holder for m in self._members.values() if m.holder is not None]

    # -- coming and going --------------------------------------------------------------------------

    def join(self, session: str, user: str, holder: H, at: int) -> tuple[H | None, bool]:
        """(the holder this one replaces, whether the session is new here).

        Raises SessionTaken, and ProtocolError where the room is full.
        """
        member = self._members.get(session)
        fresh = member is None
        if member is None:
            if len(self._members) >= MEMBERS_MAX:
                raise ProtocolError(f"a room has at most {MEMBERS_MAX} members", code="forbidden")
            member = _Member(user, MemberState(session, {}, at, connected=True))
            self._members[session] = member
        elif member.user != user:
            raise SessionTaken("this session is another user's")
        previous, member.holder = member.holder, holder
        member.gone_at, member.elsewhere = None, False
        fresh, member.listed = fresh or not member.listed, True
        member.state = msgspec.structs.replace(member.state, last_seen=at, connected=True)
        return (None if previous is holder else previous), fresh

    def seen(
        self, session: str, holder: H, clock: Mapping[str, int] | None, at: int
    ) -> tuple[MemberState, bool] | None:
        """A heartbeat: (the member, whether it is new on the list); None where it is not the
        holder's to say.
        """
        member = self._members.get(session)
        if member is None or member.holder is not holder:
            return None
        fresh, member.listed = not member.listed, True
        known = member.state.vector_clock if clock is None else dict(clock)
        member.state = msgspec.structs.replace(member.state, vector_clock=known, last_seen=at)
        return member.state, fresh

    def gone(self, session: str, holder: H, now: float) -> MemberState | None:
        """The socket has ended; None where it did not speak for the session any more."""
        member = self._members.get(session)
        if member is None or member.holder is not holder:
            return None
        member.holder = None
        member.gone_at = now
        member.state = msgspec.structs.replace(member.state, connected=False)
        return member.state

    def leave(self, session: str, holder: H) -> bool:
        """The session says that it goes for good; whether it was `holder`'s to say."""
        member = self._members.get(session)
        if member is None or member.holder is not holder:
            return False
        del self._members[session]
        return True

    def empty(self) -> None:
        """Nobody is a member any more; who has a socket is one again with its next heartbeat."""
        self._members = {s: m for s, m in self._members.items() if m.holder is not None}
        for member in self._members.values():
            member.listed, member.told, member.unsent = False, None, None

    def expire(self, now: float) -> list[str]:
        """Remove who has been gone for MEMBER_TTL_S, and say who they were."""
        limit = now - MEMBER_TTL_S
        left = [
            session
            for session, member in self._members.items()
            if member.gone_at is not None and member.gone_at <= limit
        ]
        for session in left:
            del self._members[session]
        return left

    # -- in other processes ------------------------------------------------------------------------

    @property
    def any_here(self) -> bool:
        """Whether a session is this process's."""
        return any(not member.elsewhere for member in self._members.values())

    def here(self) -> list[tuple[str, MemberState, bool]]:
        """This process's: (user, member, whether it is on the list)."""
        members = self._members.values()
        return [(m.user, m.state, m.listed) for m in members if not m.elsewhere]

    def elsewhere(
        self, user: str, state: MemberState, *, listed: bool
    ) -> tuple[H | None, bool]:  # fmt: skip
        """Another process has the session: (the holder that had it here, whether it is new on the
        list).
        """
        member = self._members.get(state.session_id)
        known = member is not None and member.listed
        if member is None:
            member = self._members[state.session_id] = _Member(user, state)
        holder, member.holder = member.holder, None
        member.gone_at, member.elsewhere, member.due = None, True, False
        member.user, member.state, member.listed = user, state, listed
        return holder, listed and not known

    def left_elsewhere(self, session: str) -> bool:
        """That process has it no more; whether it was on the list."""
        member = self._members.get(session)
        if member is None or not member.elsewhere:
            return False
        del self._members[session]
        return member.listed

    def told(self, session: str) -> Any:
        """What the others know the session to point at."""
        member = self._members.get(session)
        return None if member is None else member.told

    def points_elsewhere(self, session: str, state: Any) -> bool:
        """What such a member points at; whether that is new."""
        member = self._members.get(session)
        if member is None or not member.elsewhere or member.told == state:
            return False
        member.told = state
        return True

    # -- presence ----------------------------------------------------------------------------------

    def presences(self) -> dict[str, Any]:
        """The last state told of each member that has one."""
        found = {session: member.told for session, member in self._members.items()}
        return {session: state for session, state in found.items() if state is not None}

    def present(self, session: str, state: Any, now: float) -> float | None:
        """Take a new state. Seconds until it may be told (0: now), None where an earlier one's
        time is awaited already, which will tell this one.
        """
        member = self._members.get(session)
        if member is None:
            return None
        member.unsent = state
        if member.due:
            return None
        member.due = True
        return max(0.0, member.sent_at + PRESENCE_EVERY_S - now)

    def hide(self, session: str) -> bool:
        """Take back what the session points at; whether the others know of anything."""
        member = self._members.get(session)
        if member is None:
            return False
        known, member.told, member.unsent = member.told is not None, None, None
        return known

    def tell(self, session: str, now: float) -> tuple[bool, Any]:
        """(whether anything is to be told, the newest state), at the time `present` has given."""
        member = self._members.get(session)
        if member is None or not member.due:
            return False, None
        member.due = False
        member.sent_at = now
        member.told = member.unsent
        return True, member.told
