"""The transport over a bus: NATS, Redis, or whatever publishes and subscribes bytes. Pure.

Keys become subjects. All handlers of a key share one subscription of the bus, and a message is
decoded once for all of them. A publish goes out and comes back like everybody's: it is never handed
to local handlers directly, so all processes see one order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Protocol

from actors.dialects.para.envelope import BadEnvelope, SyncEnvelope, as_envelope
from edge.client.para.codecs import Codec, IdentityCodec, MsgpackCodec
from edge.client.para.handlers import Handler, HandlerTable, OnError, Unsubscribe
from infra.bus.types import check_subject

log = logging.getLogger("holdfast.para")

PREFIX = "synced."
SubjectOf = Callable[[str], str]


class Connection(Protocol):
    """What a bus is asked for; `infra.bus` has two, with `on_loss` besides."""

    def publish(self, subject: str, payload: Any, /) -> None: ...

    def subscribe(self, subject: str, on_message: Callable[[Any], None], /) -> Unsubscribe: ...


@lru_cache(maxsize=4096)
def default_subject(key: str) -> str:
    """`synced.{key}`. Raises ValueError for a key that would be no subject, or a wildcard: such a
    one would read other keys.
    """
    check_subject(key)
    subject = PREFIX + key
    check_subject(subject)
    return subject


class BusTransport:
    """A transport over a connection to a bus.

    `codec`: MsgpackCodec where the connection is a bus of `infra.bus`, otherwise none (for tests).
    `subject_of` must give each key a subject of its own and never a wildcard.
    """

    def __init__(
        self,
        connection: Connection,
        codec: Codec | None = None,
        subject_of: SubjectOf | None = None,
        *,
        on_error: OnError | None = None,
    ) -> None:
        if connection is None:
            raise ValueError(f"{type(self).__name__} requires a connection")
        self._connection = connection
        on_loss = getattr(connection, "on_loss", None)
        if codec is None:
            codec = IdentityCodec() if on_loss is None else MsgpackCodec()
        self._codec = codec
        self._subject_of = default_subject if subject_of is None else subject_of
        self._on_error = on_error or _log_error
        self._handlers = HandlerTable()
        self._offs: dict[str, Unsubscribe] = {}
        self._losses: dict[object, tuple[str | None, Callable[[], None]]] = {}
        self.decode_errors = 0  # messages that were no envelopes, and were dropped
        if on_loss is not None:
            on_loss(self._lost)

    def publish(self, key: str, envelope: SyncEnvelope | dict[str, Any]) -> None:
        """Queue the envelope for the bus. Raises ValueError for the key, BadEnvelope, and what the
        connection raises, such as Busy.
        """
        subject = self._subject_of(key)
        if type(envelope) is not SyncEnvelope:
            envelope = as_envelope(envelope)
        self._connection.publish(subject, self._codec.encode(envelope))

    def subscribe(self, key: str, handler: Handler) -> Unsubscribe:
        """The same handler twice is one registration, ended by either result. A handler that raises
        starves nobody: `on_error` gets it, by default the log. Raises ValueError for the key.
        """
        subject = self._subject_of(key)
        off = self._handlers.add(key, handler, partial(self._drop, key))
        if key not in self._offs:
            try:
                self._offs[key] = self._connection.subscribe(subject, self._receiver(key))
            except BaseException:
                off()
                raise
        return off

    def _drop(self, key: str) -> None:
        off = self._offs.pop(key, None)
        if off is not None:
            off()

    def key_count(self) -> int:
        """How many subscriptions of the bus are live."""
        return len(self._offs)

    def on_reconnect(self, handler: Callable[[], None]) -> Unsubscribe:
        """Have the handler called when the bus was away and is back."""
        return self._watch(None, handler)

    def on_loss(self, key: str, handler: Callable[[], None]) -> Unsubscribe:
        """Have the handler called when envelopes of the key may have been lost: the bus was away,
        or this process too slow.
        """
        return self._watch(key, handler)

    def _watch(self, key: str | None, handler: Callable[[], None]) -> Unsubscribe:
        token = object()
        self._losses[token] = (key, handler)

        def unsubscribe() -> None:
            self._losses.pop(token, None)

        return unsubscribe

    def _lost(self, subject: str | None) -> None:
        for key, handler in tuple(self._losses.values()):
            if subject is None or (key is not None and self._subject_of(key) == subject):
                try:
                    handler()
                except Exception:
                    log.exception("a handler of losses failed key=%s", key)

    def _receiver(self, key: str) -> Callable[[Any], None]:
        decode, deliver, on_error = self._codec.decode, self._handlers.deliver, self._on_error

        def receive(payload: Any) -> None:
            try:
                envelope = decode(payload)
            except BadEnvelope as error:
                self.decode_errors += 1
                log.debug("no envelope key=%s error=%s", key, error)
                return
            deliver(key, envelope, on_error)

        return receive


class NatsTransport(BusTransport):
    """Over NATS: `NatsTransport(nats_connection(client))`."""


class RedisTransport(BusTransport):
    """Over Redis: `RedisTransport(RedisBus(url))`."""


def _log_error(key: str, handler: Handler, error: Exception) -> None:
    log.error("a handler failed key=%s", key, exc_info=error)
