"""A vuer-rtc client without rules of its own: frames in either codec over a real socket.

Waiting is always for a frame to arrive, never for time to pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from edge.server import Server
from tests.support.app import PATIENCE_S, running, url_of

Json = dict[str, Any]
ROOM = "studio"


def message(
    session: str, number: int, *ops: Json, lamport: int | None = None, id: str | None = None
) -> Json:
    """A message of the session; its id is `session:number` unless given."""
    return {
        "id": id or f"{session}:{number}", "sessionId": session, "clock": {session: number},
        "lamportTime": number if lamport is None else lamport, "timestamp": 1000 + number,
        "ops": list(ops) or [insert(f"{session}-{number}")],
    }  # fmt: skip


def insert(key: str, parent: str = "", **properties: Any) -> Json:
    """The operation that makes a node."""
    value = {"key": key, "tag": "Mesh", "name": key, **properties}
    return {"otype": "node.insert", "key": parent, "path": "children", "value": value}


def op(otype: str, key: str, path: str, value: Any) -> Json:
    """An operation on a property."""
    return {"otype": otype, "key": key, "path": path, "value": value}


def meta(otype: str, target: str) -> Json:
    """An undo or redo."""
    return {"otype": f"meta.{otype}", "key": "_meta", "path": "_meta", "targetMsgId": target}


class Peer:
    """One socket of one session."""

    def __init__(
        self, http: ClientSession, socket: ClientWebSocketResponse, session: str, codec: str
    ) -> None:
        self.socket = socket
        self.session = session
        self.seen: list[Json] = []
        self.numbers = 0
        self._http = http
        self._codec = codec

    @classmethod
    async def connect(
        cls, server: Server | str, session: str, *, room: str = ROOM, token: str | None = None,
        codec: str = "json", names: str = "long", path: str | None = None,
    ) -> Self:  # fmt: skip
        """Open a socket, without joining. `server` may be a URL."""
        base = server if isinstance(server, str) else url_of(server)
        query = {"sessionId": session, "codec": codec, "names": names}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        http = ClientSession()
        try:
            socket = await http.ws_connect(
                base + (path or f"/rtc/{room}"), params=query, headers=headers, max_msg_size=0
            )
        except BaseException:
            await http.close()
            raise
        return cls(http, socket, session, codec)

    @classmethod
    async def joined(cls, server: Server | str, session: str, **options: Any) -> Self:
        """Connected and joined."""
        join = {name: options.pop(name) for name in ("since", "epoch", "mode", "presence")
                if name in options}  # fmt: skip
        peer = await cls.connect(server, session, **options)
        try:
            await peer.join(**join)
        except BaseException:
            await peer.close()
            raise
        return peer

    async def send(self, *frames: Json) -> None:
        for frame in frames:
            if self._codec == "msgpack":
                await self.socket.send_bytes(msgspec.msgpack.encode(frame))
            else:
                await self.socket.send_str(msgspec.json.encode(frame).decode())

    async def frame(self) -> Json:
        """The next frame; mtype `closed` with the code once the server has closed."""
        async with asyncio.timeout(PATIENCE_S):
            got = await self.socket.receive()
        if got.type is WSMsgType.TEXT:
            assert self._codec == "json"
            frame: Json = msgspec.json.decode(got.data)
        elif got.type is WSMsgType.BINARY:
            assert self._codec == "msgpack"
            frame = msgspec.msgpack.decode(got.data)
        else:
            code = got.data if got.type is WSMsgType.CLOSE else self.socket.close_code
            return {"mtype": "closed", "code": code}
        self.seen.append(frame)
        return frame

    async def until(self, wanted: str | Callable[[Json], bool]) -> Json:
        """Read on to the first frame of the type, or that the function takes."""
        while True:
            frame = await self.frame()
            if frame["mtype"] == wanted or (callable(wanted) and wanted(frame)):
                return frame
            if frame["mtype"] == "closed":
                raise AssertionError(f"closed with {frame['code']} before {wanted}")

    async def ask(self, frame: Json, wanted: str) -> Json:
        await self.send(frame)
        return await self.until(wanted)

    async def join(self, **members: Any) -> Json:
        """The `state` that answers."""
        return await self.ask({"mtype": "join", **members}, "state")

    async def write(self, *ops: Json, **options: Any) -> Json:
        """Send one message and take its `ack` or `error`."""
        self.numbers = options.pop("number", self.numbers + 1)
        return await self.say(message(self.session, self.numbers, *ops, **options))

    async def say(self, msg: Json, **members: Any) -> Json:
        """Send the message as it is; its `ack` or `error`."""
        await self.send({"mtype": "crdt", "msg": msg, **members})
        return await self.until(lambda f: f["mtype"] in ("ack", "error"))

    async def heard(self, upto: int) -> list[Json]:
        """Broadcast messages from here on, to the one with that serverSeq."""
        found: list[Json] = []
        while not found or found[-1]["serverSeq"] < upto:
            frame = await self.until("broadcast")
            found += frame.get("msgs") or [frame["msg"]]
        return found

    async def hash(self) -> tuple[int, str]:
        """(serverSeq, state hash) of the server."""
        status = (await self.ask({"mtype": "sync-check", "requestId": 1}, "sync-status"))["status"]
        return status["serverSeq"], status["hash"]

    async def close(self) -> None:
        await self.socket.close()
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def stop_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rooms: what a slow machine takes must not fill an allowance up again."""
    now = server.rooms.monotonic()
    monkeypatch.setattr(server.rooms, "monotonic", lambda: now)


@asynccontextmanager
async def pair(directory: Path, **config: Any) -> AsyncIterator[tuple[Server, Peer, Peer]]:
    """A server, and `ann` and `bob` in the room."""
    async with (
        running(directory, **config) as server,
        await Peer.joined(server, "ann") as ann,
        await Peer.joined(server, "bob") as bob,
    ):
        yield server, ann, bob
