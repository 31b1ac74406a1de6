"""`SyncedAuthority`: the server's own reads and writes of the objects of one namespace.

Every write is on disk (at the scope's durability level) when its call returns, and only then does
anybody hear of it, in the order of the writer. What is computed from the stored value (`mutate`,
functions in `tx`) is computed outside of the writer and written with the revision it was made for;
where that has moved on, it is computed again, a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.keys import BadKey, check_key
from actors.dialects.para.plan import Change, Op
from actors.dialects.para.reads import Held, ObjectsWork
from actors.port import StatePort
from actors.types import Address
from edge.auth import Principal, resolve
from edge.client.para.schema import SyncSchema
from edge.client.para.transport import SyncTransport
from edge.dialects.para.access import Doorkeeper, KeyAuthorize, View
from edge.dialects.para.kinds import Kinds, SyncedKind
from edge.dialects.para.locks import KeyLocks
from edge.dialects.para.objects import (
    ParaRefused,
    Stale,
    Written,
    change_of,
    deletion_of,
    envelope_of,
    own_copy,
    read_rows,
    upcast,
    write,
)
from edge.dialects.para.publishing import Publisher
from edge.dialects.para.spaces import ScopeOf, Spaces
from infra.errors import Busy

if TYPE_CHECKING:
    from edge.dialects.para.frames import Frame

ATTEMPTS_MAX: Final = 8
ROWS_MAX: Final = 10_000


class Delete(Enum):
    """See DELETE."""

    DELETE = "delete"


DELETE: Final = Delete.DELETE
"""In place of a value: delete the object."""

Compute = Callable[[Any], "Awaitable[Any] | Any"]


class CrossScope(ParaRefused):
    """The keys of a group lie in several scopes, which no transaction spans."""

    code = "cross_scope"


class AuthorityRuntime(Protocol):
    """What an authority needs of a running server; edge.runtime.Runtime fits."""

    @property
    def port(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class PutResult:
    """The object as it is now, and whether this call changed it.

    `envelope` is None where nothing was there to delete.
    """

    envelope: SyncEnvelope | None
    changed: bool


class SyncedAuthority:
    """Cheap to make; holds nothing but the locks it is given.

    `schemas`: a schema or a SyncedKind by kind of key. `scope_of(key)` names the part of the
    namespace whose scope holds the key; without it there is one. `authorize(user, key, action)`
    decides for the users of `seeds`. With a `transport` every change is published on it as well,
    whole: give one only to services that may see everything.
    """

    def __init__(
        self,
        runtime: AuthorityRuntime,
        schemas: Kinds | Mapping[str, SyncSchema[Any] | SyncedKind],
        scope_of: ScopeOf | None = None,
        authorize: KeyAuthorize | None = None,
        *,
        name: str = "default",
        tenant: str = "default",
        transport: SyncTransport | None = None,
        locks: KeyLocks | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        self.port: StatePort = runtime.port
        self.kinds = schemas if isinstance(schemas, Kinds) else kinds_of(schemas)
        self.spaces = Spaces(name, tenant, scope_of)
        fallback: Any = runtime if hasattr(runtime, "may") else None
        self.doorkeeper = Doorkeeper(authorize, fallback)
        self.locks = locks or KeyLocks()
        if publisher is None and transport is not None:
            publisher = Publisher(self.port, transport)
        self._publisher = publisher

    # -- reading ---------------------------------------------------------------------------------

    async def get(self, key: str) -> SyncEnvelope | None:
        """The object, or None. Raises SchemaSkew for one of another major without an upcaster."""
        found = (await self.read([key]))[0]
        return None if found is None or found.deleted else found

    async def read(self, keys: Sequence[str]) -> list[SyncEnvelope | None]:
        """Objects of one scope at one position, tombstones too. Raises SchemaSkew, CrossScope."""
        held = await read_rows(self.port, self.address_of(keys), keys)
        found: list[SyncEnvelope | None] = []
        for key, row in zip(keys, held.rows, strict=True):
            envelope = own_copy(envelope_of(row, held.bounds.jump))
            found.append(None if envelope is None else upcast(self.kinds.of(key), key, envelope))
        return found

    async def all(
        self, prefix: str = "", *, scope: str = "", limit: int = ROWS_MAX
    ) -> dict[str, SyncEnvelope]:
        """Objects whose key begins so, in order of key; at most ROWS_MAX. `scope`: of that part."""
        work = ObjectsWork(prefix, min(limit, ROWS_MAX))
        spool = await self.port.scan(self.spaces.part(scope), work)
        if spool is None:
            return {}
        spool.close()
        found: list[Held] = spool.result
        return {
            held.key: upcast(self.kinds.of(held.key), held.key, held.envelope()) for held in found
        }

    async def seeds(self, *keys: str, user: Principal | None = None) -> dict[str, Frame]:
        """Envelopes for a page that the server renders, by key: what is there and may be seen.

        Without a user nothing is hidden: for pages that everybody may see.
        """
        shown: dict[str, Frame] = {}
        for key in keys:
            envelope = await self.get(key)
            if envelope is None:
                continue
            if user is not None:
                envelope = await self.shown(user, key, envelope)
            if envelope is not None:
                shown[key] = {
                    "value": envelope.value,
                    "schema_version": envelope.schema_version,
                    "sequence": envelope.sequence,
                }
        return shown

    async def shown(self, user: Principal, key: str, envelope: SyncEnvelope) -> SyncEnvelope | None:
        """What the user is shown of it; None where nothing is."""
        allowed = await self.doorkeeper.ask(user, self.address(key).scope, key, "read")
        if allowed is None:
            return None
        return View(self.kinds.of(key), user, key, allowed).show(envelope)

    # -- writing ---------------------------------------------------------------------------------

    async def put(
        self, key: str, value: Any, schema_version: str | None = None, op: str | None = None
    ) -> PutResult:
        """Set the object; an equal value changes nothing. With an `op` a repeat changes nothing.

        Raises ParseGateError, having stored nothing, for what the schema does not take.
        """
        change = change_of(self.kinds.of(check_key(key)), key, value, version=schema_version)
        return await self._set(change, op)

    async def delete(self, key: str, op: str | None = None) -> PutResult:
        """Leave a tombstone at the next sequence; a later `put` goes on from there."""
        return await self._set(deletion_of(self.kinds.of(check_key(key)), key), op)

    async def mutate(self, key: str, fn: Compute) -> PutResult:
        """Set the object to what `fn(value)` makes of it (None: there is none); DELETE deletes.

        `fn` may be async and may run more than once. Raises Busy where others always were faster.
        """
        return (await self.tx({key: fn}))[key]

    async def tx(self, writes: Mapping[str, Any], op: str | None = None) -> dict[str, PutResult]:
        """Set several objects of one scope, all or none. A value, DELETE, or a function of the
        stored value. Raises CrossScope, and as `put` and `mutate`.
        """
        address = self.address_of(list(writes))
        computed = {key: fn for key, fn in writes.items() if callable(fn)}
        async with self.locks.hold(address, computed):
            for _ in range(ATTEMPTS_MAX):
                held = await self.held(address, list(computed))
                changes = []
                for key, wanted in writes.items():
                    if key in computed:
                        rev, current = held[key]
                        made = await resolve(computed[key](current))
                        changes.append(self.change(key, made, rev=rev))
                    else:
                        changes.append(self.change(key, wanted))
                try:
                    return await self._written(address, changes, op)
                except Stale:
                    continue
        raise Busy("others keep writing the object", retry_after_ms=100)

    def change(
        self, key: str, wanted: Any, *, rev: int | None = None, v: int | None = None
    ) -> Change:
        """The change to a value or DELETE. Raises ParseGateError."""
        kind = self.kinds.of(key)
        if wanted is DELETE:
            return deletion_of(kind, key, rev=rev, v=v)
        return change_of(kind, key, wanted, rev=rev, v=v)

    async def held(self, address: Address, keys: Sequence[str]) -> dict[str, tuple[int, Any]]:
        """(rev, value) of the keys; (n, None) where there is no object. Raises SchemaSkew."""
        if not keys:
            return {}
        rows = (await read_rows(self.port, address, keys)).rows
        found: dict[str, tuple[int, Any]] = {}
        for key, row in zip(keys, rows, strict=True):
            envelope = own_copy(envelope_of(row, 0))
            if envelope is None or envelope.deleted:
                found[key] = (0 if envelope is None else envelope.sequence, None)
            else:
                found[key] = (envelope.sequence, upcast(self.kinds.of(key), key, envelope).value)
        return found

    async def write(self, address: Address, changes: list[Change], op: Op | None) -> Written:
        """Write, with the transport listening."""
        if self._publisher is not None:
            await self._publisher.follow(address)
        return await write(self.port, address, changes, op)

    async def _set(self, change: Change, op: str | None) -> PutResult:
        return (await self._written(self.address(change.key), [change], op))[change.key]

    async def _written(
        self, address: Address, changes: list[Change], op: str | None
    ) -> dict[str, PutResult]:
        named = None if op is None else Op(None, "", op)
        written = await self.write(address, changes, named)
        if written.duplicate:
            now = await self.read([change.key for change in changes])
            return {
                change.key: PutResult(held, False)
                for change, held in zip(changes, now, strict=True)
            }
        results = {}
        for change in changes:
            sequence = written.sequences.get(change.key)
            envelope = None if sequence is None else SyncEnvelope(
                change.value, change.version, sequence, deleted=change.deleted
            )  # fmt: skip
            results[change.key] = PutResult(envelope, change.key in written.answer.changed)
        return results

    # -- where -----------------------------------------------------------------------------------

    def address(self, key: str) -> Address:
        """The scope of a key. Raises BadKey."""
        return self.spaces.of(check_key(key))

    def address_of(self, keys: Sequence[str]) -> Address:
        """The one scope of several keys. Raises CrossScope, BadKey."""
        addresses = {self.address(key) for key in keys}
        if not addresses:
            raise BadKey("at least one key")
        if len(addresses) > 1:
            raise CrossScope(f"the keys lie in {len(addresses)} scopes")
        return addresses.pop()


def kinds_of(schemas: Mapping[str, SyncSchema[Any] | SyncedKind]) -> Kinds:
    """Kinds by name; a bare schema becomes a kind without rules."""
    return Kinds(
        given if isinstance(given, SyncedKind) else SyncedKind(name, given)
        for name, given in schemas.items()
    )
