"""`SyncBus`: how several instances over one shared ledger tell each other of new envelopes.

A message is a hint after commit: a receiver reads the ledger when it is not the next seq or carries
no envelope, so a lost or repeated one does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

HINT_BYTES_MAX = 6 << 10  # a larger envelope is left out of the hint

Handler = Callable[[str, int, dict[str, Any] | None], None]
"""(scope, seq, envelope or None)"""


class SyncBus(Protocol):
    """Publish and subscribe, best effort."""

    async def publish(self, scope: str, seq: int, envelope: dict[str, Any] | None) -> None:
        """Tell everyone, this instance included. May lose messages, must not block for long."""

    def subscribe(self, handler: Handler) -> Callable[[], None]:
        """Have the handler called for each message; returns what ends that."""


class InProcessBus:
    """For several hubs in one process, and the reference for others."""

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._next = 0

    async def publish(self, scope: str, seq: int, envelope: dict[str, Any] | None) -> None:
        for handler in list(self._handlers.values()):
            handler(scope, seq, envelope)

    def subscribe(self, handler: Handler) -> Callable[[], None]:
        number = self._next
        self._next += 1
        self._handlers[number] = handler

        def unsubscribe() -> None:
            self._handlers.pop(number, None)

        return unsubscribe
