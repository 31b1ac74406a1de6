"""A store in another process: what becomes of calls whose link ends, of bodies and of slow readers.

That it keeps every promise of a store is tests/e2e/test_object_stores.py's to show.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from infra.errors import Busy
from infra.link.frames import WINDOW_BYTES
from infra.objects import ObjectExists, ObjectMissing, StoreRefused, StoreUnavailable
from infra.stores.asked import PIECE_BYTES
from infra.stores.directory import DirectoryStore
from tests.support.shared_store import SharedStore

WAIT_S = 30
BIG = bytes(range(256)) * 40_000  # some 10 MB


class Held(DirectoryStore):
    """A directory whose puts wait for `go`, and say with `begun` that they do."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.raises: BaseException | None = None
        self._puts = threading.Semaphore(0)

    def put(self, key: str, body: bytes | BinaryIO, **options: Any) -> None:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        if self.raises is not None:
            raise self.raises
        super().put(key, body, **options)
        self._puts.release()

    def landed(self, count: int) -> None:
        """Wait until so many puts are through."""
        for _ in range(count):
            assert self._puts.acquire(timeout=WAIT_S)


@pytest.fixture
def held(tmp_path: Path) -> Held:
    (tmp_path / "bucket").mkdir()
    return Held(str(tmp_path / "bucket"))


@pytest.fixture
def store(held: Held) -> Iterator[SharedStore]:
    shared = SharedStore(held)
    yield shared
    held.go.set()
    shared.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_a_put_whose_link_ends_may_have_been_applied(
    store: SharedStore, held: Held, pool: ThreadPoolExecutor
) -> None:
    held.go.clear()
    first = pool.submit(store.put, "log/1", b"mine", if_absent=True)
    assert held.begun.wait(WAIT_S)
    store.stop_serving()
    with pytest.raises(StoreUnavailable) as caught:
        first.result(WAIT_S)
    assert caught.value.retryable
    held.go.set()
    held.landed(1)  # late, as it may
    store.restart()
    assert store.get("log/1") == b"mine"
    with pytest.raises(ObjectExists):
        store.put("log/1", b"mine", if_absent=True)


def test_a_put_is_sent_once(store: SharedStore, held: Held) -> None:
    held.raises = StoreUnavailable("the answer was lost", retry_after_ms=70)
    with pytest.raises(StoreUnavailable, match="was lost") as caught:
        store.put("a", b"x", if_absent=True)
    assert caught.value.retry_after_ms == 70
    held.raises = None
    with pytest.raises(ObjectMissing):
        store.get("a")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Busy("not a store's error")])
def test_what_no_store_raises_is_unavailable(
    store: SharedStore, held: Held, error: Exception
) -> None:
    held.raises = error
    with pytest.raises(StoreUnavailable):
        store.put("a", b"x")


def test_reads_wait_for_the_next_process(store: SharedStore, pool: ThreadPoolExecutor) -> None:
    store.put("a", b"x")
    store.stop_serving()
    reading, listing = pool.submit(store.get, "a"), pool.submit(store.list, "")
    opening = pool.submit(store.open, "a")
    store.restart()
    assert reading.result(WAIT_S) == b"x"
    assert [one.key for one in listing.result(WAIT_S).objects] == ["a"]
    with opening.result(WAIT_S) as file:
        assert file.read() == b"x"


def test_a_stream_whose_link_ends_says_so(store: SharedStore) -> None:
    store.put("a", BIG)
    with store.open("a") as file:
        assert file.read(1000) == BIG[:1000]
        store.stop_serving()
        with pytest.raises(StoreUnavailable, match="broke"):
            file.read()
    store.restart()


def test_a_reader_that_stops_holds_no_more_than_its_window(store: SharedStore) -> None:
    store.put("a", BIG)
    with store.open("a") as file:
        assert file.read(1) == BIG[:1]
        waiting = file.raw.parts.arrived  # type: ignore[attr-defined]
        store.get("a", end=1)  # there and back: what was sent before has come
        assert waiting.qsize() <= WINDOW_BYTES // PIECE_BYTES + 1
        assert file.read() == BIG[1:]
    assert store.get("a") == BIG


class Broken(io.BytesIO):
    """Ends, or fails, behind the first megabyte."""

    error: Exception | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() < 1 << 20:
            return super().read(size)
        if self.error is not None:
            raise self.error
        return b""


def test_a_body_that_does_not_come_whole_is_not_stored(store: SharedStore) -> None:
    with pytest.raises(ValueError, match="shrank"):
        store.put("a", Broken(BIG))
    failing = Broken(BIG)
    failing.error = OSError("the disk is gone")
    with pytest.raises(OSError, match="the disk is gone"):
        store.put("a", failing)
    assert store.list("").objects == []
    store.put("a", io.BytesIO(BIG))
    assert store.get("a") == BIG


def test_a_large_body_can_be_conditional(store: SharedStore) -> None:
    store.put("a", BIG, if_absent=True)
    with pytest.raises(ObjectExists):
        store.put("a", BIG, if_absent=True)
    assert store.get("a") == BIG


async def test_a_thread_that_has_a_loop_may_ask(store: SharedStore) -> None:
    store.put("a", b"x")
    assert store.get("a") == b"x"


def test_closing_ends_what_is_under_way(
    store: SharedStore, held: Held, pool: ThreadPoolExecutor
) -> None:
    held.go.clear()
    putting = pool.submit(store.put, "a", b"x")
    assert held.begun.wait(WAIT_S)
    held.go.set()
    super(SharedStore, store).close()
    with contextlib.suppress(StoreUnavailable):  # or it was done before
        putting.result(WAIT_S)
    with pytest.raises(StoreUnavailable, match="closed"):
        store.get("a")


def test_keys_are_checked_before_anything_is_asked(store: SharedStore) -> None:
    store.stop_serving()
    with pytest.raises(StoreRefused):
        store.put("../a", b"x")
    store.restart()
