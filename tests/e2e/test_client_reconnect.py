"""`SyncClient` over real sockets against a small server that breaks on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from edge.client import (
    Cursor,
    EntityStore,
    SnapshotInfo,
    SyncClient,
    SyncError,
    follow_scope,
    subscriptions,
)

S = "run:r1"
Json = dict[str, Any]
pytestmark = pytest.mark.e2e


class FakeServer:
    """One scope, a list as its ledger, and faults to switch on."""

    def __init__(self) -> None:
        self.entries: list[Json] = []
        self.floor = 0
        self.epoch = "E"
        self.sockets: set[web.WebSocketResponse] = set()
        self.seen: list[Json] = []
        self.tokens: list[str | None] = []
        self.lose_answers = 0
        self.expired_views = 0
        self.wrong_value: Any = None
        self.accept = {"Bearer good"}

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        self.tokens.append(request.headers.get("Authorization"))
        if self.tokens[-1] not in self.accept:
            raise web.HTTPUnauthorized
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.add(socket)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await self.handle(socket, json.loads(message.data))
        self.sockets.discard(socket)
        return socket

    async def handle(self, socket: web.WebSocketResponse, frame: Json) -> None:
        self.seen.append(frame)
        match frame["type"]:
            case "sub" | "replay":
                await self.replay(socket, frame)
            case "publish":
                results = [self.append(envelope) for envelope in frame["envelopes"]]
                if self.lose_answers:
                    self.lose_answers -= 1
                    await socket.close()
                    return
                answer = {"type": "published", "scope": S, "epoch": self.epoch}
                await socket.send_json({**answer, "id": frame["id"], "results": results})
                await self.fan_out(self.entries[-len(results) :])

    def append(self, envelope: Json) -> Json:
        for entry in self.entries:
            if entry["eventId"] == envelope["eventId"]:
                return {"seq": entry["seq"], "duplicate": True}
        seq = self.floor + len(self.entries) + 1
        self.entries.append({**envelope, "scope": S, "seq": seq})
        return {"seq": seq}

    async def fan_out(self, envelopes: list[Json]) -> None:
        for socket in list(self.sockets):
            await socket.send_json({"type": "events", "scope": S, "envelopes": envelopes})

    async def replay(self, socket: web.WebSocketResponse, frame: Json) -> None:
        head = self.floor + len(self.entries)
        since = frame.get("since", head)
        bounds = {"scope": S, "epoch": self.epoch, "head": head, "floor": self.floor}
        if since < self.floor:
            error = {"code": "snapshot_required", "reason": "below_floor", "message": ""}
            await socket.send_json({"type": "scopeError", **bounds, **error})
            return
        await socket.send_json({"type": "subscribed", "since": since, **bounds})
        for entry in self.entries[since - self.floor :]:
            await socket.send_json({"type": "event", "envelope": entry})
        await socket.send_json({"type": "caughtUp", "scope": S, "seq": head})

    async def view(self, request: web.Request) -> web.Response:
        if "page" in request.query and self.expired_views:
            self.expired_views -= 1
            return web.json_response({"code": "view_expired"}, status=410)
        head = self.floor + len(self.entries)
        page: Json = {"epoch": self.epoch, "seq": head, "hash": "h1_0"}
        if "page" in request.query:
            page["entities"] = [{"key": "m:2", "value": {"text": "two"}}]
            page["next"] = None
        else:
            page["entities"] = [{"key": "m:1", "value": {"text": "one"}}]
            page["next"] = "p/2"
        return web.json_response(page)

    async def drop(self) -> None:
        for socket in list(self.sockets):
            await socket.close()


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FakeServer, str]]:
    monkeypatch.setattr(subscriptions, "DELAY_FIRST_S", 0.001)
    fake = FakeServer()
    app = web.Application()
    app.router.add_get("/api/sync/socket", fake.socket)
    app.router.add_get("/api/sync/views/scope", fake.view)
    async with TestServer(app) as running:
        yield fake, str(running.make_url("/"))


def patch(text: str, key: str = "m:1") -> Json:
    operation = {"op": "appendText", "path": "/text", "delta": text}
    return {"kind": "patch", "entities": [{"key": key, "patches": [operation]}]}


class Reader:
    """Collects seqs, and can be awaited until one is there."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.errors: list[Exception] = []
        self._changed = asyncio.Event()

    def take(self, envelope: Any) -> None:
        self.seqs.append(envelope["seq"])
        self._changed.set()

    def error(self, error: Exception) -> None:
        self.errors.append(error)
        self._changed.set()

    async def until(self, seq: int) -> None:
        async with asyncio.timeout(5):
            while not self.seqs or self.seqs[-1] < seq:
                self._changed.clear()
                await self._changed.wait()

    async def until_error(self) -> Exception:
        async with asyncio.timeout(5):
            while not self.errors:
                self._changed.clear()
                await self._changed.wait()
        return self.errors[0]


async def test_envelopes_arrive_once_over_many_connections(
    server: tuple[FakeServer, str],
) -> None:
    fake, url = server
    reader = Reader()
    async with SyncClient(url, token="good") as client:
        stop = client.subscribe(S, reader.take, since=0)
        for n in range(1, 31):
            if n % 7 == 0:
                await fake.drop()
            (result,) = await client.publish(S, patch("x"))
            assert result.seq == n
            await reader.until(n)
        assert client.connected
        stop()
        await client.publish(S, patch("x"))
    assert reader.seqs == list(range(1, 31))
    assert len(fake.tokens) >= 5
    assert fake.seen[-2]["type"] == "unsub"
    assert not client.connected


async def test_a_lost_answer_does_not_store_twice(server: tuple[FakeServer, str]) -> None:
    fake, url = server
    fake.lose_answers = 2
    async with SyncClient(url, token="good") as client:
        results = await client.publish(S, patch("a"), {**patch("b"), "eventId": "mine"})
    assert [result.seq for result in results] == [1, 2]
    assert all(result.duplicate for result in results)
    assert [entry["seq"] for entry in fake.entries] == [1, 2]
    assert results[1].event_id == "mine"


async def test_a_text_token_that_is_refused_ends_the_client(
    server: tuple[FakeServer, str],
) -> None:
    fake, url = server
    reader = Reader()
    async with SyncClient(url, token="bad") as client:
        client.subscribe(S, reader.take, on_error=reader.error)
        with pytest.raises(SyncError, match="401"):
            await client.publish(S, patch("a"))
        assert isinstance(reader.errors[0], SyncError)
        with pytest.raises(SyncError):
            client.subscribe(S, reader.take)
    assert fake.tokens == ["Bearer bad"]


async def test_a_callable_token_is_asked_again(server: tuple[FakeServer, str]) -> None:
    fake, url = server
    tokens = iter(["stale", "stale", "good"])

    async def token() -> str:
        return next(tokens)

    async with SyncClient(url, token=token) as client:
        (result,) = await client.publish(S, patch("a"))
    assert result.ok
    assert fake.tokens == ["Bearer stale", "Bearer stale", "Bearer good"]


async def test_follow_bootstraps_by_a_paged_view_and_goes_on_live(
    server: tuple[FakeServer, str],
) -> None:
    fake, url = server
    fake.floor, fake.expired_views = 40, 1
    store = EntityStore()
    reader = Reader()
    async with SyncClient(url, token="good") as client:
        stop = await follow_scope(client, S, store)
        assert store.cursors.cursor(S) == Cursor(40, "E")
        assert dict(store.items(S)) == {"m:1": {"text": "one"}, "m:2": {"text": "two"}}
        store.subscribe(S, lambda update: reader.take({"seq": update.seq}))
        await client.publish(S, patch("!"))
        await reader.until(41)
        assert store.get(S, "m:1") == {"text": "one!"}
        stop()


async def test_edge_case_38_a_broken_entity_is_mended_by_the_view(
    server: tuple[FakeServer, str],
) -> None:
    fake, url = server
    fake.append({"eventId": "0", "kind": "patch", "entities": [{"key": "m:1", "value": {}}]})
    store = EntityStore()
    mended = asyncio.Event()
    async with SyncClient(url, token="good") as client:
        await follow_scope(client, S, store)
        wrong = {"op": "set", "path": "/text", "value": 7}  # this copy alone goes astray
        store.seed(S, [{"key": "m:1", "value": {"text": wrong["value"]}}], seq=1)
        seeds = store.subscribe(S, lambda update: update.kind == "seed" and _set(mended))
        await client.publish(S, patch("x"))
        async with asyncio.timeout(5):
            await mended.wait()
        seeds()
        assert store.broken(S) == {}
        assert store.get(S, "m:1") == {"text": "one"}
        assert store.cursors.scope_last_seq(S) == 2


async def test_without_a_snapshot_handler_the_consumer_hears_and_is_gone(
    server: tuple[FakeServer, str],
) -> None:
    fake, url = server
    fake.floor = 9
    lost, kept = Reader(), Reader()
    infos: list[SnapshotInfo] = []

    def restart(scope: str, info: SnapshotInfo) -> Cursor:
        infos.append(info)
        return Cursor(9, info.epoch)

    async with SyncClient(url, token="good") as client:
        client.subscribe(S, lost.take, since=3, on_error=lost.error)
        client.subscribe(S, kept.take, since=4, on_snapshot_required=restart)
        error = await lost.until_error()
        assert isinstance(error, SyncError)
        assert error.code == "snapshot_required"
        await client.publish(S, patch("x"))
        await kept.until(10)
    assert infos == [SnapshotInfo("below_floor", "E", 9, 9)]
    assert (lost.seqs, kept.seqs) == ([], [10])


async def test_a_raising_consumer_neither_stops_itself_nor_the_others(
    server: tuple[FakeServer, str],
) -> None:
    _, url = server
    reader, other = Reader(), Reader()

    def take(envelope: Any) -> None:
        reader.take(envelope)
        raise LookupError(envelope["seq"])

    async with SyncClient(url, token="good") as client:
        client.subscribe(S, take, since=0, on_error=reader.error)
        client.subscribe(S, other.take, since=0)
        await client.publish(S, patch("a"), patch("b"))
        await reader.until(2)
        await other.until(2)
    assert [type(error) for error in reader.errors] == [LookupError, LookupError, SyncError]


async def test_close_answers_open_publishes(server: tuple[FakeServer, str]) -> None:
    fake, url = server
    fake.lose_answers = 10**6
    client = SyncClient(url, token="good")
    async with asyncio.TaskGroup() as group:
        publish = group.create_task(_refused(client))
        while not fake.seen:
            await asyncio.sleep(0)
        await client.close()
    assert publish.result().code == "closed"
    await client.close()
    with pytest.raises(SyncError):
        await client.publish(S, patch("a"))


async def _refused(client: SyncClient) -> SyncError:
    with pytest.raises(SyncError) as caught:
        await client.publish(S, patch("a"))
    return caught.value


@pytest.mark.parametrize("url", ["ftp://h", "holdfast", "http://"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        SyncClient(url)


def _set(event: asyncio.Event) -> bool:
    event.set()
    return True
