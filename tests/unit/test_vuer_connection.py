"""Connections of an embedded `RTCServer`: their times, on the test's clock, and their rights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from actors.host import Host
from edge.dialects.vuer import limits
from edge.dialects.vuer.journal import JournalService
from edge.dialects.vuer.repositories import LedgerRepository
from edge.dialects.vuer.server import RTCServer
from tests.support.rtc import insert, meta, op
from tests.support.rtc_wire import ROOM, Clock, Wire

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


async def test_the_allowance_is_the_sessions_and_not_its_sockets() -> None:
    """Connecting anew gives no new one, whether the session was replaced, lost or said goodbye."""
    clock = Clock()
    async with RTCServer(now_ms=clock.now_ms, monotonic=clock.monotonic) as server:
        taken = 0
        for turn in range(4):
            wire = Wire(server, "ann")
            await wire.join()
            for number in range(limits.MESSAGES_BURST // 2):
                wire.write(1 + turn * 1000 + number, op("number.add", "n", "x", 1))
            for _ in range(limits.MESSAGES_BURST // 2):
                frame = await wire.until(lambda frame: frame["mtype"] in ("ack", "error"))
                taken += frame["mtype"] == "ack"
                assert frame["mtype"] == "ack" or frame["error"] == "rate_limited"
            if turn == 1:
                wire.say({"mtype": "leave"})
            elif turn == 2:
                wire.connection.close()
        assert taken == limits.MESSAGES_BURST
        other = Wire(server, "bob")
        await other.join()
        other.write(1)
        assert (await other.until("ack"))["serverSeq"] == limits.MESSAGES_BURST + 1
        elsewhere = Wire(server, "ann", room="elsewhere")
        await elsewhere.join()
        elsewhere.write(1)
        await elsewhere.until("ack")
        clock.now += 1
        for number in range(limits.MESSAGES_PER_S + 1):
            wire.write(9000 + number, op("number.add", "n", "x", 1))
        answers = [
            (await wire.until(lambda frame: frame["mtype"] in ("ack", "error")))["mtype"]
            for _ in range(limits.MESSAGES_PER_S + 1)
        ]
        assert (answers.count("ack"), answers.count("error")) == (limits.MESSAGES_PER_S, 1)
        server.tick()
        assert len(server._allowances) == 1  # those of one message are full again
        clock.now += limits.MESSAGES_BURST / limits.MESSAGES_PER_S
        server.tick()
        assert len(server._allowances) == 0


async def test_a_session_that_has_written_stays_its_users(tmp_path: Path) -> None:
    """Beyond the time its member is kept, and in another server over the same files."""
    clock = Clock()

    def server_of(host: Host) -> RTCServer:
        return RTCServer(
            JournalService(LedgerRepository(host)), now_ms=clock.now_ms, monotonic=clock.monotonic
        )

    async def refused(server: RTCServer) -> bool:
        eve = Wire(server, "s", user="eve")
        eve.say({"mtype": "join"})
        error = await eve.until("error")
        assert eve.connection.closed
        return bool(error["error"] == "session_taken")

    async with Host(tmp_path) as host, server_of(host) as server:
        ann = Wire(server, "s", user="ann")
        await ann.join()
        ann.write(1, insert("n"))
        await ann.until("ack")
        idle = Wire(server, "idle", user="ann")
        await idle.join()
        idle.connection.close()
        ann.connection.close()
        clock.now += limits.MEMBER_TTL_S + 1
        server.tick()
        assert await refused(server)
        await Wire(server, "idle", user="eve").join()  # it has said nothing: it is free again
    async with Host(tmp_path) as host, server_of(host) as server:
        assert await refused(server)
        back = Wire(server, "s", user="ann")
        assert (await back.join())["headSeq"] == 1
        back.write(2)
        await back.until("ack")


async def test_two_users_who_join_as_one_session_on_two_servers(tmp_path: Path) -> None:
    """Neither server sees the other's members: the room's writer decides."""
    async with (
        Host(tmp_path) as host,
        RTCServer(JournalService(LedgerRepository(host))) as one,
        RTCServer(JournalService(LedgerRepository(host))) as two,
    ):
        ann, eve = Wire(one, "s", user="ann"), Wire(two, "s", user="eve")
        await ann.join()
        await eve.join()
        ann.write(1, insert("n"))
        await ann.until("ack")
        eve.write(2, meta("undo", "s:1"))
        error = await eve.until("error")
        assert (error["error"], error["retryable"]) == ("session_taken", False)
        ann.write(3)
        assert (await ann.until("ack"))["serverSeq"] == 2


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
