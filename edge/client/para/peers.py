"""One presence channel of a client: its own value, and those of the peers that are there. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from edge.client.para.schema import SyncSchema

Listener = Callable[[dict[str, Any]], None]


class PresenceChannel:
    """Made by `ObjectFeedClient.presence`. What does not pass the schema is not shown."""

    def __init__(
        self, channel: str, schema: SyncSchema[Any], peer_id: str,
        send: Callable[[dict[str, Any]], None], forget: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.channel = channel
        self.peer_id = peer_id
        self._schema = schema
        self._send = send
        self._forget = forget
        self._mine: Any = msgspec.UNSET
        self._peers: dict[str, Any] = {}
        self._listeners: list[Listener] = []

    @property
    def peers(self) -> dict[str, Any]:
        """The values of the others, by peer id."""
        return dict(self._peers)

    def set(self, value: Any) -> None:
        """Tell the others; told again after a reconnect."""
        self._mine = msgspec.to_builtins(value)
        self._send(self._frame(value=self._mine))

    def leave(self) -> None:
        """Be there no longer; goes on watching."""
        self._mine = msgspec.UNSET
        self._send(self._frame(leave=True))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have it called with the peers whenever they change; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def close(self) -> None:
        """Leave, and watch no longer."""
        self.leave()
        self._send(self._frame(watch=False))
        self._forget(self.channel)

    def opened(self) -> None:
        """For the client: a new socket."""
        self._send(self._frame(watch=True))
        if self._mine is not msgspec.UNSET:
            self._send(self._frame(value=self._mine))

    def disconnected(self) -> None:
        """For the client: nobody is known to be there."""
        if self._peers:
            self._peers = {}
            self._tell()

    def received(self, frame: dict[str, Any]) -> None:
        """For the client: a peer's value, or its end. One's own is ignored."""
        peer = frame["peerId"]
        if peer == self.peer_id:
            return
        if frame.get("leave"):
            known = self._peers.pop(peer, None)
            if known is None:
                return
        else:
            try:
                parsed = self._schema.parse(frame["value"])
            except Exception:  # a schema that fails has not said Ok
                return
            if parsed.tag != "Ok":
                return
            self._peers[peer] = parsed.value
        self._tell()

    def _frame(self, **members: Any) -> dict[str, Any]:
        return {"type": "presence", "channel": self.channel, "peerId": self.peer_id, **members}

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener(dict(self._peers))
