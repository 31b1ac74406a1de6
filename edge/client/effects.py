"""What the client's machine asks its shell to do: plain values, to be done in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.client.outbox import Ticket
from infra.errors import ScopeError


class SyncError(ScopeError):
    """A subscription, view or publish was refused for good; `code` is the server's word."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """Why a cursor cannot go on: `below_floor`, `ahead_of_head`, `epoch_changed` or `gap`."""

    reason: str
    epoch: str | None = None
    head: int | None = None
    floor: int | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Write one text frame."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand envelopes to a consumer, one by one; on its first `gap` call `machine.gap` and stop."""

    consumer: int
    envelopes: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The consumer has everything up to `seq` and is live."""

    consumer: int
    seq: int


@dataclass(frozen=True, slots=True)
class DurableMoved:
    """Everything up to `seq` is as safe as the server makes it."""

    consumer: int
    epoch: str
    seq: int


@dataclass(frozen=True, slots=True)
class SnapshotRequired:
    """The consumer rests until `machine.restart` gives it a new cursor."""

    consumer: int
    scope: str
    info: SnapshotInfo


@dataclass(frozen=True, slots=True)
class Failed:
    """The consumer is gone: its subscription was refused or revoked."""

    consumer: int
    scope: str
    error: SyncError


@dataclass(frozen=True, slots=True)
class Answered:
    """A publish has all of its results."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the socket, then call `machine.disconnected`; the reason is for people."""

    reason: str


Effect = Send | Deliver | CaughtUp | DurableMoved | SnapshotRequired | Failed | Answered | Drop
