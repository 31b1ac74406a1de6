"""`SyncBus`: how several instances over one shared ledger tell each other of new envelopes.

A message is a hint after commit: a receiver reads the ledger when it is not the next seq or carries
no envelope, so a lost or repeated one does no harm.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from infra.bus.types import Bus, check_subject
from infra.errors import Busy, Closed

log = logging.getLogger("holdfast.asterql")

SUBJECT: Final = "holdfast.asterql"
_decode = msgspec.msgpack.Decoder(tuple[str, int, dict[str, Any] | None]).decode

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


class SharedBus:
    """`SyncBus` over a bus between processes (`nats_connection`, `RedisBus`), which other users of
    that bus may share.
    """

    def __init__(self, bus: Bus, subject: str = SUBJECT) -> None:
        """Instances over one ledger use one subject. Raises ValueError for what is none."""
        check_subject(subject)
        self._bus = bus
        self._subject = subject

    async def publish(self, scope: str, seq: int, envelope: dict[str, Any] | None) -> None:
        """Queue the hint; one that finds no room is lost, as hints may be."""
        with contextlib.suppress(Busy, Closed):
            self._bus.publish(self._subject, msgspec.msgpack.encode((scope, seq, envelope)))

    def subscribe(self, handler: Handler) -> Callable[[], None]:
        """Have the handler called for each hint, this instance's included."""

        def heard(payload: bytes) -> None:
            try:
                scope, seq, envelope = _decode(payload)
            except (msgspec.MsgspecError, RecursionError) as error:
                log.warning("no hint subject=%s error=%s", self._subject, error)
                return
            handler(scope, seq, envelope)

        return self._bus.subscribe(self._subject, heard)
