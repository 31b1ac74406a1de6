"""A hostile vuer-rtc client: it harms nobody else, and is told what was wrong."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from actors.dialects.vuer.plan import RoomLimits, VuerDialect
from edge.dialects.vuer import limits
from edge.server import Server
from tests.support.app import RawSocket, masked, one_process_only, running, token, url_of
from tests.support.rtc import ROOM, Peer, insert, message, meta, op, pair, stop_time

pytestmark = pytest.mark.e2e
PATH = f"/rtc/{ROOM}?sessionId=eve"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid_message"),
        ("[]", "invalid_message"),
        ('{"mtype":"nothing"}', "invalid_message"),
        ('{"mtype":["join"]}', "invalid_message"),
        ("[" * 100_000, "invalid_message"),
        ('{"mtype":"crdt","msg":' + '{"a":' * 200 + "1" + "}" * 200 + "}", "invalid_message"),
        ('{"mtype":"crdt","msg":7}', "invalid_message"),
        ('{"mtype":"crdt","msg":{"id":NaN}}', "invalid_message"),
        ('{"mtype":"crdt","msg":{"id":"x","lamportTime":1e400}}', "invalid_message"),
        ('{"mtype":"crdt","msg":{"id":"\\ud800"}}', "invalid_message"),
        ('{"mtype":"join","since":-1}', "bad_since"),
        ('{"mtype":"join","since":1.5}', "bad_since"),
        ('{"mtype":"join","mode":"all"}', "invalid_message"),
        ('{"mtype":"sync"}', "bad_since"),
        ('{"mtype":"heartbeat","vectorClock":{"a":-1}}', "invalid_message"),
        ('{"mtype":"sync-check","requestId":{}}', "invalid_message"),
        ('{"mtype":"presence","state":"' + "x" * 5000 + '"}', "too_large"),
        ("\x00\xff", "invalid_message"),
    ],
)
async def test_frames_that_are_none(tmp_path: Path, text: str, code: str) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        await bob.socket.send_str(text)
        answer = await bob.until("error")
        assert (answer["error"], answer["retryable"]) == (code, False)
        assert "Traceback" not in json.dumps(answer)
        assert (await bob.write(insert("n")))["serverSeq"] == 1
        assert [m["id"] for m in await ann.heard(1)] == ["bob:1"]


async def test_binary_garbage_and_what_only_msgpack_can_say(tmp_path: Path) -> None:
    odd: list[bytes] = [os.urandom(200) for _ in range(20)]
    odd += [
        msgspec.msgpack.encode({"mtype": "crdt", "msg": {"id": b"bytes"}}),
        msgspec.msgpack.encode({"mtype": "crdt", "msg": {1: 2}}),
        msgspec.msgpack.encode({"mtype": "crdt", "msg": {"id": msgspec.msgpack.Ext(5, b"x")}}),
        b"\x81\xa5mtype" + b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of 2^32-1 members
    ]
    async with pair(tmp_path) as (_server, ann, bob):
        for data in odd:
            await bob.socket.send_bytes(data)
            assert (await bob.until("error"))["error"] == "invalid_message"
        await ann.write()
        assert len(await bob.heard(1)) == 1


async def test_nothing_but_errors_closes(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        for _ in range(limits.ERRORS_MAX):
            await bob.socket.send_str("{")
        while (frame := await bob.frame())["mtype"] != "closed":
            assert frame["mtype"] == "error"
        assert frame["code"] == 1008
        assert (await ann.write())["mtype"] == "ack"


async def test_who_has_not_joined_can_only_join(tmp_path: Path) -> None:
    async with running(tmp_path) as server, await Peer.connect(server, "ann") as ann:
        for frame in (
            {"mtype": "crdt", "msg": message("ann", 1)}, {"mtype": "sync", "since": 0},
            {"mtype": "sync-check"}, {"mtype": "heartbeat"}, {"mtype": "presence", "state": 1},
        ):  # fmt: skip
            answer = await ann.ask(frame, "error")
            assert answer["error"] == "not_joined", frame
        assert answer.get("msgId") is None
        assert (await ann.join())["headSeq"] == 0


async def test_a_session_has_one_user_and_one_socket(tmp_path: Path) -> None:
    def of(user: str) -> str:
        return token("rtc:*", write=True, subject=user)

    async with running(tmp_path, mode="serve") as server:
        async with await Peer.joined(server, "s", token=of("ann")) as ann:
            await ann.write(insert("n"))
            async with await Peer.connect(server, "s", token=of("eve")) as eve:
                await eve.send({"mtype": "join"})
                assert (await eve.until("error"))["error"] == "session_taken"
                assert (await eve.until("closed"))["code"] == 4403
            assert (await ann.write())["serverSeq"] == 2  # it stays ann's
            async with await Peer.joined(server, "s", token=of("ann")) as newer:
                assert (await ann.until("closed"))["code"] == 4409
                assert (await newer.write(number=3))["serverSeq"] == 3
        async with await Peer.connect(server, "s", token=of("eve")) as eve:  # ann is just gone
            await eve.send({"mtype": "join"})
            assert (await eve.until("error"))["error"] == "session_taken"


async def test_rights_to_join_to_write_and_to_undo(tmp_path: Path) -> None:
    async with running(tmp_path, mode="serve") as server:
        for bad in (None, "nonsense"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await Peer.connect(server, "ann", token=bad)
            assert refused.value.status == 401
        stranger = token("rtc:other", subject="x")
        async with await Peer.connect(server, "x", token=stranger) as eve:
            await eve.send({"mtype": "join"})
            assert (await eve.until("error"))["error"] == "forbidden"
            assert (await eve.until("closed"))["code"] == 4403
        async with await Peer.joined(server, "r", token=token("rtc:*", subject="r")) as reader:
            answer = await reader.write()
            assert (answer["error"], answer["msgId"]) == ("forbidden", "r:1")
            short = token("rtc:*", write=True, subject="s", ttl_s=2)
            async with await Peer.joined(server, "s", token=short) as soon:
                assert (await soon.write())["serverSeq"] == 1
                assert (await soon.until("closed"))["code"] == 4401
        # Another tenant's room of the same name is another room.
        far = token("rtc:*", write=True, subject="f", tenant="acme")
        async with await Peer.joined(server, "f", token=far) as other:
            assert other.seen[0]["headSeq"] == 0
            assert [m["sessionId"] for m in other.seen[0]["members"]] == ["f"]


@pytest.mark.parametrize(
    "query", ["", "?sessionId=", "?sessionId=a%20b", "?sessionId=a&codec=xml",
              "?sessionId=a&names=odd", "?sessionId=" + "a" * 65],
)  # fmt: skip
async def test_an_upgrade_that_is_none(tmp_path: Path, query: str) -> None:
    async with running(tmp_path) as server, aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(url_of(server, f"/rtc/{ROOM}{query}"))
        assert refused.value.status == 400
        async with http.get(url_of(server, f"/rtc/{ROOM}?sessionId=a")) as plain:
            assert (plain.status, (await plain.json())["code"]) == (400, "bad_frame")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(url_of(server, "/rtc/" + "x" * 300 + "?sessionId=a"))
        assert refused.value.status == 400


async def test_a_flood_is_slowed_down_for_its_sender_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(tmp_path) as (server, ann, bob):
        stop_time(server, monkeypatch)
        flood = limits.MESSAGES_BURST + 200
        frames = [message("bob", n, op("number.add", "x", "y", 1)) for n in range(1, flood + 1)]
        await bob.send(*({"mtype": "crdt", "msg": msg} for msg in frames))
        answers = [await bob.until(lambda f: f["mtype"] in ("ack", "error")) for _ in range(flood)]
        limited = [frame for frame in answers if frame["mtype"] == "error"]
        assert len(limited) == 200
        for answer in limited:
            assert answer["error"] == "rate_limited" and answer["retryAfterMs"] > 0
            assert answer["retryable"] is True
        assert (await ann.write())["mtype"] == "ack"


async def test_frames_of_a_mebibyte_and_one_byte_more(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        room = limits.FRAME_BYTES_MAX - len('{"mtype":"crdt","msg":{"id":"b"},"x":""}')
        await bob.socket.send_str('{"mtype":"crdt","msg":{"id":"b"},"x":"' + "x" * room + '"}')
        assert (await bob.until("error"))["error"] == "invalid_message"
        await bob.socket.send_str("x" * (limits.FRAME_BYTES_MAX + 1))
        assert (await bob.until("closed"))["code"] == 1009
        assert (await ann.write())["mtype"] == "ack"


async def test_who_never_reads_is_dropped_and_holds_up_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, stall_s=1.0) as server:
        deaf = await RawSocket.upgraded(server, path=PATH)
        async with deaf, await Peer.joined(server, "ann") as ann:
            await deaf.write(masked(1, b'{"mtype":"join"}'))
            assert b'"state"' in (await deaf.frame())[1]
            await ann.write(insert("n"))
            for number in range(400):
                answer = await ann.write(op("string.set", "n", "t", str(number) + "x" * 30_000))
                assert answer["mtype"] == "ack"
            await until(lambda: len(server.rooms.connections) == 1)
        async with await Peer.joined(server, "bob") as bob:
            assert bob.seen[0]["headSeq"] == 401


async def test_who_reads_late_misses_nothing(tmp_path: Path) -> None:
    """Where the journal no longer reaches back so far, a whole `state` takes its place."""
    async with pair(tmp_path) as (_server, ann, bob):
        await ann.write(insert("n"))
        for number in range(400):  # 12 MB, while bob reads nothing
            await ann.write(op("string.set", "n", "t", str(number) + "x" * 30_000))
        at = 0
        while at < 401:
            frame = await bob.until(lambda f: f["mtype"] in ("broadcast", "state"))
            if frame["mtype"] == "state":
                at = frame["floorSeq"]
                got = frame["journal"]
            else:
                got = frame.get("msgs") or [frame["msg"]]
            assert [m["serverSeq"] for m in got] == list(range(at + 1, at + 1 + len(got)))
            at += len(got)
        assert (await bob.hash()) == (await ann.hash())


async def test_a_liar_about_lamport_and_clock_harms_nobody(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        await ann.write(insert("n", x=1))
        far = message("bob", 1, op("number.set", "n", "x", 666), lamport=1 << 53)
        assert (await bob.say(far))["error"] == "clock_skew"
        lying = message("bob", 2, op("number.set", "n", "x", 2)) | {"clock": {"ann": 9999}}
        assert (await bob.say(lying))["mtype"] == "ack"
        assert (await ann.write(op("number.set", "n", "x", 3), lamport=50))["mtype"] == "ack"
        state = await ann.join()
        assert state["snapshot"]["vectorClock"]["ann"] == 2  # as ann counts, not as bob says
        assert state["lamportTime"] == 50
        async with await Peer.joined(_server, "eve", mode="graph") as eve:
            assert eve.seen[0]["snapshot"]["graph"]["nodes"]["n"]["x"] == 3


async def test_who_grows_a_string_is_refused_and_makes_nobodys_messages_dear(
    tmp_path: Path,
) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        await ann.write(insert("big"), insert("small"))
        grow = op("string.concat", "big", "s", "x" * 60_000)
        answers = [await bob.write(grow) for _ in range(25)]
        taken = [frame["mtype"] for frame in answers].count("ack")
        assert taken == 17  # 1 MiB
        for answer in answers[taken:]:
            assert (answer["error"], answer["retryable"]) == ("too_large", False)
            assert "set shorter values" in answer["message"]
        (wal,) = (path for path in tmp_path.rglob("*-wal") if path.stat().st_size > 1_000_000)
        before = wal.stat().st_size
        for _ in range(10):
            assert (await ann.write(op("number.add", "small", "x", 1)))["mtype"] == "ack"
            assert (await bob.write(grow))["error"] == "too_large"
        assert wal.stat().st_size - before < 10 * 64 * 1024  # pages, not the mebibyte
        assert (await bob.write(op("string.set", "big", "s", "")))["mtype"] == "ack"
        assert (await bob.write(grow))["mtype"] == "ack"
        assert await bob.hash() == await ann.hash()


def with_limits(server: Server, **limits: int) -> None:
    """Rooms of that server hold less: the real limits take minutes to reach."""
    dialect = VuerDialect(limits=RoomLimits(**limits))
    server.host.settings.dialects = {dialect.name: dialect}


@one_process_only
async def test_a_room_that_many_medium_nodes_fill_up(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        with_limits(server, room_bytes_max=2_000_000)
        async with (
            await Peer.joined(server, "ann") as ann,
            await Peer.joined(server, "bob") as bob,
            await Peer.joined(server, "eve", room="elsewhere") as eve,
        ):
            await ann.write(insert("n", x=1))
            answers = [await bob.write(insert(f"m{i}", s="x" * 50_000)) for i in range(50)]
            taken = [frame["mtype"] for frame in answers].count("ack")
            assert taken == 39
            assert {frame.get("error") for frame in answers[taken:]} == {"too_large"}
            for number in range(20):
                assert (await ann.write(op("number.set", "n", "x", number)))["mtype"] == "ack"
            assert (await eve.write(insert("m", s="x" * 50_000)))["mtype"] == "ack"
            assert (await bob.write(op("string.set", "m0", "s", "")))["mtype"] == "ack"
            assert (await bob.write(insert("late", s="x" * 40_000)))["mtype"] == "ack"
            joined = await ann.join(since=0)
            assert len(joined["snapshot"]["graph"]["nodes"]) <= 41
            assert await ann.hash() == await bob.hash()


@one_process_only
async def test_a_room_at_its_number_of_nodes_takes_edits_and_no_node(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        with_limits(server, nodes_max=3)
        async with await Peer.joined(server, "ann") as ann, await Peer.joined(server, "b") as bob:
            for name in ("n", "m", "l"):
                assert (await ann.write(insert(name)))["mtype"] == "ack"
            answer = await bob.write(insert("one more"))
            assert (answer["error"], answer["retryable"]) == ("too_large", False)
            assert "at most 3 nodes" in answer["message"]
            for each in (
                op("number.set", "n", "x", 7), {"otype": "node.upsert", "key": "m", "path": "-",
                "value": {"y": 8}}, {"otype": "node.remove", "key": "l", "path": "-"},
            ):  # fmt: skip
                assert (await bob.write(each))["mtype"] == "ack", each
            nodes = (await ann.join(mode="graph"))["snapshot"]["graph"]["nodes"]
            assert (nodes["n"]["x"], nodes["m"]["y"]) == (7, 8)
            assert nodes["l"]["_crdt"]["del"] is not None and "one more" not in nodes


async def test_a_join_that_never_comes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(limits, "JOIN_WAIT_S", 0.5)
    async with running(tmp_path) as server, await Peer.connect(server, "ann") as ann:
        assert (await ann.until("closed"))["code"] == 4408


async def test_silence_closes_and_pongs_do_not_count_as_silence(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(limits, "SILENCE_S", 2.0)
    async with running(tmp_path) as server:
        dumb = await RawSocket.upgraded(server, path=PATH)
        async with dumb, await Peer.joined(server, "ann") as ann:
            await dumb.write(masked(1, b'{"mtype":"join"}'))
            closing = asyncio.ensure_future(dumb.close_code())
            members = await ann.until(lambda f: f["mtype"] == "members")  # its socket lives
            assert members["joined"][0]["sessionId"] == "eve"
            listening = asyncio.ensure_future(ann.until("presence"))  # so that ann answers pings
            assert await closing == 4408
            listening.cancel()
            await asyncio.wait([listening])
            assert (await ann.write())["mtype"] == "ack"


async def test_undo_of_much_is_bounded(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, _bob):
        await ann.write(insert("n"))
        for _ in range(3):
            many = [meta("undo", "ann:1"), meta("redo", "ann:1")] * 400
            assert (await ann.write(*many))["mtype"] == "ack"
        assert (await ann.write(*([meta("undo", "ann:1")] * 1001)))["error"] == "invalid_message"


async def until(reached: Any) -> None:
    """Poll for what no frame tells."""
    async with asyncio.timeout(20):
        while not reached():
            await asyncio.sleep(0.02)


async def test_the_server_is_as_it_was(tmp_path: Path) -> None:
    """Nothing of a room stays in memory once everyone has left it."""
    async with running(tmp_path) as server:
        for number in range(30):
            async with await Peer.joined(server, f"p{number}", room=f"r{number}") as peer:
                await peer.write()
                await peer.send({"mtype": "leave"})
                await peer.until("closed")
        await until(lambda: not server.rooms.connections)
        assert len(server.rooms.feeds) == 0 and rosters_of(server) == 0


def rosters_of(server: Server) -> int:
    return len(server.rooms._rosters)
