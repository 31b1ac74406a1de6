"""vuer-rtc over real sockets: the error and close codes of section 11 that no other file meets, and
what `sync`, `heartbeat` and a change of mode answer. The numbered cases: test_vuer_edges.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors import dedupe
from actors.dialects.vuer import sessions
from actors.ledger import Ledger
from actors.replication import RESTORE_JUMP
from actors.types import Address
from edge.dialects.vuer import limits
from infra.errors import Busy, Closed, HoldfastError, StorageError
from infra.paths import ledger_path
from tests.support.app import PATIENCE_S, RawSocket, masked, one_process_only, running
from tests.support.rtc import ROOM, Json, Peer, insert, message, op, pair, stop_time

pytestmark = pytest.mark.e2e


def text_insert(id: str, content: str, after: str | None = None) -> Json:
    return op("text.insert", "n", "t", [after, content]) | {"id": id}


async def test_text_id_conflict_is_told_to_its_author_alone(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        await ann.write(insert("n"))
        assert (await ann.write(text_insert("ann:10", "hello")))["serverSeq"] == 2
        for again in ("ann:10", "ann:14"):  # all of it, or its last character
            answer = await ann.write(text_insert(again, "xy"))
            assert (answer["error"], answer["retryable"]) == ("text_id_conflict", False)
        assert (await bob.write(text_insert("bob:1", " you", "ann:14")))["serverSeq"] == 3
        assert [m["id"] for m in await ann.heard(3)] == ["bob:1"]
        assert (await ann.hash()) == (await bob.hash())


async def test_a_position_comes_back_as_an_anchor(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        await ann.write(insert("n"), text_insert("ann:10", "held"))
        answer = await bob.write({
            "otype": "text.insert", "key": "n", "path": "t", "position": 2, "value": "l"
        })  # fmt: skip
        (sent,) = answer["msg"]["ops"]
        assert (sent["value"], "position" in sent) == (["ann:11", "l"], False)
        (heard,) = await ann.heard(2)
        assert heard == answer["msg"]


async def test_too_old_beyond_the_ids_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedupe, "GENERATION", 10)
    monkeypatch.setattr(sessions, "WINDOW_MAX", 10)
    monkeypatch.setattr(sessions, "_MARK_SEQS", 2)
    async with pair(tmp_path) as (_server, ann, bob):
        for _ in range(30):
            await ann.write()
        answer = await ann.write(number=29)
        assert (answer["dup"], answer["serverSeq"]) == (True, 29)
        answer = await ann.write(number=1)
        assert (answer["error"], answer["retryable"]) == ("too_old", False)
        assert (await ann.write(number=31))["serverSeq"] == 31
        assert (await bob.write(number=1))["serverSeq"] == 32  # another session's counter


@pytest.mark.parametrize(
    ("error", "code", "after_ms"),
    [
        (Busy("full", retry_after_ms=70), "moved", 70),
        (Closed("closing"), "moved", 1000),
        (StorageError("disk", code="fenced"), "moved", 1000),
        (StorageError("what nobody expects", code="odd"), "internal", 1000),
    ],
)
async def test_what_the_server_cannot_do_now_may_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HoldfastError, code: str, after_ms: int
) -> None:
    async with pair(tmp_path) as (server, ann, bob):
        await ann.write()

        def refuse(*args: Any) -> None:
            raise error

        with monkeypatch.context() as broken:
            broken.setattr(server.rooms.journal.repository, "append", refuse)
            answer = await ann.write(number=2)
        assert (answer["error"], answer["retryable"]) == (code, True)
        assert (answer["msgId"], answer["retryAfterMs"]) == ("ann:2", after_ms)
        assert (await ann.write(number=2))["serverSeq"] == 2
        assert [m["id"] for m in await bob.heard(2)] == ["ann:1", "ann:2"]


async def test_1001_when_the_server_goes(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        ann = await Peer.joined(server, "ann")
        waiting = await Peer.connect(server, "bob")  # has not joined
        assert (await ann.write())["mtype"] == "ack"
    for peer in (ann, waiting):
        assert (await peer.until("closed"))["code"] == 1001
        await peer.close()


async def test_4429_for_who_takes_no_byte(tmp_path: Path) -> None:
    """It is told where it reads at last, within what a close may linger."""
    async with running(tmp_path, stall_s=PATIENCE_S / 10) as server:
        deaf = await RawSocket.upgraded(server, path=f"/rtc/{ROOM}?sessionId=eve")
        async with deaf, await Peer.joined(server, "ann") as ann:
            await deaf.write(masked(1, b'{"mtype":"join"}'))
            assert b'"state"' in (await deaf.frame())[1]
            (held,) = [c for c in server.rooms.connections if c.session_id == "eve"]
            await ann.write(insert("n"))
            number = 0
            while not held.closed:
                number += 1
                value = str(number) + "x" * 30_000
                await ann.write(op("string.set", "n", "t", value))
            assert await deaf.close_code() == 4429


async def test_a_sync_from_below_the_floor_is_answered_by_state(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, ann, bob):
        for _ in range(130):
            await ann.write()
        await server.rooms.journal.compact(ROOM)
        beat = await ann.ask({"mtype": "heartbeat"}, "heartbeat")
        assert (beat["floorSeq"], beat["floorAt"]) == (30, 130)
        await bob.heard(130)
        for since, first in ((30, "broadcast"), (29, "state"), (0, "state")):
            await bob.send({"mtype": "sync", "since": since, "requestId": since})
            frame = await bob.frame()
            assert frame["mtype"] == first, since
            told = frame["journal"] if first == "state" else frame["msgs"]
            assert [m["serverSeq"] for m in told] == list(range(31, 131))
            synced = await bob.until("synced")
            assert (synced["requestId"], synced["serverSeq"]) == (since, 130)


async def test_a_heartbeat_is_answered_and_shown_to_who_joins(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, ann, _bob):
        await ann.write()
        beat = await ann.ask(
            {"mtype": "heartbeat", "sessionId": "ann", "vectorClock": {"ann": 1, "x": 7},
             "confirmedSeq": 1}, "heartbeat",
        )  # fmt: skip
        assert (beat["serverSeq"], beat["floorSeq"], beat["durableSeq"]) == (1, 0, 1)
        async with await Peer.joined(server, "eve") as eve:
            held = {m["sessionId"]: m for m in eve.seen[0]["members"]}
            assert set(held) == {"ann", "bob", "eve"}
            assert held["ann"]["vectorClock"] == {"ann": 1, "x": 7}
            assert held["ann"]["connected"] is True and held["ann"]["lastSeen"] <= beat["now"]


async def test_49_a_repeat_of_what_the_snapshot_holds_is_answered(tmp_path: Path) -> None:
    """At or below the `headSeq` that the client has joined at: it only clears its pending."""
    async with pair(tmp_path) as (server, ann, _bob):
        lost = message("ann", 1, insert("n", x=1))
        await ann.say(lost)
        for number in range(2, 130):
            await ann.write(op("number.add", "n", "x", 1), number=number)
        await server.rooms.journal.compact(ROOM)
        state = await ann.join()
        assert "ann:1" not in {m["id"] for m in state["journal"]} and state["floorSeq"] > 1
        answer = await ann.say(lost)
        assert (answer["serverSeq"], answer["dup"]) == (1, True)


async def test_one_socket_may_change_its_mode(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        await ann.write(insert("n", x=1))
        state = await bob.join(mode="graph")
        assert state["journal"] == [] and state["snapshot"]["graph"]["nodes"]["n"]["x"] == 1
        assert state["snapshot"]["journalIndex"] == 1
        state = await bob.join()
        assert [m["serverSeq"] for m in state["journal"]] == [1]
        await ann.write(op("number.add", "n", "x", 1))
        assert [m["serverSeq"] for m in await bob.heard(2)] == [2]


async def test_a_thousand_operations_and_one_more(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_server, ann, bob):
        add = op("number.add", "n", "x", 1)
        assert (await ann.write(insert("n", x=0), *[add] * 999))["serverSeq"] == 1
        assert (await ann.write(*[add] * 1001))["error"] == "invalid_message"
        assert len((await bob.heard(1))[0]["ops"]) == 1000
        state = await bob.join(mode="graph")
        assert state["snapshot"]["graph"]["nodes"]["n"]["x"] == 999


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_64_kib_of_message_and_a_little_more(tmp_path: Path, codec: str) -> None:
    async with running(tmp_path) as server, await Peer.joined(server, "ann", codec=codec) as ann:
        await ann.write(insert("n"))
        assert (await ann.write(op("string.set", "n", "t", "x" * 65_000)))["serverSeq"] == 2
        answer = await ann.write(op("string.set", "n", "t", "x" * 65_536))
        assert (answer["error"], answer["msgId"]) == ("too_large", "ann:3")
        state = {"mtype": "presence", "state": "x" * (limits.PRESENCE_BYTES_MAX + 1)}
        assert (await ann.ask(state, "error"))["error"] == "too_large"


async def test_other_frames_have_a_rate_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(tmp_path) as (server, ann, bob):
        stop_time(server, monkeypatch)
        count = limits.CONTROL_BURST + 50
        await bob.send(*[{"mtype": "heartbeat"}] * count)
        answers = [await bob.until(_is_answer) for _ in range(count)]
        limited = [frame for frame in answers if frame["mtype"] == "error"]
        assert 50 <= len(limited) <= 51  # the join was one of them
        assert {frame["error"] for frame in limited} == {"rate_limited"}
        assert all(frame["retryable"] and frame["retryAfterMs"] > 0 for frame in limited)
        assert (await bob.write())["mtype"] == "ack"  # messages are counted apart
        assert (await ann.ask({"mtype": "heartbeat"}, "heartbeat"))["serverSeq"] == 1


def _is_answer(frame: Json) -> bool:
    return frame["mtype"] in ("heartbeat", "error")


@one_process_only
async def test_who_was_away_during_a_clear_and_a_restore_hears_of_the_clear(
    tmp_path: Path,
) -> None:
    """What it had before the clear is void, and stays so in the restored history."""
    address = Address("default", f"rtc:{ROOM}")
    async with running(tmp_path) as server, await Peer.joined(server, "ann") as ann:
        await ann.write(insert("n"))
        known = await ann.join()
        before = {"since": known["headSeq"], "epoch": known["epoch"]}
        await server.rooms.clear_room(ROOM)
        await ann.until("reset")
        known = await ann.until("state")
        assert (await ann.write(insert("m")))["serverSeq"] == 2 + 2**20
        after = {"since": 2 + 2**20, "epoch": known["epoch"]}
    ledger = Ledger.open(ledger_path(tmp_path, *address), address)
    ledger.move_epoch("restored", jump=RESTORE_JUMP, at=1)
    ledger.close()
    async with running(tmp_path) as server:
        for then, reason in ((before, "cleared"), (after, "restored")):
            async with await Peer.connect(server, "ann") as ann:
                await ann.send({"mtype": "join", **then})
                assert (await ann.until("reset"))["reason"] == reason
                state = await ann.until("state")
                assert (state["epoch"], state["resume"]) == ("restored", False)
                assert state["headSeq"] == 2 + 2**20 + 2**32
                assert list(state["snapshot"]["graph"]["nodes"]) == ["m"] or state["journal"]
