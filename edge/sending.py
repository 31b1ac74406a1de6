"""A dialect's Sink over a `send` callable of an application, which may be async.

What a send that awaits holds up waits in a bounded queue; above it the sink is `congested` and its
connection reads the ledger later. A send that raises, or takes STALL_MAX_S, ends the connection.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edge.wire import Frames, Message
from infra import limits
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.hub")
Send = Callable[[Any], Any]


class Sink(Protocol):
    """Where a connection's frames go. `congested`: what is sent now is only piling up."""

    congested: bool

    def send(self, texts: Sequence[Message]) -> None:
        """Frames for this client alone."""

    def send_shared(self, frames: Frames) -> None:
        """Frames that others get alike."""

    async def drained(self) -> None:
        """Returns once not congested, or closed."""

    def close(self, code: int, reason: str) -> None:
        """End the connection after what was sent."""


class CallableSink:
    """A Sink. `on_end(code, reason)` is called once: by `close`, or where a send has failed."""

    def __init__(
        self, send: Send, tasks: TaskOwner, on_end: Callable[[int, str], None], *,
        frames_max: int = limits.QUEUE_FRAMES_MAX, bytes_max: int = limits.QUEUE_BYTES_MAX,
    ) -> None:  # fmt: skip
        self.congested = False
        self.closed = False
        self._send = send
        self._tasks = tasks
        self._on_end = on_end
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._queue: deque[Message] = deque()
        self._bytes = 0
        self._writing = False
        self._drained = asyncio.Event()
        self._ended = asyncio.Event()

    def send(self, texts: Sequence[Message]) -> None:
        """Frames, in order."""
        for text in texts:
            if self.closed:
                return
            if self._writing:
                self._enqueue(text)
            else:
                self._call(text)

    def send_shared(self, frames: Frames) -> None:
        """Frames that others get alike."""
        self.send(frames.messages)

    async def drained(self) -> None:
        """Returns once not congested, or closed."""
        if self.congested:
            await self._drained.wait()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """No frame follows. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._queue.clear()
        self._drained.set()
        self._ended.set()
        self._on_end(code, reason)

    async def wait_closed(self) -> None:
        """Returns once closed, by whichever side."""
        await self._ended.wait()

    def _call(self, text: Message) -> None:
        try:
            answer = self._send(text)
        except Exception:  # the application's carrier is gone
            log.debug("send failed", exc_info=True)
            self.close()
            return
        if inspect.isawaitable(answer):
            self._writing = True
            self._tasks.spawn(self._write(answer), name="hub-send")

    def _enqueue(self, text: Message) -> None:
        self._queue.append(text)
        self._bytes += len(text)
        if len(self._queue) > self._frames_max or self._bytes > self._bytes_max:
            self.congested = True
            self._drained.clear()

    async def _write(self, first: Any) -> None:
        """Await each send before the next."""
        try:
            async with asyncio.timeout(limits.STALL_MAX_S):
                await first
            while self._queue:
                text = self._queue.popleft()
                self._bytes -= len(text)
                few = len(self._queue) <= self._frames_max // 4
                if self.congested and few and self._bytes <= self._bytes_max // 4:
                    self.congested = False
                    self._drained.set()
                answer = self._send(text)
                if inspect.isawaitable(answer):
                    async with asyncio.timeout(limits.STALL_MAX_S):
                        await answer
        except Exception:  # as in _call; a send that takes 30 s is a slow consumer
            log.debug("send failed", exc_info=True)
            self.close()
        finally:
            self._writing = False
