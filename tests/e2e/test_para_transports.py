"""The numbered edge cases of the transports and of replicas, over memory, NATS and Redis.

The servers are real processes. Case numbers are those of the protocol document.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from edge.client.para import (
    InProcessTransport,
    JsonCodec,
    MsgpackCodec,
    SyncEnvelope,
)
from tests.support.buses import BusServer
from tests.support.para_cases import CASES, IDS, run_case
from tests.support.rigs import Rig, rig_on

pytestmark = pytest.mark.e2e
KINDS = ["memory", "nats", "redis"]


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> BusServer | None:
    if request.param == "memory":
        return None
    found: BusServer = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
async def rig(server: BusServer | None) -> AsyncIterator[Rig]:
    async with rig_on(server) as rig:
        yield rig


@pytest.fixture
def key() -> Iterator[str]:
    yield "user:1"


def env(n: Any, sequence: int = 1) -> SyncEnvelope:
    return SyncEnvelope(n, "1.0", sequence)


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_replica(rig: Rig, key: str, case: dict[str, Any]) -> None:
    async def publish(envelope: Any) -> None:
        await rig.publish(key, envelope)

    await run_case(case, rig.transport, publish, key)
    assert rig.transport.key_count() == 0


async def test_edge_17_the_same_handler_is_one_registration(rig: Rig, key: str) -> None:
    class Taker:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def take(self, envelope: SyncEnvelope) -> None:
            self.seen.append(envelope.value)

    taker = Taker()
    first = rig.transport.subscribe(key, taker.take)
    second = rig.transport.subscribe(key, taker.take)  # another bound method, but an equal one
    await rig.publish(key, env(1))
    assert taker.seen == [1]
    first()
    await rig.publish(key, env(2))
    assert taker.seen == [1]
    second()
    assert rig.transport.key_count() == 0


async def test_edge_18_an_old_unsubscribe_ends_nothing_newer(rig: Rig, key: str) -> None:
    seen: list[SyncEnvelope] = []
    take = seen.append
    old = rig.transport.subscribe(key, take)
    old()
    new = rig.transport.subscribe(key, take)
    old()
    old()
    await rig.publish(key, env(1))
    assert seen == [env(1)]
    new()
    new()
    assert rig.transport.key_count() == 0


async def test_edge_19_a_delivery_goes_to_who_was_there_when_it_began(rig: Rig, key: str) -> None:
    called: list[str] = []

    def a(_: SyncEnvelope) -> None:
        called.append("a")
        off_b()
        rig.transport.subscribe(key, c)

    def b(_: SyncEnvelope) -> None:
        called.append("b")

    def c(_: SyncEnvelope) -> None:
        called.append("c")

    rig.transport.subscribe(key, a)
    off_b = rig.transport.subscribe(key, b)
    await rig.publish(key, env(1))
    assert called == ["a", "b"]
    called.clear()
    await rig.publish(key, env(2))
    assert called == ["a", "c"]


async def test_edge_20_one_failing_handler_starves_nobody(
    server: BusServer | None, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(envelope: SyncEnvelope) -> None:
        raise LookupError(envelope.value)

    seen: list[Any] = []
    async with rig_on(server) as rig:
        rig.transport.subscribe(key, fail)
        rig.transport.subscribe(key, lambda envelope: seen.append(envelope.value))
        if server is None:  # the publisher is there to hear of it
            with pytest.raises(LookupError, match="1"):
                rig.transport.publish(key, env(1))
        else:
            await rig.publish(key, env(1))
            assert "a handler failed key=user:1" in caplog.text
    assert seen == [1]


async def test_edge_20_on_error_takes_each_failure(server: BusServer | None, key: str) -> None:
    def fail(_: SyncEnvelope) -> None:
        raise LookupError

    def fail_too(_: SyncEnvelope) -> None:
        raise ArithmeticError

    taken: list[Any] = []
    on_error = lambda key, handler, error: taken.append((key, handler, type(error)))  # noqa: E731
    async with rig_on(server, on_error=on_error) as rig:
        rig.transport.subscribe(key, fail)
        rig.transport.subscribe(key, fail_too)
        await rig.publish(key, env(1))
    assert taken == [(key, fail, LookupError), (key, fail_too, ArithmeticError)]


async def test_edge_21_a_publish_without_subscribers_is_nothing(rig: Rig, key: str) -> None:
    rig.transport.publish(key, env(1))
    await rig.ready()
    seen: list[SyncEnvelope] = []
    rig.transport.subscribe(key, seen.append)
    await rig.ready()
    assert seen == [], "nothing is retained"
    await rig.publish(key, env(2))
    assert seen == [env(2)]


class CountingCodec(MsgpackCodec):
    """How often it decodes."""

    decoded = 0

    def decode(self, payload: bytes) -> SyncEnvelope:
        self.decoded += 1
        return super().decode(payload)


def subjects(rig: Rig) -> set[str]:
    """What the bus hears."""
    return set() if rig.bus is None else set(rig.bus._handlers)


async def test_edge_22_local_subscribers_share_subscription_and_decode(
    server: BusServer | None, key: str
) -> None:
    codec = CountingCodec()
    async with rig_on(server, codec=codec) as rig:
        seen: list[tuple[str, Any]] = []
        rig.transport.subscribe(key, lambda envelope: seen.append(("one", envelope.value)))
        rig.transport.subscribe(key, lambda envelope: seen.append(("two", envelope.value)))
        assert rig.transport.key_count() == 1
        for n in (1, 2):
            await rig.publish(key, env(n))
        assert seen == [("one", 1), ("two", 1), ("one", 2), ("two", 2)]
        if server is not None:
            assert codec.decoded == 2
            assert subjects(rig) == {"synced.user:1"}
        if rig.client is not None:
            assert [sub.subject for sub in rig.client._subs.values()] == ["synced.user:1"]


async def test_edge_23_the_bus_subscription_ends_with_the_last_handler(rig: Rig, key: str) -> None:
    first = rig.transport.subscribe(key, lambda _: None)
    second = rig.transport.subscribe(key, lambda _: None)
    first()
    first()
    await rig.ready()
    assert rig.transport.key_count() == 1
    assert subjects(rig) == (set() if rig.bus is None else {"synced.user:1"})
    second()
    await rig.ready()
    assert rig.transport.key_count() == 0
    assert subjects(rig) == set()
    if rig.client is not None:
        assert not rig.client._subs


@pytest.mark.parametrize("bad", ["user.>", "user.*", "*", ">", "a b", "a\tb", "a\n", "", "a..b"])
async def test_edge_28_no_key_reads_other_keys(rig: Rig, bad: str) -> None:
    seen: list[SyncEnvelope] = []
    if isinstance(rig.transport, InProcessTransport):
        rig.transport.subscribe(bad, seen.append)  # a name like any other
    else:
        with pytest.raises(ValueError, match="subject"):
            rig.transport.subscribe(bad, seen.append)
        with pytest.raises(ValueError, match="subject"):
            rig.transport.publish(bad, env(1))
        assert rig.transport.key_count() == 0
        assert subjects(rig) == set()
    await rig.publish("user.1", env(1))
    assert seen == []


WIDE = [2**63 - 1, -(2**63), 2**53, -(2**53), 2**53 - 1, 0]


@pytest.mark.parametrize("codec", [MsgpackCodec(), JsonCodec()], ids=["msgpack", "json"])
async def test_edge_29_wide_integers_survive(
    server: BusServer | None, key: str, codec: MsgpackCodec | JsonCodec
) -> None:
    async with rig_on(server, codec=codec) as rig:
        seen: list[Any] = []
        rig.transport.subscribe(key, lambda envelope: seen.append(envelope.value))
        await rig.publish(key, env({"list": WIDE, "one": 2**63 - 1}))
    assert seen == [{"list": WIDE, "one": 2**63 - 1}]
