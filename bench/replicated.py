"""Servers that replicate, for `bench.replica`: their settings, and what they ask of the bucket."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.endpoints import CREDENTIALS
from bench.gen.adapters.base import Adapter
from bench.gen.adapters.holdfast import Holdfast
from bench.peers import slow_store
from bench.roster import PEERS, Peer, holdfast_token

QUIET_CORES, QUIET_WAIT_S = 0.35, 4.0
RETAIN = 1_000_000
# `kind` of the adapter, which begins the scope's name -> what its scopes are.
KINDS = {
    "bench": {"materialize": False, "durability": "replicated"},
    "benchm": {"materialize": True, "durability": "replicated"},
    "benchl": {"materialize": False, "durability": "local"},
}
LEVELS = {"replicated": "bench", "local": "benchl"}
_token: list[str] = []


@dataclass(frozen=True)
class Sizes:
    """Of the parts; the defaults are those of the figures and keep it all below five minutes."""

    secs: float = 2.0
    warm: float = 0.5
    pace_secs: float = 60.0
    busy_secs: float = 3.0
    pairs: int = 3
    scopes: int = 30  # woken, of each sort
    restores: int = 3  # of each way
    restore_entries: int = 312_500  # 107 MB
    repeat_until: float = 0.0  # of the clock: until then a disturbed run is repeated, once

    def may_repeat(self) -> bool:
        """Whether there is time for it."""
        return time.perf_counter() < self.repeat_until


@dataclass(frozen=True)
class Replicating:
    """A server to be, and the file that gets a line for each of its requests."""

    peer: Peer
    log: Path

    def adapter(self, port: int, level: str) -> Adapter:
        """For scopes of this level that are not materialised."""
        return Holdfast(port, token=token(), kind=LEVELS[level])


def token() -> str:
    """A writer's, made once."""
    if not _token:
        _token.append(holdfast_token())
    return _token[0]


def peer(
    name: str,
    work: Path,
    *,
    bucket: str = "file:{DIR}-bucket",
    put_ms: float = 0.0,
    put_interval_ms: int | None = None,
    pure: bool = False,
) -> Replicating:
    """`holdfast serve` with a bucket. Its directory is `data-{name}` below `work`."""
    log = work / f"{name}.requests"
    log.write_text("")
    scopes = {f"{kind}:*": {**settings, "retain": RETAIN} for kind, settings in KINDS.items()}
    env = {
        **PEERS["holdfast"].env,
        **CREDENTIALS,
        **slow_store.environment(
            slow_store.Behaviour(put_ms=put_ms, log=str(log.resolve()), pure=pure)
        ),
        "HOLDFAST_SCOPES": json.dumps(scopes),
        "HOLDFAST_BUCKET": bucket,
    }
    if put_interval_ms is not None:
        env["HOLDFAST_PUT_INTERVAL_MS"] = str(put_interval_ms)
    command = [sys.executable, "-m", "bench.peers.slow_store", "serve"]

    def adapter(port: int, load: str) -> Adapter:
        return Holdfast(port, token=token(), kind="benchm" if load.endswith("m") else "bench")

    return Replicating(Peer(name, lambda port: command, adapter, env), log)


def requests(log: Path, room: str = "") -> Counter[str]:
    """Requests so far by sort, `put` by level as `put 0000`, and `bytes 0000` of each level.

    `room` counts only one scope's, whatever its kind.
    """
    found: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        sort, key, size = line.split(" ")
        if room and f"~3a{room}/" not in key:
            continue
        level = key.split("/")[-2] if sort == "put" and key.count("/") >= 2 else ""
        found[f"{sort} {level}".strip()] += 1
        found[f"bytes {level}".strip()] += int(size)
    return found
