"""Bootstrap and lookups as one read of the ledger file: SQL as text, run by a scan. Pure.

Rows and `lastSyncId` come from one read transaction, so what is sent is the log applied up to
exactly that number. Lines are made and joined inside SQLite, page by page: a million rows hold
neither memory nor the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from actors.dialects.stratasync.codecs import DAY_MS
from actors.dialects.stratasync.models import MEMBERS, Registry, SimpleCursor, SyncModel
from actors.dialects.stratasync.plan import effective_groups
from actors.dialects.stratasync.schema import key_text
from infra.errors import Unavailable

PAGE_ROWS_MAX: Final = 512
PAGE_BYTES: Final = 256 << 10  # about what one step of a copy should yield
BATCH_ROWS_MAX: Final = 50_000

_LAST: Final = (
    "SELECT seq FROM entries WHERE grp IS NULL OR grp IN (SELECT value FROM json_each(?))"
    " ORDER BY seq DESC LIMIT 1"
)
_STORED: Final = "SELECT body FROM rows WHERE coll=? AND id=?"


class Header(Protocol):
    """Of the scope row."""

    floor: int


class Reader(Protocol):
    """What actors.scan.Reader offers."""

    @property
    def header(self) -> Header: ...
    @property
    def dialect(self) -> object: ...
    def rows(self, sql: str, params: Any = ()) -> list[tuple[Any, ...]]: ...
    def write(self, data: bytes) -> None: ...
    def copy(self, sql: str, params: Any = ()) -> int: ...


class Viewer(msgspec.Struct, frozen=True):
    """Who reads: the user, the groups the resolver gives, and the groups asked for."""

    user: str
    resolved: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """The first line of a bootstrap."""

    last_sync_id: str
    returned_models_count: dict[str, int]
    schema_hash: str
    subscribed_sync_groups: tuple[str, ...]


class Lookup(msgspec.Struct, frozen=True):
    """One request of a batch: by the value of a key, or all of a group."""

    model: str
    key: str | None = None
    value: str | None = None
    group: str | None = None


def groups_of(reader: Reader, viewer: Viewer) -> tuple[str, ...]:
    """Every group the viewer may see, stored memberships as of this read."""
    found = reader.rows(_STORED, (MEMBERS, viewer.user))
    stored = msgspec.json.decode(found[0][0])["groups"] if found else []
    return effective_groups(viewer.resolved, stored, viewer.user)


def asked_of(viewer: Viewer, authorized: Sequence[str]) -> tuple[str, ...]:
    """Those asked for that may be seen, in the order asked; all where none was asked for."""
    if not viewer.asked:
        return tuple(authorized)
    may = set(authorized)
    return tuple(dict.fromkeys(group for group in viewer.asked if group in may))


class BootstrapWork(msgspec.Struct, frozen=True, tag="strata.bootstrap"):
    """One bootstrap; its rows are spooled, its metadata is the result. `only` None: every model."""

    viewer: Viewer
    only: tuple[str, ...] | None
    schema_hash: str

    result = Metadata

    def run(self, reader: Reader) -> Metadata:
        viewer, only, registry = self.viewer, self.only, _registry_of(reader)
        authorized = groups_of(reader, viewer)
        groups = asked_of(viewer, authorized) or authorized
        found = reader.rows(_LAST, (_json(groups),))
        # Not below the floor, or a reader of quiet groups would be told to bootstrap for ever.
        last = max(found[0][0] if found else 0, reader.header.floor)
        counts: dict[str, int] = {}
        for name in dict.fromkeys(registry.models if only is None else only):
            model = registry.get(name)
            counts[name] = 0 if model is None else copy_rows(reader, model, viewer.user, groups)
        return Metadata(str(last), counts, self.schema_hash, groups)


class LookupWork(msgspec.Struct, frozen=True, tag="strata.lookups"):
    """One batch; lines are spooled, a refused key ends them with an error line."""

    viewer: Viewer
    requests: tuple[Lookup, ...]

    result = None

    def run(self, reader: Reader) -> None:
        viewer, registry = self.viewer, _registry_of(reader)
        authorized = groups_of(reader, viewer)
        for request in self.requests:
            model = registry.get(request.model)
            if model is None:
                continue
            if request.key is None:
                if request.group in authorized:
                    copy_rows(reader, model, viewer.user, [request.group])
                continue
            if request.key not in model.bootstrap.allowed_indexed_keys:
                return _fail(
                    reader,
                    f'Indexed key "{request.key}" is not allowed for model "{model.name}"',
                )
            if not _copy_by_key(reader, model, viewer.user, authorized, request):
                return _fail(
                    reader,
                    f'Indexed batch load exceeded {BATCH_ROWS_MAX} rows for model "{model.name}"',
                )


class SelectWork(msgspec.Struct, frozen=True, tag="strata.select"):
    """Lines of one model for the application itself; `where` and `params` are its own SQL."""

    model: str
    where: str
    params: dict[str, Any]
    limit: int

    result = list[str]

    def run(self, reader: Reader) -> list[str]:
        model = _registry_of(reader).models[self.model]
        sql = (
            f'SELECT {line_sql(model)} FROM "{model.view}" WHERE ({self.where})'
            f" ORDER BY {order_sql(model)} LIMIT {int(self.limit)}"
        )
        return [line for (line,) in reader.rows(sql, self.params)]


WORKS: Final = (BootstrapWork, LookupWork, SelectWork)


def _registry_of(reader: Reader) -> Registry:
    registry: Registry | None = getattr(reader.dialect, "registry", None)
    if registry is None:
        raise Unavailable("this server has no models for the scope", retry_after_ms=60_000)
    return registry


def _fail(reader: Reader, message: str) -> None:
    reader.write(msgspec.json.encode({"message": message, "type": "error"}) + b"\n")


def _copy_by_key(
    reader: Reader, model: SyncModel, user: str, groups: Sequence[str], request: Lookup
) -> bool:
    assert request.key is not None
    by_id = request.key == model.id_name
    asked = "_id = :value" if by_id else f"{key_text(request.key, '_body')} = :value"
    params = {**_params(user, groups), "value": request.value, "most": BATCH_ROWS_MAX + 1}
    where = f"{asked} AND ({scope_sql(model)})"
    counted = f'SELECT count(*) FROM (SELECT 1 FROM "{model.view}" WHERE {where} LIMIT :most)'
    if reader.rows(counted, params)[0][0] > BATCH_ROWS_MAX:
        return False
    reader.copy(_ordered_sql(model, where), params)
    return True


def copy_rows(reader: Reader, model: SyncModel, user: str, groups: Sequence[str]) -> int:
    """Spool every row of the model that these groups show, in cursor order; how many."""
    where = scope_sql(model)
    params = _params(user, groups)
    if not _in_id_order(model):
        (count,) = reader.rows(f'SELECT count(*) FROM "{model.view}" WHERE {where}', params)[0]
        reader.copy(_ordered_sql(model, where), params)
        return int(count)
    sql = (
        f"SELECT count(*), max(_id), group_concat(line, '') FROM (SELECT _id, {line_sql(model)}"
        f' AS line FROM "{model.view}" WHERE _id > :after AND ({where}) ORDER BY _id LIMIT :most)'
    )
    total, after, most = 0, "", 16
    while True:
        count, last, text = reader.rows(sql, {**params, "after": after, "most": most})[0]
        if not count:
            return total
        total, after = total + count, last
        data = text.encode()
        reader.write(data)
        if len(data) < PAGE_BYTES:
            most = min(PAGE_ROWS_MAX, most * 4)
        elif len(data) > 4 * PAGE_BYTES:
            most = max(1, most // 8)


def scope_sql(model: SyncModel) -> str:
    """The condition on the model's view that a reader's groups make."""
    if model.bootstrap.scope is not None:
        return f"({model.bootstrap.scope})"
    if model.group_key is None:
        return "1"
    return "+_group IN (SELECT value FROM json_each(:groups))"


def line_sql(model: SyncModel) -> str:
    """An SQL expression for one row's NDJSON line."""
    shown = model.bootstrap
    cursor = shown.cursor
    own = "json_quote(_id)"
    if isinstance(cursor, SimpleCursor) and cursor.field not in ("id", model.id_name):
        own = f"coalesce(_body->'$.{cursor.field}', 'null')"
    parts = []
    for name in shown.fields:
        if name == "id":
            value = own
        elif name in shown.date_only_fields:
            value = _day_sql(name)
        elif name in shown.instant_fields:
            value = _instant_sql(name)
        else:
            value = f"coalesce(_body->'$.{name}', 'null')"
        parts.append(f"'\"{name}\":' || {value}")
    if "id" not in shown.fields:
        parts.append(f"'\"id\":' || {own}")
    members = " || ',' || ".join(parts)
    return f"'{{\"__class\":\"{model.name}\",' || {members} || '}}' || char(10)"


def order_sql(model: SyncModel) -> str:
    """The columns of the model's cursor."""
    cursor = model.bootstrap.cursor
    names = [cursor.field] if isinstance(cursor, SimpleCursor) else list(cursor.fields)
    return ", ".join("_id" if name == model.id_name else f'"{name}"' for name in names) + ", _id"


def _in_id_order(model: SyncModel) -> bool:
    cursor = model.bootstrap.cursor
    return isinstance(cursor, SimpleCursor) and cursor.field in ("id", model.id_name)


def _ordered_sql(model: SyncModel, where: str) -> str:
    """All rows in one statement, joined by pages. Sorted once, in a file where they are many."""
    inner = f'SELECT {line_sql(model)} AS line FROM "{model.view}" WHERE {where}'
    numbered = (
        f"SELECT line, (row_number() OVER ()) / {PAGE_ROWS_MAX} AS page"
        f" FROM ({inner} ORDER BY {order_sql(model)})"
    )
    return f"SELECT group_concat(line, '') FROM ({numbered}) GROUP BY page ORDER BY page"


def _params(user: str, groups: Sequence[str]) -> dict[str, Any]:
    workspaces = [group for group in groups if group != user]
    return {"groups": _json(groups), "workspace_groups": _json(workspaces), "user_id": user}


def _json(values: Sequence[str]) -> str:
    return msgspec.json.encode(values).decode()


_DAY_GLOB: Final = "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]"
_TIME_GLOB: Final = f"{_DAY_GLOB}T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]*"


def _instant_sql(name: str) -> str:
    """Epoch milliseconds as JSON: of a number, or of text with a time and a zone; else null."""
    text = f"(_body->>'$.{name}')"
    zoned = f"({text} GLOB '*Z' OR {text} GLOB '*[+-][0-2][0-9]:[0-5][0-9]')"
    stamp = f"CAST(round((julianday({text})-2440587.5)*86400000) AS INTEGER)"
    return (
        f"CASE json_type(_body, '$.{name}') WHEN 'integer' THEN _body->'$.{name}'"
        f" WHEN 'real' THEN _body->'$.{name}' WHEN 'text' THEN CASE WHEN {text} GLOB"
        f" '{_TIME_GLOB}' AND {zoned} THEN coalesce({stamp}, 'null') ELSE 'null' END"
        " ELSE 'null' END"
    )


def _day_sql(name: str) -> str:
    """Epoch milliseconds of a midnight as JSON: of a number, or of a real calendar date."""
    text = f"trim(_body->>'$.{name}')"
    return (
        f"CASE json_type(_body, '$.{name}') WHEN 'integer' THEN CASE"
        f" WHEN (_body->>'$.{name}') % {DAY_MS} = 0 THEN _body->'$.{name}' ELSE 'null' END"
        f" WHEN 'text' THEN CASE WHEN {text} GLOB '{_DAY_GLOB}'"
        f" AND date({text}, '+0 days') = {text}"
        f" THEN CAST(strftime('%s', {text}) AS INTEGER) * 1000 ELSE 'null' END ELSE 'null' END"
    )
