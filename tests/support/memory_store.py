"""An object store in memory, for tests that make thousands of requests or look at every object."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO

from infra import clock
from infra.objects import (
    LIST_KEYS_MAX,
    Listing,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    check_key,
    check_put,
)


class MemoryStore:
    """Fits infra.objects.ObjectStore; any thread may use it. `counts` has one entry per kind.

    `puts` are the keys in the order they were created or replaced. Closing it changes nothing, so
    that the next host finds what the last one left.
    """

    url = "file:memory"  # a form that configuration accepts; nothing is ever read from there

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        self.puts: list[str] = []
        self._made_ms: dict[str, int] = {}
        self._lock = threading.Lock()

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """See ObjectStore."""
        check_put(key, body, if_absent=if_absent)
        data = body if isinstance(body, bytes) else body.read()
        with self._lock:
            self.counts["put"] += 1
            if if_absent and key in self.objects:
                raise ObjectExists(f"{self.url} already has {key}")
            self.objects[key] = data
            self.puts.append(key)
            self._made_ms[key] = clock.now_ms() if timestamp_ms is None else timestamp_ms

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ObjectStore."""
        check_key(key)
        with self._lock:
            self.counts["get"] += 1
            if key not in self.objects:
                raise ObjectMissing(f"{self.url} has no {key}")
            return self.objects[key][start:end]

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore."""
        return io.BytesIO(self.get(key))

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        """See ObjectStore."""
        with self._lock:
            self.counts["list"] += 1
            keys = sorted(k for k in self.objects if k.startswith(prefix) and k > after)
            objects = [
                ObjectInfo(key, len(self.objects[key]), self._made_ms[key]) for key in keys[:limit]
            ]
            return Listing(objects, len(keys) > limit)

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        with self._lock:
            self.counts["delete"] += 1
            for key in keys:
                self.objects.pop(check_key(key), None)

    def close(self) -> None:
        """Nothing to give up."""
