"""The sockets that the edges of one server accept from: one each, all on one port. The supervisor
holds them, so each outlives the process that accepts from it.

Always true: while an edge is away and no other is there, whoever connects waits in its socket's
queue for the process that takes its place, and is neither refused nor sent away to come back later
and later. Where another edge is there, the socket does not listen meanwhile: that one takes all.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence


class Listeners:
    """One socket for each name. Raises OSError where the port cannot be had."""

    def __init__(self, host: str, port: int, names: Sequence[str]) -> None:
        self.port = port
        self._sockets: dict[str, socket.socket] = {}
        self._here: set[str] = set()
        # Holds the port; and one that the system was to choose has to be asked for by number, or a
        # socket that no longer listens would lose it.
        self._holder = self._bind(host)
        self.port = self._holder.getsockname()[1]
        try:
            for name in names:
                self._sockets[name] = self._bind(host)
        except OSError:
            self.close()
            raise

    def _bind(self, host: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:  # as where a process listens by itself
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind((host, self.port))
        except OSError:
            made.close()
            raise
        return made

    def fileno(self, name: str) -> int:
        """For the process to inherit, which has it listen."""
        return self._sockets[name].fileno()

    def here(self, name: str) -> None:
        """Its process accepts."""
        self._here.add(name)

    def away(self, name: str) -> None:
        """Its process does not accept any more."""
        self._here.discard(name)
        if self._here and name in self._sockets:
            _deafen(self._sockets[name])

    def close(self) -> None:
        """Whoever connects from now on is refused, whatever processes still hold."""
        for one in self._sockets.values():
            _deafen(one)
            one.close()
        self._sockets.clear()
        self._holder.close()


def _deafen(listening: socket.socket) -> None:
    """No longer listen, in every process that has the socket. It can be made to again."""
    with contextlib.suppress(OSError):  # it does not
        listening.shutdown(socket.SHUT_RDWR)
