"""One contract for every object store: a directory, S3 over HTTP, what wraps a store, and one that
another process has.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import clock
from infra.deployment import claim_marker, read_marker
from infra.meter import Meter
from infra.objects import (
    PART_BYTES,
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    StoreRefused,
    open_store,
    probe_conditional_writes,
    store_prefix,
)
from infra.stores.metered import MeteredStore
from tests.support.faulty_store import FaultyStore
from tests.support.s3 import ROOT, S3Server
from tests.support.shared_store import SharedStore

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("s3_credentials")]

WRAPPERS: dict[str, Callable[[ObjectStore], ObjectStore]] = {
    "directory": lambda store: store,
    "s3": lambda store: store,
    "metered": lambda store: MeteredStore(store, Meter()),
    "faulty": FaultyStore,
    "shared": SharedStore,
    "shared s3": SharedStore,
}
KEYS = ["a", "a-b/c", "a/b", "a/b-c", "a/b.d/e", "a/c/0000/1", "a/c/0009/1", "a0", "b", "ä/ö", "𝄞"]
RANGES = [
    *[(0, None, b"012345"), (2, None, b"2345"), (2, 4, b"23"), (0, 1, b"0"), (4, 99, b"45")],
    *[(5, 6, b"5"), (6, 9, b""), (6, None, b""), (99, None, b""), (3, 3, b""), (3, 2, b"")],
]
CREATORS = 12
ROUNDS = 5


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty bucket."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("moto_server")
        return server.bucket_url("some/prefix")
    return f"file:{tmp_path / 'bucket'}"


SOAKED = pytest.param("shared s3", marks=pytest.mark.soak)  # each part of it is tested otherwise


@pytest.fixture(params=[name if name != "shared s3" else SOAKED for name in WRAPPERS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """An empty bucket of each kind."""
    if "s3" in request.param:
        server: S3Server = request.getfixturevalue("moto_server")
        opened = open_store(server.bucket_url("some/prefix"))
    else:
        (tmp_path / "bucket").mkdir()
        opened = open_store(f"file:{tmp_path / 'bucket'}")
    store = WRAPPERS[request.param](opened)
    yield store
    store.close()


def keys(store: ObjectStore, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
    return [info.key for info in store.list(prefix, after=after, limit=limit).objects]


def test_what_was_put_is_there(store: ObjectStore) -> None:
    store.put("p/a.ltx", b"hello")
    assert store.get("p/a.ltx") == b"hello"
    with store.open("p/a.ltx") as file:
        assert [file.read(2), file.read(2), file.read(2), file.read(2)] == [b"he", b"ll", b"o", b""]
    (info,) = store.list("p/").objects
    assert (info.key, info.size) == ("p/a.ltx", 5)
    assert abs(info.modified_ms - clock.now_ms()) < 60_000


def test_a_put_replaces(store: ObjectStore) -> None:
    store.put("a", b"one")
    store.put("a", b"other")
    assert store.get("a") == b"other" and keys(store) == ["a"]


def test_an_empty_object(store: ObjectStore) -> None:
    store.put("a", b"")
    assert store.get("a") == b"" and store.get("a", start=0, end=9) == b""
    with store.open("a") as file:
        assert file.read() == b""


@pytest.mark.parametrize(
    ("start", "end", "found"),
    RANGES,
)
def test_ranges_are_half_open(
    store: ObjectStore, start: int, end: int | None, found: bytes
) -> None:
    store.put("a", b"012345")
    assert store.get("a", start=start, end=end) == found


def test_a_negative_range_is_no_suffix(store: ObjectStore) -> None:
    store.put("a", b"012345")
    with pytest.raises(ValueError, match="starts at 0"):
        store.get("a", start=-2)


def test_what_is_not_there(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    for key in ("b", "a", "a/b/c", "a/bb"):
        with pytest.raises(ObjectMissing, match=key):
            store.get(key)
        with pytest.raises(ObjectMissing, match=key):
            store.open(key)
    assert keys(store, "c/d/") == []


def test_a_key_is_created_once(store: ObjectStore) -> None:
    store.put("a/b", b"first", if_absent=True)
    with pytest.raises(ObjectExists, match="a/b") as caught:
        store.put("a/b", b"second", if_absent=True)
    assert not caught.value.retryable
    assert store.get("a/b") == b"first"
    store.delete(["a/b"])
    store.put("a/b", b"third", if_absent=True)
    assert store.get("a/b") == b"third"


def test_of_many_creators_one_wins(store: ObjectStore) -> None:
    for number in range(ROUNDS):
        key = f"log/{number:016x}"
        together = threading.Barrier(CREATORS)

        def create(name: int, key: str = key, together: threading.Barrier = together) -> int | None:
            together.wait()
            try:
                store.put(key, b"%d" % name, if_absent=True)
            except ObjectExists:
                return None
            return name

        with ThreadPoolExecutor(CREATORS) as pool:
            winners = [name for name in pool.map(create, range(CREATORS)) if name is not None]
        assert [b"%d" % name for name in winners] == [store.get(key)]


def test_keys_come_in_the_order_of_their_bytes(store: ObjectStore) -> None:
    shuffled = [key for key in KEYS if key != "a"]  # in a directory "a" could not hold others
    random.Random(1).shuffle(shuffled)
    for key in shuffled:
        store.put(key, key.encode())
    assert keys(store) == sorted(shuffled, key=str.encode)
    assert {info.key: info.size for info in store.list("").objects} == {
        key: len(key.encode()) for key in shuffled
    }


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b", "a/b-", "a/c/0009/", "ä", "z", "a/c/00"])
def test_a_prefix_is_the_beginning_of_a_key(store: ObjectStore, prefix: str) -> None:
    there = KEYS[1:]
    for key in there:
        store.put(key, b"x")
    assert keys(store, prefix) == [
        key for key in sorted(there, key=str.encode) if key[: len(prefix)] == prefix
    ]


@pytest.mark.parametrize("prefix", ["", "a/"])
@pytest.mark.parametrize("after", [*KEYS, "a/", "a/b.", "a/c/0000/", "a/c/0000/0", "~", "A"])
def test_a_listing_goes_on_behind_a_key(store: ObjectStore, prefix: str, after: str) -> None:
    there = KEYS[1:]
    for key in there:
        store.put(key, b"x")
    wanted = [
        key
        for key in sorted(there, key=str.encode)
        if key.startswith(prefix) and key.encode() > after.encode()
    ]
    assert keys(store, prefix, after=after) == wanted


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7])
def test_pages_join_to_the_whole(store: ObjectStore, limit: int) -> None:
    there = [f"p/{number:04x}/{number:016x}.ltx" for number in range(6)]
    for key in there:
        store.put(key, b"x")
    store.put("q", b"x")
    found: list[str] = []
    pages = 0
    truncated = True
    while truncated:
        page = store.list("p/", after=found[-1] if found else "", limit=limit)
        assert len(page.objects) <= limit
        found += [info.key for info in page.objects]
        truncated = page.truncated
        pages += 1
        assert pages <= 6
    assert found == there and pages == -(-6 // limit)


def test_deleting(store: ObjectStore) -> None:
    for key in ("p/a", "p/b", "p/c"):
        store.put(key, b"x")
    store.delete(["p/a", "p/zz", "zz/a", "p/c"])
    store.delete(["p/a"])
    store.delete([])
    assert keys(store) == ["p/b"]
    with pytest.raises(ObjectMissing):
        store.get("p/a")


def test_deleting_more_than_one_request_holds(store: ObjectStore) -> None:
    store.put("last", b"x")
    store.put("first", b"x")
    store.delete(["first", *(f"none/{number}" for number in range(1100)), "last"])
    assert keys(store) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../b",
        ".",
        "a/./b",
        "a\0b",
        "\ud800",
        "x" * 1025,
    ],
)
def test_keys_that_are_none(store: ObjectStore, key: str) -> None:
    store.put("a/b", b"x")
    for call in (
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.open(key),
        lambda: store.delete([key]),
        lambda: store.delete(["a/b", key]),
    ):
        with pytest.raises(StoreRefused, match="key"):
            call()
    assert keys(store) == ["a/b"]


@pytest.mark.parametrize("size", [0, 1000, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 12345])
def test_files_of_any_size(store: ObjectStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    source = io.BytesIO(b"before" + data)
    source.seek(6)
    store.put("big/one", source, timestamp_ms=1_700_000_000_123)
    (info,) = store.list("big/").objects
    assert info.size == size
    with store.open("big/one") as file:
        chunks = iter(lambda: file.read(100_000), b"")
        assert b"".join(chunks) == data
    assert store.get("big/one", start=size // 2) == data[size // 2 :]


def test_a_file_cannot_be_conditional(store: ObjectStore) -> None:
    with pytest.raises(TypeError, match="if_absent"):
        store.put("a", io.BytesIO(b"x"), if_absent=True)
    assert keys(store) == []


def test_the_probe_passes_and_leaves_nothing(store: ObjectStore) -> None:
    probe_conditional_writes(store, "some/prefix")
    assert keys(store) == []


def test_the_marker_goes_to_the_first(store: ObjectStore) -> None:
    assert read_marker(store, "p") is None
    assert claim_marker(store, "p", "one") == "one"
    assert claim_marker(store, "p", "two") == "one"
    assert claim_marker(store, "p", "one") == "one"
    assert read_marker(store, "p") == "one"
    assert read_marker(store, "") is None and read_marker(store, "q") is None


RACE = """
import sys
from infra.objects import ObjectExists, open_store
store = open_store(sys.argv[1])
store.list("log/")  # everything is imported and connected
print("ready", flush=True)
sys.stdin.readline()
won = []
for number in range(200):
    try:
        store.put(f"log/{number:04x}", sys.argv[2].encode(), if_absent=True)
        won.append(number)
    except ObjectExists:
        pass
print(*won)
"""


@pytest.mark.parametrize("url", ["directory", "s3"], indirect=True)
def test_of_many_processes_one_wins(url: str) -> None:
    open_store(url).put("log/none", b"")
    command = [sys.executable, "-c", RACE, url]
    processes = [
        subprocess.Popen(
            [*command, str(name)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in range(3)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    won = {
        name: process.communicate(timeout=60)[0].split() for name, process in enumerate(processes)
    }
    assert sorted(int(number) for numbers in won.values() for number in numbers) == list(range(200))
    store = open_store(url)
    for name, numbers in won.items():
        assert {store.get(f"log/{int(number):04x}") for number in numbers} <= {str(name).encode()}


def test_a_store_that_ignores_conditions_is_refused(rclone_server: S3Server) -> None:
    url = rclone_server.bucket_url("some/prefix")
    store = open_store(url)
    with pytest.raises(StoreRefused) as caught:
        probe_conditional_writes(store, store_prefix(url))
    message = str(caught.value)
    assert "If-None-Match" in message and rclone_server.url in message and "overwrite" in message
    assert keys(store) == []
    # For the rest it is a store like others.
    store.put("a/b", b"012345")
    assert store.get("a/b", start=1, end=3) == b"12" and keys(store, "a/") == ["a/b"]
    store.close()
