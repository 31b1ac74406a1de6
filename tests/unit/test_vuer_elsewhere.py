"""A room over two edges: members and presence of one are seen at the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edge.dialects.vuer import limits
from edge.dialects.vuer.actor_broker import ActorBroker
from edge.dialects.vuer.journal import JournalService
from edge.dialects.vuer.repositories import LedgerRepository
from edge.dialects.vuer.server import RTCServer
from tests.support.edges import Edges, until
from tests.support.rtc_wire import ROOM, Clock, Wire


class Rooms:
    """Two servers of rooms, each over an edge of its own, and their clock."""

    def __init__(self, edges: Edges) -> None:
        self.edges = edges
        self.clock = Clock()
        self.servers: list[RTCServer] = []

    async def server(self) -> RTCServer:
        port = await self.edges.edge()
        server = RTCServer(
            JournalService(LedgerRepository(port)), ActorBroker(port),
            now_ms=self.clock.now_ms, monotonic=self.clock.monotonic,
        )  # fmt: skip
        self.servers.append(server)
        return server


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    async with Edges(tmp_path) as edges:
        rooms = Rooms(edges)
        yield rooms
        for server in rooms.servers:
            await server.aclose()


def sessions(state: dict[str, Any]) -> dict[str, Any]:
    return {member["sessionId"]: member["presence"] for member in state["members"]}


def left(*names: str) -> Any:
    return lambda frame: frame.get("left") == list(names)


def joined(name: str) -> Any:
    return lambda frame: [one["sessionId"] for one in frame.get("joined", [])] == [name]


async def test_members_and_presence_of_another_edge(rooms: Rooms) -> None:
    one, two = await rooms.server(), await rooms.server()
    ann, bob = Wire(one, "ann"), Wire(two, "bob")
    await ann.join(presence={"at": 1})
    state = await bob.join()
    assert sessions(state) == {"ann": {"at": 1}, "bob": None}
    await ann.until(joined("bob"))
    bob.say({"mtype": "presence", "state": {"at": 2}})
    frame = await ann.until("presence")
    assert (frame["sessionId"], frame["state"]) == ("bob", {"at": 2})
    assert set(await one.broker.get_members(ROOM)) == {"ann", "bob"}
    bob.say({"mtype": "leave"})
    await ann.until(left("bob"))
    await until(lambda: not two._elsewhere and not two._rosters)
    eve = Wire(two, "eve")
    assert sessions(await eve.join()) == {"ann": {"at": 1}, "eve": None}


async def test_a_socket_that_is_gone_takes_its_presence_and_later_its_member(rooms: Rooms) -> None:
    one, two = await rooms.server(), await rooms.server()
    ann, bob = Wire(one, "ann"), Wire(two, "bob")
    await ann.join()
    await bob.join(presence={"at": 2})
    await ann.until("presence")
    bob.connection.close()
    assert (await ann.until("presence"))["state"] is None
    roster = one._rosters[ann.connection.address]
    assert (member := roster.state("bob")) is not None and not member.connected
    rooms.clock.now += limits.MEMBER_TTL_S + 1
    ann.say({"mtype": "heartbeat"})
    one.tick()
    assert roster.state("bob"), "it is the other edge's to say"
    two.tick()
    await ann.until(left("bob"))
    await until(lambda: len(two._rosters) == 0)


async def test_an_edge_that_is_lost_takes_its_members_along(rooms: Rooms) -> None:
    one, two = await rooms.server(), await rooms.server()
    ann, bob = Wire(one, "ann"), Wire(two, "bob")
    await ann.join()
    await bob.join(presence={"at": 2})
    await ann.until("presence")
    for link in tuple(rooms.edges.serving.links):
        if link.peer == "edge-1":
            link.close()
    await ann.until(left("bob"))
    await ann.until(joined("bob"))  # its link is there again
    assert (await ann.until("presence"))["state"] == {"at": 2}


async def test_the_newest_socket_of_a_session_wins_on_every_edge(rooms: Rooms) -> None:
    one, two = await rooms.server(), await rooms.server()
    ann, old = Wire(one, "ann"), Wire(one, "bob")
    await ann.join()
    await old.join(presence={"at": 2})
    await ann.until("presence")
    new = Wire(two, "bob")
    assert sessions(await new.join()) == {"ann": None, "bob": {"at": 2}}
    await until(lambda: old.connection.closed)
    ann.say({"mtype": "heartbeat"})
    await ann.until("heartbeat")
    assert not any(frame.get("left") for frame in ann.frames)
    assert not new.connection.closed
    new.connection.close()
    while (await ann.until("presence"))["state"] is not None:
        pass  # taken back by the edge that had it last


async def test_a_session_is_its_users_on_every_edge(rooms: Rooms) -> None:
    one, two = await rooms.server(), await rooms.server()
    ann = Wire(one, "ann", user="ada")
    await ann.join()
    thief = Wire(two, "ann", user="mallory")
    thief.say({"mtype": "join"})
    assert (await thief.until("error"))["error"] == "session_taken"
    assert thief.connection.closed and not ann.connection.closed
    await until(lambda: not two._rosters or not two._rosters[ann.connection.address].any_here)
    two.tick()
    assert not two._rosters


async def test_two_users_who_join_as_one_session_at_once(rooms: Rooms) -> None:
    """Whichever is first at the room's process stays, and only that one."""
    one, two = await rooms.server(), await rooms.server()
    both = [Wire(one, "ann", user="ada"), Wire(two, "ann", user="mallory")]
    for wire in both:
        wire.say({"mtype": "join"})
    await until(lambda: sum(wire.connection.closed for wire in both) == 1)
    (stays,) = [wire for wire in both if not wire.connection.closed]
    stays.say({"mtype": "heartbeat"})
    await stays.until("heartbeat")
    assert not stays.connection.closed
    third = Wire(two, "eve")
    assert set(sessions(await third.join())) == {"ann", "eve"}


async def test_a_socket_lost_elsewhere_late_does_not_end_the_new_one(rooms: Rooms) -> None:
    one, two = await rooms.server(), await rooms.server()
    new = Wire(two, "bob")
    await new.join()
    roster = two._rosters[new.connection.address]
    state = roster.state("bob")
    assert state is not None
    # As an edge says it that noticed the end of its socket only after the client joined here.
    lost = Wire(one, "ann")
    await lost.join()
    elsewhere = one._elsewhere[new.connection.address]
    await until(lambda: elsewhere.line.other(("member", "bob")))
    elsewhere.member(new.connection.user_id, replace(state, connected=False))
    await until(lambda: elsewhere.line.other(("member", "bob")))
    assert not new.connection.closed and roster.holder("bob") is new.connection


async def test_a_clear_leaves_nobody_a_member_until_the_next_heartbeat(rooms: Rooms) -> None:
    one, two = await rooms.server(), await rooms.server()
    ann, bob = Wire(one, "ann"), Wire(two, "bob")
    await ann.join()
    await bob.join(presence={"at": 2})
    await ann.until("presence")
    gone = Wire(two, "gone")
    await gone.join()
    gone.connection.close()
    there = one._elsewhere[ann.connection.address].line
    await until(lambda: there.other(("member", "gone")))
    ann.write(1)
    await bob.until("broadcast")
    await two.clear_room(ROOM)
    await until(lambda: not there.other(("member", "gone")))
    for wire in (ann, bob):
        await wire.until("reset")
        assert sessions(await wire.until("state")) == {}
    late = Wire(one, "late")
    assert sessions(await late.join()) == {"late": None}
    bob.say({"mtype": "heartbeat"})
    await ann.until(joined("bob"))
    ann.say({"mtype": "heartbeat"})
    await bob.until(joined("ann"))


async def test_a_room_without_anybody_of_an_edge_is_not_followed(rooms: Rooms) -> None:
    one, two = await rooms.server(), await rooms.server()
    ann, bob = Wire(one, "ann"), Wire(two, "bob")
    await ann.join()
    await bob.join()
    bob.say({"mtype": "leave"})
    await ann.until(left("bob"))
    await until(lambda: not two._elsewhere)
    await asyncio.sleep(0)
    assert await two.broker.get_members(ROOM) == {}
