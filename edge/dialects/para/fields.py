"""Who owns a field of an object, and who may see it. Pure.

Authority decides what a client's whole-object write may change: a `server` field keeps the stored
value, an `lww` field takes the client's, a merge function makes one of both. Visibility takes away
what a reader may not see; whatever goes wrong on the way, the field is gone, never shown. A path of
names joined by dots reaches into objects, and into every object of a list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from infra.errors import ConfigError, ScopeError

log = logging.getLogger("holdfast.para")

SERVER: Final = "server"
LWW: Final = "lww"
Merge = Callable[[Any, Any, Any], Any]
Authority = Literal["server", "lww"] | Merge
"""`merge(mine, theirs, base)`; each is None where the field was not there."""

Resolver = Callable[[Any, str, Any], bool]
"""`resolver(user, key, value)`: whether the user may see fields of the tag in this object."""


class MergeFailed(ScopeError):
    """A merge function raised; nothing was written."""

    code = "merge_failed"


def admit(rules: Mapping[str, Authority], mine: Any, theirs: Any, base: Any = None) -> Any:
    """What a client's value becomes over the stored one (None: there is none). Raises MergeFailed.

    `base` holds at least the merged fields as the client saw them before its change.
    """
    if not rules or not isinstance(mine, dict):
        return mine
    stored = theirs if isinstance(theirs, dict) else {}
    seen = base if isinstance(base, dict) else {}
    made = dict(mine)
    for name, rule in rules.items():
        if rule == SERVER:
            _take(made, stored, name)
        elif callable(rule) and (name in mine or name in stored):
            try:
                made[name] = rule(mine.get(name), stored.get(name), seen.get(name))
            except Exception as error:
                raise MergeFailed(f"field {name!r} could not be merged") from error
    return made


def _take(made: dict[str, Any], stored: Mapping[str, Any], name: str) -> None:
    if name in stored:
        made[name] = stored[name]
    else:
        made.pop(name, None)


class Visibility:
    """Tags of fields (by path) and who may see a tag. Raises ConfigError for an empty path."""

    def __init__(self, tags: Mapping[str, str], resolvers: Mapping[str, Resolver]) -> None:
        self._paths = {path: tuple(path.split(".")) for path in tags}
        self._tags = dict(tags)
        self._resolvers = dict(resolvers)
        for path, parts in self._paths.items():
            if not all(parts):
                raise ConfigError(f"visible: {path!r} is no path of field names")

    def __bool__(self) -> bool:
        return bool(self._tags)

    def hidden(self, user: Any, key: str, value: Any) -> tuple[str, ...]:
        """The paths that the user may not see in this object, in the order they are declared."""
        verdicts: dict[str, bool] = {}
        for tag in self._tags.values():
            if tag not in verdicts:
                verdicts[tag] = self._may(tag, user, key, value)
        return tuple(path for path, tag in self._tags.items() if not verdicts[tag])

    def _may(self, tag: str, user: Any, key: str, value: Any) -> bool:
        resolver = self._resolvers.get(tag)
        if resolver is None:
            return False
        try:
            return resolver(user, key, value) is True
        except Exception:  # user code: whatever is wrong with it must not show a field
            log.exception("visibility resolver failed tag=%s", tag)
            return False

    def strip(self, value: Any, paths: Iterable[str]) -> Any:
        """The value without the paths; the given one is not changed."""
        for path in paths:
            value = _without(value, self._paths[path])
        return value

    def keep(self, mine: Any, theirs: Any, paths: Iterable[str]) -> Any:
        """A reader's whole-object write, with what the reader cannot see as it is stored.

        Raises MergeFailed where a hidden path leads through a list: nobody could say which element
        is which.
        """
        for path in paths:
            mine = _kept(mine, theirs, self._paths[path])
        return mine


def _without(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_without(inner, path) for inner in value]
    if not isinstance(value, dict) or path[0] not in value:
        return value
    name, *rest = path
    if not rest:
        return {other: inner for other, inner in value.items() if other != name}
    return {**value, name: _without(value[name], tuple(rest))}


def _kept(mine: Any, theirs: Any, path: tuple[str, ...]) -> Any:
    if isinstance(mine, list) or isinstance(theirs, list):
        raise MergeFailed("a list with fields you cannot see is changed by named intents only")
    if not isinstance(mine, dict):
        return mine
    name, *rest = path
    made = dict(mine)
    stored = theirs if isinstance(theirs, dict) else {}
    if not rest:
        _take(made, stored, name)
    elif name in made:
        made[name] = _kept(made[name], stored.get(name), tuple(rest))
    elif name in stored and _holds(stored[name], tuple(rest)):
        raise MergeFailed(f"field {name!r} holds more than you can see; it stays")
    return made


def _holds(value: Any, path: tuple[str, ...]) -> bool:
    """Whether there is anything at the path."""
    if isinstance(value, list):
        return any(_holds(inner, path) for inner in value)
    if not isinstance(value, dict) or path[0] not in value:
        return False
    return len(path) == 1 or _holds(value[path[0]], path[1:])
