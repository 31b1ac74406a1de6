"""Queries over records as the adapters of the real engine take them: filters, order, pages. Pure.

A filter becomes one SQL condition over the JSON text; field names and values are parameters, never
part of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from infra.errors import ProtocolError

Operator = Literal["eq", "neq", "gt", "gte", "lt", "lte", "in", "like", "isNull", "isNotNull"]
QUERY_LIMIT_MAX = 10_000
IN_VALUES_MAX = 500
FIELD_CHARS_MAX = 200


class Filter(msgspec.Struct, frozen=True):
    """`field` is a member of the record, or a path of members with dots between them."""

    field: str
    operator: Operator
    value: Any = None


class Sort(msgspec.Struct, frozen=True):
    """Order by a member; records without it come first."""

    field: str
    descending: bool = False


class Query(msgspec.Struct, frozen=True):
    """Which records. `cursor` is the id of the last record of the page before.

    With `sort` there is no cursor: pages go by id.
    """

    type: str | None = None
    filters: Sequence[Filter] = ()
    sort: Sort | None = None
    limit: int = 100
    cursor: str | None = None
    include_deleted: bool = False


class BadQuery(ProtocolError):
    """The query asks for what cannot be answered."""

    code = "bad_query"


_COMPARISONS = {"eq": "=", "neq": "!=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def where_of(query: Query, coll: str) -> tuple[str, list[Any]]:
    """(condition, parameters) of the query, for a table with `coll`, `id`, `deleted`, `body`."""
    if not 0 < query.limit <= QUERY_LIMIT_MAX:
        raise BadQuery(f"limit is from 1 to {QUERY_LIMIT_MAX}")
    if query.sort is not None and query.cursor is not None:
        raise BadQuery("a sorted query has no cursor: pages go by id")
    parts, values = ["coll=?"], [coll]
    if not query.include_deleted:
        parts.append("deleted=0")
    if query.type is not None:
        parts.append("json_extract(body, '$.type')=?")
        values.append(query.type)
    if query.cursor is not None:
        parts.append("id>?")
        values.append(query.cursor)
    for condition in query.filters:
        text, more = _condition(condition)
        parts.append(text)
        values += more
    return " AND ".join(parts), values


def order_of(query: Query) -> tuple[str, list[Any]]:
    """(ORDER BY terms, parameters)."""
    if query.sort is None:
        return "id", []
    way = " DESC" if query.sort.descending else ""
    return f"json_extract(body, ?){way}, id", [json_path(query.sort.field)]


def _condition(condition: Filter) -> tuple[str, list[Any]]:
    path, operator, value = json_path(condition.field), condition.operator, condition.value
    field = "json_extract(body, ?)"
    if operator == "isNull":
        return f"{field} IS NULL", [path]
    if operator == "isNotNull":
        return f"{field} IS NOT NULL", [path]
    if operator == "in":
        if not isinstance(value, list | tuple) or len(value) > IN_VALUES_MAX:
            raise BadQuery(f"`in` takes a list of at most {IN_VALUES_MAX} values")
        marks = ",".join("?" * len(value)) or "NULL"
        return f"{field} IN ({marks})", [path, *map(_scalar, value)]
    if operator == "like":
        if not isinstance(value, str):
            raise BadQuery("`like` takes a pattern")
        return f"{field} LIKE ?", [path, value]
    return f"{field} {_COMPARISONS[operator]} ?", [path, _scalar(value)]


def _scalar(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)  # as json_extract gives true and false
    if isinstance(value, str | int | float):
        return value
    raise BadQuery("a filter compares with text or a number; use isNull for null")


def json_path(field: str) -> str:
    """The path of a member for SQLite's JSON functions."""
    if not field or len(field) > FIELD_CHARS_MAX or '"' in field or "\0" in field:
        raise BadQuery(f"{field[:80]!r} is no field")
    return "$" + "".join(f'."{part}"' for part in field.split("."))
