"""Several hubs over one ledger tell each other over NATS or Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge.dialects.asterql.bus import SharedBus
from edge.dialects.asterql.hub import SyncHub
from edge.dialects.asterql.ledgers import InMemorySyncLedger
from tests.support.buses import BusServer
from tests.support.hub import Peer, S
from tests.support.rigs import rig_on

pytestmark = pytest.mark.e2e
WAIT_S = 30


@pytest.fixture(params=["nats", "redis"])
def server(request: pytest.FixtureRequest) -> BusServer:
    found: BusServer = request.getfixturevalue(f"{request.param}_server")
    return found


def patch(number: int) -> dict[str, Any]:
    return {
        "eventId": f"e{number}", "kind": "patch",
        "entities": [{"key": "log:1", "value": {"n": number}}],
    }  # fmt: skip


async def test_an_envelope_reaches_the_clients_of_another_instance(server: BusServer) -> None:
    ledger = InMemorySyncLedger(1000)
    async with rig_on(server) as one, rig_on(server) as two:
        assert one.bus is not None and two.bus is not None
        async with (
            SyncHub(ledger=ledger, bus=SharedBus(one.bus)) as here,
            SyncHub(ledger=ledger, bus=SharedBus(two.bus)) as there,
        ):
            peer = Peer(there)
            peer.send({"type": "sub", "scope": S, "since": 0})
            await peer.until("subscribed")
            await two.ready()
            for number in (1, 2, 3):
                await here.publish(S, lambda _, number=number: patch(number))  # type: ignore[misc]
                frame = await peer.until("event")
                assert frame["envelope"]["seq"] == number


async def test_hints_come_whole_and_junk_is_dropped(server: BusServer) -> None:
    async with rig_on(server) as rig:
        assert rig.bus is not None
        bus, heard, came = SharedBus(rig.bus, "test.hints"), [], asyncio.Event()

        def take(scope: str, seq: int, envelope: dict[str, Any] | None) -> None:
            heard.append((scope, seq, envelope))
            if seq == 2:
                came.set()

        off = bus.subscribe(take)
        rig.bus.publish("test.hints", b"\xc1")
        await bus.publish(S, 1, {"n": 2**53 - 1})
        await bus.publish(S, 2, None)
        async with asyncio.timeout(WAIT_S):
            await came.wait()
        assert heard == [(S, 1, {"n": 2**53 - 1}), (S, 2, None)]
        off()
        await rig.bus.aclose()
        await bus.publish(S, 3, None)  # lost, as hints may be


def test_a_wildcard_is_no_subject() -> None:
    with pytest.raises(ValueError, match="subject"):
        SharedBus(None, "all.>")  # type: ignore[arg-type]
