"""What a client's values become when they are stored (stratasync.md section 6). Pure.

Values keep their JSON type. Times are stored as they travel: epoch milliseconds, or null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from actors.dialects.stratasync.models import ARCHIVED, Field, Payload, SyncModel, Values
from actors.types import Refusal

DAY_MS: Final = 86_400_000
INSTANT_MAX_MS: Final = 8_640_000_000_000_000  # what a JavaScript Date holds
NESTING_MAX: Final = 100  # of lists and objects in a value; far below what readers can follow


class BadValue(Refusal):
    """A field's value cannot be stored; the message names the field."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="bad_value")


def instant_of(name: str, value: Any) -> int | None:
    """Epoch milliseconds; fractions are cut. Raises BadValue."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadValue(f"Invalid instant value for {name}")
    if abs(value) > INSTANT_MAX_MS:
        raise BadValue("Invalid time value")
    return int(value)


def day_of(name: str, value: Any) -> int | None:
    """Epoch milliseconds of a UTC midnight. Raises BadValue."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadValue(f"Invalid dateOnly value for {name}")
    if value % DAY_MS or abs(value) > INSTANT_MAX_MS:
        raise BadValue(f"Invalid dateOnly value for {name}")
    return int(value)


def plain(name: str, value: Any, depth: int = 0) -> Any:
    """The value with integral floats as integers: JSON on the other side knows no difference.

    Raises BadValue for what is nested deeper than NESTING_MAX.
    """
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, str) or not isinstance(value, dict | list):
        return value
    if depth == NESTING_MAX:
        raise BadValue(f"Invalid value for {name}: nested deeper than {NESTING_MAX}")
    if isinstance(value, dict):
        return {key: plain(name, inner, depth + 1) for key, inner in value.items()}
    return [plain(name, inner, depth + 1) for inner in value]


def insert_value(name: str, field: Field, value: Any, at: int) -> Any:
    """What an insert stores; `value` is None where the payload has none. Raises BadValue."""
    match field.type:
        case "string":
            return field.default if value is None else plain(name, value)
        case "stringNull":
            return plain(name, value)
        case "number":
            return (field.default or 0) if value is None else plain(name, value)
        case "dateNow":
            return at if value is None else instant_of(name, value)
        case "date":
            return instant_of(name, value)
        case "dateOnly":
            return day_of(name, value)


def update_value(name: str, field: Field | None, value: Any) -> Any:
    """What an update stores. Raises BadValue."""
    match None if field is None else field.type:
        case "date" | "dateNow":
            return instant_of(name, value)
        case "dateOnly":
            return day_of(name, value)
        case _:
            return plain(name, value)


def insert_data(model: SyncModel, payload: Payload, at: int) -> Values:
    """Every column of a new row but its id. Raises BadValue."""
    declared = model.mutate.insert_fields
    return {
        name: insert_value(name, field, payload.get(name) if name in declared else None, at)
        for name, field in model.columns.items()
    }


def update_data(model: SyncModel, payload: Payload, allowed: frozenset[str]) -> Values:
    """The columns an update changes: those of the payload that may be. Raises BadValue."""
    columns: Mapping[str, Field] = model.columns
    return {
        name: update_value(name, columns.get(name), value)
        for name, value in payload.items()
        if name in allowed
    }


def archive_data(payload: Payload) -> Values:
    """The one column an archiving changes. Raises BadValue."""
    value = payload.get(ARCHIVED)
    if value is None:
        raise BadValue(f"{ARCHIVED} is required")
    return {ARCHIVED: instant_of(ARCHIVED, value)}
