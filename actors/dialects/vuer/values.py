"""The values of a scene: numbers as IEEE-754 doubles, JSON values, colours. Pure.

Numbers are kept as JavaScript would print them: an integral double of at most 2^53 is an int here.
Nothing in this file depends on the platform: only +, -, *, comparison and floor are used.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

INTEGER_MAX: Final = 2**53
DEPTH_MAX: Final = 64
COLOR = re.compile(r"#[0-9a-fA-F]{6}")

Number = int | float


def is_number(value: Any) -> bool:
    """A finite double; an integer beyond 2^53 is none, because it would lose digits."""
    if type(value) is int:
        return -INTEGER_MAX <= value <= INTEGER_MAX
    return type(value) is float and math.isfinite(value)


def number(value: float) -> Number | None:
    """The double as it is kept, or None where it is not finite."""
    if not math.isfinite(value):
        return None
    if value.is_integer() and -INTEGER_MAX <= value <= INTEGER_MAX:
        return int(value)
    return value


def is_vector(value: Any, size: int) -> bool:
    """A list of that many finite numbers."""
    return type(value) is list and len(value) == size and all(map(is_number, value))


def is_color(value: Any) -> bool:
    """`#rrggbb`."""
    return type(value) is str and COLOR.fullmatch(value) is not None


def normal(value: Any, depth: int = 0) -> Any:
    """A JSON value with its numbers as they are kept. Raises ValueError for what is none."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int or kind is float:
        if not is_number(value):
            raise ValueError("a number is not finite, or an integer beyond 2^53")
        return number(float(value))
    if depth >= DEPTH_MAX:
        raise ValueError(f"a value is nested more than {DEPTH_MAX} deep")
    if kind is list:
        return [normal(item, depth + 1) for item in value]
    if kind is dict:
        for name in value:
            if type(name) is not str:
                raise ValueError("a member's name is not text")
        return {name: normal(item, depth + 1) for name, item in value.items()}
    raise ValueError(f"a {kind.__name__} is not JSON")


def deep_equal(a: Any, b: Any) -> bool:
    """Equal as JSON: members in any order, true is not 1."""
    if a is b:
        return True
    kind = type(a)
    if kind in (int, float):
        return type(b) in (int, float) and bool(a == b)
    if kind is not type(b):
        return False
    if kind is list:
        return len(a) == len(b) and all(map(deep_equal, a, b))
    if kind is dict:
        return a.keys() == b.keys() and all(deep_equal(a[name], b[name]) for name in a)
    return bool(a == b)


def identity(value: Any) -> Any:
    """What can be hashed and is equal for two JSON values exactly where `deep_equal` is."""
    kind = type(value)
    if kind is bool:
        return ("b", value)
    if kind is list:
        return ("l", *map(identity, value))
    if kind is dict:
        return frozenset((name, identity(member)) for name, member in value.items())
    return value


def blend(a: str, b: str, alpha: Number) -> str:
    """Per channel floor(a(1-alpha) + b·alpha + 0.5)."""
    mixed = []
    for at in (1, 3, 5):
        one, other = int(a[at : at + 2], 16), int(b[at : at + 2], 16)
        mixed.append(math.floor(one * (1 - alpha) + other * alpha + 0.5))
    return "#" + "".join(f"{min(255, max(0, channel)):02x}" for channel in mixed)


def quaternion_product(a: list[Number], b: list[Number]) -> list[float]:
    """The Hamilton product ab of [x, y, z, w]; the sums are taken from left to right."""
    ax, ay, az, aw = map(float, a)
    bx, by, bz, bw = map(float, b)
    return [
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    ]


def rotated(c: list[Number], q: list[Number]) -> list[float]:
    """q·(c, 0)·q* for any q, the conjugate instead of the inverse: first q·c, then times q*."""
    turned = quaternion_product(q, [c[0], c[1], c[2], 0])
    return quaternion_product(list(turned), [-q[0], -q[1], -q[2], q[3]])[:3]


def numbers(values: list[float]) -> list[Number] | None:
    """The doubles as they are kept, or None where one is not finite."""
    kept: list[Number] = []
    for value in values:
        one = number(value)
        if one is None:
            return None
        kept.append(one)
    return kept
