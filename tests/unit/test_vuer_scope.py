"""A vuer room as a scope over a real file: entries, rows, flags, floor, recovery, epoch jump.

Numbers in test names are edge cases of docs/vuer-rtc.md.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.dialects.vuer.graph import apply_message, graph_from_json
from actors.dialects.vuer.message import Message
from actors.dialects.vuer.plan import compact_draft, message_draft
from actors.dialects.vuer.snapshot import (
    RoomSnapshot,
    read_clocks,
    read_room,
)
from actors.dialects.vuer.validate import check_message
from actors.identity import copy_database
from actors.ledger import Ledger
from actors.line_files import read_lines, write_lines
from actors.scan import Reader
from actors.scope import Scope
from actors.types import Appended, Duplicate, Rejected
from tests.support.vuer_bench import ROOM, VuerBench, add, undo


@pytest.fixture
def room(tmp_path: Path) -> Iterator[VuerBench]:
    bench = VuerBench(tmp_path / "room.db")
    bench.start()
    yield bench
    bench.close()


def test_a_message_becomes_an_entry_and_rows(room: VuerBench) -> None:
    assert room.say(add(5)) == Appended(2, 2)
    (entry,) = room.scope.ledger.entries(1, 2)
    assert (entry.kind, entry.origin, entry.stamp1, entry.cause) == ("msg", "a", 2, "a:2")
    assert json.loads(entry.body)["serverSeq"] == 2
    assert room.value() == 5
    assert room.scope.ledger.header.clock == "2"
    room.sound()


def test_48_51_an_id_is_sequenced_once(room: VuerBench) -> None:
    message = room.message(add(5))
    assert room.send(message_draft(message)) == [Appended(2, 2)]
    changed = msgspec.structs.replace(message, ops=[add(100)])
    (again,) = room.send(message_draft(changed))
    assert isinstance(again, Duplicate) and again.seq == 2
    room.crash()
    (after_restart,) = room.send(message_draft(message))
    assert isinstance(after_restart, Duplicate) and after_restart.seq == 2
    assert room.value() == 5


def test_undo_is_a_flag_and_a_skip(room: VuerBench) -> None:
    room.say(add(5))
    room.say(add(7))
    assert room.say(undo("a:2")) == Appended(4, 4)
    assert (room.value(), room.flags()) == (7, {2: 1})
    room.sound()
    room.say(undo("a:2", "meta.redo"))
    assert (room.value(), room.flags()) == (12, {})
    room.sound()


def test_undo_within_one_batch(room: VuerBench) -> None:
    wanted = [room.message(add(5)), room.message(add(7)), room.message(undo("a:2"))]
    room.send(*[message_draft(message) for message in wanted])
    assert (room.value(), room.flags()) == (7, {2: 1})
    room.sound()


@pytest.mark.parametrize(
    ("target", "session", "code"),
    [("never", "a", "undo_expired"), ("a:3", "a", "invalid_target"), ("a:2", "b", "forbidden")],
)
def test_52_53_undo_is_refused(room: VuerBench, target: str, session: str, code: str) -> None:
    room.say(add(5))
    room.say(undo("a:2"))
    room.say(undo("a:2", "meta.redo"))
    before = room.sound()
    outcome = room.say(undo(target), s=session)
    assert isinstance(outcome, Rejected) and outcome.code == code
    assert room.sound() == before and room.scope.head == 4


def test_who_may_undo_any_does(room: VuerBench) -> None:
    room.say(add(5))
    outcome = room.send(message_draft(room.message(undo("a:2"), s="b"), undo_any=True))
    assert outcome == [Appended(3, 3)] and room.value() == 0


def test_55_a_clock_far_ahead_is_refused(room: VuerBench) -> None:
    outcome = room.say(add(), lamportTime=2**40)
    assert isinstance(outcome, Rejected) and outcome.code == "clock_skew"
    assert room.say(add(), lamportTime=1_000_001) == Appended(2, 2)


def test_59_the_floor_moves_at_the_thousandth_message(room: VuerBench) -> None:
    for n in range(998):
        room.say({"otype": "number.set", "key": "n", "path": f"p{n % 7}", "value": n})
    header = room.scope.ledger.header
    assert (header.head, header.floor) == (999, 0)
    before = room.sound()
    room.say(add(0))  # changes lamportTime alone
    header = room.scope.ledger.header
    assert (header.head, header.floor, header.floor_at) == (1000, 900, 1000)
    assert room.scope.bounds.floor_at == 1000
    after = room.sound()
    assert after != before
    snapshot: RoomSnapshot = room.scan(lambda reader: read_room(reader, at_head=False))
    assert snapshot.journal_index == 900
    assert [entry.seq for entry in snapshot.entries] == list(range(901, 1001))
    graph = graph_from_json(json.loads(snapshot.text)["graph"], 900)
    for entry in snapshot.entries:
        graph = apply_message(graph, msgspec.json.decode(entry.body, type=Message))
    assert graph.hash() == after


def test_of_big_messages_fewer_are_kept(room: VuerBench) -> None:
    for _ in range(250):
        room.say({"otype": "string.set", "key": "n", "path": "s", "value": "x" * 30_000})
    header = room.scope.ledger.header
    assert header.head == 251 and header.floor >= 100
    assert header.head - header.floor >= 100
    room.sound()


def test_52_undo_below_the_floor_has_expired(room: VuerBench) -> None:
    for _ in range(999):
        room.say(add())
    assert room.say(undo("a:900")).code == "undo_expired"
    assert room.say(undo("a:901")) == Appended(1001, 1001)
    assert room.value() == 998
    room.sound()


def test_an_undone_message_that_is_compacted_stays_undone(room: VuerBench) -> None:
    room.say(add(1000))
    room.say(undo("a:2"))
    for _ in range(300):
        room.say(add())
    before = room.sound()
    room.send(compact_draft())
    header = room.scope.ledger.header
    assert (header.head, header.floor, header.floor_at) == (303, 203, 303)
    assert room.sound() == before and room.value() == 300
    room.crash()
    assert room.sound() == before
    (again,) = room.send(message_draft(check_message({**_raw("a:2"), "ops": [add(1000)]})))
    assert isinstance(again, Duplicate) and again.seq == 2


def _raw(id: str) -> dict[str, Any]:
    return {"id": id, "sessionId": "a", "clock": {"a": 2}, "lamportTime": 2, "timestamp": 0}


def test_positions_are_written_over(room: VuerBench) -> None:
    op = {"otype": "text.insert", "key": "n", "path": "t", "position": 0, "value": "held"}
    room.say(op)
    outcome = room.say({**op, "position": 3, "value": "lo wor"}, s="b")
    assert json.loads(outcome.outcome)["ops"][0] == {
        "otype": "text.insert", "key": "n", "path": "t", "value": ["a:2", "lo wor"], "id": "b:0",
    }  # fmt: skip
    assert room.value("n", "t") == "hello word"
    room.sound()


def test_angles_are_written_over(room: VuerBench) -> None:
    spin = {"otype": "vector3.applyEuler", "key": "n", "path": "v", "value": [0, 0, 0]}
    outcome = room.say(spin)
    (op,) = json.loads(outcome.outcome)["ops"]
    assert (op["otype"], op["value"]) == ("vector3.applyQuaternion", [0, 0, 0, 1])


def test_characters_that_are_there_are_refused(room: VuerBench) -> None:
    op = {"otype": "text.insert", "key": "n", "path": "t", "id": "a:0", "value": [None, "abc"]}
    room.say(op)
    outcome = room.say({**op, "id": "a:2"})
    assert isinstance(outcome, Rejected) and outcome.code == "text_id_conflict"
    both = room.say({**op, "id": "a:3"}, {**op, "id": "a:5"})
    assert isinstance(both, Rejected) and both.code == "text_id_conflict"
    assert room.value("n", "t") == "abc"


def test_the_message_before_has_to_be_known(room: VuerBench) -> None:
    second = room.message(add())
    third = room.message(add())
    (outcome,) = room.send(message_draft(third, prev=second.id))
    assert (outcome.code, outcome.detail) == ("missing_prev", {"expected": "a:1"})
    outcomes = room.send(message_draft(second, prev="a:1"), message_draft(third, prev="a:2"))
    assert outcomes == [Appended(2, 2), Appended(3, 3)]


def test_a_refused_draft_leaves_nothing(room: VuerBench) -> None:
    before = room.sound()
    good, bad = room.message(add(5)), room.message(undo("nothing"))
    outcomes = room.send(message_draft(bad), message_draft(good))
    assert [type(outcome) for outcome in outcomes] == [Rejected, Appended]
    assert (room.value(), room.scope.head, room.flags()) == (5, 2, {})
    assert room.sound() != before


def test_i6_another_epoch_keeps_graph_journal_and_ids(room: VuerBench) -> None:
    for _ in range(5):
        room.say(add())
    before = room.sound()
    room.shell.settle()
    ledger = room.scope.ledger
    ledger.move_epoch("e2", jump=1 << 20, at=1)
    room.crash()
    assert room.sound() == before
    (entry,) = room.scope.ledger.entries((1 << 20) + 5, (1 << 20) + 6)
    assert json.loads(entry.body)["serverSeq"] == (1 << 20) + 6
    assert room.say(undo("a:3")) == Appended((1 << 20) + 7, (1 << 20) + 7)
    assert room.value() == 4
    room.sound()
    (again,) = room.send(message_draft(check_message(_raw("a:2") | {"ops": [add()]})))
    assert isinstance(again, Duplicate) and again.seq == (1 << 20) + 2


def test_a_room_comes_back_from_lines(room: VuerBench, tmp_path: Path) -> None:
    for _ in range(150):
        room.say(add())
    room.send(compact_draft())
    room.say(undo("a:151"))
    before = room.sound()
    copy_database(room.path, tmp_path / "copy.db")
    out = io.BytesIO()
    write_lines(tmp_path / "copy.db", out)
    out.seek(0)
    assert read_lines(out, tmp_path / "again.db") == ROOM
    room.scope.ledger.close()
    (tmp_path / "again.db").replace(room.path)
    room.scope = Scope(ROOM, Ledger.open(room.path, ROOM), room.policy, room.shell, [])
    assert room.sound() == before and room.value() == 149
    assert room.say(undo("a:150")) == Appended(153, 153)
    assert room.value() == 148


def test_clocks_of_sessions(room: VuerBench) -> None:
    room.say(add(), s="b")
    room.say(add(), s="b")
    assert room.scan(read_clocks) == {"a": 1, "b": 2}


def test_a_draft_from_another_process_is_planned_from_its_text(room: VuerBench) -> None:
    draft = message_draft(room.message(add(5)), prev="a:1", undo_any=True)
    draft.data = None
    assert room.send(draft) == [Appended(2, 2)]
    assert room.value() == 5


def test_the_hash_of_the_file_is_that_of_the_graph(room: VuerBench) -> None:
    room.say({"otype": "text.insert", "key": "n", "path": "t", "position": 0, "value": "hé"})
    room.say({"otype": "array.push", "key": "n", "path": "children", "value": "later"})

    def graph_hash(reader: Reader) -> str:
        text = read_room(reader, at_head=True).text
        return graph_from_json(json.loads(text)["graph"]).hash()

    assert room.scan(graph_hash) == room.sound()
