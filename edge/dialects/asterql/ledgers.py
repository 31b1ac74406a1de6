"""Ledgers for embedding (asterql.md section 9): the protocol an application may implement, and
ours.

`SqliteSyncLedger` and `ActorSyncLedger` are the server's own actors; `InMemorySyncLedger` keeps the
same rules in dictionaries, for tests and for processes that may forget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from actors.dedupe import DedupeWindow
from actors.dialects.asterql.canonical import hash_record_version, snapshot_hash
from actors.dialects.asterql.envelope import BadEnvelope, check_value, parse_envelope
from actors.dialects.asterql.plan import COLL, AsterqlDialect
from actors.host import Host
from actors.host_settings import HostSettings
from actors.port import Port
from actors.reply import FutureReply
from actors.rows import Overlay, Row, RowCache
from actors.types import (
    Address,
    Bounds,
    Draft,
    Duplicate,
    Refusal,
    Rejected,
    Retention,
    ScopePolicy,
)  # fmt: skip
from infra import clock, ids
from infra.errors import Closed, HoldfastError, ScopeError

Make = Callable[[int], Mapping[str, Any]]
TENANT = "default"
CLEAR_JUMP = 2**20


class PublishError(ScopeError):
    """`code`: bad_envelope, patch_failed (with entity, index, reason), too_large, forbidden,
    closed, busy.
    """

    def __init__(self, code: str, message: str, detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, code=code)
        found = detail or {}
        self.entity: str | None = found.get("entity")
        self.index: int | None = found.get("index")
        self.reason: str | None = found.get("reason")
        self.retryable = code in ("busy", "storage", "closed")


class BelowFloor(ScopeError):
    """Retention has taken what comes after the cursor.

    `floor` is the lowest cursor still served.
    """

    code = "below_floor"

    def __init__(self, floor: int) -> None:
        super().__init__(f"entries up to {floor} are gone")
        self.floor = floor


class Published(msgspec.Struct, frozen=True):
    """The envelope as stored; `duplicate`: it was there before. None where retention took it."""

    envelope: dict[str, Any] | None
    duplicate: bool


class ScopeView(msgspec.Struct, frozen=True):
    """A scope's entities at one seq."""

    epoch: str
    seq: int
    entities: dict[str, Any]
    hash: str


class SyncScopeLedger(Protocol):
    """What a hub needs of a store. `make(seq)` runs inside the store's writer."""

    async def append(self, scope: str, make: Make) -> Published:
        """Raises PublishError, or what `make` raises; then nothing is stored."""

    async def read(self, scope: str, after: int, limit: int) -> list[dict[str, Any]]:
        """Raises BelowFloor."""

    async def bounds(self, scope: str) -> Bounds: ...

    async def snapshot(self, scope: str) -> ScopeView: ...

    async def clear(self, scope: str) -> None: ...

    async def aclose(self) -> None: ...


def draft_of(scope: str, make: Make) -> Draft:
    """A draft whose envelope is made inside the writer, when its seq is known."""

    def build(seq: int, at: int) -> Draft:
        envelope = make(seq)
        if not isinstance(envelope, Mapping):
            raise BadEnvelope("the factory must return an envelope (a mapping)")
        check_value(dict(envelope))
        if envelope.get("scope", scope) != scope:
            raise BadEnvelope(f"envelope.scope: {envelope['scope']!r}, published to {scope!r}")
        return parse_envelope(msgspec.json.encode(envelope), scope, seq=seq)

    return Draft("", "", "", 0, None, None, None, build)


async def publish_to_port(port: Port, address: Address, make: Make) -> Published:
    """Append one envelope in this process. Raises PublishError, or what `make` raised."""
    reply = FutureReply()
    try:
        port.append(address, [draft_of(address.scope, make)], reply, None)
    except HoldfastError as error:
        raise PublishError(error.code, str(error)) from error
    (outcome, *_), _ = await reply.future
    if isinstance(outcome, Rejected):
        if outcome.error is not None and not isinstance(outcome.error, HoldfastError):
            raise outcome.error
        raise PublishError(outcome.code, outcome.message, outcome.detail)
    if isinstance(outcome, Duplicate):
        body = outcome.body
        return Published(None if body is None else msgspec.json.decode(body), True)
    page = await port.read(
        address, outcome.first - 1, entries_max=1, bytes_max=1 << 20, joined=False
    )
    bodies = getattr(page, "bodies", [])
    return Published(msgspec.json.decode(bodies[0]) if bodies else None, False)


def view_of(epoch: str, seq: int, entities: dict[str, Any]) -> ScopeView:
    """With its hash."""
    versions = sorted((key, hash_record_version(record)) for key, record in entities.items())
    return ScopeView(epoch, seq, entities, snapshot_hash(versions))


class ActorSyncLedger:
    """A running host as a ledger; the hub then uses its port directly."""

    def __init__(self, runtime: Host, *, tenant: str = TENANT) -> None:
        self.host = runtime
        self.tenant = tenant

    async def start(self) -> None:
        """The host is somebody else's, and running."""

    async def append(self, scope: str, make: Make) -> Published:
        return await publish_to_port(self.host, Address(self.tenant, scope), make)

    async def read(self, scope: str, after: int, limit: int) -> list[dict[str, Any]]:
        page = await self.host.read(
            Address(self.tenant, scope), after, entries_max=limit, bytes_max=1 << 20, joined=False
        )
        bodies = getattr(page, "bodies", None)
        if bodies is None:
            raise BelowFloor(page.bounds.floor)
        return [msgspec.json.decode(body) for body in bodies]

    async def bounds(self, scope: str) -> Bounds:
        return await self.host.bounds(Address(self.tenant, scope))

    async def snapshot(self, scope: str) -> ScopeView:
        found = await self.host.snapshot(Address(self.tenant, scope), COLL)
        if found is None:
            return view_of("", 0, {})
        try:
            return view_of(
                found.epoch, found.seq, {key: msgspec.json.decode(body) for key, body in found}
            )
        finally:
            found.close()

    async def clear(self, scope: str) -> None:
        await self.host.clear(Address(self.tenant, scope))

    async def aclose(self) -> None:
        """The host stays."""


class SqliteSyncLedger(ActorSyncLedger):
    """Ledger files in a directory of this process."""

    def __init__(
        self, directory: str | Path, retain: int = 10_000, *, materialize: bool = True
    ) -> None:
        policy = ScopePolicy(Retention(retain), materialize)
        super().__init__(Host(Path(directory), HostSettings(policy=lambda _address: policy)))

    async def start(self) -> None:
        await self.host.start()

    async def aclose(self) -> None:
        await self.host.aclose()


class _Scope:
    """One scope in memory."""

    def __init__(self) -> None:
        self.epoch = ids.new_id()
        self.head = self.floor = 0
        self.bodies: dict[int, str] = {}
        self.causes = DedupeWindow([])
        self.rows: dict[str, Row] = {}


class InMemorySyncLedger:
    """The rules without the disk."""

    def __init__(self, retain: int = 10_000, *, materialize: bool = True) -> None:
        self._retain = retain
        self._materialize = materialize
        self._scopes: dict[str, _Scope] = {}
        self._dialect = AsterqlDialect()
        self._closed = False

    async def start(self) -> None:
        """Nothing to open."""

    async def append(self, scope: str, make: Make) -> Published:
        if self._closed:
            raise Closed("the ledger is closed")
        held = self._scopes.get(scope) or _Scope()
        at = clock.now_ms()
        try:
            build = draft_of(scope, make).make
            assert build is not None
            draft = build(held.head + 1, at)
            if (seq := held.causes.get(draft.cause)) is not None:
                body = held.bodies.get(seq)
                return Published(None if body is None else msgspec.json.decode(body), True)
            body = self._write(held, draft, at)
        except (Refusal, BadEnvelope) as error:
            raise PublishError(error.code, str(error), getattr(error, "detail", None)) from error
        self._scopes[scope] = held
        return Published(msgspec.json.decode(body), False)

    def _write(self, held: _Scope, draft: Draft, at: int) -> str:
        overlay = Overlay(RowCache(lambda _coll, key: held.rows.get(key)), at=at)
        (entry,) = self._dialect.plan(draft, held.head + 1, at, overlay)
        if self._materialize:
            self._dialect.apply(overlay, entry)
            overlay.accept()
            if overlay.cleared:
                held.rows.clear()
            for (_, key), row in overlay.batch.items():
                if row is None:
                    held.rows.pop(key, None)
                else:
                    held.rows[key] = row
        held.head = entry.seq
        held.bodies[entry.seq] = entry.body
        held.causes.add({draft.cause: entry.seq})
        while held.head - held.floor > self._retain:
            held.floor += 1
            del held.bodies[held.floor]
        return entry.body

    async def read(self, scope: str, after: int, limit: int) -> list[dict[str, Any]]:
        held = self._scopes.get(scope)
        if held is None:
            return []
        if after < held.floor:
            raise BelowFloor(held.floor)
        last = min(held.head, after + limit)
        return [msgspec.json.decode(held.bodies[seq]) for seq in range(after + 1, last + 1)]

    async def bounds(self, scope: str) -> Bounds:
        held = self._scopes.get(scope)
        return Bounds("", 0, 0, 0) if held is None else Bounds(
            held.epoch, held.head, held.floor, held.head
        )  # fmt: skip

    async def snapshot(self, scope: str) -> ScopeView:
        held = self._scopes.get(scope)
        return view_of("", 0, {}) if held is None else view_of(
            held.epoch, held.head, {key: row.value for key, row in held.rows.items()}
        )  # fmt: skip

    async def clear(self, scope: str) -> None:
        held = self._scopes.get(scope)
        if held is not None:
            fresh = _Scope()
            fresh.head = fresh.floor = held.head + CLEAR_JUMP
            self._scopes[scope] = fresh

    async def aclose(self) -> None:
        self._closed = True
