"""Server-sent events over one Connection:
its frames become `event:` blocks (asterql.md section 4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import web

from edge.requests import allow_origin, from_allowed_origin
from edge.wire import Frames
from infra import limits

_EVENT = '{"type":"event","envelope":'
COMMENT_S = 15.0  # a comment now and then keeps proxies from ending a silent stream


class EventStream:
    """Fits the dialect's Sink. The stream ends with the first scopeError."""

    def __init__(self) -> None:
        self.congested = False
        self._epoch = ""
        self.epoch_now: Callable[[], str] = lambda: ""  # of the scope's feed
        self._blocks: list[str] = []
        self._bytes = 0
        self._ready = asyncio.Event()
        self._drained = asyncio.Event()
        self._ended = False

    def send(self, texts: list[str]) -> None:
        for text in texts:
            self._add(text)
        self._ready.set()

    def send_shared(self, frames: Frames) -> None:
        self.send(frames.texts)

    async def drained(self) -> None:
        if self.congested:
            await self._drained.wait()

    def close(self, code: int, reason: str) -> None:
        self._ended = True
        self._ready.set()

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Write until the stream or its reader ends."""
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        if "Origin" in request.headers and from_allowed_origin(request):
            allow_origin(request, response)  # before the middleware could: the head leaves now
        await response.prepare(request)
        try:
            while True:
                try:
                    async with asyncio.timeout(COMMENT_S):
                        await self._ready.wait()
                except TimeoutError:
                    self._blocks.append(": still here\n\n")
                self._ready.clear()
                blocks, self._blocks, self._bytes = self._blocks, [], 0
                async with asyncio.timeout(limits.STALL_MAX_S):
                    await response.write("".join(blocks).encode())
                self.congested = False
                self._drained.set()
                if self._ended and not self._blocks:
                    break
            await response.write_eof()
        except (ConnectionError, TimeoutError):
            pass  # the reader has gone or takes nothing; it resumes with Last-Event-ID
        finally:
            self.congested = False
            self._blocks.clear()
            self._drained.set()  # a replay that waits for this reader ends
        return response

    def _add(self, text: str) -> None:
        if text.startswith(_EVENT):
            body = text[len(_EVENT) : -1]
            seq = body[7 : body.index(",")]  # a stored body begins with {"seq":N,
            self._epoch = self._epoch or self.epoch_now()  # the first write made it
            self._block(f"event: envelope\nid: {self._epoch}.{seq}\ndata: {body}\n\n")
            return
        frame = msgspec.json.decode(text)
        if frame["type"] == "subscribed":
            self._epoch = frame["epoch"]
        elif frame["type"] == "scopeError":
            self._block(f"event: scopeError\ndata: {text}\n\n")
            self._ended = True
        elif frame["type"] == "caughtUp":
            self._block(f": caught up at {frame['seq']}\n\n")

    def _block(self, text: str) -> None:
        self._blocks.append(text)
        self._bytes += len(text)
        if self._bytes > limits.QUEUE_BYTES_MAX and not self.congested:
            self.congested = True
            self._drained.clear()
