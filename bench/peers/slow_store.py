"""`holdfast serve` behind a store that takes its time and writes down what it is asked.

BENCH_STORE is JSON of `Behaviour`. With `pure` the server does without the optional packages that
compress and checksum. Usage: python -m bench.peers.slow_store serve
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import BinaryIO

import msgspec

VARIABLE = "BENCH_STORE"
OPTIONAL = ("lz4", "lz4.block", "fastcrc", "fastcrc.crc64")


class Behaviour(msgspec.Struct, kw_only=True):
    """`put_ms`: what each PUT takes longer. `log`: a file that gets a line for each request."""

    log: str
    put_ms: float = 0.0
    pure: bool = False


def environment(behaviour: Behaviour) -> dict[str, str]:
    """What to start the server with."""
    return {VARIABLE: msgspec.json.encode(behaviour).decode()}


def without_optional() -> None:
    """Have imports of the optional packages fail from now on."""
    for name in OPTIONAL:
        sys.modules[name] = None  # type: ignore[assignment]


class SlowStore:
    """Fits infra.objects.ObjectStore. A line of the log: kind, key, bytes sent."""

    def __init__(self, store: object, behaviour: Behaviour) -> None:
        self._store = store
        self._delay_s = behaviour.put_ms / 1000
        self._log = os.open(behaviour.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    @property
    def url(self) -> str:
        return self._store.url

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        if isinstance(body, bytes):
            size = len(body)
        else:
            size = body.seek(0, os.SEEK_END)
            body.seek(0)
        self._note("put", key, size)
        if self._delay_s:
            time.sleep(self._delay_s)
        self._store.put(key, body, if_absent=if_absent, timestamp_ms=timestamp_ms)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        self._note("get", key)
        return self._store.get(key, start=start, end=end)

    def open(self, key: str) -> BinaryIO:
        self._note("get", key)
        return self._store.open(key)

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> object:
        self._note("list", prefix)
        return self._store.list(prefix, after=after, limit=limit)

    def delete(self, keys: Sequence[str]) -> None:
        self._note("delete", keys[0])
        self._store.delete(keys)

    def close(self) -> None:
        self._store.close()
        os.close(self._log)

    def _note(self, kind: str, key: str, size: int = 0) -> None:
        os.write(self._log, f"{kind} {key} {size}\n".encode())  # one write, so lines stay whole


def main() -> None:
    """The command line of `holdfast`, its stores wrapped."""
    behaviour = msgspec.json.decode(os.environ[VARIABLE], type=Behaviour)
    if behaviour.pure:
        without_optional()
    import actors.replication
    from edge.cli import main as holdfast
    from infra.objects import open_store

    actors.replication.open_store = lambda url: SlowStore(open_store(url), behaviour)
    holdfast()


if __name__ == "__main__":
    main()
