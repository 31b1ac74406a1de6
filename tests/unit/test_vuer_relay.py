"""`RTCServer` embedded in another program: relaying between connections over `send` callables, and
brokers of every kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from actors.host import Host
from actors.types import Bounds
from edge.dialects.vuer import frames as f
from edge.dialects.vuer.actor_broker import ActorBroker
from edge.dialects.vuer.broker import InMemoryBroker
from edge.dialects.vuer.feed import cut_reason
from edge.dialects.vuer.journal import JournalService
from edge.dialects.vuer.repositories import InMemoryRepository, LedgerRepository
from edge.dialects.vuer.server import RTCServer
from infra.errors import AuthError
from tests.support.app import PATIENCE_S
from tests.support.rtc import Json, Peer, op
from tests.support.rtc_wire import ROOM, Wire


@pytest.fixture(params=["memory", "memory broker over a port", "actor"])
async def rooms(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RTCServer]:
    """The three ways of putting a server of rooms together."""
    if request.param == "memory":
        async with RTCServer(JournalService(), InMemoryBroker()) as server:
            yield server
        return
    async with Host(tmp_path) as host:
        journal = JournalService(LedgerRepository(host))
        broker = ActorBroker(host) if request.param == "actor" else InMemoryBroker()
        async with RTCServer(journal, broker) as server:
            yield server


async def test_each_message_reaches_everyone_else_once_in_order(rooms: RTCServer) -> None:
    wires = [Wire(rooms, name) for name in ("ann", "bob", "eve")]
    for wire in wires:
        await wire.join()
    for number in range(1, 31):
        for wire in wires:
            wire.write(number)
        if number % 7 == 0:
            await asyncio.sleep(0)
    for wire in wires:
        assert await wire.reach(90) == list(range(1, 91))
        acks = [frame for frame in wire.frames if frame["mtype"] == "ack"]
        assert [a["msgId"] for a in acks] == [f"{wire.session}:{n}" for n in range(1, 31)]
        told = [m for frame in wire.frames if frame["mtype"] == "broadcast"
                for m in frame.get("msgs") or [frame["msg"]]]  # fmt: skip
        assert wire.session not in {m["sessionId"] for m in told} and len(told) == 60


async def test_rooms_hear_nothing_of_each_other(rooms: RTCServer) -> None:
    here, there = Wire(rooms, "ann"), Wire(rooms, "bob", room="other")
    for wire in (here, there):
        await wire.join()
        wire.write(1)
        assert (await wire.until("ack"))["serverSeq"] == 1
    assert not [frame for frame in there.frames if frame["mtype"] in ("broadcast", "members")]


async def test_a_slow_carrier_reads_the_journal_and_slows_nobody(rooms: RTCServer) -> None:
    ann, slow = Wire(rooms, "ann"), Wire(rooms, "slow")
    await ann.join()
    await slow.join()
    slow.hold = asyncio.Event()
    big = op("string.set", "n", "t", "x" * 5000)
    for number in range(1, 501):
        ann.write(number, big)
        if number % 50 == 0:
            await ann.reach(number)
    assert len(slow.frames) < 500
    hold, slow.hold = slow.hold, None
    hold.set()
    assert await slow.reach(500) == list(range(1, 501))


async def test_what_the_slow_sent_itself_is_acknowledged_in_its_place(rooms: RTCServer) -> None:
    ann, slow = Wire(rooms, "ann"), Wire(rooms, "slow")
    await ann.join()
    await slow.join()
    slow.hold = asyncio.Event()
    big = op("string.set", "n", "t", "x" * 5000)
    for number in range(1, 401):
        ann.write(number, big)
        slow.write(number, op("number.add", "n", "x", 1))
        if number % 50 == 0:
            await ann.reach(2 * number)
    hold, slow.hold = slow.hold, None
    hold.set()
    assert await slow.reach(800) == list(range(1, 801))
    assert sum(frame["mtype"] == "ack" for frame in slow.frames) == 400


async def test_a_carrier_that_fails_ends_its_connection_alone(rooms: RTCServer) -> None:
    ann = Wire(rooms, "ann")
    await ann.join()
    bad: list[str] = []

    def send(frame: str) -> None:
        bad.append(frame)
        if len(bad) > 1:
            raise ConnectionError("gone")

    connection = rooms.connect(send, ROOM, "bad")
    connection.handle_message('{"mtype":"join"}')
    await ann.until("members")
    ann.write(1)
    assert (await ann.until("ack"))["serverSeq"] == 1
    async with asyncio.timeout(PATIENCE_S):
        while not connection.closed:
            await asyncio.sleep(0.01)
    ann.write(2)
    assert (await ann.until("ack"))["serverSeq"] == 2


async def test_62_a_cleared_room(rooms: RTCServer) -> None:
    ann, bob = Wire(rooms, "ann"), Wire(rooms, "bob")
    first = await ann.join()
    await bob.join(presence=1)
    ann.write(1)
    await ann.until("ack")
    await rooms.clear_room(ROOM)
    for wire in (ann, bob):
        reset = await wire.until("reset")
        state = await wire.until("state")
        assert reset["epoch"] == state["epoch"] != first["epoch"]
        assert state["members"] == [] and state["headSeq"] == 1 + 2**20
    assert await rooms.broker.get_members(ROOM) == {}
    ann.write(2)
    assert (await bob.reach(2 + 2**20))[-1] == 2 + 2**20
    bob.say({"mtype": "heartbeat", "vectorClock": {"bob": 4}})
    await bob.until("heartbeat")
    held = await rooms.broker.get_members(ROOM)
    assert list(held) == ["bob"] and held["bob"].vector_clock == {"bob": 4}


async def test_a_clear_is_told_as_one_to_who_is_behind_and_to_who_was_away(
    rooms: RTCServer,
) -> None:
    """A client brings back what a restore has lost, and must not bring back what was cleared."""
    ann, slow, away = Wire(rooms, "ann"), Wire(rooms, "slow"), Wire(rooms, "away")
    for wire in (ann, slow, away):
        await wire.join()
        wire.write(1)
        await wire.until("ack")
    held = await away.join()
    await slow.reach(3)
    away.connection.close()
    slow.hold = asyncio.Event()
    large = [op("string.set", "n", "t", "x" * 60_000)]
    for number in range(2, 60):
        ann.write(number, *large)
        await ann.until("ack")
    await rooms.clear_room(ROOM)
    ann.write(60)
    assert (await ann.until("ack"))["serverSeq"] == 62 + 2**20
    slow.hold.set()
    assert (await slow.until("reset"))["reason"] == "cleared"
    state = await slow.until("state")
    assert state["epoch"] != held["epoch"] and state["headSeq"] == 62 + 2**20
    again = Wire(rooms, "away")
    again.say({"mtype": "join", "since": held["headSeq"], "epoch": held["epoch"]})
    reset, state = await again.until("reset"), await again.until("state")
    assert (reset["reason"], reset["epoch"]) == ("cleared", state["epoch"])
    again.say({"mtype": "join", "since": state["headSeq"], "epoch": state["epoch"]})
    assert (await again.until(lambda f: f["mtype"] in ("reset", "state")))["resume"] is True


@pytest.mark.parametrize(
    ("epoch", "at", "floor", "reason"),
    [
        ("a", 5, 2**32, None),  # the same history, wherever its floor is
        ("b", 0, 2**32, None),  # nothing was heard of another one
        ("", 5, 4, None),  # joined before the first message began the first epoch
        ("", 5, 2**20 + 5, "cleared"),
        ("b", 5, 2**20 + 900, "cleared"),  # and compacted since
        ("b", 5, 2**32 + 5, "restored"),
        ("b", 900, 2**32 + 5, "restored"),  # having lost what the reader has
        ("b", 900, 2**32 + 2**20 + 905, "cleared"),  # then restored, with what came after it
        ("b", 900, 2**32 + 2**20 + 5, "cleared"),  # restored, which lost much, then cleared
        ("b", 900, 2 * 2**32 + 5, "restored"),  # twice, before and after which nothing was cleared
        ("b", 900, 3 * 2**32 + 2 * 2**20 + 5, "cleared"),
        ("b", 900, 2**32 + 2000, "restored"),  # to before the clear: it never was
        (None, 5, 4, None),
    ],
)
def test_what_a_reader_of_another_history_is_told(
    epoch: str | None, at: int, floor: int, reason: str | None
) -> None:
    assert cut_reason(epoch, at, Bounds("a", floor + 3, floor, 0)) == reason


async def test_msgpack_and_short_names(rooms: RTCServer) -> None:
    ann = Wire(rooms, "ann")
    odd = Wire(rooms, "odd", format=f.Format("msgpack", "short"))
    await ann.join()
    odd.connection.handle_message(msgspec.msgpack.encode({"mtype": "join"}))
    await odd.until("state")
    ann.write(1)
    (got,) = [(await odd.until("broadcast"))["msg"]]
    assert got["client"] == "ann" and got["ops"][0]["ot"] == "node.insert"


# -- brokers and routes of the application's -------------------------------------------------------


async def test_two_servers_on_one_store_and_one_broker() -> None:
    repository, broker = InMemoryRepository(), InMemoryBroker()
    await repository.start()
    one = RTCServer(JournalService(LedgerRepository(repository.host)), broker)
    two = RTCServer(JournalService(LedgerRepository(repository.host)), broker)
    ann, bob = Wire(one, "ann"), Wire(two, "bob")
    await ann.join()
    await bob.join()
    for number in range(1, 51):
        ann.write(number)
        bob.write(number)
    assert await ann.reach(100) == await bob.reach(100) == list(range(1, 101))
    assert set(await broker.get_members(ROOM)) == {"ann", "bob"}
    await one.aclose()
    await two.aclose()
    await repository.aclose()


async def test_a_broker_that_loses_and_repeats_is_mended_from_the_journal() -> None:
    class Bad(InMemoryBroker):
        count = 0

        async def publish(self, room_id: str, msg: Json) -> None:
            self.count += 1
            if self.count % 3 == 0:
                return
            await super().publish(room_id, msg)
            if self.count % 5 == 0:
                await super().publish(room_id, msg)

    async with RTCServer(broker=Bad()) as server:
        ann, bob = Wire(server, "ann"), Wire(server, "bob")
        await ann.join()
        await bob.join()
        for number in range(1, 41):
            ann.write(number)
            await asyncio.sleep(0)
        assert await bob.reach(40) == list(range(1, 41))
        assert await ann.reach(40) == list(range(1, 41))


async def test_routes_on_an_application_of_somebody_elses() -> None:
    async def identify(request: web.Request) -> str:
        if request.query.get("who") is None:
            raise AuthError("who are you?")
        return request.query["who"]

    rooms = RTCServer()
    app = web.Application()
    rooms.routes(app, "/my/rooms/{roomId}", identify=identify)
    async with TestServer(app) as served:
        url = str(served.make_url("/")).rstrip("/")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await Peer.connect(url, "ann", path="/my/rooms/a")
        assert refused.value.status == 401
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await Peer.connect(url, "not a session", path="/my/rooms/a?who=ann")
        assert refused.value.status == 400
        for codec in ("json", "msgpack"):
            path = "/my/rooms/a?who=ann"
            async with await Peer.joined(url, "ann", path=path, codec=codec) as ann:
                assert (await ann.write(id=codec))["mtype"] == "ack"
        async with await Peer.joined(url, "ann", path=path) as ann:
            await rooms.aclose()
            assert (await ann.until("closed"))["code"] == 1001
