"""Null peer, to find the generator's own ceiling: nothing is parsed, stored or ordered.

`/room/x?role=w` answers every publish frame (they are of one size) with a constant ack;
`/room/x?role=s&cursor=0` streams ready-made messages as fast as the client reads.
Usage: python -m bench.peers.null.server PORT
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
from typing import Any

from bench.gen import lg
from bench.gen.loop import run

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def server_frame(body: bytes) -> bytes:
    """An unmasked text frame of at most 65,535 bytes."""
    n = len(body)
    return (bytes((0x81, n)) if n < 126 else bytes((0x81, 126, n >> 8, n & 255))) + body


_PAYLOAD = lg.payload(lg.now_us())
PUBLISH_BYTES = len(lg.frame(b'{"op":"pub","id":%d,"d":%b}' % (1000000000, _PAYLOAD)))
ACK = server_frame(b'{"op":"ack","id":1000000000,"seq":1000000000}')
ACKS = ACK * 4096
BLOB = server_frame(b'{"op":"msg","seq":1000000000,"d":%b}' % _PAYLOAD) * 400


class Null(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.up, self.held_bytes, self.writable, self.streams = False, 0, True, False

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.streams:
            self.stream()

    def stream(self) -> None:
        """Write until the transport says stop."""
        while self.writable and not self.transport.is_closing():
            self.transport.write(BLOB)

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable = False

    def data_received(self, data: bytes) -> None:
        if not self.up:
            self.upgrade(data)
            return
        count, self.held_bytes = divmod(self.held_bytes + len(data), PUBLISH_BYTES)
        if count:
            self.transport.write(ACKS[: count * len(ACK)] if count <= 4096 else ACK * count)

    def upgrade(self, data: bytes) -> None:
        """Answer the handshake; the target decides what follows."""
        lines = data.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        digest = hashlib.sha1((headers["Sec-WebSocket-Key"] + GUID).encode()).digest()  # noqa: S324
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        self.up = True
        if "role=s" in lines[0]:
            self.streams = True
            self.stream()


async def main() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Null, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    run(main())
