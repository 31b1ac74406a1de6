"""Servers of buses that go away, break off and overrun: replicas end at the server's value.

The value lives in `Source`, as in a database; the bus only tells of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
import redis

from edge.client.para import PASSTHROUGH, SyncEnvelope, create_client_replica
from edge.client.para.replica import ClientReplica
from infra.bus import queued
from infra.bus.nats import nats_connection
from infra.bus.redis import RedisBus
from infra.errors import Busy, Closed, HoldfastError
from tests.support.buses import BusServer, NatsServer, NatsSocket, RedisServer
from tests.support.rigs import QUICK, Rig, rig_on

pytestmark = pytest.mark.e2e
WAIT_S = 60
KEY = "user:1"
SUBJECT = f"synced.{KEY}"


@pytest.fixture(params=["nats", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusServer]:
    """A server of one's own, which may be killed; it lets slow readers leave little waiting."""
    made: BusServer
    if request.param == "nats":
        made = NatsServer(tmp_path, max_pending="2MB", max_payload="1MB")
    else:
        limit = {"client-output-buffer-limit": "pubsub 2mb 2mb 1"}
        made = RedisServer(tmp_path, **limit)
    with made:
        yield made


class Source:
    """Who owns the value."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.sequence = 0

    @property
    def current(self) -> SyncEnvelope:
        return SyncEnvelope({"n": self.sequence}, "1.0", self.sequence)

    def put(self, *, told: bool = True) -> None:
        self.sequence += 1
        if told:
            self.rig.transport.publish(KEY, self.current)

    async def fetch(self) -> SyncEnvelope:
        return self.current


class Watch:
    """A replica, and waiting for its sequence."""

    def __init__(self, rig: Rig, source: Source, **options: Any) -> None:
        self._news = asyncio.Event()
        self.seen: list[int] = []
        self.replica: ClientReplica = create_client_replica(
            key=KEY, schema=PASSTHROUGH, transport=rig.transport, refetch=source.fetch,
            seed=source.current, refetch_policy="monotonic", **options,
        )  # fmt: skip
        self.replica.subscribe(self._take)

    def _take(self, value: dict[str, int]) -> None:
        self.seen.append(value["n"])
        self._news.set()

    async def until(self, sequence: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.replica.meta().sequence < sequence:
                self._news.clear()
                await self._news.wait()
            await self.replica.when_idle()
        assert self.seen == sorted(self.seen)
        assert self.replica.meta().sequence == sequence
        assert self.replica.meta().status == "ok"


class Losses:
    """How often a transport said that envelopes may have been lost."""

    def __init__(self, rig: Rig) -> None:
        self.count = 0
        self._news = asyncio.Event()
        rig.transport.on_loss(KEY, self._lost)  # type: ignore[union-attr]

    def _lost(self) -> None:
        self.count += 1
        self._news.set()

    async def one(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self._news.wait()


@asynccontextmanager
async def following(server: BusServer, **options: Any) -> AsyncIterator[tuple[Rig, Source, Watch]]:
    async with rig_on(server, **options) as rig:
        source = Source(rig)
        source.put(told=False)
        watch = Watch(rig, source)
        await rig.ready()
        yield rig, source, watch
        watch.replica.dispose()


async def test_a_restarted_server_is_followed_again(server: BusServer) -> None:
    async with following(server) as (rig, source, watch):
        source.put()
        await watch.until(2)
        losses, reconnects = Losses(rig), 0

        def again() -> None:
            nonlocal reconnects
            reconnects += 1

        rig.transport.on_reconnect(again)  # type: ignore[union-attr]
        server.kill()
        source.put(told=False)  # nobody will ever hear of this one
        server.start()
        await watch.until(3)
        assert losses.count >= 1
        assert reconnects >= 1
        source.put()  # and envelopes flow
        await watch.until(4)


async def test_what_is_published_while_the_server_is_away_goes_out_in_order(
    server: BusServer,
) -> None:
    async with following(server) as (rig, source, watch):
        server.kill()
        for _ in range(50):
            source.put()
        server.start()
        await rig.ready()
        source.put()
        await watch.until(52)


async def test_a_broken_connection_is_made_again(server: BusServer) -> None:
    async with following(server) as (rig, source, watch):
        losses = Losses(rig)
        source.put(told=False)
        if isinstance(server, NatsServer):
            await rig.client.force_reconnect()
        else:
            with redis.Redis(port=server.port) as control:
                control.client_kill_filter(_type="pubsub")
        await losses.one()
        await watch.until(2)
        source.put()
        await watch.until(3)


def flood(server: BusServer, count: int, payload: bytes) -> None:
    """Publish from outside while the event loop stands still."""
    if isinstance(server, NatsServer):
        publisher = NatsSocket(server.port)
        for _ in range(count):
            publisher.publish(SUBJECT, payload)
        publisher.close()
    else:
        with redis.Redis(port=server.port) as control:
            for _ in range(count):
                control.publish(SUBJECT, payload)


async def test_a_slow_consumer_that_the_server_cuts_off_catches_up(server: BusServer) -> None:
    async with following(server) as (rig, source, watch):
        losses = Losses(rig)
        flood(server, 128, b"x" * (256 << 10))  # the loop reads nothing of this meanwhile
        source.put(told=False)
        await losses.one()
        await watch.until(2)
        source.put()
        await watch.until(3)
        assert rig.transport.decode_errors > 0  # type: ignore[union-attr]


async def test_messages_that_the_nats_client_drops_are_fetched(nats_server: NatsServer) -> None:
    async with following(nats_server, pending_messages_max=4) as (rig, source, watch):
        losses = Losses(rig)
        async with rig_on(nats_server) as other:
            source.rig = other
            for _ in range(500):
                source.put()
            await other.ready()
            await watch.until(501)
        assert losses.count >= 1
        assert len(watch.seen) < 500


async def test_what_is_no_envelope_is_counted_and_dropped(server: BusServer) -> None:
    async with following(server) as (rig, source, watch):
        assert rig.bus is not None
        for junk in (b"", b"\xc1", b"{", b"\x93\x01\x02\x03", b"\x81\xa1a\x01"):
            rig.bus.publish(SUBJECT, junk)
        source.put()
        await watch.until(2)
        assert rig.transport.decode_errors == 5  # type: ignore[union-attr]
        assert watch.replica.stats.parse_errors == 0


async def test_a_full_queue_refuses_at_once(
    server: BusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queued, "QUEUE_MESSAGES_MAX", 8)
    monkeypatch.setattr(queued, "BATCH_MESSAGES_MAX", 1)
    options = {"pending_size": 1} if isinstance(server, NatsServer) else {}
    async with following(server, **options) as (rig, source, watch):
        server.kill()
        refused = None
        async with asyncio.timeout(WAIT_S):
            while refused is None:
                try:
                    source.put()
                except Busy as busy:
                    refused = busy
                await asyncio.sleep(0)
        assert refused.retryable
        server.start()
        await rig.ready()
        await watch.until(source.sequence)


async def test_a_payload_beyond_the_servers_limit_is_refused_at_once(server: BusServer) -> None:
    async with following(server) as (rig, source, watch):
        with pytest.raises(HoldfastError, match="takes") as refused:
            rig.transport.publish(KEY, SyncEnvelope("x" * (9 << 20), "1.0", 2))
        assert refused.value.code == "too_large"
        source.put()
        await watch.until(2)


async def test_a_closed_bus_says_so(server: BusServer) -> None:
    async with following(server) as (rig, source, _):
        assert rig.bus is not None
        await rig.bus.aclose()
        await rig.bus.aclose()
        calls: list[Callable[[], Any]] = [
            source.put,
            lambda: rig.transport.subscribe("other", print),
        ]
        for call in calls:
            with pytest.raises(Closed):
                call()
        with pytest.raises(Closed):
            await rig.bus.ready()


async def test_who_waits_for_a_bus_that_is_closed_meanwhile_hears_of_it(
    server: BusServer,
) -> None:
    async with following(server) as (rig, _, _):
        assert rig.bus is not None
        server.kill()
        rig.bus.publish("a.b", b"")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_closed(rig))
            await asyncio.sleep(0)
            await rig.bus.aclose()
        assert waiting.result()
        server.start()


async def _closed(rig: Rig) -> bool:
    assert rig.bus is not None
    with pytest.raises(Closed):
        await rig.bus.ready()
    return True


async def test_a_nats_client_that_is_closed_ends_its_bus(nats_server: NatsServer) -> None:
    called: list[str] = []

    async def closed() -> None:
        called.append("closed")

    client = await nats.connect(nats_server.url, closed_cb=closed, **QUICK)
    async with nats_connection(client) as bus:
        bus.subscribe("a.b", print)
        await bus.ready()
        await client.close()
        with pytest.raises(Closed):
            bus.publish("a.b", b"")
    assert called == ["closed"], "the owner's callback is called as well"


async def test_several_handlers_of_a_subject_share_it(server: BusServer) -> None:
    async with rig_on(server) as rig:
        bus = rig.bus
        assert bus is not None
        came, heard = asyncio.Event(), []

        def fail(payload: bytes) -> None:
            raise LookupError

        def take(payload: bytes) -> None:
            heard.append(payload)
            came.set()

        off = bus.subscribe("room.1", fail)
        bus.subscribe("room.1", take)
        bus.publish("room.1", b"one")
        async with asyncio.timeout(WAIT_S):
            await came.wait()
        assert (heard, bus.handler_errors) == ([b"one"], 1)
        off()
        off()
        assert list(bus._handlers) == ["room.1"]


async def test_a_redis_server_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    async with RedisBus(server.url) as bus:
        came = asyncio.Event()
        bus.subscribe("a.b", lambda _: came.set())
        bus.publish("a.b", b"")
        await asyncio.sleep(0)
        with server:
            async with asyncio.timeout(WAIT_S):
                await came.wait()
