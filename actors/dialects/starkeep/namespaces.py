"""Which tables of which apps are synced, and by which columns a row is known. Pure.

The wire never names key columns, so a namespace must be declared before its rows can be applied.
Declaring is additive: a table once declared keeps its key columns, or its rows would change names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from actors.dialects.starkeep.naming import (
    RESERVED_COLUMNS,
    SYNC_RECORDS,
    BadName,
    check_app_id,
    check_identifier,
)

TABLES_MAX = 256  # of one app
PK_COLUMNS_MAX = 8


class TableInfo(msgspec.Struct, frozen=True, rename="camel"):
    """One synced table: its bare name and the columns that name a row."""

    name: str
    pk_columns: tuple[str, ...]


_FILES = TableInfo(SYNC_RECORDS, ("id",))


class Namespace(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One app's synced tables; with `files_enabled` its files are rows of a reserved one.

    A withdrawn one is synced no longer, but its key columns still hold for its rows.
    """

    app_id: str
    tables: tuple[TableInfo, ...] = ()
    files_enabled: bool = False
    withdrawn: bool = False

    def all_tables(self) -> tuple[TableInfo, ...]:
        """The declared ones, and the reserved one where files are enabled."""
        return (*self.tables, _FILES) if self.files_enabled else self.tables

    @property
    def table_names(self) -> tuple[str, ...]:
        """Bare names of `all_tables`."""
        return tuple(table.name for table in self.all_tables())

    def table(self, name: str) -> TableInfo | None:
        """The table of that name, in any case of letters, as SQLite has it."""
        lower = name.lower()
        for table in self.all_tables():
            if table.name.lower() == lower:
                return table
        return None


class DeclareBody(msgspec.Struct, rename="camel"):
    """The body of a declaration."""

    tables: tuple[TableInfo, ...] = ()
    files_enabled: bool = False


def check_namespace(namespace: Namespace) -> Namespace:
    """The namespace itself. Raises BadName for what cannot be declared."""
    check_app_id(namespace.app_id)
    if len(namespace.tables) > TABLES_MAX:
        raise BadName(f"an app declares at most {TABLES_MAX} tables")
    seen: set[str] = set()
    for table in namespace.tables:
        check_identifier(table.name, "table")
        if table.name.lower() == SYNC_RECORDS:
            raise BadName(f"table {SYNC_RECORDS} is reserved: enable files instead")
        if table.name.lower() in seen:
            raise BadName(f"table {table.name!r} is declared twice")
        seen.add(table.name.lower())
        if not 0 < len(table.pk_columns) <= PK_COLUMNS_MAX:
            raise BadName(f"table {table.name!r} has 1 to {PK_COLUMNS_MAX} key columns")
        for column in table.pk_columns:
            check_identifier(column, "key column")
            if column.lower() in RESERVED_COLUMNS:
                raise BadName(f"column {column!r} is reserved")
    return namespace


def extend(held: Namespace | None, wanted: Namespace) -> Namespace:
    """What holds after the declaration. Raises BadName where key columns would change."""
    check_namespace(wanted)
    if held is None:
        return wanted
    tables = list(held.tables)
    for table in wanted.tables:
        known = held.table(table.name)
        if known is None:
            tables.append(table)
        elif known.pk_columns != table.pk_columns:
            raise BadName(f"table {table.name!r} has key columns {list(known.pk_columns)} already")
    files = held.files_enabled or wanted.files_enabled
    return check_namespace(Namespace(held.app_id, tuple(tables), files))


class StaticNamespaces:
    """A namespace store for a list that does not change."""

    def __init__(self, namespaces: Iterable[Namespace] = ()) -> None:
        self._held: dict[str, Namespace] = {n.app_id: check_namespace(n) for n in namespaces}

    def get(self, app_id: str) -> Namespace | None:
        """The app's namespace, None for an unknown app."""
        return self._held.get(app_id)

    def list(self) -> tuple[Namespace, ...]:
        """All of them."""
        return tuple(self._held.values())


def key_values(table: TableInfo, *sources: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The values of the key columns, from the first source that has them all; None where none has.

    Only scalars can name a row.
    """
    for source in sources:
        if source is None:
            continue
        values = {column: source.get(column) for column in table.pk_columns}
        if all(type(value) in (str, int, float, bool) for value in values.values()):
            return values
    return None


def row_id(values: Mapping[str, Any]) -> str:
    """The text that names a row: its key values as a JSON list; 1.0 is 1, as in JavaScript."""
    plain = [
        int(value) if type(value) is float and value.is_integer() else value
        for value in values.values()
    ]
    return msgspec.json.encode(plain).decode()
