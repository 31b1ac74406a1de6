"""Objects whose members are registers of their own: `object.set` and `object.merge`. Pure.

The stamps of one property form a tree: `path` has the stamp of the last set, `path NUL name NUL
name` that of a leaf. A write at one place wins iff its stamp is at least that of the place and of
every place above it. A write of a whole value keeps what lies below it with a higher stamp, and
forgets the lower stamps there. So merges and sets of objects commute.
"""

from __future__ import annotations

from typing import Any, Final

from actors.dialects.vuer.node import Node, Stamp
from actors.dialects.vuer.properties import REGISTERED

LEAF: Final = "\0"


def wins(stamp: Stamp, held: Stamp | None) -> bool:
    """Whether a write with `stamp` replaces what was written with `held`."""
    return held is None or stamp >= held


def write(node: Node, path: str, value: Any, stamp: Stamp) -> bool:
    """Set a property of `node` (to be changed), an object or not; False where it lost."""
    if not wins(stamp, node.lww.get(path)):
        return False
    old = node.props.get(path)
    node.props[path] = _written(node.lww, path, old, value, stamp)
    return True


def stamped_below(lww: dict[str, Stamp], place: str, old: Any) -> list[str]:
    """The places below one that have stamps, where `old` is what stands there.

    Only members of objects have them, so the value leads to them: to look through all stamps of a
    node for each member of a merge would be a second for a message of 64 KiB. An application's own
    operation may have put another value over an object.
    """
    if REGISTERED:
        return [name for name in lww if name.startswith(place + LEAF)]
    found: dict[str, None] = {}
    waiting = [(place, old)]
    while waiting:
        at, value = waiting.pop()
        if type(value) is dict:
            for name, member in value.items():
                below = at + LEAF + name
                if below in lww:
                    found[below] = None
                waiting.append((below, member))
    return list(found)


def merge(node: Node, path: str, value: dict[str, Any], stamp: Stamp) -> None:
    """Merge an object into a property of `node` (to be changed) that is an object or absent."""
    if not wins(stamp, node.lww.get(path)):
        return
    current = node.props.get(path)
    base = current if type(current) is dict else {}
    node.props[path] = _merged(node.lww, path, base, value, stamp)


def merge_property(node: Node, path: str, value: Any, stamp: Stamp) -> None:
    """The member `path` of a merge into the node itself."""
    if wins(stamp, node.lww.get(path)):
        held = {path: node.props[path]} if path in node.props else {}
        node.props[path] = _member(node.lww, path, held, path, value, stamp)


def _merged(
    lww: dict[str, Stamp], path: str, current: dict[str, Any], value: dict[str, Any], stamp: Stamp
) -> dict[str, Any]:
    made = current.copy()
    for name, item in value.items():
        below = path + LEAF + name
        if wins(stamp, lww.get(below)):
            made[name] = _member(lww, below, made, name, item, stamp)
    return made


def _member(
    lww: dict[str, Stamp], place: str, held: dict[str, Any], name: str, item: Any, stamp: Stamp
) -> Any:
    """What the member `name` of `held` becomes; the write has won at the place itself."""
    old = held.get(name)
    if type(item) is dict:
        if type(old) is dict:
            return _merged(lww, place, old, item, stamp)
        if name not in held:
            return _merged(lww, place, {}, item, stamp)
        if item:  # members win one by one against what is no object
            return _merged(lww, place, {}, item, stamp)
    return _written(lww, place, old, item, stamp)


def _written(lww: dict[str, Stamp], place: str, old: Any, value: Any, stamp: Stamp) -> Any:
    """`value` with what lies below the place with a higher stamp."""
    lww[place] = stamp
    below = place + LEAF
    kept = []
    for name in stamped_below(lww, place, old):
        if lww[name] > stamp:
            kept.append(name)
        else:
            del lww[name]
    for name in sorted(kept, key=lambda name: name.count(LEAF)):
        value = _grafted(value, old, name[len(below) :].split(LEAF))
    return value


def _grafted(value: Any, old: Any, names: list[str]) -> Any:
    """`value` with the member that `names` lead to taken over from `old`."""
    if type(old) is not dict or names[0] not in old:
        return value
    made = value.copy() if type(value) is dict else {}
    if len(names) == 1:
        made[names[0]] = old[names[0]]
    else:
        made[names[0]] = _grafted(made.get(names[0]), old[names[0]], names[1:])
    return made
