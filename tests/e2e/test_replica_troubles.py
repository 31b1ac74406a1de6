"""A bucket or a disk in trouble: a clear error each, nothing overwritten, nothing empty served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import BinaryIO

import pytest

import actors.waking
import infra.replica
import infra.requests
from actors.host import Host
from actors.host_settings import HostSettings
from actors.replication import BucketSettings
from actors.types import Address, Draft, Rejected
from edge.cli.exits import Exit
from infra import clock
from infra.barrier import Barrier
from infra.errors import ConfigError, HoldfastError, TryLater, Unavailable
from infra.objects import ObjectStore, StoreRefused
from infra.paths import ledger_path
from infra.replicator import ReplicaSettings
from infra.stores.directory import DirectoryStore
from tests.support.faulty_store import Fault, Faults, FaultyStore
from tests.support.hosts import (
    A,
    B,
    abandon,
    ask,
    bodies,
    closed,
    codes,
    crash,
    host_at,
    put,
    restored,
    running,
    seqs,
    shipped,
)
from tests.support.ledgers import draft, envelope
from tests.support.memory_store import MemoryStore
from tests.support.publisher import ROOT, Server
from tests.support.s3 import S3Server
from tests.support.scripted_http import Reply, Scripted
from tests.support.serve_faulty import Trouble, environment

pytestmark = pytest.mark.e2e

STALL_MS = 250
IMPATIENT = ReplicaSettings(put_interval_ms=0, max_stall_ms=STALL_MS)
TRIES = 2_000
PREFIX = "default/run~3ar1/"
SMALL_BYTES = 3 << 20
SERVE = [sys.executable, "-m", "edge.cli", "serve", "--insecure", "--json", "--port", "0"]
ENDS_WITHIN_S = 30
JUMP = 2**32


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """People mend refusals within seconds here."""
    monkeypatch.setattr(infra.requests, "RETRY_FIRST_MS", 2)
    monkeypatch.setattr(infra.requests, "RETRY_MAX_MS", 20)
    monkeypatch.setattr(infra.requests, "REFUSED_RETRY_MS", 20)


async def at_last(host: Host, address: Address, *event_ids: str) -> list[int]:
    """Publish as clients do, until it is acknowledged; the seqs."""
    for _ in range(TRIES):
        try:
            outcomes = await put(host, address, *event_ids)
        except HoldfastError as error:
            assert error.retryable, error
        else:
            if set(codes(outcomes)) == {"ok"}:
                return seqs(outcomes)
        await asyncio.sleep(0.005)
    raise AssertionError("never acknowledged")


async def evicted(host: Host, address: Address) -> None:
    """Close the scope, and drop its file as the sweep would."""
    await closed(host, address)
    assert host.waking is not None
    for _ in range(TRIES):
        if host.index.is_evicted(address):
            break
        await host.waking.evict()
        await asyncio.sleep(0.001)
    assert not ledger_path(host.directory, *address).exists()


def damage(memory: MemoryStore, key: str) -> None:
    """One bit of the object, in the middle."""
    data = bytearray(memory.objects[key])
    data[len(data) // 2] ^= 1
    memory.objects[key] = bytes(data)


def change_keys(memory: MemoryStore) -> list[str]:
    """Of the level 0 files of scope A, oldest first."""
    return sorted(key for key in memory.objects if key.startswith(f"{PREFIX}0000/"))


# -- what stands in the bucket is not what was written ---------------------------------------------


async def three_batches(tmp_path: Path, *, level: str = "replicated") -> MemoryStore:
    """A bucket with three batches of scope A; the disk they came from is at `a`."""
    memory = MemoryStore()
    async with running(host_at(tmp_path / "first", memory, level=level)) as host:
        for event_id in ("one", "two", "three"):
            await put(host, A, event_id, replicated=True)
        await crash(host, tmp_path / "a")
    assert len(change_keys(memory)) == 3
    return memory


async def refuses_everything(host: Host, memory: MemoryStore) -> None:
    """Readers and writers get `unavailable`; nothing is made, neither here nor there."""
    before = dict(memory.objects)
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be restored"):
            await bodies(host, A)
        assert codes(await put(host, A, "new")) == ["unavailable"]
    assert memory.objects == before
    assert not list(host.directory.glob("*/*/*.db"))
    assert seqs(await put(host, B, "other scopes work")) == [1]


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_damaged_object(tmp_path: Path, which: int) -> None:
    memory = await three_batches(tmp_path)
    key = change_keys(memory)[which]
    whole = memory.objects[key]
    damage(memory, key)
    async with running(host_at(tmp_path / "b", memory, level="replicated")) as host:
        await refuses_everything(host, memory)
        memory.objects[key] = whole  # an operator has found a copy
        assert await bodies(host, A) == ["one", "two", "three"]
        assert seqs(await put(host, A, "four")) == [4]


@pytest.mark.parametrize("which", [0, 1])
async def test_a_gap_in_the_log(tmp_path: Path, which: int) -> None:
    memory = await three_batches(tmp_path)
    key = change_keys(memory)[which]
    whole = memory.objects.pop(key)
    async with running(host_at(tmp_path / "b", memory, level="replicated")) as host:
        await refuses_everything(host, memory)
        memory.objects[key] = whole
        assert await bodies(host, A) == ["one", "two", "three"]


@pytest.mark.parametrize("level", ["local", "replicated"])
@pytest.mark.parametrize("which", [0, 1])
async def test_a_gap_is_not_filled_from_a_disk_that_was_killed(
    tmp_path: Path, which: int, level: str
) -> None:
    # The next batch would fill the hole, and what stands behind it would hide what it holds.
    memory = await three_batches(tmp_path, level=level)
    key = change_keys(memory)[which]
    whole = memory.objects.pop(key)
    before = dict(memory.objects)
    async with running(host_at(tmp_path / "a", memory, level=level)) as host:
        with contextlib.suppress(HoldfastError):
            assert codes(await put(host, A, "four", replicated=True)) == ["corrupt"]
        with pytest.raises(HoldfastError) as caught:
            await put(host, A, "five")
        assert caught.value.code == "unavailable" and "missing" in str(caught.value)
        assert memory.objects == before
        await crash(host, tmp_path / "c")
    memory.objects[key] = whole
    async with running(host_at(tmp_path / "c", memory, level=level)) as host:
        (seq,) = await at_last(host, A, "five")
        assert (await bodies(host, A))[:3] == ["one", "two", "three"]
        await shipped(host, A)
        assert restored(memory, A, tmp_path / "x.db")[1].causes["five"] == seq


async def test_an_evicted_scope_that_the_bucket_has_lost(tmp_path: Path) -> None:
    memory = MemoryStore()
    host = host_at(tmp_path / "a", memory, bucket={"evict_s": 0.01})
    async with running(host):
        await put(host, A, "one", replicated=True)
        await evicted(host, A)
        kept = {key: memory.objects.pop(key) for key in change_keys(memory)}
        with pytest.raises(Unavailable, match="no file of it"):
            await bodies(host, A)
        assert codes(await put(host, A, "two")) == ["unavailable"]
        assert change_keys(memory) == []
        memory.objects.update(kept)
        assert await bodies(host, A) == ["one"]


@pytest.mark.parametrize("how", ["deleted", "damaged"])
@pytest.mark.parametrize("reachable", [True, False])
async def test_evicted_scopes_outlive_the_index(tmp_path: Path, how: str, reachable: bool) -> None:
    memory = MemoryStore()
    host = host_at(tmp_path / "a", memory, level="replicated", bucket={"evict_s": 0.01})
    async with running(host):
        await put(host, A, "one")
        await evicted(host, A)
        await host.aclose()
    for path in (tmp_path / "a").glob("index.db*"):
        path.unlink()
    if how == "damaged":
        (tmp_path / "a" / "index.db").write_bytes(b"not a database at all" * 300)
    store = FaultyStore(memory, Faults(before=0.0 if reachable else 1.0))
    async with running(host_at(tmp_path / "a", store, level="replicated")) as host:
        if not reachable:
            with pytest.raises(TryLater):
                await bodies(host, A)
            store.faults = Faults()
        assert await bodies(host, A) == ["one"]
        assert seqs(await put(host, A, "two")) == [2]


# -- whose bucket it is ----------------------------------------------------------------------------


async def test_a_prefix_of_another_deployment(tmp_path: Path) -> None:
    mine, theirs = MemoryStore(), MemoryStore()
    for name, memory in (("a", mine), ("b", theirs)):
        async with running(host_at(tmp_path / name, memory)) as host:
            await put(host, A, name, replicated=True)
            await host.aclose()
    before = dict(theirs.objects)
    with pytest.raises(ConfigError, match="another deployment"):
        await host_at(tmp_path / "a", theirs).start()
    # A directory that was never replicated does not mix its scopes with a bucket's either.
    async with running(Host(tmp_path / "c", HostSettings())) as host:
        await put(host, A, "c")
        await host.aclose()
    with pytest.raises(ConfigError, match="never replicated"):
        await host_at(tmp_path / "c", theirs).start()
    assert theirs.objects == before
    async with running(host_at(tmp_path / "a", mine)) as host:
        assert await bodies(host, A) == ["a"]


@pytest.mark.parametrize("level", ["local", "replicated"])
async def test_a_bucket_that_was_lost(tmp_path: Path, level: str) -> None:
    memory = MemoryStore()
    settings = {"evict_s": 0.01}
    host = host_at(tmp_path / "a", memory, level=level, bucket=settings)
    async with running(host):
        for number in range(3):
            await put(host, A, f"a{number}", replicated=True)
        await put(host, B, "b", replicated=True)
        await evicted(host, B)
        await host.aclose()
    memory.objects.clear()
    with pytest.raises(ConfigError, match="--adopt-bucket"):
        await host_at(tmp_path / "a", memory, level=level).start()
    assert memory.objects == {}
    adopted = host_at(tmp_path / "a", memory, level=level, bucket={"adopt": True})
    async with running(adopted) as host:
        # What is on the disk goes up anew, whole; what was in the bucket alone is not made empty.
        assert seqs(await put(host, A, "a3", replicated=True)) == [4]
        found = restored(memory, A, tmp_path / "x.db")[1].causes
        assert found == {"a0": 1, "a1": 2, "a2": 3, "a3": 4}
        with pytest.raises(Unavailable):
            await bodies(host, B)
        assert codes(await put(host, B, "b2")) == ["unavailable"]


async def test_a_bucket_that_moved_to_an_old_copy(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with running(host_at(tmp_path / "a", memory)) as host:
        await put(host, A, "one", replicated=True)
        copy = dict(memory.objects)
        await put(host, A, "two", replicated=True)
        await closed(host, A)  # the directory remembers how far the bucket is
        await host.aclose()
    moved = MemoryStore()
    moved.objects.update(copy)
    moved._made_ms.update(dict.fromkeys(copy, clock.now_ms()))
    settings = HostSettings(bucket=BucketSettings("file:elsewhere", IMPATIENT))
    async with running(Host(tmp_path / "a", settings, store=moved)) as host:
        assert seqs(await put(host, A, "three", replicated=True)) == [3]
    assert restored(moved, A, tmp_path / "x.db")[1].causes == {"one": 1, "two": 2, "three": 3}


async def test_unreachable_at_the_start_of_a_known_deployment(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with running(host_at(tmp_path / "a", memory)) as host:
        await put(host, A, "one", replicated=True)
        await host.aclose()
    store = FaultyStore(memory, Faults(before=1.0))
    async with running(host_at(tmp_path / "a", store, replica=IMPATIENT)) as host:
        assert await bodies(host, A) == ["one"]
        assert seqs(await put(host, A, "two")) == [2]
        assert seqs(await put(host, B, "new")) == [1], "known to be in nobody's bucket"
        assert codes(await put(host, A, "three", replicated=True)) == ["try_later"]
        store.faults = Faults()
        assert await at_last(host, A, "three") == [3]
        await shipped(host, A)
    assert set(restored(memory, A, tmp_path / "x.db")[1].causes) == {"one", "two", "three"}


async def test_unreachable_at_the_first_start(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError) as caught:
        await host_at(tmp_path / "a", FaultyStore(MemoryStore(), Faults(before=1.0))).start()
    assert caught.value.code == "store_unavailable" and caught.value.retryable
    async with running(host_at(tmp_path / "a", MemoryStore())) as host:  # it let go of everything
        assert seqs(await put(host, A, "one")) == [1]


# -- a bucket that refuses -------------------------------------------------------------------------


def refused_start(tmp_path: Path, url: str) -> tuple[int, str]:
    """The exit code and message of a server that must not start."""
    place = ["--data-dir", str(tmp_path / "data"), "--bucket", url]
    ended = subprocess.run(
        [*SERVE, *place],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.stdout == ""
    error = json.loads(ended.stderr.strip().splitlines()[-1])["error"]
    return ended.returncode, f"{error['code']}: {error['message']}"


def test_a_bucket_that_is_missing(
    tmp_path: Path, moto_server: S3Server, s3_credentials: None
) -> None:
    for url, hint in (
        (f"file:{tmp_path / 'none'}", "mkdir"),
        (moto_server.bucket_url("p", bucket="no-such-bucket"), "no-such-bucket"),
    ):
        code, message = refused_start(tmp_path, url)
        assert code == Exit.UNAVAILABLE and message.startswith("store_refused") and hint in message
    assert not list((tmp_path / "data").glob("*/*/*.db"))


def test_a_store_that_ignores_preconditions(
    tmp_path: Path, rclone_server: S3Server, s3_credentials: None
) -> None:
    code, message = refused_start(tmp_path, rclone_server.bucket_url("p"))
    assert code == Exit.UNAVAILABLE and message.startswith("store_refused")
    assert "If-None-Match" in message and "two writers" in message


def failure(code: str, *, clock_off_s: int) -> Reply:
    """A 403 as S3 words it, now, by a server whose clock differs from ours."""
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=clock_off_s), usegmt=True)
    body = f"<Error><Code>{code}</Code><Message>told so</Message></Error>".encode()
    return Reply(status=403, body=body, headers={"Date": date})


@pytest.mark.parametrize(
    ("code", "clock_off_s", "hints"),
    [
        ("InvalidAccessKeyId", 0, ["AWS_ACCESS_KEY_ID"]),
        ("SignatureDoesNotMatch", 0, ["AWS_SECRET_ACCESS_KEY"]),
        ("AccessDenied", 0, ["AccessDenied"]),
        ("RequestTimeTooSkewed", 3600, ["clock", "1 h"]),
    ],
)
async def test_credentials_and_clocks(
    tmp_path: Path, s3_credentials: None, code: str, clock_off_s: int, hints: list[str]
) -> None:
    with Scripted() as server:
        server.script(*[failure(code, clock_off_s=clock_off_s)] * 20)
        url = f"s3://bucket/p?endpoint={server.url}&region=us-east-1&path_style=true"
        host = Host(tmp_path / "a", HostSettings(bucket=BucketSettings(url, IMPATIENT)))
        with pytest.raises(StoreRefused) as caught:
            await host.start()
    assert all(hint in str(caught.value) for hint in hints), str(caught.value)
    assert not [seen for seen in server.requests if seen.method == "PUT"]


class Refusing(MemoryStore):
    """Takes nothing while `message` says why."""

    message = ""

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """See MemoryStore."""
        if self.message:
            raise StoreRefused(self.message)
        super().put(key, body, if_absent=if_absent, timestamp_ms=timestamp_ms)


async def test_refused_while_running(tmp_path: Path) -> None:
    store = Refusing()
    host = host_at(tmp_path / "a", store, level="replicated", replica=IMPATIENT)
    async with running(host):
        await put(host, A, "one")
        store.message = "credentials have expired: renew them"
        (outcome,) = await put(host, A, "two")
        assert isinstance(outcome, Rejected) and outcome.code == "try_later"
        assert "renew them" in outcome.message
        assert await bodies(host, A) == ["one"]
        store.message = ""
        assert await at_last(host, A, "two") == [2]


# -- disks -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def small_disk(place: Path) -> AsyncIterator[Path]:
    """A file system of SMALL_BYTES."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let us mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> Path:
    """A file that leaves no room; delete it to make some."""
    ballast = place / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return ballast


async def test_a_full_disk_keeps_the_bucket_and_the_scope_whole(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with small_disk(tmp_path / "small") as place:
        host = host_at(place / "data", memory, level="replicated")
        async with running(host):
            acked: dict[str, int] = {}
            refused: set[str] = set()
            for number in range(80):
                wanted = draft(envelope(f"e{number}", pad="x" * 40_000), A.scope)
                outcomes = await _ask(host, wanted)
                refused |= set(outcomes) - {"ok"}
                if outcomes == ["ok"]:
                    acked[f"e{number}"] = len(acked) + 1
            assert acked and refused == {"disk_full"}
            first = await bodies(host, A)  # one page of them
            assert first == list(acked)[: len(first)] != []
            found = restored(memory, A, tmp_path / "x.db")[1].causes
            assert found == acked


async def _ask(host: Host, wanted: Draft) -> list[str]:
    try:
        return codes(await ask(host, A, [wanted]))
    except HoldfastError as error:
        return [error.code]


async def test_waking_onto_a_full_disk(tmp_path: Path) -> None:
    memory = await three_batches(tmp_path)
    async with (
        small_disk(tmp_path / "small") as place,
        running(host_at(place / "data", memory, level="replicated")) as host,
    ):
        ballast = fill(place)
        for _ in range(2):
            with pytest.raises(HoldfastError) as caught:
                await bodies(host, A)
            assert caught.value.retryable and "full" in str(caught.value)
        assert not list(host.directory.glob("*/*/*.db")), "nothing that could be taken for it"
        ballast.unlink()
        assert await bodies(host, A) == ["one", "two", "three"]
        assert seqs(await put(host, A, "four")) == [4]


async def test_a_bucket_directory_on_a_full_disk(tmp_path: Path) -> None:
    async with small_disk(tmp_path / "small") as place:
        (place / "bucket").mkdir()
        store = DirectoryStore(place / "bucket")
        host = host_at(tmp_path / "a", store, level="replicated", replica=IMPATIENT)
        async with running(host):
            await put(host, A, "one")
            ballast = fill(place)
            (outcome,) = await put(host, A, "two")
            assert isinstance(outcome, Rejected) and outcome.code == "try_later"
            assert "space" in outcome.message
            assert await bodies(host, A) == ["one"]
            ballast.unlink()
            assert await at_last(host, A, "two") == [2]
        assert set(restored(store, A, tmp_path / "x.db")[1].causes) == {"one", "two"}


async def test_a_bucket_directory_that_goes_away(tmp_path: Path) -> None:
    # Its disk was unmounted: an empty mount point is not an empty bucket.
    place = tmp_path / "bucket"
    place.mkdir()
    host = host_at(tmp_path / "a", DirectoryStore(place), level="replicated", replica=IMPATIENT)
    async with running(host):
        await put(host, A, "one")
        place.rename(tmp_path / "unmounted")
        assert codes(await put(host, A, "two")) == ["try_later"]
        assert not place.exists()
        (tmp_path / "unmounted").rename(place)
        assert await at_last(host, A, "two") == [2]
    assert len(restored(DirectoryStore(place), A, tmp_path / "x.db")[1].causes) == 2


# -- crashes at bad moments ------------------------------------------------------------------------


async def test_killed_between_a_restore_and_its_first_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The restored file lacks `two`, which was acknowledged on a disk that is gone. Whatever comes
    # after it must not look like the same history.
    memory = MemoryStore()
    async with running(host_at(tmp_path / "a", memory)) as host:
        await put(host, A, "one", replicated=True)
        await put(host, A, "two")
        before = await host.bounds(A)
    lives = tmp_path / "b", tmp_path / "c"
    host = host_at(lives[0], memory)
    await host.start()
    with monkeypatch.context() as patched:
        patched.setattr(Host, "open", lambda *_, **__: (_ for _ in ()).throw(TryLater("killed")))
        with pytest.raises(TryLater):
            await bodies(host, A)
    assert ledger_path(lives[0], *A).exists()
    await crash(host, lives[1])
    async with running(host_at(lives[1], memory)) as host:
        (seq,) = await at_last(host, A, "three")
        after = await host.bounds(A)
        assert after.epoch != before.epoch and after.floor >= JUMP and seq > JUMP
        await shipped(host, A)
        assert restored(memory, A, tmp_path / "x.db")[1].header["epoch"] == after.epoch


async def test_the_word_of_eviction_is_durable_before_the_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After a power cut that took the one and not the other, the scope would look new.
    memory = MemoryStore()
    host = host_at(tmp_path / "a", memory, bucket={"evict_s": 0.01})
    async with running(host):
        await put(host, A, "one", replicated=True)
        path = ledger_path(host.directory, *A)
        synced: list[bool] = []
        real = Barrier.sync_all

        def sync_all(self: Barrier) -> None:
            synced.append(path.exists() and host.index.is_evicted(A))
            real(self)

        monkeypatch.setattr(Barrier, "sync_all", sync_all)
        await evicted(host, A)
    assert synced == [True]


async def test_an_old_log_is_not_played_into_a_restored_file(tmp_path: Path) -> None:
    memory = MemoryStore()
    host = host_at(tmp_path / "a", memory, level="replicated", bucket={"evict_s": 0.01})
    async with running(host):
        await put(host, A, "one")
        path = ledger_path(host.directory, *A)
        stale = path.with_name(path.name + "-wal").read_bytes()
        await evicted(host, A)
        async with running(host_at(tmp_path / "b", memory, level="replicated")) as other:
            await put(other, A, "two")
        path.with_name(path.name + "-wal").write_bytes(stale)  # as an interrupted move leaves it
        assert await bodies(host, A) == ["one", "two"]


# -- ending, and closing, while the bucket is away -------------------------------------------------


@pytest.mark.parametrize("level", ["local", "replicated"])
@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.STALL])
async def test_the_end_does_not_wait_for_the_bucket(
    tmp_path: Path, level: str, fault: Fault
) -> None:
    memory = MemoryStore()
    store = FaultyStore(memory, Faults(stall_s=1.0))
    host = host_at(tmp_path / "a", store, level=level, drain_s=0.2, replica=IMPATIENT)
    await host.start()
    await put(host, A, "one", replicated=True)
    store.arm("put", *[fault] * 1000)
    await put(host, A, "two")
    async with asyncio.timeout(ENDS_WITHIN_S):
        await host.aclose()
    store._armed.clear()
    async with running(host_at(tmp_path / "a", memory, level=level)) as host:
        assert await at_last(host, A, "two") == [2]
        await shipped(host, A)
        assert restored(memory, A, tmp_path / "x.db")[1].causes == {"one": 1, "two": 2}


def test_sigterm_while_the_bucket_is_away(tmp_path: Path) -> None:
    for folder in ("late", "objects"):
        (tmp_path / folder).mkdir()
    trouble = Trouble(late_folder=str(tmp_path / "late"), faults={"before": 1.0}, local_ms=10)
    command = [sys.executable, "-m", "tests.support.serve_faulty", "serve"]
    server = Server(
        tmp_path / "data", "--bucket", f"file:{tmp_path / 'objects'}", "--drain-timeout-s", "1",
        command=command, environ=environment(trouble),
    )  # fmt: skip
    with server:
        process = server.process
        assert process is not None
        asyncio.run(_publish(server.url))
        server.signal(signal.SIGTERM)
        assert process.wait(ENDS_WITHIN_S) == 0


async def _publish(url: str) -> None:
    import aiohttp

    body = {"scope": A.scope, "envelope": envelope("one")}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/api/sync/publish", json=body) as answer,
    ):
        assert answer.status == 200


async def test_an_idle_scope_may_close_while_the_bucket_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.replica, "HOPELESS_MS", 50)
    monkeypatch.setattr(actors.waking, "CATCH_UP_AGAIN_S", 0.05)
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with running(host_at(tmp_path / "a", store, idle_s=0.05)) as host:
        await put(host, A, "one", replicated=True)
        store.faults = Faults(before=1.0)
        await put(host, A, "two")
        for _ in range(TRIES):
            if A not in host.open_scopes:
                break
            await asyncio.sleep(0.005)
        assert await bodies(host, A) == ["one", "two"], "readers go on"
        # When it is back, nobody need ask for the scope to have it shipped.
        store.faults = Faults()
        for _ in range(TRIES):
            if len(restored(memory, A, tmp_path / "x.db")[1].causes) == 2:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("left behind")


# -- helpers of other files that are proven here ---------------------------------------------------


async def test_a_crash_leaves_the_files_as_they_were(tmp_path: Path) -> None:
    memory: ObjectStore = MemoryStore()
    async with running(host_at(tmp_path / "a", memory)) as host:
        await put(host, A, "one")
        await crash(host, tmp_path / "b")
        assert not host._started
    shutil.rmtree(tmp_path / "a")
    async with running(host_at(tmp_path / "b", memory)) as host:
        assert await bodies(host, A) == ["one"]
        await abandon(host)
