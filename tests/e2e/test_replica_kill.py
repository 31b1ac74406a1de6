"""SIGKILL under load, over a bucket in trouble: what each durability level promises then.

The store fails, stalls, loses replies and lands writes after their sender is dead. `replicated`:
everything acknowledged is in the bucket alone. `local`: everything acknowledged is on the disk; the
bucket lacks at most what was never reported durable, says so with a new epoch, and takes a client's
refill. With a store that only pretends, the same procedure must lose something.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from actors.types import Address
from infra.errors import StorageError
from infra.layout import NoBackup
from infra.stores.directory import DirectoryStore
from tests.support.faulty_store import Faults
from tests.support.hosts import restored
from tests.support.ledgers import Checked
from tests.support.lingering_store import LingeringStore
from tests.support.publisher import Publisher, Server
from tests.support.serve_faulty import Trouble, environment

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("HOLDFAST_KILLS", "12"))
SEED = int(os.environ.get("HOLDFAST_SEED", "7"))
SCOPES = ["run:1", "run:2", "größe: 3", "../run:4"]
SERVE = [sys.executable, "-m", "tests.support.serve_faulty", "serve"]
TROUBLE = {"before": 0.05, "lost_reply": 0.05, "late": 0.05, "stall": 0.02, "stall_s": 0.3}
JUMP = 2**32


class Bucket:
    """A directory as the bucket of one test, and servers over it."""

    def __init__(self, folder: Path, *, drop: bool = False) -> None:
        self.folder = folder
        self.drop = drop
        self._lives = 0
        (folder / "late").mkdir(parents=True)
        (folder / "objects").mkdir()

    def server(self, data_dir: Path, level: str, *options: str) -> Server:
        """A process life with faults of its own."""
        self._lives += 1
        trouble = Trouble(
            late_folder=str(self.folder / "late"), faults={} if self.drop else TROUBLE,
            seed=SEED * 1000 + self._lives, drop=self.drop, snapshot_files=8,
            local_ms=60,
        )  # fmt: skip
        return Server(
            data_dir, "--bucket", f"file:{self.folder / 'objects'}", "--durability", level,
            "--put-interval-ms", "0", "--bucket-history-s", "0.5", *options, command=SERVE,
            environ=environment(trouble),
        )  # fmt: skip

    def land(self) -> None:
        """Everything that is late arrives now."""
        store = DirectoryStore(self.folder / "objects")
        LingeringStore(store, self.folder / "late", Faults()).land()

    def restored(self, scope: str) -> Checked:
        """The scope on a disk that has nothing else. Raises StorageError."""
        target = self.folder / "scratch" / "restored.db"
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        store = DirectoryStore(self.folder / "objects")
        return restored(store, Address("default", scope), target)[1]

    def missing(self, acked: dict[str, dict[str, int]]) -> dict[str, int]:
        """Acknowledged envelopes that the bucket does not have at their seq."""
        lost = {}
        for scope, known in acked.items():
            try:
                causes = self.restored(scope).causes if known else {}
            except NoBackup:
                causes = {}
            lost.update({i: seq for i, seq in known.items() if causes.get(i) != seq})
        return lost


async def life(
    publisher: Publisher, server: Server, acks: int, *, until_durable: bool = False
) -> None:
    """Start, publish until so many more are acknowledged, or the bucket has more, and kill."""
    told = sum(publisher.durable.values())
    with server:
        socket = await publisher.run(
            server.url, acks,
            until=lambda: not until_durable or sum(publisher.durable.values()) > told,
        )  # fmt: skip
        server.kill()
        await publisher.drain(socket)


def codes(publisher: Publisher) -> set[str]:
    return {result["code"] for result in publisher.refused}


async def test_replicated_writes_are_in_the_bucket_whatever_is_killed(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    bucket = Bucket(tmp_path / "bucket")
    publisher = Publisher(SCOPES, window=8)
    data_dir = tmp_path / "data0"
    for kill in range(KILLS):
        await life(publisher, bucket.server(data_dir, "replicated"), draw.randrange(1, 120))
        if kill % 2:
            bucket.land()
        assert bucket.missing(publisher.acked) == {}, f"kill {kill}"
        if kill % 3 == 2:
            # The machine is gone; the next one has an empty disk, and what is late may still land.
            shutil.rmtree(data_dir)
            data_dir = tmp_path / f"data{kill + 1}"
    bucket.land()
    assert bucket.missing(publisher.acked) == {}
    assert publisher.count > KILLS * 10
    assert codes(publisher) <= {"patch_failed", "try_later"}
    epochs = {bucket.restored(scope).header["epoch"] for scope in SCOPES}
    heads = [bucket.restored(scope).header["head"] for scope in SCOPES]
    assert len(epochs) == len(SCOPES) and max(heads) < JUMP, "no history was cut"


async def test_local_writes_are_on_the_disk_and_a_client_can_refill_the_bucket(
    tmp_path: Path,
) -> None:
    draw = random.Random(SEED + 1)
    bucket = Bucket(tmp_path / "bucket")
    publisher = Publisher(SCOPES, window=8, durable=True)
    data_dir = tmp_path / "data"
    for kill in range(KILLS):
        server = bucket.server(data_dir, "local")
        await life(publisher, server, draw.randrange(1, 300), until_durable=kill % 3 == 0)
        if kill % 2:
            bucket.land()
        assert publisher.missing(data_dir) == {}, f"kill {kill}"
    before = {scope: publisher.checked(data_dir, scope).header for scope in SCOPES}
    assert {header["epoch"] for header in before.values()} == publisher.epochs
    assert sum(publisher.durable.values()) > 0 and publisher.count > KILLS * 20
    shutil.rmtree(data_dir)  # from here on there is the bucket, and what clients kept
    lost = bucket.missing(publisher.acked)
    assert lost, "kills that lose nothing show nothing"
    for scope in SCOPES:
        told = publisher.durable.get(scope, 0)
        reported = {i for i, seq in publisher.acked[scope].items() if seq <= told}
        assert not reported & set(lost), "it was said to be in the bucket"
    await _refill(tmp_path, bucket, publisher, before)


async def _refill(
    tmp_path: Path, bucket: Bucket, publisher: Publisher, before: dict[str, dict[str, object]]
) -> None:
    """A new machine has the bucket alone; the client sends what was not reported durable."""
    acked, durable = publisher.acked, publisher.durable
    again = Publisher(SCOPES, window=8, durable=True)
    new_dir = tmp_path / "elsewhere"
    server = bucket.server(new_dir, "local")
    with server:
        for scope in SCOPES:
            kept = [i for i, seq in acked[scope].items() if seq > durable.get(scope, 0)]
            await again.resend(server.url, scope, kept)
        server.kill()
    for scope in SCOPES:
        checked = again.checked(new_dir, scope)
        assert set(acked[scope]) <= set(checked.causes), "refilled, and nothing is missing"
        assert checked.header["epoch"] != before[scope]["epoch"]
        if durable.get(scope, 0):
            assert checked.header["floor"] >= JUMP
            assert all(seq > JUMP for seq in checked.causes.values())
        assert {i: checked.causes[i] for i in again.acked[scope]} == again.acked[scope]


async def test_a_store_that_only_pretends_loses_writes(tmp_path: Path) -> None:
    # The control: the same procedure, with a bucket that says yes and keeps nothing.
    bucket = Bucket(tmp_path / "bucket", drop=True)
    publisher = Publisher(SCOPES, window=8)
    await life(publisher, bucket.server(tmp_path / "data", "replicated"), 50)
    assert publisher.count >= 50
    assert bucket.missing(publisher.acked), "the procedure does not show what it should"


@pytest.mark.soak
async def test_killed_while_waking(tmp_path: Path) -> None:
    draw = random.Random(SEED + 2)
    bucket = Bucket(tmp_path / "bucket")
    publisher = Publisher(SCOPES, window=4)
    for kill in range(KILLS):
        # Each life begins on an empty disk, so that most kills meet a restore or a claim.
        data_dir = tmp_path / f"data{kill}"
        await life(publisher, bucket.server(data_dir, "replicated"), draw.randrange(1, 20))
        shutil.rmtree(data_dir)
        assert bucket.missing(publisher.acked) == {}, f"kill {kill}"


def unreadable(bucket: Bucket, scopes: Iterable[str]) -> list[str]:
    """Scopes that cannot be restored at all."""
    found = []
    for scope in scopes:
        try:
            bucket.restored(scope)
        except (StorageError, AssertionError):
            found.append(scope)
    return found
