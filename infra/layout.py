"""Names of a replica's objects, and which of them make up a state. Pure: text and numbers only.

A replica is `<prefix>/<level, 4 hex>/<min TXID, 16 hex>-<max TXID, 16 hex>.ltx`: level 9 holds
snapshots (min = 1), levels 0 to 8 hold changes. No scope's prefix lies inside another's, because
other readers take any fitting name at any depth below a level's folder for a file of that level.

We write this form wherever the replica lies. The official tool writes it to buckets; in directories
its folders are `ltx/<level, decimal>`, which is read, never written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from infra.errors import StorageError

LEVEL_CHANGES: Final = 0
LEVEL_SNAPSHOT: Final = 9
COMPONENT_CHARS_MAX: Final = 200  # a file name holds 255 bytes, an S3 key 1024
_COMPONENT_CHARS_KEPT: Final = 150

_UNSAFE = re.compile(r"^\.|[^A-Za-z0-9._-]")
LEVELS_IN_BUCKET: Final = "000"  # and one digit; what all level folders start with
LEVELS_IN_DIRECTORY: Final = "ltx/"
_NAME = re.compile(r"(?:000|ltx/)([0-9])/([0-9a-f]{16})-([0-9a-f]{16})\.ltx")


class NoBackup(StorageError):
    """The replica holds no such state: no file at all, or none that reaches the one asked for."""

    code = "not_found"
    retryable = False


class ReplicaGap(StorageError):
    """Files that later ones build on are missing: what was acknowledged cannot be rebuilt."""

    code = "corrupt"
    retryable = False


class ReplicaFile(msgspec.Struct, frozen=True):
    """One LTX object. `created_ms`: when its last batch was made, as far as is known, in Unix
    milliseconds; from a listing it is when the store received it."""

    key: str
    level: int
    min_txid: int
    max_txid: int
    size: int
    created_ms: int


def scope_prefix(prefix: str, tenant: str, scope: str) -> str:
    """`<prefix>/<tenant>/<scope>`, no slash at either end. Different pairs never share or nest.

    `prefix` is taken as it is, the names are escaped. An empty prefix leaves `<tenant>/<scope>`.
    """
    parts = [prefix.strip("/"), escape(tenant), escape(scope)]
    return "/".join(part for part in parts if part)


def escape(name: str) -> str:
    """One key component for any text: injective, 1 to 200 characters, never `.`, `..` or hidden.

    `~xx` stands for a byte of UTF-8; it survives URLs and YAML where `%` must be doubled.
    """
    if not name:
        return "~"  # as below: no escape yields a ~ without two hex digits
    escaped = _UNSAFE.sub(_escape_character, name)
    if len(escaped) <= COMPONENT_CHARS_MAX:
        return escaped
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{escaped[:_COMPONENT_CHARS_KEPT]}~.{digest}"


def _escape_character(found: re.Match[str]) -> str:
    return "".join(f"~{byte:02x}" for byte in found.group().encode("utf-8", "surrogatepass"))


def folder(scope_prefix: str) -> str:
    """What every key of the replica starts with; it keeps `run:1` out of a listing of `run:10`."""
    return f"{scope_prefix}/" if scope_prefix else ""


def file_key(scope_prefix: str, level: int, min_txid: int, max_txid: int) -> str:
    """The key of a file; keys of one level sort by min TXID, then by max."""
    return f"{folder(scope_prefix)}{level:04x}/{min_txid:016x}-{max_txid:016x}.ltx"


def parse_key(scope_prefix: str, key: str, size: int, modified_ms: int) -> ReplicaFile | None:
    """The file a key names; None for whatever else lies below the prefix."""
    start = folder(scope_prefix)
    found = _NAME.fullmatch(key, len(start)) if key.startswith(start) else None
    if found is None:
        return None
    level, min_txid, max_txid = (int(part, 16) for part in found.groups())
    if not 1 <= min_txid <= max_txid or (level == LEVEL_SNAPSHOT and min_txid != 1):
        return None
    return ReplicaFile(key, level, min_txid, max_txid, size, modified_ms)


def plan_restore(
    files: Iterable[ReplicaFile], *, txid: int | None = None, timestamp_ms: int | None = None
) -> list[ReplicaFile]:
    """The files that rebuild a state, oldest first; of each page the last version counts.

    The state is the latest one; or that of exactly `txid`; or the last one made strictly before
    `timestamp_ms`, by `created_ms`. Plans as `litestream restore` 0.5.17 does, but for one thing:
    a hole that nothing covers is an error for a plan by time too, where the tool would return an
    older state as if it were the one asked for.

    Raises ReplicaGap where the next TXID is in no file though later ones exist, and NoBackup where
    the state is not kept. Without target, NoBackup means that there is no file at all.
    """
    if txid is not None and timestamp_ms is not None:
        raise ValueError("restore to a TXID or to a time, not to both")
    every = list(files)
    wanted = [file for file in every if _is_wanted(file, txid, timestamp_ms)]
    snapshot = newest_snapshot(wanted)
    plan = [] if snapshot is None else [snapshot]
    plan += _chain(wanted, snapshot.max_txid if snapshot else 0)
    reached = plan[-1].max_txid if plan else 0
    if txid is None or reached < txid:
        _check_hole(every, reached)
    if not plan or (txid is not None and reached != txid):
        raise NoBackup(_missing(txid, timestamp_ms, reached))
    return plan


def newest_snapshot(files: Iterable[ReplicaFile]) -> ReplicaFile | None:
    """The snapshot of the highest TXID."""
    return max(snapshots(files), key=lambda file: file.max_txid, default=None)


def snapshots(files: Iterable[ReplicaFile]) -> list[ReplicaFile]:
    """The snapshots, oldest first."""
    found = [file for file in files if file.level == LEVEL_SNAPSHOT]
    return sorted(found, key=lambda file: file.max_txid)


def _is_wanted(file: ReplicaFile, txid: int | None, timestamp_ms: int | None) -> bool:
    if txid is not None:
        return file.max_txid <= txid
    return timestamp_ms is None or file.created_ms < timestamp_ms


def _chain(files: Sequence[ReplicaFile], reached: int) -> list[ReplicaFile]:
    """Changes that lead on from TXID `reached`, each step as far as one file goes."""
    waiting = sorted((file for file in files if file.level != LEVEL_SNAPSHOT), key=_by_min)
    waiting.reverse()
    chain: list[ReplicaFile] = []
    best: ReplicaFile | None = None
    while True:
        while waiting and waiting[-1].min_txid <= reached + 1:
            file = waiting.pop()
            best = file if best is None else max(best, file, key=_reach)
        if best is None or best.max_txid <= reached:
            return chain
        chain.append(best)
        reached = best.max_txid


def _by_min(file: ReplicaFile) -> int:
    return file.min_txid


def _reach(file: ReplicaFile) -> tuple[int, int, int, int]:
    return file.max_txid, -file.min_txid, file.level, -file.created_ms


def _check_hole(files: Sequence[ReplicaFile], reached: int) -> None:
    """Raise ReplicaGap where TXID reached + 1 was once written, by what follows, yet is nowhere.

    A later snapshot holds every TXID, so what retention deleted is no hole.
    """
    missing = reached + 1
    later = [file.min_txid for file in files if file.min_txid > missing]
    if later and not any(file.min_txid <= missing <= file.max_txid for file in files):
        raise ReplicaGap(
            f"the replica is not contiguous: it goes up to TXID {reached}, then the next file"
            f" starts at {min(later)}; what lies between is lost. Restore to TXID {reached} or"
            " earlier, or put the missing object back"
        )


def _missing(txid: int | None, timestamp_ms: int | None, reached: int) -> str:
    if txid is not None:
        kept = f"; the last one kept before it is {reached}" if reached else ""
        return f"the replica does not hold TXID {txid}{kept}"
    if timestamp_ms is not None:
        return f"the replica holds nothing from before {timestamp_ms} ms since 1970"
    return "the replica is empty"
