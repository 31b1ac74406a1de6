"""Who hears of a room's messages, and who is in it (section 12): the protocol, and a broker in
memory. For rooms that are scopes of a port: edge/dialects/vuer/actor_broker.py.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from edge.dialects.vuer.roster import MemberState

log = logging.getLogger("holdfast.vuer")

SequencedMessage = dict[str, Any]
Handler = Callable[[SequencedMessage], "Awaitable[None] | None"]
Unsubscribe = Callable[[], None]


class RoomBroker(Protocol):
    """What a server of rooms needs besides the journal."""

    async def publish(self, room_id: str, msg: SequencedMessage) -> None:
        """Give the message to every current subscriber, in the order they came."""

    def subscribe(self, room_id: str, handler: Handler) -> Unsubscribe:
        """Hear every later message of the room; the value returned ends it and may be repeated."""

    async def next_seq(self, room_id: str) -> int:
        """1, 2, 3 … for each room."""

    async def set_member(self, room_id: str, session_id: str, state: MemberState) -> None:
        """Who the session is now."""

    async def remove_member(self, room_id: str, session_id: str) -> None:
        """Harmless where there is none."""

    async def get_members(self, room_id: str) -> dict[str, MemberState]:
        """A copy; empty for an unknown room."""

    async def delete_room(self, room_id: str) -> None:
        """Forget numbers, subscriptions and members."""

    async def clear_room(self, room_id: str) -> None:
        """Forget numbers and members; subscriptions stay."""


class Members:
    """The members' part of a broker of one process."""

    def __init__(self) -> None:
        self._members: dict[str, dict[str, MemberState]] = {}

    async def set_member(self, room_id: str, session_id: str, state: MemberState) -> None:
        """See RoomBroker."""
        self._members.setdefault(room_id, {})[session_id] = state

    async def remove_member(self, room_id: str, session_id: str) -> None:
        """See RoomBroker."""
        members = self._members.get(room_id)
        if members is not None and members.pop(session_id, None) is not None and not members:
            del self._members[room_id]

    async def get_members(self, room_id: str) -> dict[str, MemberState]:
        """See RoomBroker."""
        return dict(self._members.get(room_id, {}))


class InMemoryBroker(Members):
    """Rooms of one process. A handler that raises is logged and keeps nobody else from hearing."""

    def __init__(self) -> None:
        super().__init__()
        self._seqs: dict[str, int] = {}
        self._handlers: dict[str, dict[object, Handler]] = {}

    async def publish(self, room_id: str, msg: SequencedMessage) -> None:
        """See RoomBroker."""
        for handler in list(self._handlers.get(room_id, {}).values()):
            await call_handler(handler, msg, room_id)

    def subscribe(self, room_id: str, handler: Handler) -> Unsubscribe:
        """See RoomBroker."""
        key = object()
        self._handlers.setdefault(room_id, {})[key] = handler

        def unsubscribe() -> None:
            handlers = self._handlers.get(room_id, {})
            if handlers.pop(key, None) is not None and not handlers:
                del self._handlers[room_id]

        return unsubscribe

    async def next_seq(self, room_id: str) -> int:
        """See RoomBroker."""
        seq = self._seqs[room_id] = self._seqs.get(room_id, 0) + 1
        return seq

    async def delete_room(self, room_id: str) -> None:
        """See RoomBroker."""
        await self.clear_room(room_id)
        self._handlers.pop(room_id, None)

    async def clear_room(self, room_id: str) -> None:
        """See RoomBroker."""
        self._seqs.pop(room_id, None)
        self._members.pop(room_id, None)


async def call_handler(handler: Handler, msg: SequencedMessage, room_id: str) -> None:
    """Have the handler take the message; what it raises is logged."""
    try:
        answer = handler(msg)
        if inspect.isawaitable(answer):
            await answer
    except Exception:  # user code: the others hear the message all the same
        log.exception("handler failed room=%s", room_id)
