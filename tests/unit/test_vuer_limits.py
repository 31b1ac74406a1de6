"""How far a room may grow: what is refused, what is still taken, and that the total is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.dialects.vuer.plan import DEFAULT_LIMITS, RoomLimits, VuerDialect, compact_draft
from actors.types import Appended, Rejected
from tests.support.vuer_bench import VuerBench, add, undo

Json = dict[str, Any]
MakeRoom = Callable[..., VuerBench]


@pytest.fixture
def room_of(tmp_path: Path) -> Any:
    """Rooms with smaller limits; the default ones take too long to reach."""
    made: list[VuerBench] = []

    def make(**limits: int) -> VuerBench:
        dialect = VuerDialect(snapshot_every=40, keep_tail=10, limits=RoomLimits(**limits))
        made.append(VuerBench(tmp_path / f"room{len(made)}.db", dialect))
        made[-1].start()
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def concat(text: str, key: str = "n") -> Json:
    return {"otype": "string.concat", "key": key, "path": "s", "value": text}


def string(text: str, key: str = "n") -> Json:
    return {"otype": "string.set", "key": key, "path": "s", "value": text}


def insert(key: str, **data: Any) -> Json:
    return {"otype": "node.insert", "key": key, "path": "-", "parent": "root", "value": data}


def refused(outcome: Any, words: str) -> None:
    assert isinstance(outcome, Rejected), outcome
    assert outcome.code == "too_large" and words in outcome.message, outcome.message


def test_the_default_limits_are_the_documented_ones() -> None:
    assert RoomLimits(1 << 20, 256 << 20, 100_000, 100_000) == DEFAULT_LIMITS


def test_a_string_that_grows_is_refused_at_the_limit_of_a_node(room_of: MakeRoom) -> None:
    room = room_of(node_bytes_max=20_000)
    outcomes = [room.say(concat("x" * 1000)) for _ in range(30)]
    taken = [type(outcome) for outcome in outcomes].index(Rejected)
    assert taken == 19
    for outcome in outcomes[taken:]:
        refused(outcome, "shorter values, or spread them over several nodes")
    assert len(room.value("n", "s")) == 19_000
    assert isinstance(room.say(add(5)), Rejected) is False  # x was 0: the node grows, within it
    assert isinstance(room.say(string("short")), Appended)
    assert isinstance(room.say(concat("x" * 1000)), Appended)
    room.sound()


GROWERS: list[Callable[[int], Json]] = [
    lambda i: {"otype": "array.push", "key": "n", "path": "l", "value": "y" * 500},
    lambda i: {"otype": "object.merge", "key": "n", "path": "o", "value": {f"k{i}": "y" * 400}},
    lambda i: {"otype": "number.set", "key": "n", "path": "p" * 250 + str(i), "value": 1},
    lambda i: {"otype": "string.concat", "key": "n", "path": "name", "value": "y" * 500},
    lambda i: {"otype": "text.insert", "key": "n", "path": "t", "position": 0, "value": "y" * 400},
    lambda i: {"otype": "node.upsert", "key": "n", "path": "-", "value": {f"q{i}": "y" * 400}},
    # Few bytes of a message that would be many of a node: a stamp for each member.
    lambda i: {"otype": "object.merge", "key": "n", "path": "o" * 250,
               "value": {f"{i}.{j}": 1 for j in range(10)}},
    # Runs: each second character of a text is deleted.
    lambda i: {"otype": "text.init", "key": "n", "path": "t", "value": "z" * 400} if i == 0 else
              {"otype": "text.delete", "key": "n", "path": "t", "position": 4 * i, "length": 1},
]  # fmt: skip


@pytest.mark.parametrize("grow", GROWERS, ids=range(len(GROWERS)))
def test_so_is_whatever_else_grows(room_of: MakeRoom, grow: Callable[[int], Json]) -> None:
    room = room_of(node_bytes_max=6000)
    for number in range(200):
        outcome = room.say(grow(number))
        if isinstance(outcome, Rejected):
            refused(outcome, "node 'n' would have")
            break
    else:
        raise AssertionError("it grew without end")
    assert isinstance(room.say(add(), add()), Appended)  # x: as long as it was
    room.sound()


def test_one_message_cannot_insert_what_is_too_large(room_of: MakeRoom) -> None:
    room = room_of(node_bytes_max=20_000)
    refused(room.say(insert("m", s="x" * 20_000)), "node 'm' would have")
    assert room.say(insert("m", s="x" * 19_000)) == Appended(2, 2)
    room.sound()


def test_a_redo_is_refused_like_what_it_brings_back(room_of: MakeRoom) -> None:
    room = room_of(node_bytes_max=10_000)
    room.say(concat("x" * 8000))  # a:2
    room.say(undo("a:2"))
    assert isinstance(room.say(concat("y" * 8000)), Appended)
    refused(room.say(undo("a:2", "meta.redo")), "node 'n' would have")
    assert room.value("n", "s") == "y" * 8000 and room.flags() == {2: 1}
    room.sound()


def test_a_full_room_takes_what_makes_it_no_bigger(room_of: MakeRoom) -> None:
    room = room_of(room_bytes_max=100_000)
    keys = []
    for number in range(100):
        outcome = room.say(insert(f"m{number}", s="x" * 4000))
        if isinstance(outcome, Rejected):
            break
        keys.append(f"m{number}")
    refused(outcome, "the room would have")
    assert len(keys) == 21
    refused(room.say(concat("x" * 9000)), "go on in another room")
    assert isinstance(room.say(string("x" * 3999, "m0"), string("x" * 4000, "m1")), Appended)
    assert isinstance(room.say({"otype": "node.remove", "key": "m2", "path": "-"}), Appended)
    assert isinstance(room.say(string("", "m3")), Appended)
    assert isinstance(room.say(concat("x" * 3000)), Appended)
    room.sound()


def test_a_room_at_its_number_of_nodes_still_takes_edits(room_of: MakeRoom) -> None:
    room = room_of(nodes_max=10)
    for number in range(8):
        assert isinstance(room.say(insert(f"m{number}", s="")), Appended)
    refused(room.say(insert("one more")), "at most 10 nodes, removed ones included")
    assert isinstance(room.say(insert("m1")), Appended)  # lives already: no effect, no node more
    upsert = {"otype": "node.upsert", "key": "m1", "path": "-", "value": {"y": 2}}
    assert isinstance(room.say(upsert), Appended)
    assert isinstance(room.say(concat("more", "m2")), Appended)
    assert isinstance(room.say({"otype": "node.remove", "key": "m3", "path": "-"}), Appended)
    refused(room.say(insert("one more")), "insert under the key of a removed one")
    assert isinstance(room.say(insert("m3", y=1)), Appended)  # another incarnation
    refused(room.say({"otype": "node.upsert", "key": "new", "path": "-", "value": {}}), "10 nodes")
    refused(room.say(concat("x", "m2"), insert("one more")), "10 nodes")  # all or none
    assert (room.value("m1", "y"), room.value("m2", "s"), room.value("m3", "y")) == (2, "more", 1)
    room.sound()


def test_a_redo_of_an_insert_counts_as_one(room_of: MakeRoom) -> None:
    room = room_of(nodes_max=3)
    room.say(insert("m"))  # a:2
    room.say(undo("a:2"))
    assert isinstance(room.say(insert("other")), Appended)
    refused(room.say(undo("a:2", "meta.redo")), "at most 3 nodes")
    room.sound()


def test_children_that_nobody_inserts_are_bounded(room_of: MakeRoom) -> None:
    room = room_of(children_max=100)

    def many(first: int) -> Json:
        names = [f"c{number}" for number in range(first, first + 60)]
        return {"otype": "array.union", "key": "n", "path": "children", "value": names}

    assert isinstance(room.say(many(0)), Appended)
    refused(room.say(many(60)), "at most 100 children")
    assert isinstance(room.say({**many(0), "otype": "array.remove", "value": "c5"}), Appended)
    room.sound()
    small = room_of(room_bytes_max=20_000)
    refused(small.say(many(0)), "the room would have")


def test_what_is_above_a_limit_already_may_shrink(room_of: MakeRoom) -> None:
    """A file of a Holdfast with higher limits."""
    room = room_of()
    room.say(string("x" * 9000))
    before = room.sound()
    room.made = VuerDialect(limits=RoomLimits(node_bytes_max=4000, room_bytes_max=5000))
    room.crash()
    assert room.sound() == before
    refused(room.say(concat("y")), "node 'n' would have")
    assert isinstance(room.say(string("x" * 8000)), Appended)
    assert isinstance(room.say(add(0)), Appended)
    refused(room.say(insert("m")), "the room would have")
    room.sound()


def test_the_total_is_right_after_everything(room_of: MakeRoom) -> None:
    """`sound` compares it with a recount: compaction, undo, removal, a crash, a batch of many."""
    room = room_of()
    for number in range(60):  # the floor moves on the way
        room.say(concat("é" * 50), insert(f"m{number}", s="x" * number))
        room.say({"otype": "text.insert", "key": "n", "path": "t", "position": number // 2,
                  "value": "ab"})  # fmt: skip
        if number % 9 == 0:
            room.say(undo(f"a:{room.counts['a']}"))
            room.say({"otype": "node.remove", "key": f"m{number - 1}", "path": "-"})
            room.sound()
    room.crash()
    room.sound()
    room.send(compact_draft())
    assert room.say(concat("z")) == Appended(room.scope.head, room.scope.head)
    before = room.bytes
    room.sound()
    room.scope.ledger.move_epoch("e2", jump=1 << 20, at=1)
    room.crash()
    room.sound()
    assert room.bytes == before


def test_a_file_from_before_there_was_a_limit_is_counted_once(room_of: MakeRoom) -> None:
    room = room_of()
    room.say(string("x" * 900))
    tree = room.scope.ledger.row("room", "tree")
    assert tree is not None
    wanted = tree.value.pop("bytes")
    room.scope.ledger._db.execute(
        "UPDATE rows SET body=? WHERE coll='room'", ('{"rootKey":"root","nodes":2}',)
    )
    room.crash()
    room.say(string("x" * 901))
    assert room.bytes == wanted + 1
    room.sound()
