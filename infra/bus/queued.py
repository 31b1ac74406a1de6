"""What buses of this package share: an ordered, bounded queue towards the server, and the table of
who listens. How a server is spoken to is the subclass's.

One task sends. What it is told is done strictly in order, so a message published after a subscribe
of the same process reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final, Self

from infra.bus.types import Off, OnLoss, OnMessage, check_subject
from infra.errors import Busy, Closed, ProtocolError
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.bus")

QUEUE_MESSAGES_MAX: Final = 65_536
QUEUE_BYTES_MAX: Final = 16 << 20
BATCH_MESSAGES_MAX: Final = 512

Message = tuple[str, bytes]


class BusGone(Exception):
    """The connection is closed for good; raised by `_send`, `_sync` and `_confirm`."""


class PayloadTooLarge(ProtocolError):
    """The payload has more bytes than the server takes. Nothing was sent."""

    code = "too_large"


class QueuedBus:
    """Use as `async with`, or call `aclose` once."""

    name = "bus"

    def __init__(self) -> None:
        # A message, None where the subscriptions changed, or whom to tell that all before is done.
        self._queue: deque[Message | asyncio.Future[None] | None] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._handlers: dict[str, dict[object, OnMessage]] = {}
        self._losses: dict[object, OnLoss] = {}
        self._tasks = TaskOwner()
        self._working = False
        self._closed = False
        self.send_errors = 0  # messages the server or its client refused
        self.handler_errors = 0

    @property
    def payload_bytes_max(self) -> int:
        """The largest payload the server takes."""
        raise NotImplementedError

    def publish(self, subject: str, payload: bytes) -> None:
        """Queue a message. Raises ValueError for a subject that is none, PayloadTooLarge, Busy
        where QUEUE_MESSAGES_MAX or QUEUE_BYTES_MAX wait, Closed.
        """
        check_subject(subject)
        if self._closed:
            raise Closed(f"the {self.name} is closed")
        size = len(payload)
        if size > self.payload_bytes_max:
            raise PayloadTooLarge(f"{size} bytes; the {self.name} takes {self.payload_bytes_max}")
        if len(self._queue) >= QUEUE_MESSAGES_MAX or self._queued_bytes + size > QUEUE_BYTES_MAX:
            raise Busy(f"{len(self._queue)} messages wait for the {self.name}")
        self._queued_bytes += size
        self._put((subject, payload))

    def subscribe(self, subject: str, on_message: OnMessage) -> Off:
        """Hear a subject; several handlers of one subject share a subscription. The result may be
        called again without effect. Raises ValueError, Closed.
        """
        check_subject(subject)
        if self._closed:
            raise Closed(f"the {self.name} is closed")
        token = object()
        handlers = self._handlers.setdefault(subject, {})
        handlers[token] = on_message
        if len(handlers) == 1:
            self._put(None)

        def unsubscribe() -> None:
            held = self._handlers.get(subject)
            if held is None or held.pop(token, None) is None or held:
                return
            del self._handlers[subject]
            if not self._closed:
                self._put(None)

        return unsubscribe

    def on_loss(self, handler: OnLoss) -> Off:
        """Have the handler called when messages may have been lost, and flow again."""
        token = object()
        self._losses[token] = handler
        return lambda: _forget(self._losses, token)

    async def ready(self) -> None:
        """Return once all that was asked for before has reached the server. Raises Closed."""
        if self._closed:
            raise Closed(f"the {self.name} is closed")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(done)
        await done

    async def aclose(self) -> None:
        """Stop; what is still queued is dropped. Safe to call twice."""
        self._end()
        await self._tasks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # -- for the subclass ------------------------------------------------------------------------

    async def _send(self, messages: Sequence[Message]) -> None:
        """Send all, in order, however long that takes. Raises BusGone."""
        raise NotImplementedError

    async def _sync(self) -> None:
        """Make the server's subscriptions those of `_handlers`. Raises BusGone."""
        raise NotImplementedError

    async def _confirm(self) -> None:
        """Hear of the server that it has all that was sent. Raises BusGone."""
        raise NotImplementedError

    def _heard(self, subject: str, payload: bytes) -> None:
        handlers = self._handlers.get(subject)
        if handlers is None:
            return
        for handler in tuple(handlers.values()):
            try:
                handler(payload)
            except Exception:
                self.handler_errors += 1
                log.exception("a handler failed subject=%s", subject)

    def _lost(self, subject: str | None) -> None:
        for handler in tuple(self._losses.values()):
            try:
                handler(subject)
            except Exception:
                self.handler_errors += 1
                log.exception("a handler of losses failed subject=%s", subject)

    def _put(self, item: Message | asyncio.Future[None] | None) -> None:
        self._queue.append(item)
        self._wake.set()
        if not self._working:
            self._working = True
            self._tasks.spawn(self._work(), name=f"{self.name}-sender")

    # -- the sender ------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            # Asked each turn, because a library may swallow a cancellation: `asyncio.wait_for` of
            # Python 3.11 does where what it waits for ends in the same moment.
            while not self._closed:
                if not self._queue:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                await self._step()
                await asyncio.sleep(0)  # neither library gives way to others while it can write
        except BusGone as error:
            log.error("%s is gone error=%s", self.name, error)
        finally:
            self._end()

    async def _step(self) -> None:
        """The next thing of the queue, or the next run of messages."""
        queue = self._queue
        messages: list[Message] = []
        while queue and len(messages) < BATCH_MESSAGES_MAX and isinstance(queue[0], tuple):
            messages.append(queue.popleft())  # type: ignore[arg-type]
        if messages:
            self._queued_bytes -= sum(len(payload) for _, payload in messages)
            await self._send(messages)
            return
        item = queue.popleft()
        if item is None:
            await self._sync()
            return
        assert isinstance(item, asyncio.Future)
        with contextlib.ExitStack() as stack:
            stack.callback(_settle, item, Closed(f"the {self.name} is closed"))
            await self._confirm()
            _settle(item)

    def _end(self) -> None:
        """Take nothing more, and tell whoever waits."""
        self._closed = True
        self._wake.set()
        for item in self._queue:
            if isinstance(item, asyncio.Future):
                _settle(item, Closed(f"the {self.name} is closed"))
        self._queue.clear()
        self._queued_bytes = 0


def _settle(future: asyncio.Future[None], error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _forget(table: dict[object, OnLoss], token: object) -> None:
    table.pop(token, None)
