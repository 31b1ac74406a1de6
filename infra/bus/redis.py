"""A bus over Redis publish and subscribe (redis-py, extra `redis`): nothing stored.

One connection publishes, in pipelines; one listens, and is opened again for ever. redis-py would
reconnect silently in places, which would hide a loss: its retries are off, ours are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from infra import ids
from infra.bus.queued import BusGone, Message, QueuedBus, log

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

PAYLOAD_BYTES_MAX: Final = 8 << 20
RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 5.0
CONNECT_WAIT_S: Final = 5.0
ANSWER_WAIT_S: Final = 30.0
# A peer that vanished without a word is noticed after a minute; a listener itself sends nothing.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class RedisBus(QueuedBus):
    """Of the server at a `redis://` or `rediss://` URL. Create it on the event loop."""

    name = "Redis bus"

    def __init__(self, url: str, **options: Any) -> None:
        """`options` go to redis-py's `from_url`, such as `password` or `ssl_ca_certs`."""
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        super().__init__()
        common = {
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": CONNECT_WAIT_S,
            "socket_keepalive": True,
            "socket_keepalive_options": {
                getattr(socket, name): value
                for name, value in _KEEPALIVE.items()
                if hasattr(socket, name)
            },
        }
        self._publisher: Redis = Redis.from_url(
            url, **{**common, "socket_timeout": ANSWER_WAIT_S, **options}
        )
        self._listener: Redis = Redis.from_url(url, **{**common, **options})
        self._errors: tuple[type[Exception], ...] = (RedisError, OSError)
        self._channel = f"holdfast.bus.{ids.new_id()}"  # ours alone: markers of `ready`
        self._pubsub: PubSub | None = None
        self._sent: set[str] = set()  # subscriptions asked for on this connection
        self._confirmed: set[str] = set()
        self._changed = asyncio.Event()  # of `_pubsub`, `_confirmed` and markers
        self._listening = False
        self._outage = False
        self._markers = 0
        self._marker_heard = 0

    @property
    def payload_bytes_max(self) -> int:
        """Redis would take more than is good for anybody."""
        return PAYLOAD_BYTES_MAX

    async def aclose(self) -> None:
        """Stop, and close both connections."""
        self._end()
        self._changed.set()
        await super().aclose()
        for client in (self._publisher, self._listener):
            with contextlib.suppress(*self._errors):
                await client.aclose()

    # -- sending ---------------------------------------------------------------------------------

    async def _send(self, messages: Sequence[Message]) -> None:
        wait_s = RETRY_S
        while True:
            if self._closed:
                raise BusGone("closed")
            try:
                async with self._publisher.pipeline(transaction=False) as pipeline:
                    for subject, payload in messages:
                        pipeline.publish(subject, payload)
                    answers = await pipeline.execute(raise_on_error=False)
                break
            except self._errors as error:
                # Whether they arrived is unknown, so they go again: a repeat does less harm.
                log.warning("%s does not answer error=%s", self.name, error)
                wait_s = await _pause(wait_s)
        for (subject, _), answer in zip(messages, answers, strict=True):
            if isinstance(answer, Exception):
                self.send_errors += 1
                log.warning("not published subject=%s error=%s", subject, answer)

    async def _sync(self) -> None:
        if not self._listening:
            self._listening = True
            self._tasks.spawn(self._listen(), name="redis-bus-listener")
        while True:
            pubsub = self._pubsub
            missing = [subject for subject in self._handlers if subject not in self._sent]
            surplus = [subject for subject in self._sent if subject not in self._handlers]
            try:
                if pubsub is None:
                    pass
                elif missing:
                    self._sent.update(missing)
                    await pubsub.subscribe(*missing)
                    continue
                elif surplus:
                    self._sent.difference_update(surplus)
                    self._confirmed.difference_update(surplus)
                    await pubsub.unsubscribe(*surplus)
                    continue
                elif self._sent <= self._confirmed:
                    break
            except self._errors:
                pass  # the listener notices as well, and begins anew
            await self._change()
        if self._outage:
            self._outage = False
            self._lost(None)

    async def _confirm(self) -> None:
        await self._sync()
        self._markers += 1
        wanted = self._markers
        while self._marker_heard < wanted:
            pubsub = self._pubsub
            await self._send([(self._channel, b"%d" % wanted)])
            while self._marker_heard < wanted and self._pubsub is pubsub is not None:
                await self._change()
            if self._marker_heard < wanted:
                await self._sync()

    async def _change(self) -> None:
        """Wait for the listener to have news."""
        if self._closed:
            raise BusGone("closed")
        self._changed.clear()
        await self._changed.wait()

    # -- listening -------------------------------------------------------------------------------

    async def _listen(self) -> None:
        wait_s = RETRY_S
        while not self._closed:
            pubsub = self._listener.pubsub()
            try:
                await pubsub.subscribe(self._channel)
                if self._closed:  # meanwhile, and the cancellation may have been swallowed
                    return  # type: ignore[unreachable]
                async for message in pubsub.listen():
                    wait_s = RETRY_S
                    self._take(pubsub, message)
            except self._errors as error:
                log.warning("%s broke off error=%s", self.name, error)
            finally:
                self._outage = self._outage or self._pubsub is not None
                self._pubsub = None
                with contextlib.suppress(*self._errors):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
            wait_s = await _pause(wait_s)

    def _take(self, pubsub: PubSub, message: dict[str, Any]) -> None:
        kind, channel = message["type"], message["channel"].decode()
        if kind == "message" and channel != self._channel:
            self._heard(channel, message["data"])
            return
        if kind == "message":
            self._marker_heard = max(self._marker_heard, int(message["data"]))
        elif kind == "subscribe":
            if channel != self._channel:
                self._confirmed.add(channel)
            else:
                # Connected, or redis-py did so again by itself: the sender asks for all else.
                self._outage = self._outage or self._pubsub is not None
                self._pubsub = pubsub
                self._sent.clear()
                self._confirmed.clear()
                self._queue.appendleft(None)
                self._wake.set()
        self._changed.set()


async def _pause(wait_s: float) -> float:
    """Wait, a little at random; how long to wait next."""
    await asyncio.sleep(wait_s * (0.5 + ids.random()))
    return min(RETRY_S_MAX, wait_s * 2)
