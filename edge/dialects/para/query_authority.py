"""Queries on any transport: rows as envelopes of their own keys, and who is a member.

For rows that are not objects of a ledger (a view of another database, say). The application says
when something was written (`wrote`); the queries that read it are evaluated again, one run at a
time each, their real changes published with the next sequence of the row, and the membership told
where the list of keys has changed. Rows are kept as long as the authority, so numbers never repeat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

import msgspec

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.keys import check_key, version_of
from actors.dialects.para.values import check_json, same
from edge.auth import resolve
from edge.client.para.schema import SyncSchema
from edge.dialects.para.coalesce import Coalesced
from edge.dialects.para.kinds import ParseGateError
from infra.tasks import TaskOwner

ALL: Final = "*"
QUERIES_MAX: Final = 10_000
Evaluate = Callable[[Any], "Awaitable[Iterable[Any]] | Iterable[Any]"]
"""`evaluate(spec)`: the rows, in order."""

ReadSet = Callable[[Any], Iterable[str]]
"""`read_set_of(spec)`: the scopes that the query reads; ALL is every one."""


class Publishes(Protocol):
    """What it needs of a transport."""

    def publish(self, key: str, envelope: SyncEnvelope, /) -> None: ...


class Membership(msgspec.Struct, frozen=True):
    """The keys of a query's rows, in order, and the envelopes of those that are new to it."""

    keys: tuple[str, ...]
    seeds: dict[str, SyncEnvelope]


OnMembership = Callable[[Membership], None]


class QueryAuthority:
    """Made by `create_query_authority`; use as `async with`, or call `aclose` once."""

    def __init__(
        self, transport: Publishes, evaluate: Evaluate, key_of: Callable[[Any], str],
        schema: SyncSchema[Any], read_set_of: ReadSet | None, version: str,
    ) -> None:  # fmt: skip
        version_of(version)
        self._transport = transport
        self._evaluate = evaluate
        self._key_of = key_of
        self._schema = schema
        self._read_set_of = read_set_of
        self._version = version
        self._rows: dict[str, SyncEnvelope] = {}
        self._queries: dict[object, _Query] = {}
        self._tasks = TaskOwner()

    async def subscribe(self, spec: Any, on_membership: OnMembership) -> Callable[[], None]:
        """Evaluate, tell the membership, and again whenever it changes; the result ends it.

        Raises what `evaluate` raises at its first run, and ParseGateError for a row it must not
        give.
        """
        if len(self._queries) >= QUERIES_MAX:
            raise ValueError(f"at most {QUERIES_MAX} queries at once")
        scopes = frozenset((ALL,) if self._read_set_of is None else self._read_set_of(spec))
        query = _Query(self, spec, scopes, on_membership, self._tasks)
        await query.run()
        token = object()
        self._queries[token] = query

        def off() -> None:
            if self._queries.pop(token, None) is not None:
                query.work.stop()

        return off

    def wrote(self, scope: str = ALL) -> None:
        """Something in the scope was written: evaluate what reads it, soon."""
        for query in self._queries.values():
            if scope == ALL or ALL in query.scopes or scope in query.scopes:
                query.work.trigger()

    def get(self, key: str) -> SyncEnvelope | None:
        """The row as last evaluated: for refetches."""
        return self._rows.get(key)

    async def aclose(self) -> None:
        """End every query."""
        for query in self._queries.values():
            query.work.stop()
        self._queries.clear()
        await self._tasks.aclose()

    async def __aenter__(self) -> QueryAuthority:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def evaluate(self, spec: Any) -> dict[str, SyncEnvelope]:
        """For a query: its rows by key, in order; real changes are published."""
        found: dict[str, Any] = {}
        for row in await resolve(self._evaluate(spec)):
            parsed = self._schema.parse(row)
            if parsed.tag != "Ok":
                raise ParseGateError(f"not a row of this query: {str(parsed.error)[:200]}")
            value = msgspec.to_builtins(parsed.value)
            check_json(value)
            found[check_key(self._key_of(row))] = value
        return {key: self._row(key, value) for key, value in found.items()}

    def _row(self, key: str, value: Any) -> SyncEnvelope:
        held = self._rows.get(key)
        if held is not None and same(held.value, value):
            return held
        sequence = 1 if held is None else held.sequence + 1
        envelope = self._rows[key] = SyncEnvelope(value, self._version, sequence)
        self._transport.publish(key, envelope)
        return envelope


class _Query:
    def __init__(
        self, authority: QueryAuthority, spec: Any, scopes: frozenset[str], tell: OnMembership,
        tasks: TaskOwner,
    ) -> None:  # fmt: skip
        self.scopes = scopes
        self.work = Coalesced(self.run, tasks, "para query")
        self._authority = authority
        self._spec = spec
        self._tell = tell
        self._keys: tuple[str, ...] | None = None

    async def run(self) -> None:
        rows = await self._authority.evaluate(self._spec)
        keys = tuple(rows)
        if self.work.stopped or keys == self._keys:
            return
        known = frozenset(self._keys or ())
        self._keys = keys
        self._tell(Membership(keys, {key: rows[key] for key in keys if key not in known}))


def create_query_authority(
    transport: Publishes,
    evaluate: Evaluate,
    key_of: Callable[[Any], str],
    schema: SyncSchema[Any],
    read_set_of: ReadSet | None = None,
    *,
    version: str = "1.0",
) -> QueryAuthority:
    """Follow queries over rows; see QueryAuthority. Without `read_set_of` they read everything."""
    return QueryAuthority(transport, evaluate, key_of, schema, read_set_of, version)
