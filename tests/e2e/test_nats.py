"""Hosts by a real NATS server: its records, its absence, and who holds a name."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from infra.errors import ConfigError
from infra.placement.hosts import HostInfo, HostState, View
from infra.placement.nats import NatsEngine
from infra.placement.renewing import RenewingPlacement
from tests.support.nats import NatsServer, nats_server

pytestmark = pytest.mark.e2e
TTL = 2.0
WAIT_S = 45


class Watched:
    """A placement, and waiting for what it comes to believe."""

    def __init__(self, server: NatsServer, name: str, life: str) -> None:
        self.engine = NatsEngine([server.url], bucket="holdfast-test", ttl_s=TTL)
        self.host = HostInfo(name=name, link=f"tcp:{name}:1", life=life)
        self.placement = RenewingPlacement(self.engine, self.host, ttl_s=TTL)

    async def until(self, *wanted: str, fresh: bool = True) -> View:
        """Until the view holds exactly these `name:state`."""
        while True:
            view = self.placement.view
            if view.fresh is fresh and [f"{h.name}:{h.state}" for h in view.hosts] == list(wanted):
                return view
            await asyncio.sleep(0.02)

    async def until_claims(self, wanted: bool) -> None:
        while self.placement.may_claim() is not wanted:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def joined(server: NatsServer, name: str, life: str = "1") -> AsyncIterator[Watched]:
    watched = Watched(server, name, life)
    await watched.placement.start()
    try:
        await watched.placement.joined()
        yield watched
    finally:
        await watched.placement.aclose()


async def test_hosts_come_drain_and_leave(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        async with asyncio.timeout(WAIT_S), joined(server, "a") as a:
            async with joined(server, "b") as b:
                await a.until("a:up", "b:up")
                await b.placement.drain()
                await a.until("a:up", "b:draining")
                assert not b.placement.may_claim() and a.placement.may_claim()
            await a.until("a:up")


async def test_while_all_of_it_is_away_the_view_stays(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        async with (
            asyncio.timeout(WAIT_S),
            joined(server, "a") as a,
            joined(server, "b") as b,
        ):
            await a.until("a:up", "b:up")
            server.kill()
            await a.until("a:up", "b:up", fresh=False)
            await a.until_claims(False)
            server.start()
            seen: list[View] = []
            a.placement.watch(seen.append)
            await a.until_claims(True)
            await b.until_claims(True)
            await a.until("a:up", "b:up")
            # Nobody was taken for dead on the way back, though every record had expired.
            assert all([host.name for host in view.hosts] == ["a", "b"] for view in seen)


async def test_one_process_holds_a_name_and_the_later_wins(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        async with (
            asyncio.timeout(WAIT_S),
            joined(server, "a", "1") as one,
            joined(server, "a", "2") as two,
        ):
            await one.until_claims(False)
            assert two.placement.may_claim()
            while (view := await one.until("a:up")).hosts[0].life != "2":
                await asyncio.sleep(0.02)
            assert view.owner(("default", "run:1")) == two.host


async def test_a_record_expires_by_itself(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        async with asyncio.timeout(WAIT_S), joined(server, "a") as a:
            engine = NatsEngine([server.url], bucket="holdfast-test", ttl_s=TTL)
            await engine.open(lambda: None)
            while engine._client is None or not engine._client.is_connected:
                await asyncio.sleep(0.02)
            draining = msgspec.structs.replace(a.host, name="c", state=HostState.DRAINING)
            await engine.renew(draining)
            await engine.close()  # without a word
            await a.until("a:up", "c:draining")
            await a.until("a:up")


def test_the_name_of_a_bucket() -> None:
    with pytest.raises(ConfigError):
        NatsEngine(["nats://127.0.0.1"], bucket="a.b", ttl_s=TTL)
