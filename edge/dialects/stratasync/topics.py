"""Messages beside the log: sockets join topics, whoever broadcasts reaches all of them. Pure.

Nothing is stored. Topics belong to one database; a socket that ends leaves all of its own. Sockets
of this process are told at once, those of others by way of the process that has the database.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from actors.ephemeral import Line, Party, Said
from actors.types import Address
from edge.wire import Frames
from infra.errors import ProtocolError

TOPICS_MAX: Final = 1000  # of one socket


class Listener(Protocol):
    """A socket that may be sent frames."""

    def tell(self, frames: Frames) -> None:
        """Send, or drop where the socket does not drain: such messages are not kept."""


class Topics:
    """Who listens to what. `ephemeral` is the port's."""

    def __init__(self, ephemeral: Callable[[Address, Party], Line]) -> None:
        self._ephemeral = ephemeral
        self._databases: dict[Address, _Database] = {}
        self._joined: dict[Listener, dict[tuple[Address, str], None]] = {}

    def join(self, address: Address, topic: str, listener: Listener) -> None:
        """Raises ProtocolError where the socket has joined too many."""
        joined = self._joined.setdefault(listener, {})
        if len(joined) >= TOPICS_MAX:
            raise ProtocolError(f"a socket may join {TOPICS_MAX} topics")
        joined[(address, topic)] = None
        database = self._databases.get(address)
        if database is None:
            database = self._databases[address] = _Database()
            database.line = self._ephemeral(address, database)
        database.listeners.setdefault(topic, {})[listener] = None

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
        address, topic = key
        database = self._databases[address]
        held = database.listeners[topic]
        del held[listener]
        if held:
            return
        del database.listeners[topic]
        if not database.listeners:
            del self._databases[address]
            if database.line is not None:
                database.line.close()

    def broadcast(
        self, address: Address, topic: str, message: str, *, but: Listener | None = None
    ) -> int:
        """Send the text to everyone in the topic but one; how many they were in this process.

        Raises ProtocolError for what is too large to be told other processes: nobody was told.
        """
        database = self._databases.get(address)
        if database is not None and database.line is not None:
            database.line.say(topic, "", message)
            return database.tell(topic, message, but)
        passing = self._ephemeral(address, _Database())
        passing.say(topic, "", message)
        passing.close()
        return 0


class _Database:
    """One database's topics in this process; fits actors.ephemeral.Party."""

    def __init__(self) -> None:
        self.listeners: dict[str, dict[Listener, None]] = {}
        self.line: Line | None = None

    def tell(self, topic: str, message: str, but: Listener | None) -> int:
        found = [one for one in self.listeners.get(topic, {}) if one is not but]
        frames = Frames([message])
        for listener in found:
            listener.tell(frames)
        return len(found)

    def heard(self, said: Said) -> None:
        self.tell(said.topic, said.body, None)

    def withdrawn(self, said: Said) -> None:
        """Nothing is kept here."""
