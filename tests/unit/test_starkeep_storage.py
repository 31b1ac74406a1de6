"""A node's file and its storages: queries, metadata, state, rows, objects, transfers, residency."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from actors.clocks import HLCState
from actors.dialects.starkeep.naming import BadName
from edge.client.starkeep.blocking import BlockingSyncEngine
from edge.client.starkeep.engine import SyncEngine
from edge.client.starkeep.files import FileSyncEngine, manifest_of, residency_of
from edge.client.starkeep.node import LocalNode
from edge.client.starkeep.objects import MemoryObjectStorage, directory_storage
from edge.client.starkeep.query import BadQuery, Filter, Query, Sort
from edge.client.starkeep.storage import (
    LocalFile,
    NotDeclared,
    SqliteAppTables,
    SqliteSyncStateStore,
)
from edge.client.starkeep.transport import HttpObjectStorage, HttpPeer, HttpSyncTransport
from edge.client.starkeep.types import (
    ChangeEvent,
    FileEntry,
    FileRecordRow,
    FileSyncManifest,
    ObjectStorage,
    StoredObject,
    SyncError,
)
from edge.dialects.starkeep.embedding import HttpSyncHandler, sync_application
from infra.errors import ScopeError, StorageError
from infra.objects import ObjectMissing, StoreUnavailable
from tests.support.starkeep import (
    NOTES,
    NOW,
    Clock,
    Cloud,
    Node,
    Storage,
    Store,
    pair,
    record,
    row,
    stamp,
)

# -- queries ---------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Store:
    found = Store("n")
    names = ["apple", "banana", "cherry", None]
    for n, name in enumerate(names):
        found.put(
            record(n + 1, originalFilename=name, sizeBytes=n * 10, type="a" if n % 2 else "b",
                   meta={"deep": n}, flag=n > 1)
        )  # fmt: skip
    found.put(record(9, deleted=10, originalFilename="gone"))
    return found


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        (Filter("originalFilename", "eq", "banana"), ["banana"]),
        (Filter("originalFilename", "neq", "banana"), ["apple", "cherry"]),
        (Filter("sizeBytes", "gt", 10), ["cherry", None]),
        (Filter("sizeBytes", "gte", 10), ["banana", "cherry", None]),
        (Filter("sizeBytes", "lt", 10), ["apple"]),
        (Filter("sizeBytes", "lte", 10), ["apple", "banana"]),
        (Filter("sizeBytes", "in", [0, 20]), ["apple", "cherry"]),
        (Filter("sizeBytes", "in", []), []),
        (Filter("originalFilename", "like", "%an%"), ["banana"]),
        (Filter("originalFilename", "isNull"), [None]),
        (Filter("originalFilename", "isNotNull"), ["apple", "banana", "cherry"]),
        (Filter("meta.deep", "eq", 2), ["cherry"]),
        (Filter("flag", "eq", True), ["cherry", None]),
    ],
)
def test_operators(store: Store, condition: Filter, names: list[str | None]) -> None:
    page = store.records.query(Query(filters=[condition]))
    assert [found["originalFilename"] for found in page.records] == names


def test_pages_types_order_and_tombstones(store: Store) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        page = store.records.query(Query(limit=3, cursor=cursor))
        seen += [found["id"] for found in page.records]
        cursor = page.next_cursor
        if not page.has_more:
            break
    assert seen == sorted(seen)
    assert len(seen) == 4
    assert len(store.records.query(Query(include_deleted=True)).records) == 5
    assert len(store.records.query(Query(type="a")).records) == 2
    page = store.records.query(Query(sort=Sort("sizeBytes", descending=True)))
    assert [found["sizeBytes"] for found in page.records] == [30, 20, 10, 0]


@pytest.mark.parametrize(
    "query",
    [
        Query(limit=0), Query(limit=10**6), Query(sort=Sort("a"), cursor="x"),
        Query(filters=[Filter('a"', "eq", 1)]), Query(filters=[Filter("", "eq", 1)]),
        Query(filters=[Filter("a", "eq", None)]), Query(filters=[Filter("a", "in", 5)]),
        Query(filters=[Filter("a", "like", 5)]),
    ],
)  # fmt: skip
def test_queries_that_are_refused(store: Store, query: Query) -> None:
    with pytest.raises(BadQuery):
        store.records.query(query)


def test_metadata_stays_beside_records(store: Store) -> None:
    store.records.put_metadata("r1", "image", {"width": 3})
    store.records.put_metadata("r2", "image", {"width": 4})
    assert store.records.get_metadata("r1", "image") == {"width": 3}
    assert store.records.get_metadata("r1", "video") is None
    found = store.records.get_metadata_by_ids(["r1", "r2", "r3"], "image")
    assert found == {"r1": {"width": 3}, "r2": {"width": 4}}
    store.records.delete_metadata("r1", "image")
    assert store.records.get_metadata("r1", "image") is None


def test_a_batch_is_all_or_nothing(store: Store) -> None:
    before = store.all()
    with pytest.raises(AttributeError):
        store.records.batch([record(50), None])  # type: ignore[list-item]
    assert store.all() == before
    store.records.batch([record(50), record(51)])
    assert len(store.all()) == len(before) + 2
    assert not store.records.delete("none", stamp(1))


# -- state -----------------------------------------------------------------------------------------


def test_the_state_file_reads_like_the_real_engines(tmp_path: Path) -> None:
    file = LocalFile(tmp_path / "a.db")
    state, drive = SqliteSyncStateStore(file), SqliteSyncStateStore(file, "starkeep-drive")
    assert state.get_watermarks() == state.get_peer_watermarks() == {}
    assert state.get_hlc_clock_state() is None
    state.set_watermarks({"a": stamp(1)})
    drive.set_peer_watermarks({"b": stamp(2, "b")})
    drive.set_hlc_clock_state(HLCState(5, 6))
    rows = dict(file.db.execute("SELECT key, value_json FROM sync_state").fetchall())
    assert {key: json.loads(value) for key, value in rows.items()} == {
        "watermarks": {"a": {"wallTime": 1, "counter": 0, "nodeId": "a"}},
        "starkeep-drive:peer_watermarks": {"b": {"wallTime": 2, "counter": 0, "nodeId": "b"}},
        "hlc_clock": {"wallTime": 5, "counter": 6},
    }
    file.close()
    file = LocalFile(tmp_path / "a.db")
    again = SqliteSyncStateStore(file)
    assert again.get_watermarks() == {"a": stamp(1)}
    assert again.get_hlc_clock_state() == HLCState(5, 6)
    file.db.execute("PRAGMA user_version=99")
    file.close()
    with pytest.raises(ScopeError, match="newer"):
        LocalFile(tmp_path / "a.db")


# -- writing on a device ---------------------------------------------------------------------------


async def test_a_device_writes_records_rows_and_files(tmp_path: Path) -> None:
    clock = Clock()
    events: list[ChangeEvent] = []
    with LocalNode(
        tmp_path / "a.db", "dev", directory_storage(tmp_path / "o"), now_ms=clock
    ) as node:
        node.declare(NOTES)
        node.notifier.subscribe(events.append)
        made = await node.create_record("jpg", origin_app_id="app", content=b"abc")
        digest = hashlib.sha256(b"abc").hexdigest()
        assert made["objectStorageKey"] == f"shared/image/{digest[:2]}/{digest}"
        assert (made["createdAt"], made["version"]) == (made["updatedAt"], 1)
        assert (await node.objects.list()).keys == (made["objectStorageKey"],)
        updated = node.update_record(made["id"], label="app/x")
        assert (updated["version"], updated["label"]) == (2, "app/x")
        node.delete_record(made["id"])
        gone = node.records.get(made["id"])
        assert gone is not None
        assert gone["deletedAt"] == gone["updatedAt"]
        assert gone["version"] == 2
        node.insert("notes", "note", {"id": 1, "a": 1})
        node.update("notes", "note", {"id": 1}, {"b": 2})
        assert node.tables.row("notes", "note", id=1) == {"id": 1, "a": 1, "b": 2}
        assert node.tables.rows("notes", "note", where={"b": 2}) == [{"id": 1, "a": 1, "b": 2}]
        assert node.tables.rows("notes", "note", where={"b": 3}) == []
        node.delete("notes", "note", {"id": 1})
        assert node.tables.row("notes", "note", id=1) is None
        key = await node.register_file("notes", "a.txt", b"text")
        row = node.tables.row("notes", "_starkeep_sync_records", id=key)
        assert row is not None
        assert row["size_bytes"] == 4
        await node.register_file("notes", "a.txt", b"other")
        again = node.tables.row("notes", "_starkeep_sync_records", id=key)
        assert again is not None
        assert again["created_at"] == row["created_at"]
        await node.delete_file("notes", "a.txt")
        assert not await node.objects.has(key)
        with pytest.raises(BadName):
            node.insert("notes", "_starkeep_sync_records", {"id": "x"})
        with pytest.raises(NotDeclared):
            node.insert("none", "note", {"id": "x"})
        with pytest.raises(ScopeError):
            node.update_record("none")
        last = node.state.get_hlc_clock_state()
    assert {event.event_type for event in events} == {"local-change-recorded"}
    assert events[-1].origin_app_id == "notes"
    with LocalNode(tmp_path / "a.db", "dev", MemoryObjectStorage(), now_ms=lambda: 5) as node:
        assert node.clock.state == last  # the clock goes on, whatever the wall says
        assert node.tables.get("notes") == NOTES


def test_a_write_is_above_the_row_it_changes(tmp_path: Path) -> None:
    """As after a restart of a node whose clock was behind the peer that wrote the row."""
    now = Clock()
    with LocalNode(tmp_path / "a.db", "dev", MemoryObjectStorage(), now_ms=now) as node:
        node.declare(NOTES)
        for op in ("update", "insert", "delete"):
            node.tables.apply(row(now.ms + 1000, "b", "insert", {"id": 1, "text": "old"}))
            if op == "update":
                node.update("notes", "note", {"id": 1}, {"text": "new"})
            elif op == "insert":
                node.insert("notes", "note", {"id": 1, "text": "new"})
            else:
                node.delete("notes", "note", {"id": 1})
            found = node.tables.row("notes", "note", id=1)
            assert found == (None if op == "delete" else {"id": 1, "text": "new"})
            now.ms += 5000


def test_rows_can_be_read_as_a_table(tmp_path: Path) -> None:
    file = LocalFile(tmp_path / "a.db")
    tables = SqliteAppTables(file)
    tables.declare(NOTES)
    tables.apply(row(5, "a", "insert", {"id": "x", "text": "it's", "n": 1}))
    tables.apply(row(6, "a", "delete", where={"id": "y"}))
    tables.make_view("notes", "note", ["id"])
    name = tables.make_view("notes", "note", ["id", "text", "n"])
    assert name == "notes_syncable_note"
    gone = str(stamp(6))
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as other:
        assert other.execute(f"SELECT * FROM {name} ORDER BY id").fetchall() == [
            ("x", "it's", 1, str(stamp(5)), "a", None), ("y", None, None, gone, "a", gone),
        ]  # fmt: skip
    with pytest.raises(BadName):
        tables.make_view("notes", "a b", [])
    with pytest.raises(BadName):
        tables.make_view("notes", "note", ['x"y'])
    with pytest.raises(BadName):
        tables.make_view("a:b", "note", [])
    file.close()


def test_a_write_that_fails_keeps_the_clock_on_disk(tmp_path: Path) -> None:
    with LocalNode(tmp_path / "a.db", "dev", MemoryObjectStorage(), now_ms=Clock()) as node:
        before = node.state.get_hlc_clock_state()
        with pytest.raises(NotDeclared):
            node.insert("none", "t", {"id": 1})
        assert node.state.get_hlc_clock_state() == before


# -- objects ---------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "directory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStorage:
    if request.param == "memory":
        return MemoryObjectStorage()
    return directory_storage(tmp_path / "objects")


async def test_an_object_storage(objects: ObjectStorage) -> None:
    await objects.init()
    assert await objects.health_check()
    assert await objects.stat("k") is None
    assert await objects.get("k") is None
    with pytest.raises(ObjectMissing):
        [piece async for piece in objects.read("k")]
    await objects.put("k", b"0123456789", content_type="x/y", metadata={"a": "b"})
    found = await objects.stat("k")
    assert found is not None
    assert (found.size, found.content_type, found.metadata) == (10, "x/y", {"a": "b"})
    assert found.content_hash == hashlib.sha256(b"0123456789").hexdigest()
    data = await objects.get("k")
    assert data is not None
    assert (data.data, data.size, data.content_type) == (b"0123456789", 10, "x/y")
    assert b"".join([p async for p in objects.read("k", start=2, end=5)]) == b"234"
    await objects.put("k", b"new")
    assert (await objects.get("k") or data).data == b"new"
    for key in ("a/1", "a/2", "a/3", "b/1"):
        await objects.put(key, key.encode())
    page = await objects.list("a/", limit=2)
    assert (page.keys, page.has_more) == (("a/1", "a/2"), True)
    page = await objects.list("a/", limit=2, cursor=page.next_cursor)
    assert (page.keys, page.has_more, page.next_cursor) == (("a/3",), False, None)
    await objects.delete("a/1")
    await objects.delete("a/1")
    assert not await objects.has("a/1")

    async def broken() -> AsyncIterator[bytes]:
        yield b"part"
        raise StorageError("unplugged")

    with pytest.raises(StorageError):
        await objects.write("k", broken())
    assert (await objects.get("k") or data).data == b"new"
    await objects.close()


async def test_a_directory_never_takes_a_key_for_a_path(tmp_path: Path) -> None:
    storage = directory_storage(tmp_path / "objects")
    for key in ("../x", "/etc/x", "a/../../x", ""):
        with pytest.raises(BadName):
            await storage.put(key, b"x")
    assert not (tmp_path / "x").exists()


# -- transfers and residency -----------------------------------------------------------------------


async def test_transfers() -> None:
    files, local, remote = FileSyncEngine(), MemoryObjectStorage(), MemoryObjectStorage()
    await local.put("a", b"aa")
    await local.put("both", b"b")
    await remote.put("both", b"b")
    entries = [FileEntry("a", "x/y"), FileEntry("both"), FileEntry("none")]
    push = await files.get_files_to_push(local, remote, entries)
    assert push == [FileSyncManifest("a", "a", 2, "x/y")]
    assert await files.get_files_to_pull(remote, local, entries) == push
    assert await files.transfer_file(push[0], local, remote)
    assert remote.objects["a"].content_type == "x/y"
    assert await files.transfer_file(push[0], local, remote)  # it is there
    assert not await files.transfer_file(FileSyncManifest("n", "none", 1), local, remote)


async def test_one_transfer_of_a_key_at_a_time() -> None:
    files, remote = FileSyncEngine(), MemoryObjectStorage()
    started, go = asyncio.Event(), asyncio.Event()

    class Slow(MemoryObjectStorage):
        async def read(
            self, key: str, *, start: int = 0, end: int | None = None
        ) -> AsyncIterator[bytes]:
            started.set()
            await go.wait()
            async for piece in super().read(key):
                yield piece

    local = Slow()
    await local.put("a", b"aa")
    manifest = FileSyncManifest("a", "a", 2)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(files.transfer_file(manifest, local, remote))
        await started.wait()
        assert files.is_transfer_in_flight("a")
        assert not await files.transfer_file(manifest, local, remote)
        go.set()
    assert first.result()
    assert not files.is_transfer_in_flight("a")

    class Broken(MemoryObjectStorage):
        async def stat(self, key: str) -> Any:
            raise StorageError("no")

    with pytest.raises(StorageError):
        await files.transfer_file(manifest, local, Broken())
    assert not files.is_transfer_in_flight("a")


async def test_residency() -> None:
    storage = MemoryObjectStorage()
    await storage.put("k", b"x")
    assert await residency_of(None, storage) == "absent"
    assert await residency_of(FileRecordRow("k", "2020"), storage) == "tombstoned"
    assert await residency_of(FileRecordRow("k"), storage) == "resident"
    assert await residency_of(FileRecordRow("none"), storage) == "staged"
    assert await residency_of(FileRecordRow(""), storage) == "staged"


def test_which_items_have_a_blob() -> None:
    assert manifest_of(record(1, key="k", content_hash="h")) == FileSyncManifest(
        "h", "k", 3, "image/jpeg"
    )
    assert manifest_of(record(1, key="k", deleted=2)) is None
    assert manifest_of(record(1)) is None
    file = {"id": "f", "object_storage_key": "k", "size_bytes": 7}
    table = "_starkeep_sync_records"
    assert manifest_of(row(1, "a", "insert", file, table=table)) == FileSyncManifest("k", "k", 7)
    assert manifest_of(row(1, "a", "delete", file, table=table)) is None
    assert manifest_of(row(1, "a", "insert", file)) is None
    assert manifest_of(row(1, "a", "insert", {"id": "f"}, table=table)) is None


# -- the handler in somebody else's server ---------------------------------------------------------


async def serve(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


async def test_a_handler_composes_with_other_routes() -> None:
    cloud = Cloud()
    cloud.tables.declare(NOTES)
    handler = HttpSyncHandler(cloud.responder, cloud.objects)
    app = web.Application()
    app.add_subapp("/sub", sync_application(HttpSyncHandler(cloud, cloud.objects)))

    async def everything(request: web.Request) -> web.StreamResponse:
        return await handler(request) or web.Response(text="the host's own")

    app.router.add_route("*", r"/{rest:[\s\S]*}", everything)
    runner, url = await serve(app)
    node, _ = pair()
    try:
        for base in (url, url + "/sub"):
            peer = HttpPeer(base)
            item = record(NOW, "local", key="k/1")
            node.put(item)
            await node.objects.put("k/1", b"abc")
            engine = SyncEngine(
                local_database_adapter=node.records, local_object_storage=node.objects,
                remote_object_storage=HttpObjectStorage(peer), transport=HttpSyncTransport(peer),
                clock=node.clock, app_syncable_source=node.source,
            )  # fmt: skip
            await engine.exchange()
            assert item.id in cloud.all()
            assert cloud.objects.objects["k/1"].data == b"abc"
            async with peer.session().get(base + "/other") as answer:
                own = await answer.text()
            assert (own == "the host's own") == (base == url)
            async with peer.session().post(base + "/sync/exchange", data=b"{") as answer:
                assert answer.status == 400
            await peer.aclose()
        assert len(cloud.requests) == 1  # the transport that was given
    finally:
        await runner.cleanup()


async def test_files_whose_hash_is_not_known_have_no_tag() -> None:
    """An empty one would be the same for all, and make every transfer look outdated."""

    class Plain(MemoryObjectStorage):
        async def stat(self, key: str) -> StoredObject | None:
            found = await super().stat(key)
            return None if found is None else StoredObject(found.size)

    objects = Plain()
    await objects.put("k", b"abc")
    runner, url = await serve(sync_application(HttpSyncHandler(Cloud().responder, objects)))
    peer = HttpPeer(url)
    try:
        found = await HttpObjectStorage(peer).stat("k")
        assert found is not None
        assert (found.size, found.content_hash) == (3, None)
        same = {"If-None-Match": '""'}
        async with peer.session().get(url + "/files/k", headers=same) as answer:
            assert (answer.status, "ETag" in answer.headers) == (200, False)
    finally:
        await peer.aclose()
        await runner.cleanup()


async def test_a_peer_that_hangs_up_on_files_holds_back_their_authors_alone() -> None:
    cloud = Cloud()
    handler = HttpSyncHandler(cloud.responder, cloud.objects)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/files/"):
            assert request.transport is not None
            request.transport.abort()
        return await handler(request) or web.Response(status=404)

    app = web.Application()
    app.router.add_route("*", r"/{rest:[\s\S]*}", answer)
    runner, url = await serve(app)
    peer = HttpPeer(url)
    node = Node("local", HttpSyncTransport(peer), Storage())
    node.engine._remote = HttpObjectStorage(peer)
    node.put(record(1, "local", key="k"), record(2, "b"))
    await node.objects.put("k", b"abc")
    try:
        assert (await node.engine.exchange()).shipped == 1
        with pytest.raises(StoreUnavailable):
            await HttpObjectStorage(peer).delete("k")
    finally:
        await peer.aclose()
        await runner.cleanup()


async def test_a_large_request_is_written_in_pieces() -> None:
    """In one it would hold up the event loop, which aiohttp warns of."""
    cloud = Cloud()
    runner, url = await serve(sync_application(HttpSyncHandler(cloud.responder, cloud.objects)))
    peer = HttpPeer(url)
    node = Node("local", HttpSyncTransport(peer), Storage())
    node.put(record(1, "local", filler="x" * (2 << 20)))
    try:
        assert (await node.engine.exchange()).shipped == 1
        assert (await HttpObjectStorage(peer).put("k", b"x" * (2 << 20))).size == 2 << 20
        assert cloud.all() == node.all()
    finally:
        await peer.aclose()
        await runner.cleanup()


async def test_what_a_peer_may_answer() -> None:
    answers: dict[str, Callable[[], web.Response]] = {
        "/refused": lambda: web.Response(status=418, text="short and stout"),
        "/garbage": lambda: web.Response(text="<html>"),
    }

    async def answer(request: web.Request) -> web.Response:
        return answers[request.path.removesuffix("/sync/exchange")]()

    app = web.Application()
    app.router.add_post("/{rest:.*}", answer)
    runner, url = await serve(app)
    node, _ = pair()
    try:
        for path, expected in (
            ("/refused/", SyncError),
            ("/garbage", msgspec.MsgspecError),
        ):
            transport = HttpSyncTransport(url + path)
            node.engine._transport = transport
            with pytest.raises(expected) as caught:
                await node.engine.exchange()
            if path == "/refused/":
                assert "/sync/exchange failed: 418" in str(caught.value)
                assert "short and stout" in str(caught.value)
                assert caught.value.code == "SYNC_ERROR"  # type: ignore[attr-defined]
            await transport.aclose()
        transport = HttpSyncTransport("http://127.0.0.1:1")
        node.engine._transport = transport
        with pytest.raises(aiohttp.ClientError):
            await node.engine.exchange()
        await transport.aclose()
        assert node.sync_state.get_watermarks() == {}
    finally:
        await runner.cleanup()


def test_an_engine_without_an_event_loop() -> None:
    node, cloud = pair(page_limit=2)
    node.put(*[record(n, "local") for n in range(1, 6)])
    thread_ids: set[int] = set()
    node.engine.change_notifier.subscribe(lambda event: thread_ids.add(threading.get_ident()))
    with BlockingSyncEngine(node.engine) as engine:
        assert engine.exchange().shipped == 2
        assert engine.drain().shipped == 3
        cloud.put(record(9, "b"))
        assert engine.exchange().applied == 1
    assert thread_ids == {threading.get_ident()}


# Names of the original's exports, as Python has them.
NAMES = [
    "SyncEngine",
    "ChangeNotifier",
    "HttpSyncTransport",
    "InProcessSyncTransport",
    "SqliteSyncStateStore",
    "FileSyncEngine",
    "residency_of",
    "advance_watermark",
    "merge_watermarks",
    "watermark_for",
    "select_unseen",
    "SyncError",
    "AppSyncableApplier",
    "AppSyncableNamespace",
    "AppSyncableNamespaceStore",
    "AppSyncableRowEntry",
    "AppSyncableTableInfo",
    "ChangeEvent",
    "ChangeEventType",
    "ChangeListener",
    "ExchangeResult",
    "FileEntry",
    "FileRecordRow",
    "FileSyncManifest",
    "RecordResidency",
    "ScanCapableApplier",
    "ScanSinceOptions",
    "ScanSincePage",
    "SyncExchangeRequest",
    "SyncExchangeResponse",
    "SyncStateStore",
    "SyncTransport",
    "Watermarks",
]


def test_everything_the_original_exports_is_here() -> None:
    import holdfast

    assert [name for name in NAMES if not hasattr(holdfast.starkeep, name)] == []
    assert sorted(holdfast.starkeep.__all__) == sorted(set(holdfast.starkeep.__all__))
    assert holdfast.HttpSyncHandler is HttpSyncHandler
    with pytest.raises(AttributeError):
        holdfast.nothing  # noqa: B018
