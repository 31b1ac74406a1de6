"""What a journal service stores rooms in (section 14): protocols, and rooms as scopes of a port.

`LedgerRepository` is all three over any port: every room is a scope with a ledger of its own, and
its writer keeps the rules (actors/dialects/vuer). `InMemoryRepository` is the same over a host of
its own, whose files lie in memory where the system has such a place and go with it: for tests, and
for processes that may forget.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from actors.dialects.vuer.plan import KEEP_TAIL, SNAPSHOT_EVERY, VuerDialect
from actors.dialects.vuer.reads import DocumentRead, DocumentWork, SessionsWork
from actors.dialects.vuer.sessions import SESSIONS
from actors.host import Host
from actors.host_settings import HostSettings
from actors.port import StatePort
from actors.scan import Spool, Work
from actors.types import (
    Address,
    Bounds,
    Draft,
    EntryPage,
    Reply,
    Resync,
    ScopePolicy,
    Tap,
)  # fmt: skip
from edge.dialects.vuer.limits import JOURNAL_BYTES_MAX, JOURNAL_MESSAGES_MAX
from infra import clock

_MEMORY = Path("/dev/shm")
_NO_GROUPS = "[]"


class Document(msgspec.Struct, frozen=True):
    """A room as a whole. Messages floor+1..head are kept; `nodes` counts those ever inserted."""

    room_id: str
    epoch: str
    head: int
    floor: int
    floor_at: int
    lamport: int
    root_key: str
    nodes: int


class SessionRecord(msgspec.Struct, frozen=True):
    """What a room remembers of a session that has written to it."""

    clock: int
    last_message: str


class JournalRepository(Protocol):
    """The messages of rooms, in order. Rooms that were never written read as empty."""

    def append(self, address: Address, drafts: list[Draft], reply: Reply, tag: Any) -> None:
        """Decide and store a batch in one transaction; answered after it is on disk.

        Raises Busy, Closed and Unavailable, having taken nothing.
        """

    async def range(self, address: Address, after: int) -> EntryPage | Resync:
        """The next messages after a position, as many as fit one frame."""

    async def bounds(self, address: Address) -> Bounds: ...

    async def snapshot(self, address: Address, work: Work) -> Spool | None:
        """Read the room's file at one position, beside its writer; None where there is none."""

    async def clear(self, address: Address) -> Bounds:
        """Begin a new history."""

    async def subscribe(self, address: Address, tap: Tap) -> Bounds: ...

    def unsubscribe(self, address: Address, tap: Tap) -> None: ...


class DocumentRepository(Protocol):
    """The rooms themselves."""

    async def document(self, address: Address) -> Document | None:
        """None for a room that was never written."""


class SessionRepository(Protocol):
    """Who has written to a room; who is in it now is the broker's."""

    async def sessions(self, address: Address) -> dict[str, SessionRecord]: ...

    async def owner(self, address: Address, session: str) -> str | None:
        """The mark of the user who has written as the session (actors' user_mark)."""


class LedgerRepository:
    """Rooms of a port. How much history stays is what the port's dialect says."""

    owned = False

    def __init__(self, port: StatePort) -> None:
        self.port = port

    async def start(self) -> None:
        """The port is somebody else's, and open."""

    async def aclose(self) -> None:
        """It stays so."""

    # -- JournalRepository -------------------------------------------------------------------------

    def append(self, address: Address, drafts: list[Draft], reply: Reply, tag: Any) -> None:
        """See JournalRepository."""
        self.port.append(address, drafts, reply, tag)

    async def range(self, address: Address, after: int) -> EntryPage | Resync:
        """See JournalRepository."""
        return await self.port.visible(
            address, after, _NO_GROUPS, entries_max=JOURNAL_MESSAGES_MAX,
            bytes_max=JOURNAL_BYTES_MAX,
        )  # fmt: skip

    async def bounds(self, address: Address) -> Bounds:
        """See JournalRepository."""
        return await self.port.bounds(address)

    async def snapshot(self, address: Address, work: Work) -> Spool | None:
        """See JournalRepository."""
        return await self.port.scan(address, work)

    async def clear(self, address: Address) -> Bounds:
        """See JournalRepository."""
        return await self.port.clear(address)

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        """See JournalRepository."""
        return await self.port.subscribe(address, tap)

    def unsubscribe(self, address: Address, tap: Tap) -> None:
        """See JournalRepository."""
        self.port.unsubscribe(address, tap)

    # -- DocumentRepository, SessionRepository -----------------------------------------------------

    async def document(self, address: Address) -> Document | None:
        """See DocumentRepository."""
        found: DocumentRead | None = await self._read(address, DocumentWork())
        if found is None:
            return None
        bounds = found.bounds
        return Document(
            address.scope.partition(":")[2], bounds.epoch, bounds.head, bounds.floor,
            bounds.floor_at, found.lamport, found.root_key, found.nodes,
        )  # fmt: skip

    async def sessions(self, address: Address) -> dict[str, SessionRecord]:
        """See SessionRepository."""
        found = await self._read(address, SessionsWork()) or {}
        return {id: SessionRecord(clock, last) for id, (clock, last) in found.items()}

    async def owner(self, address: Address, session: str) -> str | None:
        """See SessionRepository."""
        (row,) = await self.port.get(address, [(SESSIONS, session)])
        return None if row is None else row.value.get("user")

    async def _read(self, address: Address, work: Work) -> Any:
        spool = await self.snapshot(address, work)
        if spool is None:
            return None
        spool.close()
        return spool.result


class InMemoryRepository(LedgerRepository):
    """Rooms of this process, forgotten with `aclose`. Start it before use."""

    owned = True

    def __init__(
        self, *, snapshot_every: int = SNAPSHOT_EVERY, keep_tail: int = KEEP_TAIL,
        now_ms: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        parent = str(_MEMORY) if _MEMORY.is_dir() else None
        self._directory = Path(tempfile.mkdtemp(prefix="holdfast-rooms-", dir=parent))
        self._now_ms = now_ms or clock.now_ms
        self._started = False
        self.keep(snapshot_every, keep_tail)

    def keep(self, snapshot_every: int, keep_tail: int) -> None:
        """How much history stays; before `start`."""
        dialect = VuerDialect(snapshot_every=snapshot_every, keep_tail=keep_tail)
        settings = HostSettings(policy=_policy, dialects={dialect.name: dialect})
        self.host = Host(self._directory, settings, now_ms=self._now_ms)
        super().__init__(self.host)

    async def start(self) -> None:
        """See LedgerRepository."""
        if not self._started:
            self._started = True
            await self.host.start()

    async def aclose(self) -> None:
        """Forget everything."""
        if self._started:
            await self.host.aclose()
        shutil.rmtree(self._directory, ignore_errors=True)


def _policy(address: Address) -> ScopePolicy:
    return ScopePolicy()
