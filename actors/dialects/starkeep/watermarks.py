"""Watermarks: for each node the highest stamp of it that is landed. Pure.

Always true of what somebody holds: of every author a prefix of its stamps, up to the watermark. So
unseen is what lies above it, and a page must never end between two items of one author and stamp.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any, TypeVar

import msgspec

from actors.clocks import HLC, ZERO_HLC, later
from infra.limits import INTEGER_MAX

T = TypeVar("T")
Watermarks = dict[str, HLC]


def advance_watermark(watermarks: Watermarks, stamp: HLC) -> None:
    """Raise the entry of the stamp's node to it, in place; never lowers."""
    held = watermarks.get(stamp.node_id)
    if held is None or later(stamp, held):
        watermarks[stamp.node_id] = stamp


def merge_watermarks(into: Mapping[str, HLC], incoming: Mapping[str, HLC]) -> Watermarks:
    """A new map with the greater entry for each node; the arguments stay as they are."""
    merged = dict(into)
    for node_id, stamp in incoming.items():
        held = merged.get(node_id)
        if held is None or later(stamp, held):
            merged[node_id] = stamp
    return merged


def watermark_for(watermarks: Mapping[str, HLC], node_id: str) -> HLC:
    """The entry of the node, or the zero stamp."""
    return watermarks.get(node_id, ZERO_HLC)


def is_unseen(stamp: HLC, watermarks: Mapping[str, HLC]) -> bool:
    """Whether the stamp lies above the watermark of its node."""
    held = watermarks.get(stamp.node_id)
    return held is None or stamp.position > held.position


def select_unseen(
    records: Iterable[Mapping[str, Any]], watermarks: Mapping[str, HLC]
) -> list[Mapping[str, Any]]:
    """The records (JSON objects) whose `updatedAt` lies above the watermark of its node."""
    found = []
    for record in records:
        stamp = msgspec.convert(record["updatedAt"], HLC)
        if later(stamp, watermark_for(watermarks, stamp.node_id)):
            found.append(record)
    return found


def oldest(
    sources: Iterable[Iterable[T]], stamp_of: Callable[[T], HLC], limit: int
) -> tuple[list[T], bool]:
    """The `limit` oldest items of sources that are each in stamp order, and whether more follow.

    Items that share author and stamp with the last one come along: no watermark could tell them
    apart, so a page that parted them would lose the second.
    """
    merged = heapq.merge(*sources, key=lambda item: stamp_of(item).order)
    page: list[T] = []
    for item in merged:
        if len(page) >= limit and (not page or stamp_of(page[-1]) != stamp_of(item)):
            return page, True
        page.append(item)
    return page, False


def by_author(items: Iterable[T], stamp_of: Callable[[T], HLC]) -> list[tuple[str, list[T]]]:
    """(node id, its items in ascending stamps), nodes in a fixed order."""
    ordered = sorted(items, key=lambda item: (stamp_of(item).node_id, *stamp_of(item).position))
    return [
        (node_id, list(group))
        for node_id, group in groupby(ordered, key=lambda item: stamp_of(item).node_id)
    ]


def check_watermarks(watermarks: Mapping[str, HLC]) -> str | None:
    """What is wrong with a map from outside, or None."""
    for node_id, stamp in watermarks.items():
        if not (0 <= stamp.wall_ms <= INTEGER_MAX and 0 <= stamp.counter <= INTEGER_MAX):
            return f"watermarks[{node_id[:80]!r}] is no stamp"
    return None
