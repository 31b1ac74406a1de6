"""The fallback on aiohttp's own WebSocketResponse behaves like the socket it stands in for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge.dialects.asterql import http
from edge.server import Server
from infra import limits
from tests.support.app import Client, RawSocket, masked, patch, running, token

pytestmark = pytest.mark.e2e
S = "run:r1"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "can_take_over", lambda _request: False)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path) as found:
        yield found


async def test_publish_and_follow(server: Server) -> None:
    async with await Client.connect(server) as writer, await Client.connect(server) as reader:
        assert not server.sockets.sockets  # it is the fallback
        await reader.send({"type": "sub", "scope": S, "since": 0, "batch": True})
        await reader.until("caughtUp")
        for number in range(50):
            answer = await writer.publish(S, patch(n=number), patch(n=-number))
            assert answer["results"] == [{"seq": 2 * number + 1}, {"seq": 2 * number + 2}]
        assert await reader.seqs(100) == list(range(1, 101))
        frame = await reader.ask({"type": "replay", "scope": S, "since": 90})
        assert frame["type"] == "subscribed"
        assert await reader.seqs(100) == list(range(91, 101))


async def test_ping_pong_of_both_kinds(server: Server) -> None:
    async with await RawSocket.upgraded(server) as raw:
        await raw.write(masked(9, b"hi"))
        assert await raw.frame() == (0x8A, b"hi")
        await raw.send({"type": "ping", "t": [1]})
        assert (await raw.json())["t"] == [1]


async def test_bad_frames_then_1008(server: Server) -> None:
    async with await Client.connect(server) as client:
        await client.socket.send_bytes(b"\x00")
        assert (await client.frame())["code"] == "bad_frame"
        for _ in range(limits.PROTOCOL_ERRORS_MAX - 1):
            await client.socket.send_str("{")
            assert (await client.frame())["code"] == "bad_json"
        assert (await client.frame())["closed"] == 1008


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(1, b"x", rsv=0x20), 1002),
        (masked(3, b""), 1002),
        (masked(1, b" " * (limits.FRAME_BYTES_MAX + 1)), 1009),
        (masked(8, (1000).to_bytes(2, "big")), 1000),
    ],
)
async def test_close_codes(server: Server, data: bytes, code: int) -> None:
    async with await RawSocket.upgraded(server) as raw:
        raw.writer.write(data)
        assert await raw.close_code() == code


async def test_compression(tmp_path: Path) -> None:
    async with (
        running(tmp_path, compression=True) as server,
        await Client.connect(server, compress=15) as client,
    ):
        assert client.socket.compress
        await client.publish(S, patch(text="x" * 5000))
        await client.send({"type": "sub", "scope": S, "since": 0})
        assert await client.seqs(1) == [1]


async def test_auth_frame_and_the_end_of_a_token(tmp_path: Path) -> None:
    async with running(tmp_path, mode="serve") as server:
        async with await Client.connect(server) as client:
            frame = await client.ask({"type": "auth", "token": token("run:*")})
            assert frame["type"] == "authenticated"
            await client.send({"type": "sub", "scope": S})
            await client.until("caughtUp")
            (held,) = server.connections
            assert held.principal is not None
            held.principal = type(held.principal)(id="u1", expires_at_ms=1)
            server._tick()
            assert (await client.frame())["closed"] == 4401
        async with await Client.connect(server) as client:
            assert (await client.ask({"type": "auth", "token": "no"}))["closed"] == 4401


async def test_a_reader_that_stops_catches_up_from_the_ledger(server: Server) -> None:
    async with await RawSocket.upgraded(server) as raw, await Client.connect(server) as writer:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send({"type": "sub", "scope": S, "since": 0})
        for _ in range(60):
            big = [patch(f"a:{n}", text="x" * 60_000) for n in range(4)]
            assert "seq" in (await writer.publish(S, *big))["results"][-1]
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        seqs: list[int] = []
        while not seqs or seqs[-1] < 240:
            frame = await raw.json()
            if frame["type"] == "event":
                seqs.append(frame["envelope"]["seq"])
        assert seqs == list(range(1, 241))


async def test_stop_says_goodbye(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        client = await Client.connect(server)
        await client.ask({"type": "ping"})
    frame = await client.frame()
    assert frame["closed"] == 1001
    await client.close()
