"""What may be the value of an object: JSON, bounded, and the same in every codec. Pure.

Messages in msgpack can carry more than JSON can (bytes, extension types, numbers that are none);
what is stored is JSON, so all else is refused rather than turned into something similar.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from infra import limits
from infra.errors import ProtocolError

VALUE_BYTES_MAX: Final = limits.RECORD_BYTES_MAX
INTEGER_LEAST: Final = -(2**63)
INTEGER_MOST: Final = 2**64 - 1


class BadValue(ProtocolError):
    """The value cannot be stored: it is no JSON, or too deep."""

    code = "bad_value"


class TooLarge(ProtocolError):
    """The value has more bytes than an object may have."""

    code = "too_large"


def json_text(value: Any) -> str:
    """The value as JSON text. Raises BadValue or TooLarge."""
    check_json(value)
    try:
        text = msgspec.json.encode(value)
    except (UnicodeError, OverflowError, TypeError, msgspec.MsgspecError) as error:
        raise BadValue(f"a value is JSON: {error}") from error
    if len(text) > VALUE_BYTES_MAX:
        raise TooLarge(f"the value has {len(text)} bytes; at most {VALUE_BYTES_MAX}")
    return text.decode()


def check_json(value: Any) -> None:
    """Raises BadValue for what JSON has no word for, or that is nested too deep."""
    _check(value, limits.NESTING_MAX)


def _check(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is int:
        if not INTEGER_LEAST <= value <= INTEGER_MOST:
            raise BadValue("an integer of a value has at most 64 bits")
    elif kind is float:
        if not math.isfinite(value):
            raise BadValue("a number of a value is finite")
    elif depth == 0:
        raise BadValue(f"a value is nested at most {limits.NESTING_MAX} deep")
    elif kind is dict:
        for name, inner in value.items():
            if type(name) is not str:
                raise BadValue("names of a value are strings")
            _check(inner, depth - 1)
    elif kind is list or kind is tuple:
        for inner in value:
            _check(inner, depth - 1)
    else:
        raise BadValue(f"a value is JSON; {kind.__name__} is not")


def same(one: Any, other: Any) -> bool:
    """Deep equality as JSON has it: true is not 1, whereas 1 and 1.0 are the same number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(value, other[name]) for name, value in one.items())
        )
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(map(same, one, other))
        )
    return bool(one == other)
