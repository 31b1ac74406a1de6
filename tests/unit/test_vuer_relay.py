"""`RTCServer` embedded in another program: relaying between connections over `send` callables,
members on an injected clock, brokers of every kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from actors.host import Host
from actors.types import Bounds
from edge.dialects.vuer import frames as f
from edge.dialects.vuer import limits
from edge.dialects.vuer.actor_broker import ActorBroker
from edge.dialects.vuer.broker import InMemoryBroker
from edge.dialects.vuer.connection import RtcConnection
from edge.dialects.vuer.feed import cut_reason
from edge.dialects.vuer.journal import JournalService
from edge.dialects.vuer.repositories import InMemoryRepository, LedgerRepository
from edge.dialects.vuer.server import RTCServer
from infra.errors import AuthError
from tests.support.app import PATIENCE_S
from tests.support.rtc import Json, Peer, insert, message, meta, op

ROOM = "studio"


class Clock:
    """Seconds that move when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def now_ms(self) -> int:
        return int(self.now * 1000)


class Wire:
    """A client of `connect(send)`: what it was sent, as it came."""

    def __init__(
        self, server: RTCServer, session: str, *, user: Any = "u", room: str = ROOM,
        format: f.Format = f.JSON,
    ) -> None:  # fmt: skip
        self.frames: list[Json] = []
        self.session = session
        self.hold: asyncio.Event | None = None
        self._news = asyncio.Event()
        self._read = 0
        self.connection: RtcConnection = server.connect(self, room, session, user, format=format)

    def send(self, frame: str | bytes) -> Any:
        """What the server calls; awaits where the test holds it."""
        return self._held(frame) if self.hold is not None else self._take(frame)

    async def _held(self, frame: str | bytes) -> None:
        assert self.hold is not None
        await self.hold.wait()
        self._take(frame)

    def _take(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            self.frames.append(msgspec.json.decode(frame))
        else:
            self.frames.append(msgspec.msgpack.decode(frame))
        self._news.set()

    def say(self, frame: Json) -> None:
        self.connection.handle_message(msgspec.json.encode(frame).decode())

    def write(self, number: int, *ops: Json) -> None:
        self.say({"mtype": "crdt", "msg": message(self.session, number, *ops)})

    async def until(self, wanted: str | Callable[[Json], bool]) -> Json:
        """The next frame of the type, or that the function takes."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self._read < len(self.frames):
                    frame = self.frames[self._read]
                    self._read += 1
                    if frame["mtype"] == wanted or (callable(wanted) and wanted(frame)):
                        return frame
                self._news.clear()
                await self._news.wait()

    async def join(self, **members: Any) -> Json:
        self.say({"mtype": "join", **members})
        return await self.until("state")

    def seqs(self) -> list[int]:
        """Every serverSeq so far, whether as broadcast or as ack."""
        found: list[int] = []
        for frame in self.frames:
            if frame["mtype"] == "broadcast":
                found += [m["serverSeq"] for m in frame.get("msgs") or [frame["msg"]]]
            elif frame["mtype"] == "ack" and not frame.get("dup"):
                found.append(frame["serverSeq"])
        return found

    async def reach(self, seq: int) -> list[int]:
        async with asyncio.timeout(PATIENCE_S):
            while seq not in self.seqs():
                self._news.clear()
                await self._news.wait()
        return self.seqs()


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


# -- time ------------------------------------------------------------------------------------------


async def test_a_member_is_removed_45_s_after_its_socket_is_gone() -> None:
    clock = Clock()
    async with RTCServer(now_ms=clock.now_ms, monotonic=clock.monotonic) as server:
        ann, bob = Wire(server, "ann"), Wire(server, "bob")
        await ann.join()
        await bob.join(presence={"at": 1})
        clock.now += 10
        bob.connection.close()
        await asyncio.sleep(0)
        held = await server.broker.get_members(ROOM)
        assert held["bob"].connected is False and held["bob"].last_seen == 1_000_000
        clock.now += limits.MEMBER_TTL_S - 1
        ann.say({"mtype": "heartbeat"})
        await ann.until("heartbeat")
        server.tick()
        await asyncio.sleep(0)
        assert "bob" in await server.broker.get_members(ROOM)
        clock.now += 1
        server.tick()
        assert (await ann.until(lambda frame: frame.get("left") == ["bob"]))["joined"] == []
        await asyncio.sleep(0)
        held = await server.broker.get_members(ROOM)
        assert list(held) == ["ann"] and held["ann"].last_seen == 1_054_000


async def test_4408_for_who_does_not_join_or_says_nothing() -> None:
    clock = Clock()
    async with RTCServer(now_ms=clock.now_ms, monotonic=clock.monotonic) as server:
        late, quiet, alive = (Wire(server, name) for name in ("late", "quiet", "alive"))
        await quiet.join()
        await alive.join()
        clock.now += limits.JOIN_WAIT_S + 0.1
        server.tick()
        assert late.connection.closed and not quiet.connection.closed
        clock.now += limits.SILENCE_S - limits.JOIN_WAIT_S
        alive.say({"mtype": "heartbeat"})
        server.tick()
        assert quiet.connection.closed and not alive.connection.closed


async def test_presence_is_told_at_most_every_33_ms() -> None:
    clock = Clock()
    async with RTCServer(now_ms=clock.now_ms, monotonic=clock.monotonic) as server:
        ann, bob = Wire(server, "ann"), Wire(server, "bob")
        await ann.join()
        await bob.join()
        for number in range(50):
            bob.say({"mtype": "presence", "state": number})
        assert (await ann.until("presence"))["state"] == 0
        clock.now += 1
        assert (await ann.until("presence"))["state"] == 49
        assert sum(frame["mtype"] == "presence" for frame in ann.frames) == 2


# -- rights ----------------------------------------------------------------------------------------


async def test_authorize_is_asked_and_a_broken_one_denies() -> None:
    asked: list[tuple[Any, str, str]] = []

    async def authorize(user: Any, room_id: str, action: str) -> bool:
        asked.append((user, room_id, action))
        if user == "broken":
            raise RuntimeError("no door opens by this")
        return (user, action) != ("reader", "write") and action != "undo_any"

    async with RTCServer(authorize=authorize) as server:
        writer = Wire(server, "w", user="writer")
        await writer.join()
        writer.write(1, insert("n"))
        assert (await writer.until("ack"))["serverSeq"] == 1
        reader = Wire(server, "r", user="reader")
        await reader.join()
        reader.write(1)
        assert (await reader.until("error"))["error"] == "forbidden"
        broken = Wire(server, "b", user="broken")
        broken.say({"mtype": "join"})
        assert (await broken.until("error"))["error"] == "forbidden"
        assert broken.connection.closed
    assert asked[:3] == [("writer", ROOM, "join"), ("writer", ROOM, "write"),
                         ("writer", ROOM, "undo_any")]  # fmt: skip


async def test_what_waits_for_a_slow_authorize_is_bounded() -> None:
    answer = asyncio.Event()

    async def authorize(user: Any, room_id: str, action: str) -> bool:
        if user == "slow":
            await answer.wait()
        return True

    async with RTCServer(authorize=authorize) as server:
        slow, ann = Wire(server, "slow", user="slow"), Wire(server, "ann")
        await ann.join()
        slow.say({"mtype": "join"})
        await asyncio.sleep(0)  # it is being asked
        for _ in range(limits.INBOX_MAX):
            slow.say({"mtype": "heartbeat"})
        assert not slow.connection.closed
        slow.say({"mtype": "heartbeat"})
        assert slow.connection.closed and slow.frames == []
        newer = Wire(server, "slow", user="slow")  # comes back while the first is still asked for
        newer.say({"mtype": "join"})
        answer.set()
        await newer.until("state")
        ann.write(1)
        assert await newer.reach(1) == await ann.reach(1) == [1]
        assert not newer.connection.closed
        assert (await server.broker.get_members(ROOM))["slow"].connected


async def test_undo_of_others_where_it_is_allowed() -> None:
    async with RTCServer(
        authorize=lambda user, room, action: action != "undo_any" or user == "root"
    ) as server:
        ann, root = Wire(server, "ann", user="ann"), Wire(server, "root", user="root")
        await ann.join()
        await root.join()
        root.write(1, insert("n"))
        await root.until("ack")
        ann.write(1, meta("undo", "root:1"))
        assert (await ann.until("error"))["error"] == "forbidden"
        ann.write(2, insert("m"))
        await ann.until("ack")
        root.write(2, meta("undo", "ann:2"))
        assert (await root.until("ack"))["serverSeq"] == 3


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
