"""vuer-rtc rooms over real sockets: the numbered cases of the contract's section 16 that are the
wire's and the server's, 48 to 62; those of the store are in tests/unit/test_vuer_store.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.types import Address
from edge.server import Server
from tests.support.app import running, token
from tests.support.rtc import ROOM, Json, Peer, insert, message, meta, op, pair

pytestmark = pytest.mark.e2e


def ann_token(subject: str = "ann") -> str:
    """May write to every room, and is no admin."""
    return token("rtc:*", write=True, subject=subject)


async def fill(server: Server, count: int) -> list[str]:
    """That many messages, the first of which makes node `n`; their ids.

    By several sessions: one may send 600 at once.
    """
    ids: list[str] = []
    while len(ids) < count:
        name = f"writer{len(ids)}"
        add = op("number.add", "n", "x", 1)
        ops = [add if ids or number else insert("n", x=0) for number in range(400)]
        msgs = [message(name, number, one) for number, one in enumerate(ops)][: count - len(ids)]
        async with await Peer.joined(server, name) as peer:
            await peer.send(*({"mtype": "crdt", "msg": msg} for msg in msgs))
            for msg in msgs:
                assert (await peer.until(_is_answer))["msgId"] == msg["id"]
        ids += [msg["id"] for msg in msgs]
    return ids


def _is_answer(frame: Json) -> bool:
    return frame["mtype"] in ("ack", "error")


async def test_48_and_51_a_repeat_is_answered_with_its_first_number(tmp_path: Path) -> None:
    first = message("ann", 1, insert("n", x=1))
    other = message("ann", 1, insert("n", x=2))
    async with running(tmp_path) as server:
        async with await Peer.joined(server, "ann") as ann, await Peer.joined(server, "bob") as bob:
            assert (await ann.say(first))["serverSeq"] == 1
            for again in (first, other):
                answer = await ann.say(again)
                assert (answer["mtype"], answer["serverSeq"], answer["dup"]) == ("ack", 1, True)
            await ann.write(number=2)
            assert [m["id"] for m in await bob.heard(2)] == ["ann:1", "ann:2"]
        async with await Peer.joined(server, "ann") as ann:
            assert (await ann.say(first))["dup"] is True
    async with running(tmp_path) as server, await Peer.joined(server, "ann") as ann:
        assert (await ann.say(first))["serverSeq"] == 1
        state = ann.seen[0]
        assert state["headSeq"] == 2 and state["journal"][0]["ops"] == first["ops"]


async def test_50_sync_resends_what_follows_in_order(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        for _ in range(5):
            await ann.write()
        await bob.heard(5)
        await bob.send({"mtype": "sync", "since": 2, "requestId": "r"})
        assert [m["serverSeq"] for m in await bob.heard(5)] == [3, 4, 5]
        assert await bob.frame() == {"mtype": "synced", "requestId": "r", "serverSeq": 5}
        await ann.write()
        assert [m["serverSeq"] for m in await bob.heard(6)] == [6]
        for wrong in (7, 1 << 40):
            state = await bob.ask({"mtype": "sync", "since": wrong}, "state")
            assert (state["resume"], state["headSeq"]) == (False, 6)


async def test_sync_by_vector_clock(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, ann, bob):
        for _ in range(3):
            await ann.write()
            await bob.write()
        async with await Peer.joined(server, "eve") as eve:
            await eve.send({"mtype": "sync", "vectorClock": {"ann": 1, "bob": 3}})
            assert [m["id"] for m in await eve.heard(5)] == ["ann:2", "ann:3"]
            assert (await eve.frame())["serverSeq"] == 6
            frame = await eve.ask({"mtype": "sync", "vectorClock": {}, "since": 1}, "error")
            assert frame["error"] == "bad_since"


async def test_52_to_54_undo_over_the_wire(tmp_path: Path) -> None:
    async with running(tmp_path, mode="serve") as server:
        ann = await Peer.joined(server, "ann", token=ann_token())
        bob = await Peer.joined(server, "bob", token=ann_token("bob"))
        async with ann, bob:
            await ann.write(insert("n", x=1))
            answer = await bob.write(meta("undo", "ann:1"))
            assert (answer["error"], answer["retryable"]) == ("forbidden", False)
            answer = await ann.write(meta("undo", "nobody:9"))
            assert answer["error"] == "undo_expired"
            # 54: the undo goes out before its target is acknowledged.
            one = message("ann", 3, op("number.set", "n", "x", 5))
            two = message("ann", 4, meta("undo", "ann:3"))
            await ann.send({"mtype": "crdt", "msg": one}, {"mtype": "crdt", "msg": two})
            assert (await ann.until("ack"))["serverSeq"] == 2
            assert (await ann.until("ack"))["serverSeq"] == 3
            answer = await ann.write(meta("undo", "ann:4"), number=5)
            assert answer["error"] == "invalid_target"
        admin = token(subject="root", admin=True)
        async with await Peer.joined(server, "root", token=admin, mode="graph") as root:
            assert root.seen[0]["snapshot"]["graph"]["nodes"]["n"]["x"] == 1
            assert (await root.write(meta("undo", "ann:1")))["mtype"] == "ack"
            state = root.seen[-2]
            assert state["mtype"] == "state" and state["snapshot"]["graph"]["nodes"] == {}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"lamportTime": 1 << 40}, "clock_skew"),
        ({"lamportTime": -1}, "invalid_message"),
        ({"sessionId": "bob"}, "session_mismatch"),
        ({"ops": [op("no.such", "n", "x", 1)]}, "unknown_otype"),
        ({"ops": [op("number.set", "n", "x", 1 << 60)]}, "invalid_op"),
        ({"ops": [op("vector3.set", "n", "x", [1, 2])]}, "invalid_op"),
        ({"ops": []}, "invalid_message"),
        ({"ops": [op("string.set", "n", "x", "x" * 70_000)]}, "too_large"),
        ({"ops": [op("number.set", "n", "x", 1), meta("undo", "ann:1")]}, "invalid_op"),
        ({"id": ""}, "invalid_message"),
    ],
)
async def test_55_to_57_what_is_refused_takes_no_number(
    tmp_path: Path, change: Json, code: str
) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        await ann.write(insert("n"))
        answer = await ann.say(message("ann", 2, op("number.set", "n", "x", 1)) | change)
        assert answer["error"] == code and answer["retryable"] is False
        assert (await ann.write(number=3))["serverSeq"] == 2
        assert [m["serverSeq"] for m in await bob.heard(2)] == [1, 2]


async def test_56_nan_and_infinity_in_msgpack(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as server,
        await Peer.joined(server, "ann", codec="msgpack") as ann,
    ):
        await ann.write(insert("n"))
        for value in (float("nan"), float("inf")):
            answer = await ann.write(op("number.set", "n", "x", value))
            assert answer["error"] == "invalid_op"
        frame = await ann.ask({"mtype": "presence", "state": {"x": float("nan")}}, "error")
        assert frame["error"] == "invalid_message"


async def test_59_a_thousand_messages_leave_a_hundred(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        async with await Peer.joined(server, "ann") as ann:
            ids = await fill(server, 999)
            before = await ann.hash()
            assert before[0] == 999
            await ann.write(op("number.add", "n", "x", 0))
            beat = await ann.ask({"mtype": "heartbeat"}, "heartbeat")
            assert (beat["floorSeq"], beat["floorAt"], beat["serverSeq"]) == (900, 1000, 1000)
            assert (await ann.write(meta("undo", ids[899])))["error"] == "undo_expired"
            assert (await ann.write(meta("undo", ids[900])))["mtype"] == "ack"
            assert (await ann.write(meta("redo", ids[900])))["mtype"] == "ack"
            assert (await ann.hash())[1] == before[1]
        async with await Peer.joined(server, "bob") as bob:
            state = bob.seen[0]
            assert state["snapshot"]["journalIndex"] == 900
            assert [m["serverSeq"] for m in state["journal"]] == list(range(901, 1003))
            assert state["snapshot"]["graph"]["nodes"]["n"]["x"] == 899
            # 60, with a floor.
            for since, resume in ((899, False), (900, True), (1002, True), (1003, False)):
                state = await bob.join(since=since, epoch=state["epoch"])
                assert state["resume"] is resume


async def test_60_a_cursor_that_cannot_be_gone_on_from(tmp_path: Path) -> None:
    async with running(tmp_path) as server, await Peer.joined(server, "ann") as ann:
        for _ in range(3):
            await ann.write()
        state = await ann.join()
        epoch = state["epoch"]
        assert (state["resume"], len(state["journal"])) == (False, 3)
        for since, of in ((4, epoch), (1, "other"), (1, None), (None, epoch)):
            members: dict[str, Any] = {"since": since, "epoch": of}
            found = await ann.join(**{k: v for k, v in members.items() if v is not None})
            assert found["resume"] is False and len(found["journal"]) == 3
        state = await ann.join(since=1, epoch=epoch)
        assert state["resume"] is True and "snapshot" not in state
        assert [m["serverSeq"] for m in state["journal"]] == [2, 3]


async def test_61_who_joins_while_batches_commit_gets_each_message_once(tmp_path: Path) -> None:
    async with running(tmp_path) as server, await Peer.joined(server, "ann") as ann:
        total = 400

        async def write() -> None:
            for number in range(1, total + 1):
                await ann.send({"mtype": "crdt", "msg": message("ann", number)})

        async def read(name: str) -> list[int]:
            async with await Peer.joined(server, name) as peer:
                state = peer.seen[0]
                got = [m["serverSeq"] for m in state["journal"]]
                if not got or got[-1] < total:
                    got += [m["serverSeq"] for m in await peer.heard(total)]
                return got

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            readers = [group.create_task(read(f"r{n}")) for n in range(8)]
        assert all(task.result() == list(range(1, total + 1)) for task in readers)


async def test_62_a_cleared_room_begins_anew(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, ann, bob):
        await ann.write(insert("n"))
        await bob.heard(1)
        epoch = (await bob.join())["epoch"]
        await server.rooms.clear_room(ROOM)
        for peer in (ann, bob):
            reset = await peer.until("reset")
            state = await peer.frame()
            assert reset["reason"] == "cleared" and reset["epoch"] == state["epoch"] != epoch
            assert state["mtype"] == "state" and state["snapshot"]["graph"]["nodes"] == {}
            assert state["headSeq"] == state["floorSeq"] == 1 + 2**20
            assert state["members"] == []
        assert (await ann.write(insert("m")))["serverSeq"] == 2 + 2**20
        assert [m["serverSeq"] for m in await bob.heard(2 + 2**20)] == [2 + 2**20]
        await ann.ask({"mtype": "heartbeat"}, "heartbeat")
        assert (await bob.until("members"))["joined"][0]["sessionId"] == "ann"


async def test_more_than_a_frame_follows_as_broadcast(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        async with await Peer.joined(server, "ann") as ann:
            for number in range(40):
                await ann.write(insert(f"n{number}", text="x" * 50_000))
        async with await Peer.joined(server, "bob") as bob:
            state = bob.seen[0]
            held = [m["serverSeq"] for m in state["journal"]]
            assert state["more"] is True and len(held) < 40
            rest = [m["serverSeq"] for m in await bob.heard(state["headSeq"])]
            assert held + rest == list(range(state["floorSeq"] + 1, state["headSeq"] + 1))


async def test_prev_keeps_the_order_of_a_session(tmp_path: Path) -> None:
    async with running(tmp_path) as server, await Peer.joined(server, "ann") as ann:
        await ann.write()
        answer = await ann.say(message("ann", 3), prev="ann:2")
        assert (answer["error"], answer["expected"]) == ("missing_prev", "ann:1")
        assert (await ann.say(message("ann", 2), prev="ann:1"))["serverSeq"] == 2
        assert (await ann.say(message("ann", 3), prev="ann:2"))["serverSeq"] == 3


async def test_graph_mode_gets_a_fresh_state_after_an_undo(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        ann = await Peer.joined(server, "ann")
        thin = await Peer.joined(server, "thin", mode="graph")
        async with ann, thin:
            await ann.write(insert("n", x=1))
            await ann.write(op("number.add", "n", "x", 5))
            assert [m["serverSeq"] for m in await thin.heard(2)] == [1, 2]
            await ann.write(meta("undo", "ann:2"))
            state = await thin.until("state")
            assert state["snapshot"]["journalIndex"] == 3 and state["journal"] == []
            assert state["snapshot"]["graph"]["nodes"]["n"]["x"] == 1
            await ann.write(op("number.add", "n", "x", 2))
            assert [m["serverSeq"] for m in await thin.heard(4)] == [4]


@pytest.mark.parametrize("names", ["long", "short"])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_both_codecs_and_both_sets_of_names(tmp_path: Path, codec: str, names: str) -> None:
    async with running(tmp_path) as server:
        odd = await Peer.joined(server, "odd", codec=codec, names=names)
        ann = await Peer.joined(server, "ann")
        async with odd, ann:
            await ann.write(insert("n", title="é☃"))
            (got,) = await odd.heard(1)
            expected = {"client", "lt", "ts"} if names == "short" else {
                "sessionId", "lamportTime", "timestamp"}  # fmt: skip
            assert set(got) - {"id", "clock", "ops", "serverSeq"} == expected
            assert ("ot" in got["ops"][0]) == (names == "short")
            short = message("odd", 1, op("number.set", "n", "x", 1))
            short = {
                "id": "s", "client": "odd", "clock": {"odd": 1}, "lt": 1, "ts": 5,
                "ops": [{"ot" if k == "otype" else k: v for k, v in short["ops"][0].items()}],
            }  # fmt: skip
            assert (await odd.say(short))["serverSeq"] == 2
            (got,) = await ann.heard(2)
            assert (got["sessionId"], got["lamportTime"], got["ops"][0]["otype"]) == (
                "odd", 1, "number.set")  # fmt: skip
            assert (await odd.hash()) == (await ann.hash())


async def test_members_and_presence(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as server,
        await Peer.joined(server, "ann", presence={"at": 1}) as ann,
    ):
        assert [m["sessionId"] for m in ann.seen[0]["members"]] == ["ann"]
        bob = await Peer.joined(server, "bob")
        held = {m["sessionId"]: m for m in bob.seen[0]["members"]}
        assert held["ann"]["presence"] == {"at": 1} and held["ann"]["connected"] is True
        assert (await ann.until("members"))["joined"][0]["sessionId"] == "bob"
        await bob.send({"mtype": "presence", "state": [1, 2]})
        assert await ann.until("presence") == {
            "mtype": "presence", "sessionId": "bob", "state": [1, 2]}  # fmt: skip
        await bob.close()  # without goodbye: the pointer goes at once, the member later
        assert (await ann.until("presence"))["state"] is None
        again = await Peer.joined(server, "bob")
        async with again:
            await again.send({"mtype": "leave"})
            assert (await ann.until("members"))["left"] == ["bob"]
            assert (await again.until("closed"))["code"] == 1000


async def test_the_root_room_by_configuration(tmp_path: Path) -> None:
    async with running(tmp_path, rtc_root=ROOM) as server:
        async with await Peer.joined(server, "ann", path="/rtc") as ann:
            await ann.write()
        assert await head_of(server) == 1


async def head_of(server: Server) -> int:
    return (await server.host.bounds(Address("default", f"rtc:{ROOM}"))).head
