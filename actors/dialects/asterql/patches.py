"""The twelve patch operations of AsterQL: (record, patches) -> new record. Pure.

Always true:
- The input record, the patches and their values are never changed. Only containers on a patched
  path are copied, each once per call (`owned`), so the result shares all else with the input.
- All or nothing: the first refusal raises PatchError with the index of the patch, and no result.
- `null` and absence are one thing: a `null` on the way becomes an object where an absent member
  would, and a `null` target starts from the operation's empty value.
- A result nests at most NESTING_MAX containers, if the input did: each value is measured as it is
  placed, so the record itself is never walked.

Checks come in a fixed order, which the JavaScript client shares: the patch is an object, `op`,
`path`, the way to the target, the operation's own fields, the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NoReturn

from actors.dialects.asterql.canonical import canonical
from infra.errors import ProtocolError
from infra.limits import INTEGER_MAX, NESTING_MAX, POINTER_CHARS_MAX

Json = Any
"""A JSON value as decoded: dict, list, str, int, float, bool or None."""

Step = Callable[[Json, Mapping[str, Json], dict[int, Json], int], Json]
"""(target or None, patch, owned, containers that may nest here) -> new target or _UNCHANGED."""

_UNCHANGED: Final = object()  # a step's answer when there is nothing to write


class PatchError(ProtocolError):
    """Patch number `index` (from 0) cannot be applied; `reason` is a stable word of the contract.

    Reasons: bad_pointer, bad_index, index_out_of_range, type_mismatch, root_not_object, not_finite,
    bad_field, unknown_op. The record is as it was.
    """

    code = "patch_failed"

    def __init__(self, index: int, reason: str, message: str) -> None:
        super().__init__(f"patch {index}: {message}")
        self.index = index
        self.reason = reason


class _Refused(Exception):
    """A PatchError that does not know its index yet."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def apply_entity_patches(
    record: Mapping[str, Json] | None, patches: Sequence[Mapping[str, Json]]
) -> dict[str, Json]:
    """Return the record after all `patches` in order; `None` stands for an absent entity, `{}`.

    Raises PatchError at the first patch that cannot be applied, whatever JSON the patches are. The
    size of the result is for the caller to check.
    """
    root: dict[str, Json] = {} if record is None else dict(record)
    owned: dict[int, Json] = {}  # by id(): the nested containers made in this call
    index = 0
    try:
        for patch in patches:
            # The whole of a plain `set /member`, the commonest patch, costs no further call.
            try:
                step, create = _STEPS[patch["op"]]
            except (KeyError, TypeError):
                _refuse_op(patch)
            path = patch.get("path")
            tokens = _tokens(path) if type(path) is str else _refuse("bad_field", "no path")
            if len(tokens) == 1:
                token = tokens[0]
                if step is _unset:
                    root.pop(token, None)
                else:
                    made = step(root.get(token), patch, owned, NESTING_MAX - 1)
                    if made is not _UNCHANGED:
                        root[token] = made
            elif tokens:
                _apply_below(root, tokens, patch, (step, create), owned)
            else:
                root = _apply_to_root(root, patch, step, owned)
            index += 1
    except _Refused as refused:
        raise PatchError(index, refused.reason, str(refused)) from None
    return root


def _refuse(reason: str, message: str) -> NoReturn:
    raise _Refused(reason, message)


def _refuse_op(patch: Json) -> NoReturn:
    if not isinstance(patch, Mapping):
        _refuse("bad_field", "a patch is an object")
    _refuse("unknown_op", "op is one of " + " ".join(_STEPS))


# --- the way to the target -----------------------------------------------------------------------


@lru_cache(maxsize=2048)
def _tokens(path: str) -> tuple[str, ...]:
    """The unescaped reference tokens of an RFC 6901 pointer; () for the record itself."""
    if not path:
        return ()
    if path[0] != "/":
        _refuse("bad_pointer", 'path is "" or begins with "/"')
    if len(path) > POINTER_CHARS_MAX:
        _refuse("bad_pointer", f"path has more than {POINTER_CHARS_MAX} characters")
    tokens = path[1:].split("/")
    if len(tokens) > NESTING_MAX:
        _refuse("bad_pointer", f"path goes deeper than {NESTING_MAX}")
    if "~" in path:
        tokens = [_unescape(token) for token in tokens]
    return tuple(tokens)


def _unescape(token: str) -> str:
    bare = token.replace("~1", "").replace("~0", "")
    if "~" in bare and any(part[:1] not in ("0", "1") for part in token.split("~")[1:]):
        _refuse("bad_pointer", "~ is followed by 0 or 1")
    return token.replace("~1", "/").replace("~0", "~")  # this order: ~01 is ~1, not /


def _position(token: str, length: int) -> int:
    """The list index a token names; it must exist."""
    if not (token.isascii() and token.isdigit()) or (token[0] == "0" and token != "0"):
        _refuse("bad_index", "an index is 0 or digits without a leading zero")
    # No list has 10^16 items; int() of a thousand digits would be work for nothing.
    if len(token) > 16 or int(token) >= length:
        _refuse("index_out_of_range", f"the list has {length} items")
    return int(token)


def _own(container: Json, owned: dict[int, Json]) -> Json:
    """`container` itself if this call made it, else a copy that it may change.

    `owned` keeps what it holds alive, so an id in it cannot come to mean another object.
    """
    if id(container) in owned:
        return container
    copy = container.copy()
    owned[id(copy)] = copy
    return copy


def _descend(container: Json, token: str, owned: dict[int, Json], create: bool) -> Json:
    """The container below `token`, ready to be changed; None where it is absent and not wanted."""
    key = token if type(container) is dict else _position(token, len(container))
    child = container.get(key) if type(container) is dict else container[key]
    if child is None:
        if not create:
            return None
        child = {}
        owned[id(child)] = child
    elif type(child) is dict or type(child) is list:
        child = _own(child, owned)
    else:
        _refuse("type_mismatch", "the path leads through a value that is no object and no list")
    container[key] = child
    return child


def _apply_below(
    root: dict[str, Json],
    tokens: tuple[str, ...],
    patch: Mapping[str, Json],
    action: tuple[Step, bool],
    owned: dict[int, Json],
) -> None:
    """Apply one patch two or more levels down, in `root`, which is ours."""
    step, create = action
    room = NESTING_MAX - len(tokens)
    container: Json = root
    for token in tokens[:-1]:
        container = _descend(container, token, owned, create)
        if container is None:  # nothing there: the operation says whether that is an error
            step(None, patch, owned, room)
            return
    last = tokens[-1]
    if type(container) is dict:
        if step is _unset:
            container.pop(last, None)
            return
        made = step(container.get(last), patch, owned, room)
        if made is not _UNCHANGED:
            container[last] = made
        return
    if step is _unset:
        _refuse("type_mismatch", "unset removes object members; removeAt removes list items")
    position = _position(last, len(container))
    made = step(container[position], patch, owned, room)
    if made is not _UNCHANGED:
        container[position] = made


def _apply_to_root(
    root: dict[str, Json], patch: Mapping[str, Json], step: Step, owned: dict[int, Json]
) -> dict[str, Json]:
    """Apply one patch to the record as a whole; the result is a fresh dict or `root`."""
    if step is _unset:
        _refuse("root_not_object", "the record itself cannot be unset")
    made = step(root, patch, owned, NESTING_MAX)
    if type(made) is not dict:
        _refuse("root_not_object", "the record must stay an object")
    return made.copy() if step is _set else made


# --- fields --------------------------------------------------------------------------------------


def _field(patch: Mapping[str, Json], name: str, room: int) -> Json:
    """A member of any JSON type that must be there and nest no deeper than `room`."""
    if name not in patch:
        _refuse("bad_field", f"{name} is missing")
    value = patch[name]
    if type(value) is dict or type(value) is list:
        _check_nesting(value, room)
    return value


def _text_field(patch: Mapping[str, Json], name: str, default: str | None = None) -> str:
    value = patch.get(name, default)
    if type(value) is not str:
        _refuse("bad_field", f"{name} is a string")
    return value


def _count_field(patch: Mapping[str, Json], name: str, default: int | None = None) -> int:
    """An integer; 1.0 is one too, for a JavaScript client cannot tell them apart."""
    value = patch.get(name, default)
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not int:
        _refuse("bad_field", f"{name} is an integer")
    return value


def _list_field(patch: Mapping[str, Json], name: str, room: int) -> list[Json]:
    value = patch.get(name)
    if type(value) is not list:
        _refuse("bad_field", f"{name} is a list")
    _check_nesting(value, room)
    return value


def _check_nesting(container: Json, room: int) -> None:
    if room < 1:
        _refuse("bad_field", f"the record would nest deeper than {NESTING_MAX}")
    for child in container.values() if type(container) is dict else container:
        if type(child) is dict or type(child) is list:
            _check_nesting(child, room - 1)


# --- the operations ------------------------------------------------------------------------------


def _set(target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int) -> Json:
    return _field(patch, "value", room)


def _unset(target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int) -> Json:
    return _UNCHANGED  # reached only when nothing is there: the callers remove members themselves


def _merge(target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int) -> Json:
    return _merged(target, _field(patch, "value", room))


def _merged(target: Json, change: Json) -> Json:
    """RFC 7396, section 2; copies what it changes."""
    if type(change) is not dict:
        return change
    result = target.copy() if type(target) is dict else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _text(target: Json) -> str:
    if target is None:
        return ""
    if type(target) is not str:
        _refuse("type_mismatch", "the target is no text")
    return target


def _append_text(target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int) -> str:
    delta = _text_field(patch, "delta")
    return _text(target) + delta


def _splice_text(target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int) -> str:
    start = _count_field(patch, "index")
    end = start + _count_field(patch, "deleteCount", 0)
    insert = _text_field(patch, "insert", "")
    text = _text(target)
    if not 0 <= start <= end <= len(text):
        _refuse("index_out_of_range", f"the text has {len(text)} code points")
    return text[:start] + insert + text[end:]


def _increment(
    target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int
) -> int | float:
    by = patch.get("by", 1)
    if type(by) is not int and type(by) is not float:
        _refuse("bad_field", "by is a number")
    if target is None:
        target = 0
    elif type(target) is not int and type(target) is not float:
        _refuse("type_mismatch", "the target is no number")
    total = target + by if type(target) is type(by) is int else None
    if total is not None and -INTEGER_MAX <= total <= INTEGER_MAX:
        return int(total)
    try:
        result = float(target) + float(by)  # as JavaScript, where every number is a double
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        _refuse("not_finite", "the sum is no finite number")
    return result


def _list(target: Json, owned: dict[int, Json]) -> list[Json]:
    """The target as a list that may be changed in place; absent is empty."""
    if target is not None and type(target) is not list:
        _refuse("type_mismatch", "the target is no list")
    items: list[Json] = _own([] if target is None else target, owned)
    return items


def _append(
    target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int
) -> list[Json]:
    values = _list_field(patch, "values", room)
    items = _list(target, owned)
    items.extend(values)
    return items


def _insert(
    target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int
) -> list[Json]:
    index = _count_field(patch, "index")
    value = _field(patch, "value", room - 1)
    if room < 1:
        _refuse("bad_field", f"the record would nest deeper than {NESTING_MAX}")
    items = _list(target, owned)
    if not 0 <= index <= len(items):
        _refuse("index_out_of_range", f"the list has {len(items)} items")
    items.insert(index, value)
    return items


def _remove_at(
    target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int
) -> list[Json]:
    start = _count_field(patch, "index")
    end = start + _count_field(patch, "count", 1)
    if target is None:
        _refuse("index_out_of_range", "there is no list")
    items = _list(target, owned)
    if not 0 <= start <= end <= len(items):
        _refuse("index_out_of_range", f"the list has {len(items)} items")
    del items[start:end]
    return items


def _remove_value(
    target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int
) -> Json:
    unwanted = _identity(_field(patch, "value", NESTING_MAX))
    if target is None:
        return _UNCHANGED
    items = _list(target, owned)
    items[:] = [item for item in items if _identity(item) != unwanted]
    return items


def _add_to_set(
    target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int
) -> list[Json]:
    values = _list_field(patch, "values", room)
    items = _list(target, owned)
    held = set(map(_identity, items))
    for value in values:
        if (identity := _identity(value)) not in held:
            held.add(identity)
            items.append(value)
    return items


def _move(target: Json, patch: Mapping[str, Json], owned: dict[int, Json], room: int) -> list[Json]:
    source = _count_field(patch, "from")
    goal = _count_field(patch, "to")
    if target is None:
        _refuse("index_out_of_range", "there is no list")
    items = _list(target, owned)
    if not (0 <= source < len(items) and 0 <= goal < len(items)):
        _refuse("index_out_of_range", f"the list has {len(items)} items")
    items.insert(goal, items.pop(source))
    return items


def _identity(value: Json) -> Json:
    """A hashable that is equal for deep-equal JSON values only: 1 and 1.0 are one, 1 and true two.

    A set of these keeps `addToSet` linear; comparing item by item would be quadratic.
    """
    if type(value) is str or type(value) is int or type(value) is float or value is None:
        return value
    return (canonical(value),)  # also booleans, since True == 1; the tuple keeps them from strings


_STEPS: Final[dict[Any, tuple[Step, bool]]] = {  # op: (what it does, whether it creates parents)
    "set": (_set, True),
    "unset": (_unset, False),
    "merge": (_merge, True),
    "appendText": (_append_text, True),
    "spliceText": (_splice_text, True),
    "increment": (_increment, True),
    "append": (_append, True),
    "insert": (_insert, True),
    "removeAt": (_remove_at, False),
    "removeValue": (_remove_value, False),
    "addToSet": (_add_to_set, True),
    "move": (_move, False),
}
