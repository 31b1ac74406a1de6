"""Scopes into and out of a host: forks, exports, imports, and that nothing half-made is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors import transfers as module
from actors.history import restore_state
from actors.host import Host
from actors.host_settings import HostSettings
from actors.identity import copy_database, take_identity
from actors.installing import ScopeExists, install
from actors.lines import BadImport
from actors.moment import At
from actors.transfers import NotThere, Transfers
from actors.types import Address, Draft
from actors.wakes import Why
from infra.errors import Busy, HoldfastError, NoBucket, StorageError, TryLater
from infra.layout import NoBackup
from infra.objects import StoreUnavailable
from infra.paths import ledger_path
from infra.replicator import ReplicaSettings
from infra.stores.directory import DirectoryStore
from tests.support.hosts import A, ask, bodies, closed, host_at, prefix_of, put, restored, running
from tests.support.ledgers import FakeTap, check_file, draft, envelope
from tests.support.memory_store import MemoryStore

B = Address("default", "run:b")
C = Address("default", "run:c")


def plain(directory: Path) -> Host:
    return Host(directory, HostSettings())


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("transfer-*"))


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def exported(transfers: Transfers, address: Address, form: module.Format) -> bytes:
    export = await transfers.export(address, form)
    with export.file:
        data = export.file.read()
    assert len(data) == export.size
    return data


async def content(host: Host, address: Address, directory: Path) -> dict[str, object]:
    """Bodies, causes and rows of an open scope, from a checked copy of its file."""
    scope = await host.awake(address)
    assert scope is not None
    copy = directory / f"copy-{address.scope[-1]}.db"
    copy_database(scope.ledger.path, copy)
    checked = check_file(copy)
    copy.unlink()
    found = {seq: {**body, "scope": ""} for seq, body in checked.bodies.items()}
    return {"bodies": found, "causes": checked.causes, "rows": checked.rows}


# -- fork ------------------------------------------------------------------------------------------


async def test_a_fork_has_the_state_and_goes_its_own_way(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(plain(data)) as host:
        transfers = Transfers(host)
        await put(host, A, "e1", "e2", "e3")
        await host.alarms.set(A, "wake", 2**45, None)
        before = await content(host, A, tmp_path)
        scope = await transfers.fork(A, B, None)
        assert (scope.bounds.head, scope.bounds.floor) == (3, 0)
        assert scope.bounds.epoch != (await host.bounds(A)).epoch
        assert await content(host, B, tmp_path) == before
        assert await host.alarms.of(B) == [] and len(await host.alarms.of(A)) == 1
        await put(host, B, "e2", "only-b")
        assert await bodies(host, B) == ["e1", "e2", "e3", "only-b"]
        assert await bodies(host, A) == ["e1", "e2", "e3"]
        transfers.close()
        assert leftovers(data) == []
        await host.aclose()
    async with running(plain(data)) as host:
        assert host.index.page("default", "", "", 10)[0][0] == B.scope
        assert await bodies(host, B) == ["e1", "e2", "e3", "only-b"]
        await host.aclose()
    assert check_file(ledger_path(data, *B)).header["owner"] == 1


async def test_what_a_fork_refuses(tmp_path: Path) -> None:
    async with running(plain(tmp_path)) as host:
        transfers = Transfers(host)
        await put(host, A, "e1")
        await put(host, B, "b1")
        with pytest.raises(ScopeExists):
            await transfers.fork(A, B, None)
        with pytest.raises(ScopeExists):
            await transfers.fork(A, A, None)
        with pytest.raises(NotThere):
            await transfers.fork(C, Address("default", "run:d"), None)
        with pytest.raises(NoBucket, match="without `at`"):
            await transfers.fork(A, C, At(seq=1))
        with pytest.raises(HoldfastError, match="speaks starkeep"):
            await transfers.fork(A, Address("default", "keep:c"), None)
        assert await bodies(host, B) == ["b1"]
        transfers.close()
        assert leftovers(tmp_path) == []
        assert [name for name, _ in host.index.page("default", "", "", 10)] == ["run:b", "run:r1"]


@pytest.mark.parametrize("level", ["local", "replicated"])
async def test_a_fork_of_an_earlier_state_is_replicated(tmp_path: Path, level: str) -> None:
    store = MemoryStore()
    async with running(host_at(tmp_path / "data", store, level=level)) as host:
        transfers = Transfers(host)
        for n in range(1, 6):
            await put(host, A, f"e{n}", replicated=True)
        scope = await transfers.fork(A, B, At(seq=3))
        assert scope.bounds.head == 3
        assert await bodies(host, B) == ["e1", "e2", "e3"]
        if level == "replicated":  # in the bucket before anybody hears of it
            assert restored(store, B, tmp_path / "now.db")[1].header["head"] == 3
        await put(host, B, "f4")
        with pytest.raises(NoBackup):
            await transfers.fork(A, C, At(seq=6))
        with pytest.raises(NoBackup):
            await transfers.fork(C, Address("default", "run:d"), At(seq=1))
        transfers.close()
        await host.aclose()
    found, checked = restored(store, B, tmp_path / "b.db")
    assert [body["eventId"] for body in checked.bodies.values()] == ["e1", "e2", "e3", "f4"]
    assert found.node_id == 1


async def test_the_newest_seqs_are_shipped_before_they_are_looked_for(tmp_path: Path) -> None:
    replica = ReplicaSettings(put_interval_ms=60_000)
    async with running(host_at(tmp_path, MemoryStore(), replica=replica)) as host:
        transfers = Transfers(host)
        await put(host, A, "e1")
        await put(host, A, "e2")
        assert (await transfers.fork(A, B, At(seq=2))).bounds.head == 2
        transfers.close()


async def test_a_scope_that_is_only_in_the_bucket_exists(tmp_path: Path) -> None:
    store = MemoryStore()
    async with running(host_at(tmp_path / "one", store, level="replicated")) as host:
        await put(host, B, "b1")
        await host.aclose()
    async with running(host_at(tmp_path / "two", store, level="replicated")) as host:
        transfers = Transfers(host)
        await put(host, A, "e1")
        with pytest.raises(ScopeExists):
            await transfers.fork(A, B, None)
        assert await bodies(host, B) == ["b1"]
        transfers.close()


async def test_a_bucket_that_does_not_answer_makes_no_scope(tmp_path: Path) -> None:
    """It might have the scope: fail closed."""
    store = MemoryStore()
    async with running(host_at(tmp_path / "one", store, level="replicated")) as host:
        await put(host, A, "e1")
        await host.aclose()
    async with running(host_at(tmp_path / "two", store, level="replicated")) as host:
        transfers = Transfers(host)
        await bodies(host, A)

        def down(*args: object, **more: object) -> object:
            raise StoreUnavailable("down")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(store, "list", down)
            with pytest.raises(TryLater):
                await transfers.fork(A, B, None)
        assert not ledger_path(tmp_path / "two", *B).exists()
        assert (await transfers.fork(A, B, None)).bounds.head == 1
        transfers.close()


async def test_followers_of_a_scope_that_did_not_exist_hear_of_it(tmp_path: Path) -> None:
    async with running(plain(tmp_path)) as host:
        transfers = Transfers(host)
        await put(host, A, "e1", "e2")
        tap = FakeTap()
        await host.subscribe(B, tap)
        await transfers.fork(A, B, None)
        assert [bounds.head for bounds in tap.resets] == [2]
        await put(host, B, "f3")
        assert tap.seqs == [3]
        transfers.close()


async def test_of_two_forks_to_one_name_one_is_made(tmp_path: Path) -> None:
    async with running(plain(tmp_path)) as host:
        transfers = Transfers(host)
        await put(host, A, "a1")
        await put(host, C, "c1")
        results = await asyncio.gather(
            transfers.fork(A, B, None), transfers.fork(C, B, None), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in results) == ["Scope", "ScopeExists"]
        assert await bodies(host, B) in (["a1"], ["c1"])
        transfers.close()


async def test_a_write_that_made_the_scope_meanwhile_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plain(tmp_path)) as host:
        transfers = Transfers(host)
        await put(host, A, "a1")
        raced = asyncio.Event()

        async def settled(address: Address) -> None:
            await put(host, B, "first")  # as a client would, between the copy and its place
            raced.set()

        monkeypatch.setattr(host, "settled", settled)
        with pytest.raises(ScopeExists):
            await transfers.fork(A, B, None)
        assert raced.is_set()
        assert await bodies(host, B) == ["first"]
        transfers.close()


async def test_a_scope_that_was_made_at_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the bucket that there is none may be overtaken by a client's first write."""
    async with running(plain(tmp_path / "data")) as host:
        file = await prepared(host, tmp_path)

        async def awake(address: Address, _why: object) -> None:
            await put(host, B, "first")

        with monkeypatch.context() as patched:
            patched.setattr(host, "awake", awake)
            with pytest.raises(ScopeExists, match="meanwhile"):
                await install(host, B, file)
        assert await bodies(host, B) == ["first"]


async def test_nobody_sees_a_replicated_fork_before_the_bucket_has_it(tmp_path: Path) -> None:
    store = MemoryStore()
    async with running(host_at(tmp_path / "data", store, level="replicated")) as host:
        transfers = Transfers(host)
        await put(host, A, "e1")
        held = asyncio.Event()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(store, "put", _down(held))
            forking = asyncio.ensure_future(transfers.fork(A, B, None))
            async with asyncio.timeout(30):
                await held.wait()
            reading = asyncio.ensure_future(host.bounds(B))
            for _ in range(10):
                await asyncio.sleep(0)
            assert B in host.open_scopes
            assert not reading.done() and not forking.done()
        async with asyncio.timeout(30):
            assert (await reading).head == (await forking).bounds.head == 1
        transfers.close()


async def test_in_a_shared_bucket_one_host_makes_the_scope(tmp_path: Path) -> None:
    """Two hosts that both found nothing: the bucket decides, and nobody writes over the other."""
    store = MemoryStore()
    async with (
        running(host_at(tmp_path / "one", store, shared=True)) as one,
        running(host_at(tmp_path / "two", store, shared=True)) as two,
    ):
        first, second = Transfers(one), Transfers(two)
        await put(one, A, "e1", "e2")
        await put(two, C, "c1")
        results = await asyncio.gather(
            first.fork(A, B, None), second.fork(C, B, None), return_exceptions=True
        )
        made = [result for result in results if not isinstance(result, BaseException)]
        refused = [result for result in results if isinstance(result, HoldfastError)]
        assert (len(made), len(refused)) == (1, 1)
        assert refused[0].code in ("conflict", "fenced")
        with pytest.raises(ScopeExists):
            await second.fork(C, B, None)
        with pytest.raises(ScopeExists):
            await first.fork(A, B, None)
        first.close()
        second.close()
    _, checked = restored(store, B, tmp_path / "b.db")
    assert [body["eventId"] for body in checked.bodies.values()] in (["e1", "e2"], ["c1"])


# -- install ---------------------------------------------------------------------------------------


async def prepared(host: Host, directory: Path) -> Path:
    """A whole file of B's, on the host's file system."""
    await put(host, A, "e1")
    file = directory / "prepared.db"
    scope = await host.awake(A)
    assert scope is not None
    copy_database(scope.ledger.path, file)
    take_identity(file, B, epoch="new", level="local")
    return file


async def test_installing_leaves_the_file_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plain(tmp_path / "data")) as host:
        file = await prepared(host, tmp_path)

        opening = host.open

        def fail(address: Address, why: Why, **options: Any) -> object:
            if not file.exists():  # it is in its place
                raise Busy("too many")
            return opening(address, why, **options)

        with monkeypatch.context() as patched:
            patched.setattr(host, "open", fail)
            with pytest.raises(Busy):
                await install(host, B, file)
        assert file.exists()
        assert not ledger_path(host.directory, *B).exists()
        assert await host.awake(B) is None
        await install(host, B, file)
        assert not file.exists()
        assert await bodies(host, B) == ["e1"]


async def test_installing_takes_only_the_scopes_own_file(tmp_path: Path) -> None:
    async with running(plain(tmp_path / "data")) as host:
        file = await prepared(host, tmp_path)
        with pytest.raises(HoldfastError, match="'run:b'"):
            await install(host, C, file)
        (tmp_path / "junk").write_bytes(b"junk" * 2000)
        with pytest.raises(StorageError):
            await install(host, C, tmp_path / "junk")
        with pytest.raises(StorageError):
            await install(host, C, tmp_path / "nothing")
        assert await host.awake(C) is None


async def test_alarms_of_an_import_ring(tmp_path: Path) -> None:
    rung: list[tuple[Address, str]] = []
    done = asyncio.Event()

    async def ring(address: Address, name: str, *rest: object) -> None:
        rung.append((address, name))
        done.set()

    async with running(plain(tmp_path / "one")) as host:
        transfers = Transfers(host)
        await put(host, A, "e1")
        await host.alarms.set(A, "wake", 1, None)
        data = await exported(transfers, A, "ndjson")
        transfers.close()
    async with running(Host(tmp_path / "two", HostSettings(), on_alarm=ring)) as host:
        transfers = Transfers(host)
        await transfers.accept(B, chunks(data), keep_epoch=False)
        async with asyncio.timeout(30):
            await done.wait()
        transfers.close()
    assert rung[0] == (B, "wake")


# -- export and import -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ndjson", "sqlite"])
@pytest.mark.parametrize("keep", [True, False])
async def test_a_scope_moves_to_another_host(
    tmp_path: Path, form: module.Format, keep: bool
) -> None:
    async with running(plain(tmp_path / "one")) as host:
        transfers = Transfers(host)
        for n in range(50):
            await put(host, A, f"e{n}")
        before, epoch = await content(host, A, tmp_path), (await host.bounds(A)).epoch
        data = await exported(transfers, A, form)
        transfers.close()
        assert leftovers(host.directory) == []
    async with running(plain(tmp_path / "two")) as host:
        transfers = Transfers(host)
        await transfers.accept(A, chunks(data), keep_epoch=keep)
        assert await content(host, A, tmp_path) == before
        assert ((await host.bounds(A)).epoch == epoch) is keep
        await transfers.accept(B, chunks(data, 7), keep_epoch=keep)
        assert await content(host, B, tmp_path) == before
        assert await put(host, A, "e7")
        assert (await host.bounds(A)).head == 50
        with pytest.raises(ScopeExists):
            await transfers.accept(A, chunks(data), keep_epoch=keep)
        transfers.close()
        assert leftovers(host.directory) == []


async def test_bad_input_makes_nothing(tmp_path: Path) -> None:
    async with running(plain(tmp_path / "data")) as host:
        transfers = Transfers(host)
        await put(host, A, "e1", "e2", "e3")
        lines = await exported(transfers, A, "ndjson")
        database = await exported(transfers, A, "sqlite")
        unsound = database.replace(b'"eventId":"e2"', b'"eventId":"e9"').replace(
            b"patche2", b"patche1"
        )
        cases = [
            (b"", "line 1"),
            (b"hello", "line 1"),
            (lines[:-9], "line"),
            (lines[:200], "line 1"),
            (database[:8192], "malformed|damaged|ledger"),
            (b"SQLite format 3\0" + bytes(9000), "damaged|ledger|database"),
            (unsound, "not a sound ledger: I3"),
            (lines.replace(b'"asterql"', b'"nobody"'), "checksum"),
        ]
        for data, word in cases:
            with pytest.raises(BadImport, match=word):
                await transfers.accept(B, chunks(data), keep_epoch=False)
        assert await host.awake(B) is None
        transfers.close()
        assert leftovers(host.directory) == []


async def test_an_upload_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"SQLite format 3\0"
        raise ConnectionResetError

    async with running(plain(tmp_path / "data")) as host:
        transfers = Transfers(host)
        with pytest.raises(ConnectionResetError):
            await transfers.accept(B, broken(), keep_epoch=False)
        monkeypatch.setattr(module, "UPLOAD_BYTES_MAX", 10)
        with pytest.raises(BadImport, match="more than 10 bytes"):
            await transfers.accept(B, chunks(b"x" * 11), keep_epoch=False)
        assert await host.awake(B) is None
        transfers.close()
        assert leftovers(host.directory) == []


async def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(plain(tmp_path / "data")) as host:
        transfers = Transfers(host)
        await put(host, A, "e1")

        def full(*args: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "write_lines", full)
        with pytest.raises(StorageError) as caught:
            await transfers.export(A, "ndjson")
        assert caught.value.code == "disk_full"
        transfers.close()
        assert leftovers(host.directory) == []


async def test_transfers_are_bounded_and_crashes_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    async with running(plain(data)) as host:
        (data / "transfer-left").write_bytes(b"x")
        transfers = Transfers(host)
        assert leftovers(data) == []
        await put(host, A, "e1")
        monkeypatch.setattr(module, "WAITING_MAX", 0)
        with pytest.raises(Busy):
            await transfers.export(A, "ndjson")
        transfers.close()


async def test_an_export_holds_only_what_is_released(tmp_path: Path) -> None:
    """What the bucket does not have yet may still be lost with this host."""
    store = MemoryStore()
    async with running(host_at(tmp_path / "data", store, level="replicated")) as host:
        transfers = Transfers(host)
        await put(host, A, "e1")
        export = await transfers.export(A, "sqlite")
        export.file.close()
        in_bucket = restore_state(store, prefix_of(A), tmp_path / "x.db")
        assert in_bucket.txid >= 1 and export.seq == 1
        held, asked = asyncio.Event(), asyncio.Event()
        scope = host.open_scopes[A]
        settled = host.settled

        async def waits(address: Address) -> None:
            assert scope.released == 1  # and the copy is made already
            asked.set()
            await settled(address)
            assert scope.released == 2

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(store, "put", _down(held))
            patched.setattr(host, "settled", waits)
            writing = asyncio.ensure_future(put(host, A, "e2"))
            async with asyncio.timeout(30):
                await held.wait()
                exporting = asyncio.ensure_future(transfers.export(A, "sqlite"))
                await asked.wait()
            assert not writing.done() and not exporting.done()
        async with asyncio.timeout(30):
            export = await exporting
            await writing
        export.file.close()
        assert export.seq == 2
        transfers.close()


def _down(held: asyncio.Event) -> object:
    loop = asyncio.get_running_loop()

    def put_(*args: object, **more: object) -> None:
        loop.call_soon_threadsafe(held.set)
        raise StoreUnavailable("down")

    return put_


async def test_files_beside_the_ledger_keep_a_space_under_its_name(tmp_path: Path) -> None:
    """A fork of a Starkeep space would name files that lie under the old name."""
    from edge.dialects.starkeep.spaces import Spaces, SpaceSettings

    space, other = Address("default", "keep:a"), Address("default", "keep:b")
    files = tmp_path / "files"
    files.mkdir()
    async with running(plain(tmp_path / "data")) as host:
        transfers = Transfers(host)
        spaces = Spaces(
            host, DirectoryStore(str(files)), spool_dir=tmp_path, now_ms=host.now_ms,
            settings=SpaceSettings(file_bytes_max=1 << 20),
        )  # fmt: skip
        await spaces.write(space, "k", chunks(b"hello"), None)
        with pytest.raises(HoldfastError, match="has 1 files"):
            await transfers.fork(space, other, None)
        data = await exported(transfers, space, "ndjson")
        await closed(host, space)
        await spaces.aclose()
        transfers.close()
    async with running(plain(tmp_path / "two")) as host:
        transfers = Transfers(host)
        assert (await transfers.accept(space, chunks(data), keep_epoch=True)).bounds.head > 0
        with pytest.raises(HoldfastError, match="has 1 files"):
            await transfers.accept(other, chunks(data), keep_epoch=True)
        transfers.close()


async def test_drafts_of_another_level_meet_a_fork_as_any_scope(tmp_path: Path) -> None:
    async with running(host_at(tmp_path, MemoryStore())) as host:
        transfers = Transfers(host)
        await put(host, A, "e1")
        await transfers.fork(A, B, None)
        wanted: list[Draft] = [draft(envelope("r1"), B.scope)]
        await ask(host, B, wanted, replicated=True)
        assert host.open_scopes[B].bounds.durable == 2
        transfers.close()
