"""Integers that a JavaScript number does not hold exactly, in JSON: `{"$int": "123…"}`. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from infra.limits import INTEGER_MAX

WORD: Final = "$int"
_MANY_DIGITS = re.compile(r"\d{16}")
_INTEGER = re.compile(r"-?\d{1,20}")


def may_be_wide(text: str) -> bool:
    """Whether JSON text can hold such an integer: a cheap look that saves the walk."""
    return _MANY_DIGITS.search(text) is not None


def wrapped(value: Any) -> Any:
    """The value with such integers as objects."""
    kind = type(value)
    if kind is int:
        return value if -INTEGER_MAX <= value <= INTEGER_MAX else {WORD: str(value)}
    if kind is dict:
        return {name: wrapped(inner) for name, inner in value.items()}
    if kind is list or kind is tuple:
        return [wrapped(inner) for inner in value]
    return value


def unwrapped(value: Any) -> Any:
    """The value with such objects as integers."""
    kind = type(value)
    if kind is dict:
        digits = value.get(WORD)
        if len(value) == 1 and type(digits) is str and _INTEGER.fullmatch(digits):
            return int(digits)
        return {name: unwrapped(inner) for name, inner in value.items()}
    if kind is list:
        return [unwrapped(inner) for inner in value]
    return value
