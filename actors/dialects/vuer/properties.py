"""What each operation makes of a property's value. Pure.

A transform takes the current value (ABSENT where there is none) and the operation, and gives the
new value, or NOTHING where the operation has no effect: on a value of another type, or where the
result would not be finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from actors.dialects.vuer import values as v
from actors.dialects.vuer.message import Op

ABSENT: Final = object()
NOTHING: Final = object()

Transform = Callable[[Any, Op], Any]
Guard = Callable[[Any], bool]


def is_boolean(value: Any) -> bool:
    return type(value) is bool


def is_string(value: Any) -> bool:
    return type(value) is str


def is_list(value: Any) -> bool:
    return type(value) is list


def is_object(value: Any) -> bool:
    return type(value) is dict


def is_vector3(value: Any) -> bool:
    return v.is_vector(value, 3)


def is_quaternion(value: Any) -> bool:
    return v.is_vector(value, 4)


def _held_number(value: Any) -> bool:
    return type(value) in (int, float)  # results may be beyond 2^53


def _held_vector(size: int) -> Guard:
    return lambda value: (
        type(value) is list and len(value) == size and all(map(_held_number, value))
    )


def _relative(start: Any, guard: Guard, change: Callable[[Any, Op], Any]) -> Transform:
    """An operation relative to the current value; `start` stands for an absent one (ABSENT: the
    operation's own value becomes it).
    """

    def transform(current: Any, op: Op) -> Any:
        if current is ABSENT:
            if start is ABSENT:
                return op["value"]
            current = start
        return change(current, op) if guard(current) else NOTHING

    return transform


def _finite(result: float) -> Any:
    found = v.number(result)
    return NOTHING if found is None else found


def _all_finite(results: list[float]) -> Any:
    found = v.numbers(results)
    return NOTHING if found is None else found


def _sum(c: Any, op: Op) -> Any:
    return _finite(float(c) + float(op["value"]))


def _product(c: Any, op: Op) -> Any:
    return _finite(float(c) * float(op["value"]))


def _sums(c: Any, op: Op) -> Any:
    return _all_finite([float(a) + float(b) for a, b in zip(c, op["value"], strict=True)])


def _products(c: Any, op: Op) -> Any:
    return _all_finite([float(a) * float(b) for a, b in zip(c, op["value"], strict=True)])


def _turned(c: Any, op: Op) -> Any:
    return _all_finite(v.rotated(c, op["value"]))


def _turn(c: Any, op: Op) -> Any:
    return _all_finite(v.quaternion_product(c, op["value"]))


def _concat(c: Any, op: Op) -> Any:
    return c + op.get("separator", "") + op["value"] if c else op["value"]


def _union(c: Any, op: Op) -> Any:
    found = list(c)
    known = set(map(v.identity, found))
    for item in op["value"]:
        if (name := v.identity(item)) not in known:
            known.add(name)
            found.append(item)
    return found


def _remove(current: Any, op: Op) -> Any:
    if type(current) is not list:
        return NOTHING
    return [item for item in current if not v.deep_equal(item, op["value"])]


_NUMBER = _held_number
_VECTOR, _QUATERNION = _held_vector(3), _held_vector(4)

TRANSFORMS: Final[dict[str, Transform]] = {
    "number.add": _relative(0, _NUMBER, _sum),
    "number.multiply": _relative(1, _NUMBER, _product),
    "number.min": _relative(ABSENT, _NUMBER, lambda c, op: min(c, op["value"])),
    "number.max": _relative(ABSENT, _NUMBER, lambda c, op: max(c, op["value"])),
    "vector3.add": _relative([0, 0, 0], _VECTOR, _sums),
    "vector3.multiply": _relative([1, 1, 1], _VECTOR, _products),
    "vector3.applyQuaternion": _relative([0, 0, 0], _VECTOR, _turned),
    "euler.add": _relative([0, 0, 0], _VECTOR, _sums),
    "quaternion.multiply": _relative([0, 0, 0, 1], _QUATERNION, _turn),
    "color.blend": _relative(
        ABSENT, v.is_color, lambda c, op: v.blend(c, op["value"], op.get("alpha", 0.5))
    ),
    "boolean.or": _relative(False, is_boolean, lambda c, op: c or op["value"]),
    "boolean.and": _relative(True, is_boolean, lambda c, op: c and op["value"]),
    "string.concat": _relative("", is_string, _concat),
    "array.push": _relative([], is_list, lambda c, op: [*c, op["value"]]),
    "array.remove": _remove,
    "array.union": _relative([], is_list, _union),
}

# What a value of an operation has to be.
GUARDS: Final[dict[str, Guard]] = {
    "number.set": v.is_number, "string.set": is_string, "boolean.set": is_boolean,
    "color.set": v.is_color, "vector3.set": is_vector3, "euler.set": is_vector3,
    "quaternion.set": is_quaternion, "array.set": is_list, "object.set": is_object,
    "number.add": v.is_number, "number.multiply": v.is_number, "number.min": v.is_number,
    "number.max": v.is_number, "vector3.add": is_vector3, "vector3.multiply": is_vector3,
    "vector3.applyQuaternion": is_quaternion, "vector3.applyEuler": is_vector3,
    "euler.add": is_vector3, "quaternion.multiply": is_quaternion, "color.blend": v.is_color,
    "boolean.or": is_boolean, "boolean.and": is_boolean, "string.concat": is_string,
    "array.push": lambda value: True, "array.remove": lambda value: True, "array.union": is_list,
    "object.merge": is_object,
}  # fmt: skip
# Operations of applications (otypes.register_otype) with their guards.
REGISTERED: Final[dict[str, Callable[[Op], bool]]] = {}
SETTERS: Final = frozenset(otype for otype in GUARDS if otype.endswith(".set"))
