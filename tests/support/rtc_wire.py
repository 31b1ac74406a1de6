"""Clients of an embedded `RTCServer` over `send` callables, and a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from edge.dialects.vuer import frames as f
from edge.dialects.vuer.connection import RtcConnection
from edge.dialects.vuer.server import RTCServer
from tests.support.app import PATIENCE_S
from tests.support.rtc import Json, message

ROOM = "studio"


class Clock:
    """Seconds that move when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def now_ms(self) -> int:
        return int(self.now * 1000)


class Wire:
    """A client of `connect(send)`: what it was sent, as it came."""

    def __init__(
        self, server: RTCServer, session: str, *, user: Any = "u", room: str = ROOM,
        format: f.Format = f.JSON,
    ) -> None:  # fmt: skip
        self.frames: list[Json] = []
        self.session = session
        self.hold: asyncio.Event | None = None
        self._news = asyncio.Event()
        self._read = 0
        self.connection: RtcConnection = server.connect(self, room, session, user, format=format)

    def send(self, frame: str | bytes) -> Any:
        """What the server calls; awaits where the test holds it."""
        return self._held(frame) if self.hold is not None else self._take(frame)

    async def _held(self, frame: str | bytes) -> None:
        assert self.hold is not None
        await self.hold.wait()
        self._take(frame)

    def _take(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            self.frames.append(msgspec.json.decode(frame))
        else:
            self.frames.append(msgspec.msgpack.decode(frame))
        self._news.set()

    def say(self, frame: Json) -> None:
        self.connection.handle_message(msgspec.json.encode(frame).decode())

    def write(self, number: int, *ops: Json) -> None:
        self.say({"mtype": "crdt", "msg": message(self.session, number, *ops)})

    async def until(self, wanted: str | Callable[[Json], bool]) -> Json:
        """The next frame of the type, or that the function takes."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self._read < len(self.frames):
                    frame = self.frames[self._read]
                    self._read += 1
                    if frame["mtype"] == wanted or (callable(wanted) and wanted(frame)):
                        return frame
                self._news.clear()
                await self._news.wait()

    async def join(self, **members: Any) -> Json:
        self.say({"mtype": "join", **members})
        return await self.until("state")

    def seqs(self) -> list[int]:
        """Every serverSeq so far, whether as broadcast or as ack."""
        found: list[int] = []
        for frame in self.frames:
            if frame["mtype"] == "broadcast":
                found += [m["serverSeq"] for m in frame.get("msgs") or [frame["msg"]]]
            elif frame["mtype"] == "ack" and not frame.get("dup"):
                found.append(frame["serverSeq"])
        return found

    async def reach(self, seq: int) -> list[int]:
        async with asyncio.timeout(PATIENCE_S):
            while seq not in self.seqs():
                self._news.clear()
                await self._news.wait()
        return self.seqs()
