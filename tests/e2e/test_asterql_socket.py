"""The protocol over real sockets: edge cases about them, publishing, expiry, the graceful end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import WSServerHandshakeError

from edge.client import EntityStore
from edge.server import Server
from infra import clock, limits
from tests.support.app import Client, RawSocket, envelopes_seqs, masked, patch, running, token

pytestmark = pytest.mark.e2e
S = "run:r1"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path) as found:
        yield found


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path, mode="serve") as found:
        yield found


async def test_publish_and_follow(server: Server) -> None:
    async with await Client.connect(server) as writer, await Client.connect(server) as reader:
        await reader.send({"type": "sub", "scope": S, "since": 0})
        await reader.until("caughtUp")
        good, bad = patch(n=1), patch(n=2)
        bad["entities"][0]["patches"].append({"op": "appendText", "path": "/n", "delta": "x"})
        answer = await writer.publish(S, good, bad, good, patch(n=3))
        first, failed, again, last = answer["results"]
        assert (first, again, last) == ({"seq": 1}, {"seq": 1, "duplicate": True}, {"seq": 2})
        assert (failed["code"], failed["entity"], failed["index"], failed["reason"]) == (
            "patch_failed", "message:m1", 1, "type_mismatch",
        )  # fmt: skip
        assert await reader.seqs(2) == [1, 2]


@pytest.mark.parametrize("since", [3, 4])
async def test_edges_25_and_26_over_the_socket(server: Server, since: int) -> None:
    async with await Client.connect(server) as client:
        await client.publish(S, patch(n=1), patch(n=2), patch(n=3))
        frame = await client.ask({"type": "sub", "scope": S, "since": since})
        if since == 4:
            assert (frame["code"], frame["reason"]) == ("snapshot_required", "ahead_of_head")
        else:
            assert frame["type"] == "subscribed" and (await client.frame())["type"] == "caughtUp"


async def test_edge_31_and_32_over_the_socket(server: Server) -> None:
    async with await Client.connect(server) as client:
        sub = {"type": "sub", "scope": S}
        await client.send(sub, sub)
        await client.publish(S, patch(n=1))
        await client.send({"type": "unsub", "scope": S})
        await client.until("unsubscribed")
        await client.publish(S, patch(n=2))
        await client.ask({"type": "ping"})
        assert envelopes_seqs(client.seen) == [1]
        assert [frame["type"] for frame in client.seen].count("subscribed") == 2


async def test_edge_34_bad_frames_then_1008(server: Server) -> None:
    async with await Client.connect(server) as client:
        codes = []
        for text in ('{"type":"sub"}', "[]", "{", '{"type":"x"}') * 5:
            await client.socket.send_str(text)
            codes.append((await client.frame())["code"])
        assert codes == ["bad_frame", "bad_frame", "bad_json", "unknown_type"] * 5
        assert (await client.frame())["closed"] == 1008


async def test_edge_37_a_gap_is_repaired_by_replay(server: Server) -> None:
    async with await Client.connect(server) as client:
        await client.publish(S, *[patch(n=n) for n in range(7)])
        await client.send({"type": "sub", "scope": S, "since": 7})
        await client.until("caughtUp")
        frame = await client.ask({"type": "replay", "scope": S, "since": 5})
        assert frame["type"] == "subscribed" and frame["since"] == 5
        assert await client.seqs(7) == [6, 7]
        assert (await client.frame())["type"] == "caughtUp"


def test_edge_37_and_38_in_the_store() -> None:
    store = EntityStore()
    store.cursors.begin_scope(S, 5, "E")
    seventh = {**patch("a:1", n=7), "scope": S, "seq": 7}
    assert store.ingest(seventh) == "gap"
    patches = [{"op": "appendText", "path": "/n/x", "delta": "x"}]
    sixth = {"eventId": "6", "kind": "patch", "scope": S, "seq": 6,
             "entities": [{"key": "a:2", "patches": [{"op": "removeAt", "path": "/l", "index": 3}]},
                          {"key": "a:3", "patches": patches}]}  # fmt: skip
    assert store.ingest(sixth) == "applied"  # the cursor moves, the entity is marked
    assert store.cursors.scope_last_seq(S) == 6 and "a:2" in store.broken(S)
    assert store.ingest(seventh) == "applied"
    assert store.get(S, "a:1") == {"n": 7}


async def test_edge_44_over_the_socket(server: Server) -> None:
    async with await Client.connect(server) as client:
        refused = 0
        for number in range(limits.SUBSCRIPTIONS_MAX + 1):
            while True:
                frame = await client.ask({"type": "sub", "scope": f"run:{number}"})
                if frame.get("code") != "rate_limited":
                    break
                for connection in server.connections:  # the limit of frames is not the subject
                    connection._errors = 0
                    connection._control._left = 400.0
            if frame["type"] == "scopeError":
                refused += 1
                assert frame["code"] == "too_many_subscriptions"
            else:
                assert (await client.frame())["type"] == "caughtUp"
        assert refused == 1


async def test_compression_is_negotiated_and_used(tmp_path: Path) -> None:
    async with (
        running(tmp_path, compression=True) as server,
        await Client.connect(server, compress=15) as client,
    ):
        assert client.socket.compress
        await client.send({"type": "sub", "scope": S, "since": 0})
        await client.publish(S, patch(text="x" * 5000), patch(text="y" * 5000))
        await client.publish(S, patch(text="z" * 9000))
        texts = [f["envelope"]["entities"][0]["patches"][0]["value"][0] for f in client.seen
                 if f["type"] == "event"]  # fmt: skip
        assert texts == ["x", "y", "z"][: len(texts)]
        async with await Client.connect(server) as plain:
            assert not plain.socket.compress


async def test_token_ways(guarded: Server) -> None:
    good = token("run:*", write=True)
    for way in ({"token": good}, {"headers": {"Authorization": f"bearer {good}"}}):
        async with await Client.connect(guarded, **way) as client:
            assert (await client.publish(S, patch(n=1)))["results"][0]["seq"] >= 1
    async with await RawSocket.upgraded(guarded, path=f"/api/sync/socket?token={good}") as raw:
        await raw.send({"type": "ping"})
        assert (await raw.json())["type"] == "pong"
    async with await Client.connect(guarded) as client:
        frame = await client.ask({"type": "auth", "token": good})
        assert frame["type"] == "authenticated" and frame["user"] == "u1"


@pytest.mark.parametrize("bad", ["x", "a.b.c", "é", " "])
async def test_bad_tokens_are_refused(guarded: Server, bad: str) -> None:
    with pytest.raises(WSServerHandshakeError) as caught:
        await Client.connect(guarded, headers={"Authorization": f"Bearer {bad}x"})
    assert caught.value.status == 401
    async with await Client.connect(guarded) as client:
        assert (await client.ask({"type": "auth", "token": bad}))["closed"] == 4401
    async with await Client.connect(guarded) as client:
        assert (await client.ask({"type": "ping"}))["closed"] == 4401


async def test_scopes_of_the_token_hold(guarded: Server) -> None:
    async with await Client.connect(guarded, token("run:*")) as client:
        assert (await client.ask({"type": "sub", "scope": S}))["type"] == "subscribed"
        await client.until("caughtUp")
        frame = await client.ask({"type": "sub", "scope": "doc:1"})
        assert (frame["type"], frame["code"]) == ("scopeError", "forbidden")
        answer = await client.publish(S, patch(n=1))
        assert answer["results"][0]["code"] == "forbidden"


async def test_an_expired_token_closes_the_open_socket(guarded: Server) -> None:
    now = clock.now_ms()
    async with (
        await Client.connect(guarded, token("run:*", ttl_s=60)) as client,
        await Client.connect(guarded, token("run:*")) as other,
    ):
        await client.ask({"type": "ping"})
        held = next(c for c in guarded.connections if c.principal and c.principal.expires_at_ms
                    and c.principal.expires_at_ms < now + 120_000)  # fmt: skip
        assert held.principal is not None
        expired = type(held.principal)(id="u1", expires_at_ms=now - 1)
        held.principal = expired
        guarded._tick()
        assert (await client.frame())["closed"] == 4401
        assert (await other.ask({"type": "ping"}))["type"] == "pong"


async def test_a_socket_without_auth_frame_is_closed(guarded: Server) -> None:
    async with await Client.connect(guarded) as client:
        while not guarded.connections:
            await client.send()
        for connection in guarded.connections:
            connection._opened_at -= limits.AUTH_FRAME_WAIT_S + 1
        guarded._tick()
        assert (await client.frame())["closed"] == 4401


async def test_stop_answers_what_was_taken_and_says_goodbye(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        client = await Client.connect(server)
        await client.send({"type": "sub", "scope": S})
        await client.until("caughtUp")
        sent = {"type": "publish", "id": "last", "scope": S, "envelopes": [patch(n=1)]}
        await client.send(sent, {"type": "ping"})
        await client.until("pong")
    frames = [await client.frame()]
    while frames[-1]["type"] != "closed":
        frames.append(await client.frame())
    assert frames[-1]["closed"] == 1001
    answered = {frame["type"] for frame in [*client.seen, *frames]}
    assert {"published", "event"} <= answered
    await client.close()


async def test_a_message_that_comes_with_the_handshake(server: Server) -> None:
    async with await RawSocket.connect(server) as raw:
        ping = masked(1, b'{"type":"ping","t":1}')
        head = (
            b"GET /api/sync/socket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert (await raw.request(head + ping)).startswith(b"HTTP/1.1 101")
        assert (await raw.json())["t"] == 1
