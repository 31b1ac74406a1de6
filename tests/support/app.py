"""A whole server in this process, and two clients of it: one that keeps the rules, one that need
not.

`running(...)` starts `edge.server.Server` on a port of the system's choice over an empty directory.
`Client` speaks frames of the dialect over aiohttp; `RawSocket` writes whatever bytes a test makes
up. Waiting is always for something to arrive, never for time to pass; `PATIENCE_S` only ends a test
that would hang.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from edge.access import Mode
from edge.application import Application
from edge.auth import Grant, PublishLimits
from edge.config import Config
from edge.server import Server
from edge.tokens import TokenKey, mint
from infra import clock, ids
from tests.support import processes

Json = dict[str, Any]
PATIENCE_S = 20.0
KEY = TokenKey("k1", "a secret of well over thirty-two bytes, for tests")
SOCKET = "/api/sync/socket"


@asynccontextmanager
async def running(
    directory: Path, *, mode: Mode = "dev", app: Application | None = None, **config: Any
) -> AsyncIterator[Server]:
    """A started server; `serve` has one token key unless the application authenticates."""
    if mode == "serve" and (app is None or app.authenticator is None):
        config.setdefault("token_keys", (KEY,))
    settings = Config(port=0, data_dir=str(directory), drain_timeout_s=2.0, **config)
    if processes.MODE:
        by_tenant = processes.MODE == "tenant"
        given = app or Application()
        async with processes.several(settings, given, mode, by_tenant=by_tenant) as several:
            yield several
        return
    async with Server(settings, app or Application(), mode) as server:
        yield server


def url_of(server: Server, path: str = "") -> str:
    """An address of the server, by HTTP."""
    assert server.info is not None
    return server.info.url + path


def token(
    *grants: str, write: bool = False, subject: str = "u1", ttl_s: int = 600, admin: bool = False,
    tenant: str = "default", publish: Any = None, now_ms: int | None = None,
) -> str:  # fmt: skip
    """A signed token for the given patterns."""
    access: Any = "write" if write else "read"
    return mint(
        KEY, subject=subject, now_ms=clock.now_ms() if now_ms is None else now_ms, ttl_s=ttl_s,
        scopes=[Grant(pattern, access) for pattern in grants], admin=admin, tenant=tenant,
        publish=publish,
    )  # fmt: skip


one_process_only = pytest.mark.skipif(
    processes.MODE != "", reason="looks into the process that has the scopes"
)
UNLIMITED: PublishLimits | str = "unlimited"


def patch(key: str = "message:m1", event: str | None = None, **members: Any) -> Json:
    """An envelope with one `set` of a whole record."""
    patches = [{"op": "set", "path": f"/{name}", "value": v} for name, v in members.items()]
    return {
        "eventId": event or ids.new_id(),
        "kind": "patch",
        "entities": [{"key": key, "patches": patches}],
    }


class Client:
    """One well-behaved socket: frames in, frames out, in order."""

    def __init__(self, session: ClientSession, socket: ClientWebSocketResponse) -> None:
        self._session = session
        self.socket = socket
        self.seen: list[Json] = []

    @classmethod
    async def connect(cls, server: Server, token: str | None = None, **options: Any) -> Self:
        """Open a socket; `token` goes into the Authorization header."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers.update(options.pop("headers", {}))
        session = ClientSession()
        try:
            socket = await session.ws_connect(
                url_of(server, SOCKET), headers=headers, max_msg_size=0, **options
            )
        except BaseException:
            await session.close()
            raise
        return cls(session, socket)

    async def send(self, *frames: Json) -> None:
        for frame in frames:
            await self.socket.send_str(json.dumps(frame))

    async def frame(self) -> Json:
        """The next frame; {"closed": code} once the server has closed."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.socket.receive()
        if message.type is WSMsgType.TEXT:
            frame: Json = json.loads(message.data)
            self.seen.append(frame)
            return frame
        # The library reports 1006 where its answer to the close frame came too late.
        code = message.data if message.type is WSMsgType.CLOSE else self.socket.close_code
        return {"type": "closed", "closed": code}

    async def until(self, wanted: str | Callable[[Json], bool]) -> Json:
        """Read on to the first frame of the type, or that the function takes."""
        while True:
            frame = await self.frame()
            if frame["type"] == wanted or (callable(wanted) and wanted(frame)):
                return frame
            if frame["type"] == "closed":
                raise AssertionError(f"closed with {frame['closed']} before {wanted}")

    async def ask(self, *frames: Json) -> Json:
        """Send and take the next frame."""
        await self.send(*frames)
        return await self.frame()

    async def publish(self, scope: str, *envelopes: Json) -> Json:
        """The `published` frame that answers."""
        number = ids.new_id()
        frame = {"type": "publish", "id": number, "scope": scope, "envelopes": list(envelopes)}
        await self.send(frame)
        return await self.until(lambda f: f["type"] == "published" and f["id"] == number)

    async def seqs(self, upto: int) -> list[int]:
        """The seqs of all event frames from here to the one numbered `upto`."""
        found: list[int] = []
        while not found or found[-1] < upto:
            found += envelopes_seqs([await self.frame()])
            assert self.seen[-1].get("code") != "snapshot_required", self.seen[-1]
        return found

    async def close(self) -> None:
        await self.socket.close()
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def envelopes_seqs(frames: Iterable[Json]) -> list[int]:
    """The seqs in `event` and `events` frames."""
    found: list[int] = []
    for frame in frames:
        if frame["type"] == "event":
            found.append(frame["envelope"]["seq"])
        elif frame["type"] == "events":
            found += [envelope["seq"] for envelope in frame["envelopes"]]
    return found


def masked(opcode: int, payload: bytes, *, final: bool = True, rsv: int = 0) -> bytes:
    """A client's frame."""
    first = (0x80 if final else 0) | rsv | opcode
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    mask = os.urandom(4)
    pad = (mask * (size // 4 + 1))[:size]
    value = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return head + mask + value.to_bytes(size, "big")


class RawSocket:
    """A TCP connection after (or before) the upgrade, with nothing that would keep the rules."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, server: Server) -> Self:
        assert server.info is not None
        return cls(*await asyncio.open_connection(server.info.host, server.info.port))

    @classmethod
    async def upgraded(cls, server: Server, *lines: str, path: str = SOCKET) -> Self:
        """After the handshake; `lines` are header lines to add."""
        raw = await cls.connect(server)
        answer = await raw.upgrade(*lines, path=path)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        return raw

    async def upgrade(self, *lines: str, path: str = SOCKET, key: str | None = None) -> bytes:
        """Ask for the upgrade; the head of the answer."""
        key = key or base64.b64encode(os.urandom(16)).decode()
        head = [
            f"GET {path} HTTP/1.1", "Host: test", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", *lines,
        ]  # fmt: skip
        return await self.request("\r\n".join(head).encode() + b"\r\n\r\n")

    async def request(self, data: bytes) -> bytes:
        """Send bytes; the head of the answer, "" at the end of the stream."""
        await self.write(data)
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                return error.partial

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send(self, frame: Json) -> None:
        await self.write(masked(1, json.dumps(frame).encode()))

    async def frame(self) -> tuple[int, bytes]:
        """(opcode with its flags, payload) of the next server frame; (0, b"") at the end."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                first, second = await self.reader.readexactly(2)
                size = second & 127
                if size > 125:
                    wide = 2 if size == 126 else 8
                    size = int.from_bytes(await self.reader.readexactly(wide), "big")
                return first, await self.reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0, b""

    async def json(self) -> Json:
        """The next text frame."""
        first, payload = await self.frame()
        assert first == 0x81, (first, payload)
        decoded: Json = json.loads(payload)
        return decoded

    async def close_code(self) -> int:
        """Read to the close frame: its code, or 0 where the stream ended without one."""
        while True:
            first, payload = await self.frame()
            if first == 0x88:
                return int.from_bytes(payload[:2], "big")
            if first == 0:
                return 0

    def close(self) -> None:
        self.writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
