"""Starkeep over HTTP against a whole server: exchanges, files, namespaces, channels, auth, notices,
hostile input. Fixtures of both protocol versions stand in tests/vectors/starkeep.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from edge.client.starkeep.engine import SyncEngine
from edge.client.starkeep.notices import follow_notices
from edge.client.starkeep.notifier import ChangeNotifier
from edge.client.starkeep.transport import (
    HttpObjectStorage,
    HttpPeer,
    HttpSyncTransport,
    hmac_signer,
)
from edge.client.starkeep.types import ChangeEvent, SyncError
from edge.server import Server
from infra import clock
from tests.support.app import PATIENCE_S, one_process_only, running, token, url_of
from tests.support.starkeep import NOTES, Store, record, record_json, row

pytestmark = pytest.mark.e2e
Json = dict[str, Any]
NOW = clock.now_ms()
DECLARED = {
    "tables": [
        {"name": "note", "pkColumns": ["id"]}, {"name": "tag", "pkColumns": ["note", "name"]}
    ],
    "filesEnabled": True,
}  # fmt: skip


class Http:
    """Requests to a server, raw paths as they are."""

    def __init__(self, server: Server, session: aiohttp.ClientSession, base: str) -> None:
        self.server = server
        self.session = session
        self.base = base
        self.headers: dict[str, str] = {}

    async def call(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes, Any]:
        """(status, body, headers)."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        url = URL(url_of(self.server, self.base + path), encoded=True)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method, url, data=data, headers={**self.headers, **named}
        ) as answer:
            return answer.status, await answer.read(), answer.headers

    async def exchange(self, *, channel: str = "", **body: Any) -> Json:
        """A good exchange."""
        status, text, _ = await self.call("POST", channel + "/sync/exchange", body)
        assert status == 200, text
        found: Json = json.loads(text)
        return found

    async def refused(self, body: Any, channel: str = "") -> tuple[int, str]:
        """(status, code) of an exchange that must not be taken."""
        status, text, _ = await self.call("POST", channel + "/sync/exchange", body)
        answer = json.loads(text)
        assert set(answer) == {"error", "code"}
        return status, answer["code"]


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Http]:
    async with running(tmp_path) as server, aiohttp.ClientSession() as session:
        yield Http(server, session, "/keep/home")


def device(
    http: Http, node_id: str, *, channel: str = "", **options: Any
) -> tuple[Store, SyncEngine, HttpPeer]:
    """A store and an engine that speaks to the server."""
    store = Store(node_id, clock.now_ms)
    store.tables.declare(NOTES)
    peer = HttpPeer(
        url_of(http.server, http.base + channel), session=http.session, **options.pop("peer", {})
    )
    from edge.client.starkeep.storage import SqliteSyncStateStore

    engine = SyncEngine(
        local_database_adapter=store.records, local_object_storage=store.objects,
        remote_object_storage=HttpObjectStorage(peer), transport=HttpSyncTransport(peer),
        clock=store.clock, sync_state=SqliteSyncStateStore(store.file),
        **{"app_syncable_source": store.source, **options},
    )  # fmt: skip
    return store, engine, peer


# -- two devices through a server ------------------------------------------------------------------


async def test_two_devices_converge_with_blobs_rows_and_tombstones(http: Http) -> None:
    assert (await http.call("PUT", "/sync/namespaces/notes", DECLARED))[0] == 200
    one, first, _ = device(http, "one")
    two, second, _ = device(http, "two")
    item = record(NOW, "one", key="shared/image/ab/ab")
    one.put(item, record(NOW + 1, "one"))
    await one.objects.put(item.key, b"a photo")
    one.tables.apply(row(NOW + 2, "one", "insert", {"id": "n1", "text": "hello"}))
    two.tables.apply(row(NOW, "two", "insert", {"id": "n2", "text": "there"}))
    two.tables.apply(row(NOW + 1, "two", "delete", where={"id": "n2"}))
    for engine in (first, second, first):
        await engine.drain()
    assert one.state() == two.state()
    assert two.objects.objects[item.key].data == b"a photo"
    assert (await first.exchange()).shipped == 0
    found = await http.call("GET", "/files/" + urllib.parse.quote(item.key, safe=""))
    assert found[:2] == (200, b"a photo")


async def test_a_record_may_come_before_its_bytes(http: Http) -> None:
    """I9: it is accepted; the key is staged until the bytes are there."""
    item = record_json(NOW, "a", key="k1", content_hash="0" * 64)
    await http.exchange(records=[item])
    assert (await http.call("HEAD", "/files/k1"))[0] == 404
    assert (await http.call("PUT", "/files/k1", b"bytes"))[0] == 200
    assert (await http.call("GET", "/files/k1"))[:2] == (200, b"bytes")


async def test_pages_over_http(http: Http) -> None:
    await http.exchange(records=[record_json(NOW + n, "a") for n in range(7)])
    seen: Json = {}
    pages = []
    while True:
        answer = await http.exchange(watermarks=seen, limit=3)
        pages.append(len(answer["records"]))
        for item in answer["records"]:
            seen[item["updatedAt"]["nodeId"]] = item["updatedAt"]
        if not answer["hasMore"]:
            break
    assert pages == [3, 3, 1]


@one_process_only
async def test_an_unknown_space_reads_as_empty_and_makes_no_file(
    http: Http, tmp_path: Path
) -> None:
    empty = {"records": [], "appSyncableRows": [], "responderWatermarks": {}, "hasMore": False}
    assert await http.exchange() == empty
    assert (await http.call("HEAD", "/files/none"))[0] == 404
    assert list(tmp_path.rglob("*.db")) == [tmp_path / "index.db"]


async def test_unknown_members_of_a_record_come_back_untouched(http: Http) -> None:
    item = record_json(NOW, "a", future={"x": [1.0, None, "é"]}, ownerId="me")
    await http.exchange(records=[item])
    assert (await http.exchange())["records"] == [item]


# -- parked rows -----------------------------------------------------------------------------------


async def test_rows_wait_until_their_table_is_declared(http: Http) -> None:
    """A client of version 0.1.0 sends them once, and would otherwise lose them."""
    entries = [
        {"timestamp": {"wallTime": NOW + n, "counter": 0, "nodeId": "a"}, "appId": "notes",
         "table": "note", "op": "insert", "row": {"id": n, "text": "t"}}
        for n in (1, 3)
    ]  # fmt: skip
    early, late = record_json(NOW, "a"), record_json(NOW + 2, "a")
    other = record_json(NOW + 9, "b")
    answer = await http.exchange(records=[early, late, other], appSyncableRows=entries)
    assert {n: w["wallTime"] - NOW for n, w in answer["responderWatermarks"].items()} == {
        "a": 0, "b": 9,
    }  # fmt: skip
    # What follows of the author waits as well: it must not overtake what is parked.
    last = record_json(NOW + 4, "a")
    answer = await http.exchange(records=[last])
    assert answer["responderWatermarks"]["a"]["wallTime"] == NOW
    assert (await http.call("PUT", "/sync/namespaces/notes", DECLARED))[0] == 200
    answer = await http.exchange()
    assert [r["id"] for r in answer["records"]] == [
        early["id"],
        late["id"],
        last["id"],
        other["id"],
    ]
    assert [r["row"]["id"] for r in answer["appSyncableRows"]] == [1, 3]
    assert answer["responderWatermarks"]["a"]["wallTime"] == NOW + 4


async def test_a_row_without_key_values_halts_its_author(http: Http) -> None:
    await http.call("PUT", "/sync/namespaces/notes", DECLARED)
    entry = {
        "timestamp": {"wallTime": NOW, "counter": 0, "nodeId": "a"}, "appId": "notes",
        "table": "note", "op": "insert", "row": {"text": "no id"},
    }  # fmt: skip
    answer = await http.exchange(
        appSyncableRows=[entry], records=[record_json(NOW + 1, "a"), record_json(NOW, "b")]
    )
    assert list(answer["responderWatermarks"]) == ["b"]


# -- namespaces ------------------------------------------------------------------------------------


async def test_namespaces_are_additive_and_may_be_withdrawn(http: Http) -> None:
    status, text, _ = await http.call("PUT", "/sync/namespaces/notes", DECLARED)
    assert status == 200
    shown = json.loads(text)
    assert shown["tableNames"] == ["note", "tag", "_starkeep_sync_records"]
    more = {"tables": [{"name": "extra", "pkColumns": ["k"]}]}
    assert (await http.call("PUT", "/sync/namespaces/notes", more))[0] == 200
    names = json.loads((await http.call("GET", "/sync/namespaces/notes"))[1])["tableNames"]
    assert names == ["note", "tag", "extra", "_starkeep_sync_records"]
    other_key = {"tables": [{"name": "note", "pkColumns": ["other"]}]}
    status, text, _ = await http.call("PUT", "/sync/namespaces/notes", other_key)
    assert (status, json.loads(text)["code"]) == (400, "bad_name")
    assert (await http.call("DELETE", "/sync/namespaces/notes"))[0] == 204
    assert (await http.call("GET", "/sync/namespaces/notes"))[0] == 404
    assert json.loads((await http.call("GET", "/sync/namespaces"))[1]) == []
    status, _, _ = await http.call("PUT", "/sync/namespaces/notes", other_key)
    assert status == 400  # its rows still have their names


@pytest.mark.parametrize(
    "body",
    [
        {"tables": [{"name": "a b", "pkColumns": ["id"]}]},
        {"tables": [{"name": "t", "pkColumns": []}]},
        {"tables": [{"name": "t", "pkColumns": ["updated_at"]}]},
        {"tables": [{"name": "_starkeep_sync_records", "pkColumns": ["id"]}]},
        {"tables": 3},
        b"{",
        b"\xff",
    ],
)
async def test_bad_declarations(http: Http, body: Any) -> None:
    status, text, _ = await http.call("PUT", "/sync/namespaces/notes", body)
    assert (status, json.loads(text)["code"]) == (400, "bad_name")


# -- channels --------------------------------------------------------------------------------------


async def test_a_split_space(http: Http) -> None:
    drive, app = "/apps/starkeep-drive", "/apps/notes"
    assert (await http.call("PUT", app + "/sync/namespaces/notes", DECLARED))[0] == 200
    entry = {
        "timestamp": {"wallTime": NOW + 5, "counter": 0, "nodeId": "a"}, "appId": "notes",
        "table": "note", "op": "insert", "row": {"id": 1},
    }  # fmt: skip
    foreign = {**entry, "appId": "other", "timestamp": {**entry["timestamp"], "nodeId": "x"}}  # type: ignore[dict-item]
    answer = await http.exchange(
        channel=app, appSyncableRows=[entry, foreign], records=[record_json(NOW, "a")]
    )
    assert answer["records"] == []
    assert list(answer["responderWatermarks"]) == ["a"]
    answer = await http.exchange(channel=drive, records=[record_json(NOW, "a")])
    assert len(answer["records"]) == 1
    assert answer["appSyncableRows"] == []
    assert answer["responderWatermarks"]["a"]["wallTime"] == NOW  # not masked by the app's
    assert await http.refused({}) == (409, "wrong_channel")
    assert await http.refused({"records": [record_json(NOW, "a")]}) == (409, "wrong_channel")


async def test_a_combined_space_has_no_channels(http: Http) -> None:
    await http.exchange(records=[record_json(NOW, "a")])
    for channel in ("/apps/starkeep-drive", "/apps/notes"):
        assert await http.refused({}, channel) == (409, "wrong_channel")
    # Also where the answer comes from memory.
    assert await http.refused({}, "/apps/notes") == (409, "wrong_channel")


async def test_rows_on_the_drive_halt_their_author(http: Http) -> None:
    entry = {
        "timestamp": {"wallTime": NOW, "counter": 0, "nodeId": "a"}, "appId": "notes",
        "table": "note", "op": "insert", "row": {"id": 1},
    }  # fmt: skip
    answer = await http.exchange(
        channel="/apps/starkeep-drive", appSyncableRows=[entry],
        records=[record_json(NOW + 1, "a"), record_json(NOW, "b")],
    )  # fmt: skip
    assert list(answer["responderWatermarks"]) == ["b"]


async def test_an_app_reaches_no_other_apps_files(http: Http) -> None:
    key = "/apps/notes/files/apps%2Fnotes%2Fsyncable%2Fa"
    assert (await http.call("PUT", key, b"x"))[0] == 200
    assert (await http.call("GET", "/apps/other/files/apps%2Fnotes%2Fsyncable%2Fa"))[0] == 403


# -- files -----------------------------------------------------------------------------------------


async def test_a_file_and_its_headers(http: Http) -> None:
    data = bytes(range(256)) * 40
    assert (await http.call("PUT", "/files/a%2Fb", data, Content_Type="image/png"))[0] == 200
    digest = hashlib.sha256(data).hexdigest()
    for path in ("/files/a%2Fb", "/files/a/b"):
        status, body, headers = await http.call("GET", path)
        assert (status, body) == (200, data)
        assert headers["Content-Type"] == "image/png"
        assert headers["Content-Length"] == str(len(data))
        assert headers["ETag"] == f'"{digest}"'
        assert headers["X-Content-SHA256"] == digest
        assert "sandbox" in headers["Content-Security-Policy"]
    status, body, headers = await http.call("HEAD", "/files/a%2Fb")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(data)))
    assert (await http.call("GET", "/files/a/b", If_None_Match=f'"{digest}"'))[0] == 304
    assert (await http.call("PUT", "/files/a/b", b"other"))[0] == 200
    assert (await http.call("GET", "/files/a%2Fb"))[1] == b"other"
    assert (await http.call("DELETE", "/files/a/b"))[0] == 204
    assert (await http.call("DELETE", "/files/a/b"))[0] == 204
    assert (await http.call("GET", "/files/a/b"))[0] == 404
    assert (await http.call("PATCH", "/files/a/b"))[0] == 404


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-3", 206, b"0123"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"),
        ("bytes=5-99", 206, b"56789"), ("bytes=10-", 416, None), ("bytes=-0", 416, None),
        ("bytes=3-1", 200, b"0123456789"), ("bytes=0-1,3-4", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"), ("lines=1-2", 200, b"0123456789"),
        ("bytes=-99", 206, b"0123456789"),
    ],
)  # fmt: skip
async def test_ranges(http: Http, asked: str, status: int, part: bytes | None) -> None:
    await http.call("PUT", "/files/f", b"0123456789")
    found, body, headers = await http.call("GET", "/files/f", Range=asked)
    assert found == status
    if part is None:
        assert headers["Content-Range"] == "bytes */10"
    else:
        assert body == part
    stale = await http.call("GET", "/files/f", Range=asked, If_Range='"other"')
    assert stale[:2] == (200, b"0123456789")


@pytest.mark.parametrize("known", ["{}", "W/{}", '"else", {}', "*"])
async def test_a_file_that_is_known_is_not_sent_again(http: Http, known: str) -> None:
    await http.call("PUT", "/files/a", b"bytes")
    etag = (await http.call("HEAD", "/files/a"))[2]["ETag"]
    found = await http.call("GET", "/files/a", If_None_Match=known.format(etag))
    assert found[:2] == (304, b"")
    assert (await http.call("GET", "/files/a", If_None_Match='"else"'))[0] == 200


async def test_a_body_in_another_encoding_than_it_says(
    http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    for method, path in (("PUT", "/files/a"), ("POST", "/sync/exchange"),
                         ("POST", "/files/presign")):  # fmt: skip
        headers = {"Content_Encoding": "gzip", "Connection": "close"}
        status, text, _ = await http.call(method, path, b"no gzip", **headers)
        assert (status, json.loads(text)["code"]) == (400, "bad_request")
    assert "request failed" not in caplog.text


async def test_an_empty_file(http: Http) -> None:
    assert (await http.call("PUT", "/files/e", b""))[0] == 200
    assert (await http.call("GET", "/files/e"))[:2] == (200, b"")
    assert (await http.call("GET", "/files/e", Range="bytes=0-1"))[0] == 416


async def test_a_large_file_streams_both_ways(http: Http) -> None:
    piece = bytes(range(256)) * 4096

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield piece

    _, _, peer = device(http, "one")
    storage = HttpObjectStorage(peer)
    await storage.write("big", chunks(), content_type="x/y")
    found = await storage.stat("big")
    assert found is not None
    assert (found.size, found.content_type) == (12 << 20, "x/y")
    digest = hashlib.sha256()
    async for part in storage.read("big"):
        digest.update(part)
    assert digest.hexdigest() == found.content_hash == hashlib.sha256(piece * 12).hexdigest()
    part = b"".join([p async for p in storage.read("big", start=(1 << 20) - 2, end=(1 << 20) + 2)])
    assert part == piece[-2:] + piece[:2]


async def test_an_upload_that_breaks_off_leaves_the_key_as_it_was(http: Http) -> None:
    await http.call("PUT", "/files/f", b"before")

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (3 << 20)
        raise OSError("unplugged")

    with pytest.raises((aiohttp.ClientError, OSError)):
        await http.call("PUT", "/files/f", broken())
    assert (await http.call("GET", "/files/f"))[1] == b"before"


async def test_bytes_under_a_kept_key_are_replaced(http: Http) -> None:
    """Defect 5 of the original: new hash, old bytes."""
    assert (await http.call("PUT", "/sync/namespaces/notes", DECLARED))[0] == 200
    one, first, _ = device(http, "one")
    two, second, _ = device(http, "two")
    key = "apps/notes/syncable/a"
    for n, data in enumerate((b"old bytes", b"new bytes")):
        await one.objects.put(key, data)
        file = {
            "id": key, "object_storage_key": key, "size_bytes": len(data),
            "content_hash": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip
        one.tables.apply(row(NOW + n, "one", "insert", file, table="_starkeep_sync_records"))
        await first.drain()
        await second.drain()
        assert two.objects.objects[key].data == data


async def test_a_file_changed_on_two_devices_at_once_keeps_the_winners_bytes(http: Http) -> None:
    """Blobs go before their rows, so the loser's may come last."""
    assert (await http.call("PUT", "/sync/namespaces/notes", DECLARED))[0] == 200
    one, first, _ = device(http, "one")
    two, second, _ = device(http, "two")
    key = "apps/notes/syncable/a"

    async def write(store: Store, at: int, node_id: str, data: bytes) -> None:
        await store.objects.put(key, data)
        file = {
            "id": key, "object_storage_key": key, "size_bytes": len(data),
            "content_hash": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip
        table = "_starkeep_sync_records"
        store.tables.apply(row(NOW + at, node_id, "insert", file, table=table))

    await write(one, 0, "one", b"before")
    for engine in (first, second):
        await engine.drain()
    await write(two, 1, "two", b"two's earlier one")
    await write(one, 2, "one", b"one's later one")
    for engine in (first, second, first, second):
        await engine.drain()
    assert one.state() == two.state()
    shown = await http.call("GET", "/files/" + urllib.parse.quote(key, safe=""))
    assert shown[:2] == (200, b"one's later one")
    assert one.objects.objects[key].data == two.objects.objects[key].data == shown[1]


async def test_the_presign_family(http: Http) -> None:
    status, text, _ = await http.call(
        "POST", "/files/presign", {"key": "a/b", "contentType": "x/y"}
    )
    assert status == 200
    url = URL(json.loads(text)["url"], encoded=True)
    async with http.session.put(url, data=b"signed") as answer:
        assert answer.status == 200
    assert (await http.call("POST", "/files/confirm", {"key": "a/b"}))[0] == 204
    assert (await http.call("POST", "/files/confirm", {"key": "none"}))[0] == 404
    status, text, _ = await http.call("GET", "/files/a%2Fb/presign")
    url = URL(json.loads(text)["url"], encoded=True)
    async with http.session.get(url) as answer:
        assert await answer.read() == b"signed"
    async with http.session.put(url, data=b"x") as answer:  # signed for reading
        assert answer.status == 401
    other = URL(str(url).replace("a%2Fb", "a%2Fc"), encoded=True)
    async with http.session.get(other) as answer:
        assert answer.status == 401
    assert (await http.call("GET", "/files/none/presign"))[0] == 404
    assert (await http.call("GET", "/health"))[0] == 200


# -- who may ---------------------------------------------------------------------------------------


async def test_bearer_tokens(tmp_path: Path) -> None:
    async with running(tmp_path, mode="serve") as server, aiohttp.ClientSession() as session:
        http = Http(server, session, "/keep/home")
        assert await http.refused({}) == (401, "unauthenticated")
        # Before the body is looked at.
        assert await http.refused(b"not json") == (401, "unauthenticated")
        for method, path in (("GET", "/files/a"), ("PUT", "/files/a"), ("DELETE", "/files/a"),
                             ("POST", "/files/presign"), ("PUT", "/sync/namespaces/a"),
                             ("GET", "/sync/notices"), ("GET", "/files/a/presign")):  # fmt: skip
            assert (await http.call(method, path))[0] == 401, path
        http.headers["Authorization"] = f"Bearer {token('keep:other', write=True)}"
        assert await http.refused({}) == (403, "forbidden")
        assert (await http.call("GET", "/files/a"))[0] == 403
        http.headers["Authorization"] = f"Bearer {token('keep:home')}"
        await http.exchange()
        assert await http.refused({"records": [record_json(NOW, "a")]}) == (403, "forbidden")
        assert (await http.call("PUT", "/files/a", b"x"))[0] == 403
        assert (await http.call("POST", "/files/presign", {"key": "a"}))[0] == 403
        http.headers["Authorization"] = f"Bearer {token('keep:home', write=True)}"
        await http.exchange(records=[record_json(NOW, "a")])
        http.headers["Authorization"] = f"Bearer {token('keep:home', tenant='t2')}"
        assert (await http.exchange())["records"] == []


async def test_signed_requests(tmp_path: Path) -> None:
    secrets = {"home/home": "s3cret", "split/notes": "other"}
    async with (
        running(tmp_path, mode="serve", keep_secrets=secrets) as server,
        aiohttp.ClientSession() as session,
    ):
        http = Http(server, session, "/keep/home")
        signer = {"sign_request": hmac_signer("home", "s3cret")}
        store, engine, peer = device(http, "one", peer=signer)
        store.put(record(NOW, "one", key="k/1"))
        await store.objects.put("k/1", b"abc")
        assert (await engine.exchange()).shipped == 1
        assert await HttpObjectStorage(peer).has("k/1")
        for wrong in (
            hmac_signer("home", "wrong"),
            hmac_signer("notes", "other"),
            hmac_signer("home", "s3cret", lambda: NOW - 400_000),
        ):
            _, engine, _ = device(http, "two", peer={"sign_request": wrong})
            with pytest.raises(SyncError, match="401"):
                await engine.exchange()
        headers = dict(await peer.headers("PUT", "/files/k", b"signed"))
        status, _, _ = await http.call("PUT", "/files/k", b"forged", **headers)
        assert status == 401
        assert not await HttpObjectStorage(peer).has("k")
        # An app's secret opens its own channel alone.
        http.base = "/keep/split"
        _, engine, _ = device(
            http, "x", channel="/apps/notes", peer={"sign_request": hmac_signer("notes", "other")}
        )
        await engine.exchange()
        _, engine, _ = device(
            http, "x", channel="/apps/else", peer={"sign_request": hmac_signer("notes", "other")}
        )
        with pytest.raises(SyncError, match="401"):
            await engine.exchange()


async def test_an_app_signs_no_url_for_another_apps_file(tmp_path: Path) -> None:
    """Such a URL would be good below the other app's base, and below the space's own."""
    secrets = {"split/notes": "one", "split/other": "two"}
    async with (
        running(tmp_path, mode="serve", keep_secrets=secrets) as server,
        aiohttp.ClientSession() as session,
    ):
        http = Http(server, session, "/keep/split/apps/other")
        for key, status in (("apps/notes/syncable/a", 403), ("apps/other/syncable/a", 200)):
            body = json.dumps({"key": key}).encode()
            headers = dict(hmac_signer("other", "two")("POST", "/files/presign", body))  # type: ignore[arg-type]
            assert (await http.call("POST", "/files/presign", body, **headers))[0] == status


async def test_a_signature_of_any_bytes_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, mode="serve", keep_secrets={"den/den": "s"}) as server:
        url = URL(url_of(server))
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"GET /keep/den/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"X-Starkeep-App-Id: den\r\nX-Starkeep-App-Sig: \xff\xfe\r\n"
            b"X-Starkeep-App-Ts: %d\r\n\r\n" % clock.now_ms()
        )
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_a_space_at_the_root(tmp_path: Path) -> None:
    async with running(tmp_path, keep_root="home") as server, aiohttp.ClientSession() as session:
        http = Http(server, session, "")
        item = record_json(NOW, "a")
        await http.exchange(records=[item])
        assert (await http.call("PUT", "/files/a%2Fb", b"x"))[0] == 200
        _, text, _ = await http.call("GET", "/files/a%2Fb/presign")
        async with session.get(URL(json.loads(text)["url"], encoded=True)) as answer:
            assert await answer.read() == b"x"
        http.base = "/keep/home"
        assert (await http.exchange())["records"] == [item]


async def test_a_space_is_woken_from_the_bucket_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    bucket = f"file:{tmp_path / 'bucket'}"
    item = record_json(NOW, "a", key="k")
    async with (
        running(tmp_path / "one", bucket=bucket) as server,
        aiohttp.ClientSession() as session,
    ):
        http = Http(server, session, "/keep/home")
        await http.call("PUT", "/sync/namespaces/notes", DECLARED)
        assert (await http.call("PUT", "/files/k", b"bytes"))[0] == 200
        await http.exchange(records=[item])
    async with (
        running(tmp_path / "two", bucket=bucket) as server,
        aiohttp.ClientSession() as session,
    ):
        http = Http(server, session, "/keep/home")
        answer = await http.exchange()
        assert answer["records"] == [item]
        assert (await http.call("GET", "/files/k"))[:2] == (200, b"bytes")
        assert (await http.call("GET", "/sync/namespaces/notes"))[0] == 200


async def test_pages_of_an_allowed_origin(tmp_path: Path) -> None:
    async with (
        running(tmp_path, cors_origins=("https://a.example",)) as server,
        aiohttp.ClientSession() as session,
    ):
        http = Http(server, session, "/keep/home")
        status, _, headers = await http.call("OPTIONS", "/files/k", Origin="https://a.example")
        assert status == 204
        assert "PUT" in headers["Access-Control-Allow-Methods"]
        assert (await http.call("PUT", "/files/k", b"x", Origin="https://b.example"))[0] == 403
        assert (await http.call("PUT", "/files/k", b"x", Origin="https://a.example"))[0] == 200


# -- notices ---------------------------------------------------------------------------------------


async def test_changes_are_announced(http: Http) -> None:
    _, _, peer = device(http, "one")
    notifier = ChangeNotifier()
    heard: list[ChangeEvent] = []
    came = asyncio.Event()

    def listen(event: ChangeEvent) -> None:
        heard.append(event)
        came.set()

    async def next_event() -> ChangeEvent:
        async with asyncio.timeout(PATIENCE_S):
            await came.wait()
        came.clear()
        return heard[-1]

    notifier.subscribe(listen)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow_notices(peer, notifier))
        assert (await next_event()).record_ids == ()
        item = record_json(NOW, "a")
        await http.exchange(records=[item])
        event = await next_event()
        assert event.event_type == "remote-update-available"
        assert event.record_ids == (item["id"],)
        assert event.timestamp.wall_ms == NOW
        await http.exchange(records=[item])  # nothing new: no notice
        await http.call("PUT", "/files/f", b"x")
        await http.exchange(records=[record_json(NOW + 5, "a")])
        assert (await next_event()).timestamp.wall_ms == NOW + 5
        following.cancel()
    assert len(heard) == 3


# -- hostile input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "..%2Fx", "a%2F..%2F..%2Fx", "%2Fetc%2Fpasswd", "", "a%2F.%2Fb", "%ZZ", "%", "%4",
        "a%00b", "a%0Ab", "%FF%FE", "k" * 1025, "..", "%2e%2e%2fx",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE"])
async def test_keys_that_are_refused(http: Http, tmp_path: Path, path: str, method: str) -> None:
    status, text, _ = await http.call(method, "/files/" + path, b"x" if method == "PUT" else None)
    assert status == 400
    if method != "HEAD":
        assert json.loads(text)["code"] == "bad_name"
    assert list((tmp_path / "files").iterdir()) == []
    assert not (tmp_path.parent / "x").exists()


def bad(**members: Any) -> Json:
    item = record_json(NOW, "a")
    item.update(members)
    return {"records": [item]}


def stamped(wall: Any, counter: Any = 0, node: Any = "a") -> Json:
    return bad(updatedAt={"wallTime": wall, "counter": counter, "nodeId": node})


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_exchange"), (b"{", 400, "bad_exchange"), (b"[]", 400, "bad_exchange"),
        (b"null", 400, "bad_exchange"), (b"\xff\xfe", 400, "bad_exchange"),
        (b"[" * 100_000, 400, "bad_exchange"),
        (b'{"records":' + b"[" * 50_000, 400, "bad_exchange"),
        ({"records": 5}, 400, "bad_exchange"), ({"records": [5]}, 400, "bad_exchange"),
        ({"watermarks": []}, 400, "bad_exchange"), ({"limit": -1}, 400, "bad_exchange"),
        ({"limit": "x"}, 400, "bad_exchange"),
        ({"watermarks": {"a": {"wallTime": -1, "counter": 0, "nodeId": "a"}}}, 400, "bad_exchange"),
        (bad(id="short"), 400, "bad_exchange"), (bad(id=None), 400, "bad_exchange"),
        (bad(updatedAt=None), 400, "bad_exchange"), (bad(updatedAt=5), 400, "bad_exchange"),
        (stamped(-1), 400, "bad_exchange"), (stamped(1.5), 400, "bad_exchange"),
        (stamped(2**48), 400, "bad_exchange"), (stamped(NOW, -1), 400, "bad_exchange"),
        (stamped(NOW, 0, ""), 400, "bad_exchange"), (stamped(NOW, 0, "a:b"), 400, "bad_exchange"),
        (stamped(NOW, True), 400, "bad_exchange"), (stamped(NOW, 0, 5), 400, "bad_exchange"),
        (stamped(41_000_000_000_000), 422, "clock_drift"),
        (stamped(NOW + 90_000_000), 422, "clock_drift"),
        ({"appSyncableRows": [{"appId": "a"}]}, 400, "bad_exchange"),
        ({"appSyncableRows": [{"timestamp": {"wallTime": NOW, "counter": 0, "nodeId": "a"},
                               "appId": "n", "table": "t", "op": "drop", "row": {}}]},
         400, "bad_exchange"),
    ],
)  # fmt: skip
async def test_exchanges_that_are_refused(http: Http, body: Any, status: int, code: str) -> None:
    if isinstance(body, dict):  # with something good beside it: nothing of it is applied
        body = (
            {**body, "records": [record_json(NOW, "good"), *(body.get("records") or [])]}
            if isinstance(body.get("records", []), list)
            else body
        )
    assert await http.refused(body) == (status, code)
    answer = await http.exchange()
    assert (answer["records"], answer["responderWatermarks"]) == ([], {})


async def test_a_body_above_the_limit(tmp_path: Path) -> None:
    limits: Json = {"keep_body_bytes_max": 2000, "keep_file_bytes_max": 5000}
    async with running(tmp_path, **limits) as server, aiohttp.ClientSession() as session:
        http = Http(server, session, "/keep/home")
        assert await http.refused({"pad": "x" * 3000}) == (413, "too_large")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x" * 100

        assert await http.refused(chunks()) == (413, "too_large")
        assert (await http.call("PUT", "/files/f", b"x" * 5001))[0] == 413
        assert (await http.call("PUT", "/files/f", b"x" * 5000))[0] == 200
        assert (await http.call("GET", "/healthz"))[0] == 404  # of the space; the server lives
        await http.exchange()


@pytest.mark.parametrize("name", ["", "%2F", "a%0A", "x" * 200, "%FF"])
async def test_names_of_spaces_that_are_refused(http: Http, name: str) -> None:
    http.base = "/keep/" + name
    assert (await http.call("POST", "/sync/exchange", {}))[0] == 400


async def test_foreign_apps_and_tables(http: Http) -> None:
    await http.call("PUT", "/sync/namespaces/notes", DECLARED)
    entries = [
        {"timestamp": {"wallTime": NOW, "counter": 0, "nodeId": f"n{n}"}, "appId": app,
         "table": table, "op": "insert", "row": {"id": 1}}
        for n, (app, table) in enumerate(
            [("notes", "unknown"), ("../x", "note"), ("a:b:c", "note"), ("x\n", "note"),
             ("notes", "note; DROP TABLE rows"), ("notes", "note")]
        )
    ]  # fmt: skip
    answer = await http.exchange(appSyncableRows=entries)
    assert list(answer["responderWatermarks"]) == ["n5"]
    assert len(answer["appSyncableRows"]) == 1
