"""The same endpoint on aiohttp's public WebSocketResponse: for an aiohttp whose inside has changed.

Slower and ten times the memory per connection, but nothing in it is private.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiohttp import WSMsgType, web

from edge.websocket import Session, SocketSettings, TakesBinary
from edge.wire import Frames, Message
from infra import limits


class PlainSocket:
    """Fits the dialects' Sink. Outbound frames wait in a bounded queue for one writing loop."""

    def __init__(self, response: web.WebSocketResponse) -> None:
        self.congested = False
        self._response = response
        self._queue: asyncio.Queue[Sequence[Message] | None] = asyncio.Queue()
        self._bytes = 0
        self._drained = asyncio.Event()
        self._close: tuple[int, str] | None = None

    def send(self, texts: Sequence[Message]) -> None:
        self._bytes += sum(map(len, texts))
        self.congested = self._bytes > limits.QUEUE_BYTES_MAX
        if self.congested:
            self._drained.clear()
        self._queue.put_nowait(texts)

    def send_shared(self, frames: Frames) -> None:
        self.send(frames.messages)

    async def drained(self) -> None:
        if self.congested:
            await self._drained.wait()

    def close(self, code: int, reason: str) -> None:
        if self._close is None:
            self._close = (code, reason)
            self._queue.put_nowait(None)

    def release(self) -> None:
        """The peer is gone: whoever waits for it to drain goes on, and finds the session closed."""
        self.congested = False
        self._drained.set()

    async def write(self) -> None:
        """Send what is queued until `close` or the peer is gone."""
        while (texts := await self._queue.get()) is not None:
            for text in texts:
                if isinstance(text, str):
                    await self._response.send_str(text)
                else:
                    await self._response.send_bytes(text)
            self._bytes -= sum(map(len, texts))
            if self._bytes <= limits.QUEUE_BYTES_MAX // 4:
                self.congested = False
                self._drained.set()
        code, reason = self._close or (1000, "")
        await self._response.close(code=code, message=reason.encode()[:120])


async def serve_plain(
    request: web.Request, settings: SocketSettings, open_session: Callable[[PlainSocket], Session],
    *, frame_bytes_max: int | None = None,
) -> web.WebSocketResponse:  # fmt: skip
    """Run the connection to its end."""
    response = web.WebSocketResponse(
        max_msg_size=frame_bytes_max or settings.frame_bytes_max,
        heartbeat=limits.STALL_MAX_S,
        compress=settings.compression,
        autoping=True,
        writer_limit=limits.QUEUE_BYTES_MAX,
    )
    await response.prepare(request)
    socket = PlainSocket(response)
    session = open_session(socket)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_read(response, socket, session))
            group.create_task(socket.write())
    except* ConnectionError:
        pass  # the peer is gone; its session is closed below
    finally:
        session.close()
        socket.release()
    return response


async def _read(response: web.WebSocketResponse, socket: PlainSocket, session: Session) -> None:
    async for message in response:
        if message.type is WSMsgType.TEXT:
            session.handle(message.data)
        elif message.type is WSMsgType.BINARY:
            if isinstance(session, TakesBinary):
                session.receive_binary(message.data)
                session.received()
            else:
                session.protocol_error("bad_frame", "send text frames, not binary ones")
    socket.close(1000, "")
