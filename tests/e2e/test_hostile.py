"""Peers that mean harm, while a well-behaved pair works beside them: it must notice nothing.

Every test ends with the pair's own check: all that was published arrived, once and in order, and
nothing was logged as an error by the server.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest
from aiohttp import ClientSession

from edge.server import Server
from infra import limits
from infra.tasks import TaskOwner
from tests.support.app import PATIENCE_S, Client, RawSocket, masked, patch, running, url_of

pytestmark = pytest.mark.e2e
PAIR = "pair:1"
S = "run:r1"


class Pair:
    """A publisher and its subscriber; `stop` checks that nothing is missing."""

    def __init__(self, writer: Client, reader: Client) -> None:
        self.writer, self.reader = writer, reader
        self.count = 0
        self.ending = False

    async def work(self) -> None:
        while not self.ending:
            answer = await self.writer.publish(PAIR, patch(n=self.count))
            self.count += 1
            assert answer["results"] == [{"seq": self.count}]
            await asyncio.sleep(0)

    async def check(self) -> None:
        assert await self.reader.seqs(self.count) == list(range(1, self.count + 1))


@pytest.fixture
async def server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> AsyncIterator[Server]:
    """A server with the pair at work; parametrise indirectly with configuration."""
    loop_errors: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: loop_errors.append(context))
    caplog.set_level(logging.WARNING)
    async with (
        running(tmp_path, **getattr(request, "param", {})) as found,
        TaskOwner() as tasks,
        await Client.connect(found) as writer,
        await Client.connect(found) as reader,
    ):
        await reader.send({"type": "sub", "scope": PAIR, "since": 0})
        await reader.until("caughtUp")
        pair = Pair(writer, reader)
        work = tasks.spawn(pair.work(), name="pair")
        yield found
        pair.ending = True
        async with asyncio.timeout(PATIENCE_S):
            await work
        await pair.check()
    bad = [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]
    assert not bad and not loop_errors, (bad, loop_errors)


def value(text: str) -> str:
    """A publish frame whose record holds this JSON text."""
    return (
        '{"type":"publish","id":1,"scope":"run:r1","envelopes":[{"eventId":"e","kind":"patch",'
        '"entities":[{"key":"a:1","value":{"v":' + text + "}}]}]}"
    )


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "9" * 5000, "[" * 50_000,
     '{"a":' * 20_000, '"\\ud800"', '"\\udc00x"', "01", "'x'", "tru", '"\x01"', "[" * 80 + "]" * 80,
     str(2**53), str(-(2**63)), "undefined", "{}}", '"\\x41"', "1.", "+1", ""],
)  # fmt: skip
async def test_values_nobody_should_hold(server: Server, text: str) -> None:
    async with await Client.connect(server) as client:
        await client.socket.send_str(value(text))
        frame = await client.frame()
        if frame["type"] == "published":
            assert frame["results"][0]["code"] == "bad_envelope"
        else:
            assert (frame["type"], frame["code"]) == ("error", "bad_json")
        assert (await client.ask({"type": "ping"}))["type"] == "pong"
        assert S not in [address.scope for address in server.host.open_scopes if
                         server.host.open_scopes[address].head]  # fmt: skip


@pytest.mark.parametrize(
    "frame",
    ["null", "7", '"x"', "[]", "{}", '{"type":null}', '{"type":["sub"]}',
    '{"type":"sub","scope":[]}', '{"type":"sub","scope":{"a":1}}',
    '{"type":"publish","id":{},"scope":"x","envelopes":[]}',
    '{"type":"publish","id":1,"scope":"x","envelopes":{}}', '{"type":"auth","token":7}',
    '{"type":"sub","scope":"x","epoch":7}', '{"type":"sub","scope":"x","batch":"yes"}',
    '{"type":"unsub"}', '{"type":"replay"}', "", " ", "\ufeff{}",
     '{"type":"sub","scope":"\\ud800"}'],
)  # fmt: skip
async def test_wrong_types(server: Server, frame: str) -> None:
    async with await Client.connect(server) as client:
        await client.socket.send_str(frame)
        answer = await client.frame()
        assert answer["type"] == "error" and answer["code"] in ("bad_json", "bad_frame")
        assert "Traceback" not in json.dumps(answer) and ".py" not in json.dumps(answer)


async def test_binary_and_invalid_utf8(server: Server) -> None:
    async with await RawSocket.upgraded(server) as raw:
        for opcode, payload, code in (
            (2, b"\x00\xff", "bad_frame"),
            (1, b"\xff\xfe", "bad_json"),
            (1, b'{"type":"ping","t":"\xff"}', "bad_json"),
            (1, b'{"type":"sub","scope":"\xc3\x28"}', "bad_json"),
            (1, b'{"type":"ping"}\x00', "bad_json"),
        ):
            await raw.write(masked(opcode, payload))
            assert (await raw.json())["code"] == code


@pytest.mark.parametrize("extra", [1, 100_000, 5_000_000])
async def test_oversized_message_closes_1009(server: Server, extra: int) -> None:
    async with await RawSocket.upgraded(server) as raw:
        data = masked(1, b" " * (limits.FRAME_BYTES_MAX + extra))

        async def push() -> None:
            with suppress(ConnectionError):  # cut off before all of it was sent
                await raw.write(data)

        async with TaskOwner() as tasks:
            tasks.spawn(push(), name="push")
            assert await raw.close_code() == 1009


@pytest.mark.parametrize("server", [{"frame_bytes_max": 4 << 20}], indirect=True)
@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"a":' * 500_000, "[" * 10**6 + "]" * 10**6])
async def test_a_million_deep(server: Server, text: str) -> None:
    async with await Client.connect(server) as client:
        for frame in (text, value(text), '{"type":"ping","t":' + text + "}"):
            await client.socket.send_str(frame)
            answer = await client.frame()
            code = answer.get("code") or answer["results"][0]["code"]
            assert code in ("bad_json", "bad_frame", "bad_envelope", "too_large")


async def test_one_byte_at_a_time(server: Server) -> None:
    async with await RawSocket.upgraded(server) as raw:
        for byte in masked(1, b'{"type":"ping","t":"slow"}'):
            await raw.write(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await raw.json())["t"] == "slow"


async def test_a_socket_that_never_reads_is_bounded_then_cut_off(server: Server) -> None:
    async with await RawSocket.upgraded(server) as raw, await Client.connect(server) as writer:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send({"type": "sub", "scope": S, "since": 0})
        big = [patch(f"a:{n}", text="x" * 60_000) for n in range(4)]
        known = {socket for socket in server.sockets.sockets if socket.session}
        for number in range(60):
            for envelope in big:
                envelope["eventId"] += str(number)[-1:]
            assert "seq" in (await writer.publish(S, *big))["results"][0]
        stuck = [s for s in known if s.congested]
        assert len(stuck) == 1
        transport = stuck[0]._transport
        assert transport is not None
        assert transport.get_write_buffer_size() < 3 * limits.QUEUE_BYTES_MAX
        now = server.sockets.monotonic()
        for second in (0, 1, 29, 32):
            stuck[0].tick(now + second, silence_s=1000, stall_s=30)
        assert stuck[0]._closing_at is not None
        stuck[0].tick(now + 1000, silence_s=1000, stall_s=30)
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await raw.close_code() in (0, 4429)


HALVES = [
    b"",
    b"GET",
    b"GET /api/sync/socket HTTP/1.1\r\nHost: x\r\nUpgrade: websoc",
    b"\x16\x03\x01\x02\x00",
    b"POST /api/sync/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
]


@pytest.mark.parametrize("data", HALVES)
async def test_half_a_request(server: Server, data: bytes) -> None:
    raws = [await RawSocket.connect(server) for _ in range(20)]
    for raw in raws:
        await raw.write(data)
    now = server.sockets.monotonic()
    for later in (0, server.config.silence_s + 1):
        server._close_silent_requests(now + later)
    for raw in raws:
        raw.close()


NO_HTTP = [
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000,
    b"NOPE",
    b"GET / HTTP/9",
    b"GET /\x00 HTTP/1.1\r\nHost: x",
    b"GET / HTTP/1.1\r\nHost: x\r\nA\x00: b",
    b"POST /api/sync/publish HTTP/1.1\r\nHost: x\r\nContent-Length: -1",
    b"POST /api/sync/publish HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz",
]


@pytest.mark.parametrize("head", NO_HTTP)
async def test_requests_that_are_no_http(server: Server, head: bytes) -> None:
    async with await RawSocket.connect(server) as raw:
        answer = await raw.request(head + b"\r\n\r\n")
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
        assert b"Traceback" not in answer


async def test_bad_upgrades(server: Server) -> None:
    for key in ("short", "é" * 12, "é" * 24, "!" * 24, "A" * 24):
        async with await RawSocket.connect(server) as raw:
            assert (await raw.upgrade(key=key)).startswith(b"HTTP/1.1 400"), key
    for head in (
        "Upgrade: websocket",
        "Connection: upgrade",
        "Upgrade: h2c\r\nConnection: upgrade",
    ):
        async with await RawSocket.connect(server) as raw:
            data = f"GET /api/sync/socket HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n"
            assert (await raw.request(data.encode())).startswith(b"HTTP/1.1 400"), head


async def test_leaving_in_the_middle_of_the_handshake(server: Server) -> None:
    for _ in range(50):
        raw = await RawSocket.connect(server)
        raw.writer.write(
            b"GET /api/sync/socket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade"
            b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        raw.writer.transport.abort()


PATHS = [
    "/console/..%2f..%2fserver.py",
    "/console/%2e%2e/server.py",
    "/console/../app.py",
    "/console/%00",
    "/console/console.js%00.css",
    "/v1/scopes/default/../../etc/passwd",
    "/v1/scopes/..%2f..%2fetc/x",
    "/v1/scopes/default/%ff%fe",
    "/v1/scopes/a%00b/c",
    "/v1/scopes/default/none",
    "/v1/scopes?limit=x",
    "/api/sync/views/nope",
    "/api/sync/views/..%2fscope",
    "/api/sync/views/scope?p=%FF",
    "/api/sync/views/scope?p=!!!!",
    "/api/sync/views/scope?p=W10",
    "/api/sync/views/scope?p=e30",
    "/api/sync/views/scope?page=x.%C2%B2",
    "/api/sync/events?scope=",
    "/api/sync/events?scope=%FF%00",
    "/api/sync/events?scope=run:1&since=x",
    "/api/sync/events?scope=run:1&since=-1",
    "/api/sync/events?scope=run:1&since=%C2%B2",
    "/nope",
    "/%ff",
    "/api/sync/socket",
]


@pytest.mark.parametrize("path", [*PATHS, "/v1/scopes/default/" + "x" * 3000])
async def test_paths_and_parameters(server: Server, path: str) -> None:
    async with await RawSocket.connect(server) as raw:
        answer = await raw.request(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        status = int(answer.split()[1])
        assert status in (400, 404, 410), answer
        assert b"application/problem+json" in answer


async def test_headers_that_are_not_utf8(server: Server) -> None:
    names = (b"X-Request-Id", b"Last-Event-ID", b"Origin", b"If-None-Match", b"Authorization")
    for name in names:
        for path in (
            b"/nope",
            b"/api/sync/events?scope=a:b&since=9",
            b"/api/sync/views/scope?p=e30",
        ):
            async with await RawSocket.connect(server) as raw:
                data = b"GET %b HTTP/1.1\r\nHost: x\r\n%b: \xff\xfe.1\r\n\r\n" % (path, name)
                answer = await raw.request(data)
                assert answer.split()[1] in (b"404", b"400", b"200"), answer


async def test_http_bodies(server: Server) -> None:
    url = url_of(server, "/api/sync/publish")
    async with ClientSession() as session:
        for body, status in (
            (b"x" * (server.config.body_bytes_max + 1), 413), (b"", 400), (b"\xff", 400),
            (b"[" * 100_000, 400), (b"{}", 400), (b'{"scope":"a","envelope":7}', 400),
            (json.dumps({"scope": "a", "envelope": patch(t="x" * 300_000)}).encode(), 413),
            (b'{"scope":"","envelope":{}}', 400), (b'{"scope":"\\ud800","envelope":{}}', 400),
        ):  # fmt: skip
            async with session.post(url, data=io.BytesIO(body)) as answer:
                assert answer.status == status, (body[:40], await answer.text())
                problem = await answer.json(content_type="application/problem+json")
                assert problem["status"] == status and problem["request_id"]


BURST = dedent(
    """
    import asyncio, resource, sys
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    count = min(5000, min(hard, 8192) - 100)
    head = (b"GET /api/sync/socket HTTP/1.1\\r\\nHost: x\\r\\nUpgrade: websocket\\r\\n"
            b"Connection: upgrade\\r\\nSec-WebSocket-Version: 13\\r\\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n")
    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
        writer.write(head)
        line = await reader.readline()
        return writer, b"101" in line
    async def main():
        found = await asyncio.gather(*[one() for _ in range(count)])
        print(count, sum(ok for _, ok in found), flush=True)
    asyncio.run(main())
    """
)


@pytest.mark.slow
async def test_five_thousand_connects_in_a_burst(server: Server) -> None:
    assert server.info is not None
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BURST, str(server.info.port), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        out, _ = await client.communicate()
    asked, taken = map(int, out.split())
    assert asked == taken >= 900


@pytest.mark.parametrize("server", [{"connections_max": 5}], indirect=True)
async def test_connections_are_limited_and_come_free_at_once(server: Server) -> None:
    for _ in range(4):
        held = [await RawSocket.upgraded(server) for _ in range(3)]
        async with await RawSocket.connect(server) as raw:
            answer = await raw.upgrade()
            assert answer.startswith(b"HTTP/1.1 503") and b"Retry-After" in answer
        for raw in held:
            await raw.write(masked(8, b"\x03\xe8"))
            assert await raw.close_code() == 1000
            raw.close()
