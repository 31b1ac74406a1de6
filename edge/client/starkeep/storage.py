"""A node's data in one SQLite file: records, rows of apps, what the engine must not forget.

Items of all kinds stand in one table with their stamps as numbers, so an idle round is one look at
`heads`, however much is held. Always true: `heads` has for each collection and author the highest
stamp ever held, in the same transaction as the item.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from actors.clocks import HLC, HLCState
from actors.dialects.starkeep.merge import RowState, key_of, merge_row
from actors.dialects.starkeep.namespaces import Namespace, extend, row_id
from actors.dialects.starkeep.naming import check_app_id, check_identifier, table_name
from actors.dialects.starkeep.watermarks import Watermarks, oldest
from actors.dialects.starkeep.wire import Record, RowEntry, decode_record, encode
from edge.client.starkeep.query import Query, json_path, order_of, where_of
from edge.client.starkeep.types import ScanSinceOptions, ScanSincePage
from infra.errors import ScopeError
from infra.sqlite import Handle, open_writer, storage_error, transaction

RECORDS = "rec"
TIES_MAX = 5000  # items of one author and stamp that a page may be longer for
VERSION = 1

_TABLES = """
CREATE TABLE items(
  coll TEXT NOT NULL, id TEXT NOT NULL, node TEXT NOT NULL, wall INTEGER NOT NULL,
  counter INTEGER NOT NULL, deleted INTEGER NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY(coll, id)) STRICT, WITHOUT ROWID;
CREATE INDEX items_stamp ON items(coll, node, wall, counter);
CREATE TABLE heads(
  coll TEXT NOT NULL, node TEXT NOT NULL, wall INTEGER NOT NULL, counter INTEGER NOT NULL,
  PRIMARY KEY(coll, node)) STRICT, WITHOUT ROWID;
CREATE TABLE sync_state(
  key TEXT PRIMARY KEY, value_json TEXT NOT NULL,
  updated_at INTEGER NOT NULL DEFAULT (strftime('%s','now')));
CREATE TABLE metadata(
  record_id TEXT NOT NULL, category TEXT NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY(record_id, category)) STRICT, WITHOUT ROWID;
CREATE TABLE app_syncable_namespaces(
  app_id TEXT PRIMARY KEY, tables_json TEXT NOT NULL, files_enabled INTEGER NOT NULL,
  created_at TEXT NOT NULL DEFAULT (datetime('now')))
"""
_PUT = (
    "INSERT INTO items(coll, id, node, wall, counter, deleted, body) VALUES (?,?,?,?,?,?,?)"
    " ON CONFLICT(coll, id) DO UPDATE SET node=excluded.node, wall=excluded.wall,"
    " counter=excluded.counter, deleted=excluded.deleted, body=excluded.body"
)
_HEAD = (
    "INSERT INTO heads(coll, node, wall, counter) VALUES (?,?,?,?)"
    " ON CONFLICT(coll, node) DO UPDATE SET wall=excluded.wall, counter=excluded.counter"
    " WHERE (excluded.wall, excluded.counter) > (wall, counter)"
)
_UNSEEN = (
    "SELECT id, node, wall, counter, deleted, body FROM items"
    " WHERE coll=? AND node=? AND (wall, counter) > (?, ?) ORDER BY wall, counter LIMIT ?"
)
Stored = tuple[str, str, int, int, int, str]  # what _UNSEEN selects


class NotDeclared(ScopeError):
    """The app or table was not declared here, or the entry names no row."""

    code = "not_declared"


class LocalFile:
    """The handle, opened or made at `path`; close it. One process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.db: Handle = open_writer(path)
        try:
            # A device keeps its own file: what it has said is landed must survive a power cut.
            self.db.execute("PRAGMA synchronous=FULL")
            self.db.execute("PRAGMA wal_autocheckpoint=1000")
            (found,) = self.db.execute("PRAGMA user_version").fetchone()
            if found > VERSION:
                raise ScopeError(f"{path.name} was written by a newer Holdfast", code="unavailable")
            if found == 0:
                with transaction(self.db):
                    for statement in _TABLES.split(";\n"):
                        self.db.execute(statement)
                    self.db.execute(f"PRAGMA user_version={VERSION}")
        except BaseException:
            self.db.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; inside another one it is part of it. Raises StorageError."""
        if self.db.in_transaction:
            yield
            return
        try:
            with transaction(self.db):
                yield
        except sqlite3.Error as error:
            raise storage_error(error, self.path) from error

    def close(self) -> None:
        self.db.close()

    # -- items of every kind -----------------------------------------------------------------------

    def put(self, coll: str, id: str, stamp: HLC, *, deleted: bool, body: str) -> None:
        """Store in place of what is held, and move the head of its author."""
        with self.transaction():
            values = (coll, id, stamp.node_id, stamp.wall_ms, stamp.counter, int(deleted), body)
            self.db.execute(_PUT, values)
            self.note(coll, stamp)

    def note(self, coll: str, stamp: HLC) -> None:
        """Move the head of the stamp's author, also where the item itself lost."""
        self.db.execute(_HEAD, (coll, stamp.node_id, stamp.wall_ms, stamp.counter))

    def held(self, coll: str, id: str) -> HLC | None:
        """The stamp of the held item."""
        found = self.db.execute(
            "SELECT wall, counter, node FROM items WHERE coll=? AND id=?", (coll, id)
        ).fetchone()
        return None if found is None else HLC(*found)

    def heads(self, coll: str) -> Watermarks:
        """The highest stamp ever held of each author."""
        rows = self.db.execute("SELECT wall, counter, node FROM heads WHERE coll=?", (coll,))
        return {node: HLC(wall, counter, node) for wall, counter, node in rows}

    def unseen(
        self, coll: str, watermarks: Watermarks, limit: int, after: HLC | None = None
    ) -> list[Stored]:
        """At least the `limit` oldest items above the watermarks (and after a stamp) if so many,
        oldest first.
        """
        sources = []
        for node, head in self.heads(coll).items():
            low = watermarks[node].position if node in watermarks else (-1, 0)
            if after is not None:
                # Stamps compare by node last: of a greater node, equal positions come after.
                bound = after.position
                if HLC(*bound, node).order > after.order:
                    bound = (bound[0], bound[1] - 1)
                low = max(low, bound)
            if head.position > low:
                sources.append(self._after(coll, node, low, limit))
        page, _ = oldest(sources, _stamp, limit)
        return page

    def _after(self, coll: str, node: str, low: tuple[int, int], limit: int) -> list[Stored]:
        found: list[Stored] = self.db.execute(_UNSEEN, (coll, node, *low, limit)).fetchall()
        if len(found) < limit:
            return found
        # Items of one author and stamp stay together: no watermark could tell them apart.
        _, _, wall, counter, _, _ = found[-1]
        ids = {row[0] for row in found}
        ties: list[Stored] = self.db.execute(
            "SELECT id, node, wall, counter, deleted, body FROM items"
            " WHERE coll=? AND node=? AND wall=? AND counter=? LIMIT ?",
            (coll, node, wall, counter, TIES_MAX),
        ).fetchall()
        return found + [row for row in ties if row[0] not in ids]


def _stamp(row: Stored) -> HLC:
    return HLC(row[2], row[3], row[1])


class RecordPage(msgspec.Struct, frozen=True):
    """Records as JSON objects; `next_cursor` where more follow."""

    records: tuple[dict[str, Any], ...]
    next_cursor: str | None
    has_more: bool


class SqliteRecords:
    """The shared records of a node; fits edge.client.starkeep.types.Database."""

    def __init__(self, file: LocalFile) -> None:
        self._file = file
        self.transaction = file.transaction

    def held(self, id: str) -> HLC | None:
        """The stamp of the held copy, tombstones included."""
        return self._file.held(RECORDS, id)

    def get(self, id: str) -> dict[str, Any] | None:
        """The record as a JSON object, tombstones included."""
        found = self._file.db.execute(
            "SELECT body FROM items WHERE coll=? AND id=?", (RECORDS, id)
        ).fetchone()
        return None if found is None else msgspec.json.decode(found[0])

    def put(self, record: Record) -> None:
        """Store it in place of the held copy, whatever its stamp."""
        self._file.put(
            RECORDS, record.id, record.stamp, deleted=record.deleted, body=record.text.decode()
        )

    def delete(self, id: str, hlc: HLC) -> bool:
        """Make it a tombstone of that stamp; whether it was there."""
        held = self.get(id)
        if held is None:
            return False
        stamp = msgspec.to_builtins(hlc)
        self.put(decode_record(encode({**held, "deletedAt": stamp, "updatedAt": stamp})))
        return True

    def batch(self, records: Sequence[Record]) -> None:
        """Store many at once, all or nothing."""
        with self._file.transaction():
            for record in records:
                self.put(record)

    def unseen(self, watermarks: Watermarks, limit: int) -> list[Record]:
        """See Database."""
        rows = self._file.unseen(RECORDS, watermarks, limit)
        return [decode_record(row[5].encode()) for row in rows]

    def get_node_watermarks(self) -> Watermarks:
        """See Database."""
        return self._file.heads(RECORDS)

    def query(self, query: Query) -> RecordPage:
        """One page. Raises BadQuery."""
        where, values = where_of(query, RECORDS)
        order, more = order_of(query)
        rows = self._file.db.execute(
            f"SELECT id, body FROM items WHERE {where} ORDER BY {order} LIMIT ?",
            (*values, *more, query.limit + 1),
        ).fetchall()
        page = rows[: query.limit]
        has_more = len(rows) > query.limit
        cursor = page[-1][0] if has_more and query.sort is None else None
        return RecordPage(tuple(msgspec.json.decode(body) for _, body in page), cursor, has_more)

    # -- metadata: beside records, never synced ----------------------------------------------------

    def put_metadata(self, record_id: str, category: str, value: Mapping[str, Any]) -> None:
        """Keep facts about a record on this node."""
        self._file.db.execute(
            "INSERT OR REPLACE INTO metadata(record_id, category, body) VALUES (?,?,?)",
            (record_id, category, encode(value).decode()),
        )

    def get_metadata(self, record_id: str, category: str) -> dict[str, Any] | None:
        """What was kept, None for nothing."""
        return self.get_metadata_by_ids([record_id], category).get(record_id)

    def get_metadata_by_ids(
        self, record_ids: Sequence[str], category: str
    ) -> dict[str, dict[str, Any]]:
        """What was kept of those records that have any."""
        found = {}
        for record_id in record_ids:
            row = self._file.db.execute(
                "SELECT body FROM metadata WHERE record_id=? AND category=?", (record_id, category)
            ).fetchone()
            if row is not None:
                found[record_id] = msgspec.json.decode(row[0])
        return found

    def delete_metadata(self, record_id: str, category: str) -> None:
        """Forget it."""
        self._file.db.execute(
            "DELETE FROM metadata WHERE record_id=? AND category=?", (record_id, category)
        )


class SqliteAppTables:
    """Rows of apps; a namespace store and a scan-capable applier in one."""

    def __init__(self, file: LocalFile) -> None:
        self._file = file
        self.transaction = file.transaction
        self._held: dict[str, Namespace] = {}
        rows = file.db.execute(
            "SELECT app_id, tables_json, files_enabled FROM app_syncable_namespaces"
        )
        for app_id, tables, files in rows:
            decoded = msgspec.json.decode(tables, type=Namespace)
            self._held[app_id] = Namespace(app_id, decoded.tables, bool(files))

    # -- namespaces --------------------------------------------------------------------------------

    def declare(self, namespace: Namespace) -> Namespace:
        """Have the app's tables synced; additive. Raises BadName."""
        whole = extend(self._held.get(namespace.app_id), namespace)
        self._file.db.execute(
            "INSERT INTO app_syncable_namespaces(app_id, tables_json, files_enabled)"
            " VALUES (?,?,?) ON CONFLICT(app_id) DO UPDATE SET tables_json=excluded.tables_json,"
            " files_enabled=excluded.files_enabled",
            (whole.app_id, encode(whole).decode(), int(whole.files_enabled)),
        )
        self._held[whole.app_id] = whole
        return whole

    def get(self, app_id: str) -> Namespace | None:
        """None for an app that was not declared."""
        return self._held.get(app_id)

    def list(self) -> tuple[Namespace, ...]:
        """All declared ones."""
        return tuple(self._held.values())

    # -- applier -----------------------------------------------------------------------------------

    def apply(self, entry: RowEntry) -> bool:
        """Whether it changed something. Raises NotDeclared."""
        coll, id, key = self._place(entry)
        merged = merge_row(self._row(coll, id), entry, key)
        with self._file.transaction():
            if merged is None:
                self._file.note(coll, entry.timestamp)
                return False
            body = encode(merged.columns).decode()
            self._file.put(coll, id, merged.stamp, deleted=merged.deleted, body=body)
        return True

    def held(self, entry: RowEntry) -> HLC | None:
        """The stamp of the held row that the entry is about. Raises NotDeclared."""
        coll, id, _ = self._place(entry)
        return self._file.held(coll, id)

    def _place(self, entry: RowEntry) -> tuple[str, str, dict[str, Any]]:
        """(collection, id, key values) of the row an entry is about."""
        namespace = self._held.get(entry.app_id)
        table = None if namespace is None else namespace.table(entry.table)
        if table is None:
            raise NotDeclared(f"table {entry.table!r} of app {entry.app_id!r} is not declared")
        key = key_of(table, entry)
        if key is None:
            raise NotDeclared(f"the entry does not name {list(table.pk_columns)}")
        return coll_of(entry.app_id, table.name), row_id(key), key

    def scan_since(self, app_id: str, table: str, options: ScanSinceOptions) -> ScanSincePage:
        """One page of wire entries in ascending stamps; an unknown table is empty."""
        namespace = self._held.get(app_id)
        known = None if namespace is None else namespace.table(table)
        if known is None:
            return ScanSincePage((), None, False)
        coll = coll_of(app_id, known.name)
        found = self._file.unseen(coll, options.watermarks, options.limit + 1, options.cursor)
        rows, more = oldest([found], _stamp, options.limit)
        entries = tuple(_entry(app_id, known.name, row) for row in rows)
        return ScanSincePage(entries, entries[-1].timestamp if more else None, more)

    def get_node_watermarks(self, app_id: str, table: str) -> Watermarks:
        """See ScanCapableApplier."""
        return self._file.heads(coll_of(app_id, table))

    # -- reading -----------------------------------------------------------------------------------

    def row(self, app_id: str, table: str, **key: Any) -> dict[str, Any] | None:
        """The live row with these key values."""
        state = self._row(coll_of(app_id, table), row_id(key))
        return None if state is None or state.deleted else state.columns

    def rows(
        self, app_id: str, table: str, *, where: Mapping[str, Any] | None = None, limit: int = 1000
    ) -> Sequence[dict[str, Any]]:
        """Live rows whose columns equal `where`, in order of their keys."""
        text, values = "", []
        for column, value in (where or {}).items():
            text += " AND json_extract(body, ?) IS ?"
            values += [json_path(column), value]
        found = self._file.db.execute(
            f"SELECT body FROM items WHERE coll=? AND deleted=0{text} ORDER BY id LIMIT ?",
            (coll_of(app_id, table), *values, limit),
        )
        return [msgspec.json.decode(body) for (body,) in found]

    def make_view(self, app_id: str, table: str, columns: Sequence[str]) -> str:
        """Show the table's rows under the name and with the columns they have in a file of the
        real product, tombstones included; the name. Raises BadName.

        For other programs, such as the shell: our own handle trusts no schema (infra/sqlite.py).
        """
        name = table_name(check_app_id(app_id), check_identifier(table, "table"))
        quoted = '"' + name.replace('"', '""') + '"'
        picked = [
            f"json_extract(body, '{json_path(check_identifier(column, 'column'))}') AS \"{column}\""
            for column in columns
        ]
        stamp = "printf('%012x:%04x:%s', wall, counter, node)"
        picked += [f"{stamp} AS updated_at", "node AS node_id"]
        picked += [f"iif(deleted, {stamp}, NULL) AS deleted_at"]
        coll = coll_of(app_id, table).replace("'", "''")
        with self._file.transaction():
            self._file.db.execute(f"DROP VIEW IF EXISTS {quoted}")
            self._file.db.execute(
                f"CREATE VIEW {quoted} AS SELECT {', '.join(picked)} FROM items WHERE coll='{coll}'"
            )
        return name

    def _row(self, coll: str, id: str) -> RowState | None:
        found = self._file.db.execute(
            "SELECT body, wall, counter, node, deleted FROM items WHERE coll=? AND id=?",
            (coll, id),
        ).fetchone()
        if found is None:
            return None
        body, wall, counter, node, deleted = found
        return RowState(msgspec.json.decode(body), HLC(wall, counter, node), bool(deleted))


def coll_of(app_id: str, table: str) -> str:
    """The collection of a table's rows."""
    return f"app:{app_id}:{table}"


def _entry(app_id: str, table: str, row: Stored) -> RowEntry:
    stamp, text = _stamp(row), str(_stamp(row))
    columns = msgspec.json.decode(row[5])
    if row[4]:
        data = {**columns, "updated_at": text, "deleted_at": text}
        return RowEntry(stamp, app_id, table, "delete", data, columns)
    return RowEntry(
        stamp, app_id, table, "insert", {**columns, "updated_at": text, "deleted_at": None}
    )


class SqliteSyncStateStore:
    """The watermarks and the clock of a channel. `channel` separates several on one file.

    Table, keys and JSON are those of the real engine, so either can read the other's file.
    """

    def __init__(self, file: LocalFile, channel: str = "") -> None:
        self._file = file
        self._prefix = f"{channel}:" if channel else ""

    def get_watermarks(self) -> Watermarks:
        """What this node has landed."""
        return self._map("watermarks")

    def set_watermarks(self, watermarks: Watermarks) -> None:
        """In the transaction of the caller, if there is one."""
        self._set(self._prefix + "watermarks", watermarks)

    def get_peer_watermarks(self) -> Watermarks:
        """What the peer has landed."""
        return self._map("peer_watermarks")

    def set_peer_watermarks(self, watermarks: Watermarks) -> None:
        """In the transaction of the caller, if there is one."""
        self._set(self._prefix + "peer_watermarks", watermarks)

    def get_hlc_clock_state(self) -> HLCState | None:
        """Where the clock of the node stood; shared by all channels."""
        text = self._get("hlc_clock")
        return None if text is None else msgspec.json.decode(text, type=HLCState | None)

    def set_hlc_clock_state(self, state: HLCState) -> None:
        """In the transaction of the caller, if there is one."""
        self._set("hlc_clock", state)

    def _map(self, name: str) -> Watermarks:
        text = self._get(self._prefix + name)
        return {} if text is None else msgspec.json.decode(text, type=dict[str, HLC])

    def _get(self, key: str) -> str | None:
        found = self._file.db.execute(
            "SELECT value_json FROM sync_state WHERE key=?", (key,)
        ).fetchone()
        return None if found is None else found[0]

    def _set(self, key: str, value: Any) -> None:
        self._file.db.execute(
            "INSERT INTO sync_state(key, value_json, updated_at) VALUES (?,?,strftime('%s','now'))"
            " ON CONFLICT(key) DO UPDATE SET value_json=excluded.value_json,"
            " updated_at=excluded.updated_at",
            (key, encode(value).decode()),
        )
