"""An object store that counts what is asked of another one.

A request counts when it is made, whatever becomes of it: stores charge for refusals too. What a
store repeats inside is not seen here.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, cast

from infra.meter import Kind, Meter, put_requests
from infra.objects import DELETE_KEYS_MAX, LIST_KEYS_MAX, Listing, ObjectStore


class MeteredStore:
    """Wraps a store; fits infra.objects.ObjectStore. Closing it closes the wrapped one.

    `meter_of` may name a further meter for a key, such as that of its scope; it is called with the
    first key, or the prefix, of each request, by any thread, one call at a time.
    """

    def __init__(
        self,
        store: ObjectStore,
        meter: Meter,
        meter_of: Callable[[str], Meter | None] | None = None,
    ) -> None:
        self._store = store
        self._meter = meter
        self._meter_of = meter_of
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """See ObjectStore."""
        return self._store.url

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """See ObjectStore."""
        size = _size(body)
        self._add("put", key, requests=put_requests(size), up=size)
        self._store.put(key, body, if_absent=if_absent, timestamp_ms=timestamp_ms)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ObjectStore."""
        self._add("get", key)
        data = self._store.get(key, start=start, end=end)
        self._add("get", key, requests=0, down=len(data))
        return data

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore. Its bytes count when it is closed."""
        self._add("get", key)
        stream = self._store.open(key)
        return cast(
            BinaryIO,
            _Counted(stream, lambda size: self._add("get", key, requests=0, down=size)),
        )

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        """See ObjectStore."""
        self._add("list", prefix)
        return self._store.list(prefix, after=after, limit=limit)

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        if keys:
            self._add("delete", keys[0], requests=-(-len(keys) // DELETE_KEYS_MAX))
        self._store.delete(keys)

    def close(self) -> None:
        """See ObjectStore."""
        self._store.close()

    def _add(self, kind: Kind, key: str, *, requests: int = 1, up: int = 0, down: int = 0) -> None:
        with self._lock:
            self._meter.add(kind, requests=requests, up=up, down=down)
            further = self._meter_of(key) if self._meter_of is not None else None
            if further is not None:
                further.add(kind, requests=requests, up=up, down=down)


class _Counted(io.RawIOBase):
    """A stream that reports how much was read of it, once, when it is closed."""

    def __init__(self, stream: BinaryIO, report: Callable[[int], None]) -> None:
        self._stream = stream
        self._report = report
        self._size = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._stream.read(-1 if size is None else size)
        self._size += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._report(self._size)
        super().close()


def _size(body: bytes | BinaryIO) -> int:
    if isinstance(body, bytes):
        return len(body)
    at = body.tell()
    size = body.seek(0, os.SEEK_END) - at
    body.seek(at)
    return size
