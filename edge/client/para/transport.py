"""The transport of para-sync: hands envelopes to who listens to their key now, and nothing more.

It does not retain, validate, dedupe or replay; a publish that nobody listens to is no fault. What
was missed is for the replica to notice, by the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

from actors.dialects.para.envelope import SyncEnvelope, as_envelope
from edge.client.para.handlers import Handler, HandlerTable, OnError, Unsubscribe

Source = Literal["hydration", "receipt", "refetch"]
"""How an envelope came: as a seed, from the transport, or asked for."""


class SyncTransport(Protocol):
    """Publish and subscribe by key."""

    def publish(self, key: str, envelope: SyncEnvelope, /) -> None:
        """Hand the envelope to the key's handlers, in the order they subscribed."""

    def subscribe(self, key: str, handler: Handler, /) -> Unsubscribe:
        """Have the handler called with each envelope; returns what ends that, once or more."""


class Follower(Protocol):
    """A replica, as a transport sees it that can do more than hand envelopes on."""

    @property
    def position(self) -> tuple[str | None, int]:
        """(schema version, sequence) of what is applied; (None, -1) where nothing is."""

    def ingest(self, envelope: SyncEnvelope, source: Source = "receipt") -> None:
        """Reconcile an envelope."""

    def catch_up(self) -> None:
        """Envelopes may have been missed: look."""


@runtime_checkable
class FollowedTransport(Protocol):
    """A transport that brings its followers up to date by itself, such as one that knows what they
    have applied. A replica calls `attach` in place of `subscribe`, before it takes its seed; its
    `position` is current once the call that created it has returned.
    """

    def attach(self, key: str, follower: Follower, /) -> Unsubscribe:
        """Feed the follower until the result is called."""


@runtime_checkable
class LossyTransport(Protocol):
    """A transport that knows when envelopes may have been lost: its bus was away, say."""

    def on_loss(self, key: str, handler: Callable[[], None], /) -> Unsubscribe:
        """Have the handler called when that may have happened to the key's, and they flow again."""


class InProcessTransport:
    """Within one process, synchronous: on return from `publish` every handler has been called."""

    def __init__(self, on_error: OnError | None = None) -> None:
        self._handlers = HandlerTable()
        self._on_error = on_error

    def publish(self, key: str, envelope: SyncEnvelope | dict[str, Any]) -> None:
        """Call the key's handlers. Raises BadEnvelope, or what a handler raised (after all were
        called) unless `on_error` was given.
        """
        if type(envelope) is not SyncEnvelope:
            envelope = as_envelope(envelope)
        self._handlers.deliver(key, envelope, self._on_error)

    def subscribe(self, key: str, handler: Handler) -> Unsubscribe:
        """The same handler twice is one registration, ended by either result."""
        return self._handlers.add(key, handler)

    def key_count(self) -> int:
        """How many keys have a handler."""
        return len(self._handlers)
