"""The port: the only door to a scope. In one process a direct call into the host, later a link.

Writing never awaits: the answer comes through the `Reply`, after release. Everything that may have
to wake a scope awaits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from actors.ephemeral import Line, Party
from actors.rows import Key, Row
from actors.scan import Spool, Work
from actors.snapshot import Snapshot
from actors.types import Address, Bounds, Draft, EntryPage, Page, Reply, Resync, Tap


class Port(Protocol):
    """What an edge may ask of scopes.
    Unknown scopes read as empty and are not created by reading.
    """

    def append(
        self,
        address: Address,
        drafts: list[Draft],
        reply: Reply,
        tag: Any,
        *,
        replicated: bool = False,
    ) -> None:
        """Have the drafts sequenced and stored; `replicated`: answer when the bucket has them.

        Raises Busy, Closed, TryLater, Unavailable and, for `replicated` without a bucket, NoBucket:
        nothing was taken.
        """

    async def read(
        self, address: Address, after: int, *, entries_max: int, bytes_max: int, joined: bool
    ) -> Page | Resync:
        """Released entries after a cursor."""

    async def bounds(self, address: Address) -> Bounds:
        """What the scope holds, as far as released."""

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        """Follow the scope from the returned head on: the tap gets every later entry, once."""

    def unsubscribe(self, address: Address, tap: Tap) -> None:
        """Follow it no longer. Harmless if it was not followed."""

    async def snapshot(self, address: Address, coll: str) -> Snapshot | None:
        """The collection's rows at one released seq; None for a scope never written."""

    async def clear(self, address: Address) -> Bounds:
        """Begin a new, empty history."""

    async def run(self, work: Callable[[], Any]) -> Any:
        """Slow work that belongs to a scope's data, in a thread of the host's bounded pool."""


class StatePort(Port, Protocol):
    """What dialects ask that read rows and groups besides."""

    async def visible(
        self, address: Address, after: int, groups: str, *, entries_max: int, bytes_max: int
    ) -> EntryPage | Resync:
        """Released entries after a cursor that have no group or one of `groups`, a JSON list."""

    async def get(self, address: Address, keys: Sequence[Key]) -> list[Row | None]:
        """Rows as released; what is committed and not yet released is waited for."""

    async def scan(self, address: Address, work: Work) -> Spool | None:
        """Run a read-only work in a thread, at one released seq; None for a scope never written."""

    def ephemeral(self, address: Address, party: Party) -> Line:
        """A place among those who speak beside the scope's history: presence and messages, never
        stored. The scope is not opened, and not kept awake.
        """
