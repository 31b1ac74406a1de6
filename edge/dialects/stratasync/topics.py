"""Messages beside the log: sockets join topics, whoever broadcasts reaches all of them. Pure.

Nothing is stored. Topics belong to one database; a socket that ends leaves all of its own.
"""

from __future__ import annotations

from typing import Final, Protocol

from actors.types import Address
from edge.wire import Frames
from infra.errors import ProtocolError

TOPICS_MAX: Final = 1000  # of one socket


class Listener(Protocol):
    """A socket that may be sent frames."""

    def tell(self, frames: Frames) -> None:
        """Send, or drop where the socket does not drain: such messages are not kept."""


class Topics:
    """Who listens to what."""

    def __init__(self) -> None:
        self._listeners: dict[tuple[Address, str], dict[Listener, None]] = {}
        self._joined: dict[Listener, dict[tuple[Address, str], None]] = {}

    def join(self, address: Address, topic: str, listener: Listener) -> None:
        """Raises ProtocolError where the socket has joined too many."""
        joined = self._joined.setdefault(listener, {})
        if len(joined) >= TOPICS_MAX:
            raise ProtocolError(f"a socket may join {TOPICS_MAX} topics")
        joined[(address, topic)] = None
        self._listeners.setdefault((address, topic), {})[listener] = None

    def leave(self, address: Address, topic: str, listener: Listener) -> None:
        """Harmless where it had not joined."""
        joined = self._joined.get(listener)
        if joined is not None and joined.pop((address, topic), 1) is None:
            self._drop((address, topic), listener)
            if not joined:
                del self._joined[listener]

    def forget(self, listener: Listener) -> None:
        """The socket has ended."""
        for key in self._joined.pop(listener, {}):
            self._drop(key, listener)

    def _drop(self, key: tuple[Address, str], listener: Listener) -> None:
        held = self._listeners[key]
        del held[listener]
        if not held:
            del self._listeners[key]

    def broadcast(
        self, address: Address, topic: str, message: str, *, but: Listener | None = None
    ) -> int:
        """Send the text to everyone in the topic but one; how many they were."""
        found = [one for one in self._listeners.get((address, topic), {}) if one is not but]
        frames = Frames([message])
        for listener in found:
            listener.tell(frames)
        return len(found)
