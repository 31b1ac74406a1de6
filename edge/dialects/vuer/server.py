"""Rooms over a journal and a broker: what connections share, and who is in which room.

    server = RTCServer(journal=JournalService(), broker=InMemoryBroker())
    connection = server.connect(send, "room", "alice", user)   # send: callable(str | bytes)
    connection.handle_message(text)

`authorize(user, room_id, action)` is asked for `join`, `write` and `undo_any`, may be async, and
may only say True. Without one everybody may join and write, and nobody undo what others did.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self

import msgspec
from aiohttp import web

from actors.ephemeral import Ephemera, Line, Party
from actors.types import Address, Batch
from edge.auth import Principal
from edge.dialects.vuer import frames as f
from edge.dialects.vuer.actor_broker import ActorBroker
from edge.dialects.vuer.allowances import Allowances
from edge.dialects.vuer.broker import InMemoryBroker, RoomBroker
from edge.dialects.vuer.connection import REPLACED, RtcConnection
from edge.dialects.vuer.elsewhere import Elsewhere, Shared, tell_cleared
from edge.dialects.vuer.feed import RoomFeed
from edge.dialects.vuer.journal import JournalService
from edge.dialects.vuer.relay import BrokerTaps
from edge.dialects.vuer.rooms import TENANT, room_address, room_of
from edge.dialects.vuer.roster import Roster, SessionTaken
from edge.feed import Feeds
from edge.sending import CallableSink, Send
from edge.wire import Frames
from infra import clock
from infra import limits as house
from infra.errors import AuthError, ProtocolError
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.vuer")

TICK_S = 1.0
GOING_AWAY = 1001
Authorize = Callable[[Any, str, str], "bool | Awaitable[bool]"]
Identify = Callable[[web.Request], "Any | Awaitable[Any]"]


class RTCServer:
    """Use `aclose`, or `async with`. `now_ms` and `monotonic` are for tests."""

    def __init__(
        self, journal: JournalService | None = None, broker: RoomBroker | None = None,
        authorize: Authorize | None = None, *, now_ms: Callable[[], int] = clock.now_ms,
        monotonic: Callable[[], float] = clock.monotonic,
    ) -> None:  # fmt: skip
        self.journal = journal or JournalService()
        self.broker: RoomBroker = broker or InMemoryBroker()
        self.now_ms = now_ms
        self.monotonic = monotonic
        self.connections: set[RtcConnection] = set()
        self._authorize = authorize
        self._rosters: dict[Address, Roster[RtcConnection]] = {}
        self._elsewhere: dict[Address, Elsewhere] = {}
        self._allowances = Allowances()
        self._tasks = TaskOwner()
        self._relay: BrokerTaps | None = None
        self._ticking = False
        self._closed = False
        if isinstance(self.broker, ActorBroker):
            taps: Any = self.broker.port
            self._ephemeral: Callable[[Address, Party], Line] = self.broker.port.ephemeral
        else:
            self._ephemeral = Ephemera("", now_ms).open  # nobody else is in it
            taps = self._relay = BrokerTaps(self.broker, self.journal.repository)
        self.feeds = Feeds(taps, _unused, RoomFeed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection with 1001, then the broker's streams and the journal."""
        if self._closed:
            return
        self._closed = True
        for connection in list(self.connections):
            connection.end(GOING_AWAY, "going away")
        for elsewhere in self._elsewhere.values():
            elsewhere.line.close()
        await self._tasks.aclose()
        if self._relay is not None:
            await self._relay.aclose()
        elif isinstance(self.broker, ActorBroker):
            await self.broker.aclose()
        await self.journal.close()

    # -- connecting --------------------------------------------------------------------------------

    def connect(
        self, send: Send | Any, room_id: str, session_id: str, user: Any = None, *,
        format: f.Format = f.JSON,
    ) -> RtcConnection:  # fmt: skip
        """A client over any carrier: `send` takes one frame (text for JSON, bytes for msgpack) and
        may be async; what it raises ends the connection. Raises ProtocolError for a bad name.
        """
        call: Send = send.send if hasattr(send, "send") else send
        found: list[RtcConnection] = []
        sink = CallableSink(call, self._tasks, lambda _code, _reason: found[0].close())
        principal = Principal(id=str(user), tenant=TENANT, claims={"user": user})
        connection = RtcConnection(self, sink, room_id, session_id, principal, format)
        connection.watches_silence = True  # nobody else does
        found.append(connection)
        self.admit(connection)
        return connection

    def admit(self, connection: RtcConnection) -> None:
        """One more connection, not joined yet."""
        self.connections.add(connection)
        if not self._ticking:
            self._ticking = True
            self.spawn(self._tick_forever(), "tick")

    def forget(self, connection: RtcConnection) -> None:
        """The connection has ended."""
        self.connections.discard(connection)

    def routes(
        self, app: web.Application, path: str = "/rtc/{roomId}", *, identify: Identify | None = None
    ) -> None:
        """Add the socket's route. `identify(request)` gives the user, and raises AuthError for
        nobody; without it everyone is the user None.
        """
        from edge.dialects.vuer.http import add_route

        async def principal_of(request: web.Request) -> Principal:
            user = None if identify is None else identify(request)
            if inspect.isawaitable(user):
                user = await user
            return Principal(id=str(user), tenant=TENANT, claims={"user": user})

        add_route(app, path, self, principal_of)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run it until it ends or the server does."""
        try:
            self._tasks.spawn(work, name=f"vuer-{name}")
        except RuntimeError:
            return  # closing: nobody is served any more

    def address(self, room_id: str, tenant: str = TENANT) -> Address:
        """Where the room's ledger is. Raises ProtocolError."""
        return room_address(room_id, tenant)

    @property
    def stopping(self) -> bool:
        """Whether no new message is taken any more."""
        return self._closed

    async def may(self, principal: Principal, address: Address, action: str) -> bool:
        """Whether the user may `join`, `write` or `undo_any` there. Never raises."""
        if self._authorize is None:
            return action != "undo_any"
        try:
            async with asyncio.timeout(house.AUTHORIZE_WAIT_S):
                answer = self._authorize(principal.claims.get("user"), room_of(address), action)
                return (await answer if inspect.isawaitable(answer) else answer) is True
        except AuthError:
            return False
        except Exception:  # user code: whatever is wrong with it must not open a door
            log.exception("authorize failed action=%s", action)
            return False

    def allow(self, connection: RtcConnection) -> int:
        """0 if its session may send a message more, else the milliseconds until it may."""
        now = self.monotonic()
        return self._allowances.take(connection.address, connection.session_id, now)

    # -- rooms -------------------------------------------------------------------------------------

    async def clear_room(self, room_id: str, tenant: str = TENANT) -> None:
        """Begin the room anew: a new epoch, an empty graph, no members. Sockets stay, and get
        `reset` and `state`; who is still there is a member again with its next heartbeat.
        """
        address = self.address(room_id, tenant)
        await self.journal.start()
        tell_cleared(address, self._ephemeral)
        # Members first: the `state` that the clear brings to each socket lists none.
        key = _key(address)
        await self._forget_members(key)
        if not isinstance(self.broker, ActorBroker):  # whose rooms are the repository's
            await self.broker.clear_room(key)
        await self.journal.repository.clear(address)

    # -- members -----------------------------------------------------------------------------------

    async def meet(self, address: Address) -> None:
        """Hear who is in the room over other edges, as far as that can be known soon."""
        elsewhere = self._meeting(address)
        elsewhere.waiting += 1
        try:
            await elsewhere.line.settled()
        finally:
            elsewhere.waiting -= 1

    def enter(self, connection: RtcConnection) -> bool:
        """Make the connection its session's; whether the session is new. Raises ProtocolError."""
        address = connection.address
        self._meeting(address)
        roster = self._rosters[address]
        try:
            replaced, fresh = roster.join(
                connection.session_id, connection.user_id, connection, self.now_ms()
            )
            self._mirror(connection)
        except ProtocolError:
            roster.leave(connection.session_id, connection)
            self._tidy(address)
            raise
        pointed = roster.told(connection.session_id)
        if pointed is not None:  # over another edge, until now
            self._elsewhere[address].presence(connection.user_id, connection.session_id, pointed)
        if replaced is not None:
            replaced.end(REPLACED, "this session was joined elsewhere")
        return fresh

    def _meeting(self, address: Address) -> Elsewhere:
        self._rosters.setdefault(address, Roster())
        if address not in self._elsewhere:
            self._elsewhere[address] = Elsewhere(self, address, self._ephemeral)
        return self._elsewhere[address]

    def _tidy(self, address: Address) -> None:
        """Follow a room no longer in which nobody of this edge is."""
        roster, elsewhere = self._rosters.get(address), self._elsewhere.get(address)
        if roster is None or elsewhere is None or roster.any_here or elsewhere.waiting:
            return
        del self._rosters[address], self._elsewhere[address]
        elsewhere.line.close()
        for state in roster.states():
            self.spawn(self.broker.remove_member(_key(address), state.session_id), "member")

    def gone(self, connection: RtcConnection) -> None:
        """The socket has ended; its member is kept for a while."""
        roster = self._rosters.get(connection.address)
        session = connection.session_id
        if roster is not None and roster.gone(session, connection, self.monotonic()):
            self._update(connection)
            if roster.hide(session):
                self._point(connection, None)

    def leave(self, connection: RtcConnection) -> None:
        """The session has said goodbye."""
        roster = self._rosters.get(connection.address)
        if roster is not None and roster.leave(connection.session_id, connection):
            self._left(connection.address, [connection.session_id])

    def seen(self, connection: RtcConnection, vector_clock: dict[str, int] | None) -> None:
        """A heartbeat; after a clear it makes the session a member again."""
        roster = self._rosters.get(connection.address)
        found = roster and roster.seen(
            connection.session_id, connection, vector_clock, self.now_ms()
        )
        if found:
            self._update(connection)
            if found[1]:
                self.tell_joined(connection)

    async def members_of(self, connection: RtcConnection) -> list[dict[str, Any]]:
        """Everyone in the room, with what they point at."""
        states = await self.broker.get_members(_key(connection.address))
        roster = self._rosters.get(connection.address)
        presences = {} if roster is None else roster.presences()
        for state in () if roster is None else roster.states():
            states[state.session_id] = state
        return [
            {**msgspec.to_builtins(state), "presence": presences.get(session)}
            for session, state in states.items()
        ]

    def tell_joined(self, connection: RtcConnection) -> None:
        """Tell the others of a session that is new."""
        roster = self._rosters.get(connection.address)
        state = None if roster is None else roster.state(connection.session_id)
        if state is not None:
            frame = {"mtype": "members", "joined": [state], "left": []}
            self._tell(connection.address, frame, but=connection)

    def _left(self, address: Address, sessions: list[str]) -> None:
        self._tell(address, {"mtype": "members", "joined": [], "left": sessions})
        for session in sessions:
            if (elsewhere := self._elsewhere.get(address)) is not None:
                elsewhere.left(session)
            self.spawn(self.broker.remove_member(_key(address), session), "member")
        self._tidy(address)

    def _update(self, connection: RtcConnection) -> None:
        """Its member has changed."""
        with contextlib.suppress(SessionTaken):  # the edge that has it tells this one soon
            self._mirror(connection)

    def _mirror(self, connection: RtcConnection) -> None:
        """Have the broker and the other edges know what the roster knows. Raises SessionTaken."""
        roster = self._rosters.get(connection.address)
        state = None if roster is None else roster.state(connection.session_id)
        if state is not None:
            work = self.broker.set_member(_key(connection.address), connection.session_id, state)
            self.spawn(work, "member")
            self._elsewhere[connection.address].member(connection.user_id, state)

    def _tell(
        self, address: Address, frame: dict[str, Any], *, but: RtcConnection | None = None
    ) -> None:
        """Send to every joined socket of the room; each format is made once."""
        shared: dict[f.Format, Frames] = {}
        for connection in self._joined(address):
            if connection is not but:
                format = connection.format
                if format not in shared:
                    shared[format] = Frames([format.encode(frame)])
                connection.tell_shared(shared[format])

    def _joined(self, address: Address) -> list[RtcConnection]:
        roster = self._rosters.get(address)
        return [] if roster is None else roster.holders()

    # -- presence ----------------------------------------------------------------------------------

    def present(self, connection: RtcConnection, state: Any) -> None:
        """A new presence state: told now, or as soon as the session may tell one again."""
        roster = self._rosters.get(connection.address)
        if roster is None:
            return
        wait_s = roster.present(connection.session_id, state, self.monotonic())
        if wait_s is None:
            return
        if wait_s:
            loop = asyncio.get_running_loop()
            loop.call_later(wait_s, self._tell_presence, connection)
        else:
            self._tell_presence(connection)

    def _tell_presence(self, connection: RtcConnection) -> None:
        roster = self._rosters.get(connection.address)
        if roster is None:
            return
        due, state = roster.tell(connection.session_id, self.monotonic())
        if due:
            self._point(connection, state)

    def _point(self, connection: RtcConnection, state: Any) -> None:
        """Have everybody see what the connection's session points at."""
        session = connection.session_id
        self._tell_presence_of(connection.address, session, state)
        if (elsewhere := self._elsewhere.get(connection.address)) is not None:
            elsewhere.presence(connection.user_id, session, state)

    def _tell_presence_of(self, address: Address, session: str, state: Any) -> None:
        shared: dict[f.Format, Frames] = {}
        frame = {"mtype": "presence", "sessionId": session, "state": state}
        for other in self._joined(address):
            if other.session_id != session:
                if other.format not in shared:
                    shared[other.format] = Frames([other.format.encode(frame)])
                other.show(session, state, shared[other.format])

    # -- other edges (edge.dialects.vuer.elsewhere.Rooms) ------------------------------------------

    def member_elsewhere(self, address: Address, user: str, shared: Shared) -> None:
        """A member of another edge; where it was ours, the newest socket has it."""
        roster = self._rosters.get(address)
        if roster is None:
            return
        state = shared.state
        held = roster.holder(state.session_id)
        if held is not None and held.user_id == user and not state.connected:
            self._update(held)  # its socket there is gone: the one here has been there since
            return
        held, fresh = roster.elsewhere(user, state, listed=shared.listed)
        if (elsewhere := self._elsewhere.get(address)) is not None:
            elsewhere.presence(user, state.session_id, None)  # where it was ours
        if shared.listed:
            self.spawn(self.broker.set_member(_key(address), state.session_id, state), "member")
        if held is not None and held.user_id == user:
            held.end(REPLACED, "this session was joined elsewhere")
        elif held is not None:
            held.turn_away("session_taken", "this session is another user's")
        if fresh:
            self._tell(address, {"mtype": "members", "joined": [state], "left": []})
        self._tidy(address)

    def left_elsewhere(self, address: Address, session: str) -> None:
        """A member of another edge has left, or that edge is lost."""
        roster = self._rosters.get(address)
        if roster is not None and roster.left_elsewhere(session):
            self._tell(address, {"mtype": "members", "joined": [], "left": [session]})
            self.spawn(self.broker.remove_member(_key(address), session), "member")

    def presence_elsewhere(self, address: Address, session: str, state: Any) -> None:
        """What a member of another edge points at."""
        roster = self._rosters.get(address)
        if roster is not None and roster.points_elsewhere(session, state):
            self._tell_presence_of(address, session, state)

    def cleared_elsewhere(self, address: Address) -> None:
        """The room begins anew: nobody is a member, here or elsewhere."""
        roster, elsewhere = self._rosters.get(address), self._elsewhere.get(address)
        if roster is None or elsewhere is None:
            return
        before = {state.session_id for _, state, _ in roster.here()}
        roster.empty()
        for user, state, listed in roster.here():
            before.discard(state.session_id)
            elsewhere.presence(user, state.session_id, None)
            elsewhere.member(user, state, listed=listed)
        for session in before:
            elsewhere.left(session)
        self.spawn(self._forget_members(_key(address)), "members")
        self._tidy(address)

    async def _forget_members(self, key: str) -> None:
        for session in await self.broker.get_members(key):
            await self.broker.remove_member(key, session)

    # -- time --------------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        """Every second: close the silent, remove members who have been gone for long."""
        now = self.monotonic()
        for connection in list(self.connections):
            connection.tick(now)
        self._allowances.expire(now)
        for address, roster in list(self._rosters.items()):
            left = roster.expire(now)
            if left:
                self._left(address, left)
            self._tidy(address)


def _key(address: Address) -> str:
    """The room as the broker knows it: by its name, and no two tenants' rooms are the same."""
    room_id = room_of(address)
    return room_id if address.tenant == TENANT else f"{address.tenant}\n{room_id}"


def _unused(scope: str, batch: Batch, batched: bool) -> Frames:
    raise AssertionError("RoomFeed makes its own frames")
