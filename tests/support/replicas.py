"""Replicas made by hand: a writer that ships images, a compactor, and a store that can be watched.

An image is a whole database as bytes, or anything else whose length is a multiple of the page size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import BinaryIO

from infra import ltx
from infra.layout import file_key, folder
from infra.objects import Listing, ObjectInfo, ObjectStore
from infra.stores.directory import DirectoryStore

PAGE = 512
START_MS = 1_795_000_000_000


class ReplicaWriter:
    """Ships images as batches: TXID 1 is a full image, each further one what differs.

    Batch n is made at START_MS + n * `step_ms` unless told otherwise.
    """

    def __init__(
        self, store: ObjectStore, prefix: str = "p", *, page_size: int = PAGE, step_ms: int = 1_000
    ) -> None:
        self.images: list[bytes] = [b""]  # by TXID
        self.times: list[int] = [0]
        self._store = store
        self._prefix = prefix
        self._page_size = page_size
        self._step_ms = step_ms

    @property
    def txid(self) -> int:
        """Of the last batch."""
        return len(self.images) - 1

    def write(self, image: bytes, *, at: int | None = None, level: int = 0) -> str:
        """Ship the image as the next batch; its key."""
        txid = self.txid + 1
        self.times.append(START_MS + txid * self._step_ms if at is None else at)
        self.images.append(image)
        return self.pack(txid, txid, level=level)

    def pack(self, min_txid: int, max_txid: int, *, level: int, key: str | None = None) -> str:
        """Write one file with everything that changed from min to max TXID; its key."""
        size = self._page_size
        image, before = self.images[max_txid], self.images[min_txid - 1]
        lock = ltx.lock_page(size)
        # Every page one of the batches touched, though it may be again what it was.
        touched = {
            number
            for txid in range(min_txid, max_txid + 1)
            for number in changed_pages(self.images[txid - 1], self.images[txid], size)
        }
        pages = [
            (number, image[(number - 1) * size : number * size])
            for number in range(1, len(image) // size + 1)
            if number != lock
            and (min_txid == 1 or number in touched or number * size > len(before))
        ]
        header = ltx.Header(
            page_size=size,
            commit=len(image) // size,
            min_txid=min_txid,
            max_txid=max_txid,
            timestamp_ms=self.times[max_txid],
            node_id=7,
            salt1=max_txid,
            salt2=99,
        )
        key = key or file_key(self._prefix, level, min_txid, max_txid)
        self._store.put(key, ltx.encode(header, pages), timestamp_ms=self.times[max_txid])
        return key

    def snapshot(self, txid: int | None = None) -> str:
        """Write the whole state at a TXID, by default the last; its key."""
        return self.pack(1, txid or self.txid, level=9)


def changed_pages(before: bytes, after: bytes, page_size: int) -> list[int]:
    """Numbers of the pages of `after` that are not the same in `before`."""
    return [
        at // page_size + 1
        for at in range(0, len(after), page_size)
        if before[at : at + page_size] != after[at : at + page_size]
    ]


def image_of(*fills: int, page_size: int = PAGE) -> bytes:
    """One page of each byte."""
    return b"".join(bytes([fill]) * page_size for fill in fills)


def keys_of(store: ObjectStore, prefix: str = "p") -> list[str]:
    """All keys of a small replica."""
    return [info.key for info in store.list(folder(prefix)).objects]


def rewrite(store: ObjectStore, key: str, change: Callable[[bytes], bytes]) -> None:
    """Put something else in the place of an object."""
    store.put(key, change(store.get(key)))


class WatchedStore:
    """A directory store that counts calls, lists short pages, and says when it received things."""

    def __init__(
        self,
        inner: DirectoryStore,
        *,
        page: int = 1000,
        received: Callable[[ObjectInfo], int] | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.got: list[str] = []
        self.url = inner.url
        self._inner = inner
        self._page = page
        self._received = received

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Counted as `get`, or as `head` where only the start is asked for."""
        self.calls["get" if end is None else "head"] += 1
        self.got.append(key)
        return self._inner.get(key, start=start, end=end)

    def open(self, key: str) -> BinaryIO:
        """Counted."""
        self.calls["open"] += 1
        self.got.append(key)
        return self._inner.open(key)

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Listing:
        """Counted; at most `page` objects."""
        self.calls["list"] += 1
        listing = self._inner.list(prefix, after=after, limit=min(limit, self._page))
        if self._received is None:
            return listing
        objects = [
            ObjectInfo(info.key, info.size, self._received(info)) for info in listing.objects
        ]
        return Listing(objects, listing.truncated)

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """As the directory does."""
        self._inner.put(key, body, if_absent=if_absent, timestamp_ms=timestamp_ms)

    def delete(self, keys: Sequence[str]) -> None:
        """As the directory does."""
        self._inner.delete(keys)

    def close(self) -> None:
        """As the directory does."""
        self._inner.close()
