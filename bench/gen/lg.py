"""Light WebSocket load client: one process, one loop, raw protocol on asyncio transports.

Two ways to receive: *count*, where the chunk read from the socket is searched for marker bytes (C
speed, for throughput), and *parse*, where frames are split and handed over (for latency). Frames
are masked with four equal key bytes, so masking is one `bytes.translate`, while the server still
has to unmask a key that is not zero.
"""

from __future__ import annotations

import asyncio
import base64
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

KEY = 0x5A
TABLE = bytes(b ^ KEY for b in range(256))
KEY4 = bytes([KEY]) * 4
PAD = "abcdefghijklmnopqrstuvw"

OnChunk = Callable[["WS", bytes], None]
OnFrame = Callable[["WS", int, bytes], None]


def frame(payload: bytes, op: int = 1) -> bytes:
    """A masked client frame."""
    n = len(payload)
    if n < 126:
        head = bytes((0x80 | op, 0x80 | n))
    elif n < 65536:
        head = struct.pack("!BBH", 0x80 | op, 0xFE, n)
    else:
        head = struct.pack("!BBQ", 0x80 | op, 0xFF, n)
    return head + KEY4 + payload.translate(TABLE)


def now_us() -> int:
    """Wall time in microseconds, 16 digits."""
    return time.time_ns() // 1000


def payload(t: int, user: int = 1) -> bytes:
    """A message of about 100 bytes of JSON; "t" is the 16-digit send time in microseconds."""
    return b'{"t":%d,"u":"user-%04d","k":"stroke","x":123.5,"y":456.25,"s":"%s"}' % (
        t,
        user % 10000,
        PAD.encode(),
    )


class WS(asyncio.Protocol):
    """One connection: `on_chunk(ws, bytes)` counts, `on_frame(ws, op, bytes)` parses."""

    __slots__ = (
        "buf",
        "closed",
        "headers",
        "host",
        "on_chunk",
        "on_frame",
        "opened",
        "path",
        "session",
        "tr",
        "up",
    )

    def __init__(
        self,
        host: str,
        path: str,
        headers: tuple[tuple[str, str], ...] = (),
        on_frame: OnFrame | None = None,
        on_chunk: OnChunk | None = None,
    ) -> None:
        self.host, self.path, self.headers = host, path, headers
        self.on_frame, self.on_chunk = on_frame, on_chunk
        self.buf = b""
        self.up = False
        self.closed = False
        self.opened: asyncio.Future[WS] = asyncio.get_running_loop().create_future()
        self.session: Any = None
        self.tr: Any = None

    def connection_made(self, transport: Any) -> None:
        self.tr = transport
        key = base64.b64encode(os.urandom(16)).decode()
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        self.tr.write(
            f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if not self.up:
            data = self._upgrade(data)
            if not data:
                return
        if self.on_chunk is not None:
            self.on_chunk(self, data)
        else:
            self._parse(data)

    def set_chunk(self, on_chunk: OnChunk) -> None:
        """Switch to counting; what is buffered is counted too."""
        self.on_chunk = on_chunk
        if self.buf:
            data, self.buf = self.buf, b""
            on_chunk(self, data)

    def send(self, data: bytes, op: int = 1) -> None:
        """Write one frame."""
        self.tr.write(frame(data, op))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(str(exc)))

    def _upgrade(self, data: bytes) -> bytes:
        self.buf += data
        end = self.buf.find(b"\r\n\r\n")
        if end < 0:
            return b""
        head, rest = self.buf[:end], self.buf[end + 4 :]
        self.buf = b""
        if b" 101 " not in head[:20]:
            if not self.opened.done():
                self.opened.set_exception(RuntimeError(f"{head[:200]!r} | {rest[:300]!r}"))
            self.tr.close()
            return b""
        self.up = True
        if not self.opened.done():
            self.opened.set_result(self)
        return rest

    def _parse(self, data: bytes) -> None:
        if self.buf:
            data = self.buf + data
        pos, n = 0, len(data)
        while pos + 2 <= n:
            size, start = data[pos + 1], pos + 2
            if size == 126:
                if start + 2 > n:
                    break
                size, start = (data[start] << 8) | data[start + 1], start + 2
            elif size == 127:
                if start + 8 > n:
                    break
                size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
            end = start + size
            if end > n:
                break
            self._frame(data[pos] & 15, data[start:end])
            pos = end
        self.buf = data[pos:]

    def _frame(self, op: int, body: bytes) -> None:
        if op <= 2:
            if self.on_frame is not None:
                self.on_frame(self, op, body)
        elif op == 9:
            self.tr.write(frame(body, 10))
        elif op == 8:
            self.tr.close()


async def connect(
    ad: Any,
    room: str,
    role: str,
    cursor: int | None = None,
    n: int = 0,
    on_frame: OnFrame | None = None,
    on_chunk: OnChunk | None = None,
    timeout: float = 20,
) -> WS:
    """Connect, send the adapter's hello, wait until the adapter calls the connection ready."""
    loop = asyncio.get_running_loop()
    session = ad.session(room, role, cursor, n)
    ready: asyncio.Future[bool] = loop.create_future()

    def hello(ws: WS, op: int, data: bytes) -> None:
        if session.on_hello(ws, data) and not ready.done():
            ws.on_frame = on_frame
            ready.set_result(True)

    first_frame, first_chunk = (hello, None) if session.needs_hello else (on_frame, on_chunk)
    ws = WS(ad.host, session.path, session.headers, first_frame, first_chunk)
    ws.session = session
    async with asyncio.timeout(timeout):
        await loop.create_connection(lambda: ws, ad.ip, ad.port)
        await ws.opened
        for data, op in session.hello():
            ws.send(data, op)
        if session.needs_hello:
            await ready
            if on_chunk is not None:
                ws.set_chunk(on_chunk)
    return ws


class Counter:
    """Counts a marker in a byte stream, chunk borders included."""

    __slots__ = ("callback", "keep", "marker", "n", "tail")

    def __init__(self, marker: bytes, callback: Callable[[WS, int], None] | None = None) -> None:
        self.marker, self.keep, self.tail, self.n = marker, len(marker) - 1, b"", 0
        self.callback = callback

    def __call__(self, ws: WS, data: bytes) -> None:
        count = (self.tail + data if self.tail else data).count(self.marker)
        keep = self.keep
        self.tail = data[-keep:] if len(data) >= keep else (self.tail + data)[-keep:]
        if count:
            self.n += count
            if self.callback is not None:
                self.callback(ws, count)


class Writer:
    """Pipelined publisher: `inflight` messages unacknowledged, one write per batch of acks."""

    def __init__(self, ad: Any, room: str, inflight: int, limit: int | None = None) -> None:
        self.ad, self.room, self.inflight, self.limit = ad, room, inflight, limit
        self.acked = self.sent = 0
        self.queue: deque[list[int]] = deque()
        self.latencies_us: list[int] = []
        self.stop = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.counter = Counter(ad.ack_marker, self.on_acks)

    async def start(self) -> Writer:
        """Connect; `go` begins to publish."""
        self.ws = await connect(self.ad, self.room, "w", on_chunk=self.counter)
        self.encode = self.ws.session.encoder()
        return self

    def go(self) -> None:
        """Fill the window."""
        self.emit(self.inflight)

    def emit(self, count: int) -> None:
        """Publish `count` more, as far as the limit allows."""
        if self.stop:
            return
        if self.limit is not None:
            count = min(count, self.limit - self.sent)
            if count <= 0:
                return
        t = now_us()
        body, encode, op, first = payload(t), self.encode, self.ad.op, self.sent
        frames = [frame(encode(first + j, body), op) for j in range(count)]
        self.ws.tr.write(b"".join(frames))
        self.sent += count
        self.queue.append([count, t])

    def on_acks(self, ws: WS, count: int) -> None:
        """Account for acks and publish as many again."""
        self.acked += count
        queue, left = self.queue, count
        if queue:
            self.latencies_us.append(now_us() - queue[0][1])
        while left and queue:
            head = queue[0]
            if head[0] <= left:
                left -= head[0]
                queue.popleft()
            else:
                head[0] -= left
                left = 0
        if self.limit is not None and self.acked >= self.limit and not self.done.done():
            self.done.set_result(None)
        self.emit(count)


def percentile(values: list[Any], p: float) -> Any:
    """The value at rank `p` (0..1), None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p))]
