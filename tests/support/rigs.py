"""The transports of para-sync as the tests see them: one shape for memory, NATS and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats

from edge.client.para import (
    BusTransport,
    Codec,
    InProcessTransport,
    NatsTransport,
    RedisTransport,
    SyncEnvelope,
)
from infra.bus.nats import nats_connection
from infra.bus.queued import QueuedBus
from infra.bus.redis import RedisBus
from tests.support.buses import BusServer, NatsServer, RedisServer

WAIT_S = 30
QUICK: dict[str, Any] = {
    "reconnect_time_wait": 0.02, "max_reconnect_attempts": -1, "connect_timeout": 5,
}  # fmt: skip


class Rig:
    """A transport, and waiting for what goes through it."""

    def __init__(
        self,
        transport: InProcessTransport | BusTransport,
        bus: QueuedBus | None = None,
        client: Any = None,
    ) -> None:
        self.transport = transport
        self.bus = bus
        self.client = client  # nats-py's, where there is one
        self.failures: list[tuple[str, Any, Exception]] = []

    async def publish(self, key: str, envelope: Any) -> None:
        """Publish, and return once the key's handlers were called."""
        came = asyncio.Event()

        def take(_: SyncEnvelope) -> None:
            came.set()

        off = self.transport.subscribe(key, take)
        self.transport.publish(key, envelope)
        async with asyncio.timeout(WAIT_S):
            await came.wait()
        off()

    async def ready(self) -> None:
        """Return once all that was asked for has reached the server."""
        if self.bus is not None:
            async with asyncio.timeout(WAIT_S):
                await self.bus.ready()


@asynccontextmanager
async def rig_on(
    server: BusServer | None,
    *,
    codec: Codec | None = None,
    on_error: Any = None,
    pending_messages_max: int | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A transport over the server, or within the process; a failing handler is for `on_error`."""
    if server is None:
        yield Rig(InProcessTransport(on_error))
    elif isinstance(server, NatsServer):
        client = await nats.connect(server.url, **{**QUICK, **options})
        try:
            async with nats_connection(client, pending_messages_max=pending_messages_max) as bus:
                yield Rig(NatsTransport(bus, codec, on_error=on_error), bus, client)
        finally:
            await client.close()
    else:
        assert isinstance(server, RedisServer)
        async with RedisBus(server.url, **options) as redis:
            yield Rig(RedisTransport(redis, codec, on_error=on_error), redis)
