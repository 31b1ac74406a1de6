"""Queries with membership: an ordered list of keys that follows what is written.

The application says what a query means: `evaluate(spec, user, objects)` gives the keys, in order.
It is evaluated again after writes that it may read, one run at a time; a client hears of it only
where its list has changed, with the envelopes of keys that are new to it. Keys that the user may
not read, or that have no object, are not in the list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.keys import check_key
from actors.dialects.para.values import check_json
from edge.auth import Principal, resolve
from edge.dialects.para import frames as f
from edge.dialects.para.coalesce import Coalesced
from edge.dialects.para.feed import ParaFeed
from infra.errors import HoldfastError, ScopeError

if TYPE_CHECKING:
    from edge.dialects.para.authority import SyncedAuthority
    from edge.dialects.para.connection import ParaConnection
    from edge.dialects.para.service import ParaService

MEMBERS_MAX: Final = 1000
Evaluate = Callable[[Any, Principal, Any], "Awaitable[Iterable[str]] | Iterable[str]"]
"""`evaluate(spec, user, objects)`: the keys, in order; `objects` is the SyncedAuthority."""

ReadSet = Callable[[Any, frozenset[str]], bool]
"""`reads(spec, keys)`: whether writes of these keys can change the list."""

PartOf = Callable[[Any], str]
"""`part_of(spec)`: the part of the namespace that the query reads, as `scope_of` names it."""


class QueryFailed(ScopeError):
    """The application could not evaluate it."""

    code = "internal"


class NoQueries(ScopeError):
    """The application declares none."""

    code = "not_found"


@dataclass(frozen=True, slots=True)
class DeclaredQuery:
    """What `Application.query` has been given."""

    evaluate: Evaluate
    reads: ReadSet | None = None
    part_of: PartOf | None = None


class Queries:
    """The queries of one namespace."""

    def __init__(
        self, service: ParaService, authority: SyncedAuthority, declared: DeclaredQuery | None
    ) -> None:
        self.service = service
        self.authority = authority
        self.declared = declared

    def open(self, connection: ParaConnection, frame: f.Query) -> QuerySubscription:
        """A query of a client; `start` it. Raises NoQueries, BadValue."""
        if self.declared is None:
            raise NoQueries("no queries are declared")
        check_json(frame.spec)
        return QuerySubscription(self, connection, frame, self.declared)


class QuerySubscription:
    """Fits edge.dialects.para.feed.Watcher."""

    def __init__(
        self, queries: Queries, connection: ParaConnection, frame: f.Query, declared: DeclaredQuery
    ) -> None:
        self._queries = queries
        self._connection = connection
        self._qid = frame.qid
        self._spec = frame.spec
        self._declared = declared
        self._feed: ParaFeed | None = None
        self._keys: list[str] | None = None
        name = f"para query {frame.qid[:40]}"
        self._work = Coalesced(self._run, queries.service.tasks, name)

    async def start(self) -> None:
        """Follow the scope and evaluate for the first time. Raises QueryFailed, HoldfastError."""
        part = "" if self._declared.part_of is None else self._declared.part_of(self._spec)
        feed = await self._queries.service.join(self._queries.authority.spaces.part(part))
        self._feed = feed
        if self._work.stopped:
            self.end()
            return
        feed.watchers[self] = None
        self._work.trigger()

    def touched(self, keys: frozenset[str] | None) -> None:
        """See Watcher."""
        if keys is None or self._declared.reads is None or self._reads(keys):
            self._work.trigger()

    def _reads(self, keys: frozenset[str]) -> bool:
        assert self._declared.reads is not None
        try:
            return self._declared.reads(self._spec, keys)
        except Exception:  # user code: in doubt, look
            return True

    def end(self) -> None:
        """No more frames of this one."""
        self._work.stop()
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.watchers.pop(self, None)
            self._queries.service.leave(feed)

    async def _run(self) -> None:
        connection = self._connection
        await connection.sink.drained()
        try:
            wanted = await self._evaluate()
            shown = await self._shown(wanted)
        except HoldfastError as error:
            if not self._work.stopped:
                connection.send(f.query_error(self._qid, error.code, str(error)))
            return
        keys = list(shown)
        if self._work.stopped or keys == self._keys:
            return
        known = frozenset(self._keys or ())
        self._keys = keys
        seeds = {key: envelope for key, envelope in shown.items() if key not in known}
        connection.send(f.membership(self._qid, keys, seeds))

    async def _evaluate(self) -> list[str]:
        authority, user = self._queries.authority, self._connection.principal
        try:
            found = await resolve(self._declared.evaluate(self._spec, user, authority))
            keys = list(dict.fromkeys(check_key(key) for key in found))
        except HoldfastError:
            raise
        except Exception as error:  # user code
            raise QueryFailed("the query could not be evaluated") from error
        if len(keys) > MEMBERS_MAX:
            raise QueryFailed(f"the query has {len(keys)} members; at most {MEMBERS_MAX}")
        return keys

    async def _shown(self, keys: list[str]) -> dict[str, SyncEnvelope]:
        """Those that there are and that the user may see."""
        authority = self._queries.authority
        found: dict[str, SyncEnvelope] = {}
        if not keys:
            return found
        envelopes = await authority.read(keys)
        for key, envelope in zip(keys, envelopes, strict=True):
            if envelope is not None and not envelope.deleted:
                shown = await authority.shown(self._connection.principal, key, envelope)
                if shown is not None:
                    found[key] = shown
        return found
