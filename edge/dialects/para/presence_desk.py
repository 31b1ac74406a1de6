"""Presence frames of one connection: checked, allowed, and handed to the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from actors.dialects.para.keys import check_key
from actors.dialects.para.values import TooLarge, json_text
from edge.dialects.para import frames as f
from edge.dialects.para.kinds import ParseGateError, UnknownKind
from edge.dialects.para.presence import VALUE_BYTES_MAX, Channel
from infra import clock
from infra.errors import HoldfastError, ScopeError

if TYPE_CHECKING:
    from edge.dialects.para.connection import ParaConnection
    from edge.dialects.para.service import ParaService


class NoPresence(ScopeError):
    """The user may not be in this channel."""

    code = "forbidden"


class PresenceDesk:
    """Fits edge.dialects.para.presence.Member. `peer` is the name unless the client has another."""

    def __init__(self, connection: ParaConnection, service: ParaService, peer: str) -> None:
        self.heard_at_ms = clock.now_ms()
        self._connection = connection
        self._service = service
        self._peer = peer

    @property
    def user_id(self) -> str:
        """Whose connection this is."""
        return self._connection.principal.id

    async def handle(self, frame: f.PresenceFrame) -> None:
        """Watch, leave or say. What is wrong is told; nobody else hears of it."""
        try:
            await self._handle(frame)
        except HoldfastError as error:
            self._connection.send(f.key_error(frame.channel[:256], error.code, str(error)))

    async def _handle(self, frame: f.PresenceFrame) -> None:
        channels = self._service.channels
        spaces = self._connection.authority.spaces
        channel: Channel = (spaces.part(""), check_key(frame.channel))
        peer = self._peer if frame.peerId is None else f.check_id(frame.peerId, "peerId")
        if frame.leave:
            channels.leave(channel, self, peer)
            return
        if frame.watch is False:
            channels.unwatch(channel, self)
        if frame.watch is not True and frame.value is UNSET:
            return
        connection = self._connection
        scope = spaces.part("").scope
        doorkeeper = connection.authority.doorkeeper
        allowed = await doorkeeper.ask(connection.principal, scope, frame.channel, "presence")
        if allowed is None:
            raise NoPresence("no presence in this channel")
        value = UNSET if frame.value is UNSET else self._gated(frame.channel, frame.value)
        if connection.closed:
            return
        if frame.watch is True:
            channels.watch(channel, self)
        if value is not UNSET:
            channels.say(channel, self, peer, value)

    def _gated(self, channel: str, value: Any) -> Any:
        schema = self._service.declared.presence_schema(channel)
        if schema is None:
            raise UnknownKind("no presence is declared for this channel")
        if len(json_text(value)) > VALUE_BYTES_MAX:
            raise TooLarge(f"a presence has at most {VALUE_BYTES_MAX} bytes")
        try:
            parsed = schema.parse(value)
        except Exception as error:  # user code: a schema that fails has not said Ok
            raise ParseGateError("the schema of this channel failed") from error
        if parsed.tag != "Ok":
            raise ParseGateError(f"not a presence of this channel: {str(parsed.error)[:200]}")
        plain = msgspec.to_builtins(parsed.value)
        json_text(plain)
        return plain

    def peer_said(self, channel: str, peer: str, value: Any) -> None:
        """See Member. Dropped where the socket does not drain: the next one says it again."""
        if not self._connection.sink.congested:
            self._connection.send(f.presence(channel, peer, value))

    def peer_left(self, channel: str, peer: str) -> None:
        """See Member. Never dropped: nothing would say it again."""
        self._connection.send(f.left(channel, peer))

    def close(self) -> None:
        """The connection has ended."""
        self._service.channels.forget(self)
