"""The client's store: edits, acks, gaps, refusals, undo, snapshots. Numbers are edge cases."""

from __future__ import annotations

from typing import Any

import pytest

from actors.dialects.vuer.graph import Graph, SequenceGap, apply_message, create_empty_graph
from actors.dialects.vuer.message import Message, VuerRefusal
from actors.dialects.vuer.otypes import EFFECTS, register_otype
from actors.dialects.vuer.properties import REGISTERED
from edge.client.vuer.store import GraphStore, create_graph
from tests.support.vuer import sequenced
from tests.support.vuer_store import Alone, add, put


@pytest.fixture
def alone() -> Alone:
    return Alone()


def test_edit_shows_at_once_and_commit_sends(alone: Alone) -> None:
    alone.store.edit(put(5))
    assert alone.x == 5 and alone.sent == []
    message = alone.store.commit()
    assert message is not None and alone.sent == [message] == alone.store.get_unacked_messages()
    assert (message.id, message.lamport, message.clock["a"]) == ("a:1", 1, 1)
    alone.ack()
    assert alone.store.pending == [] and alone.x == 5
    assert alone.store.confirmed.value("n", "x") == 5


def test_63_both_pushes_are_in_the_message(alone: Alone) -> None:
    alone.store.edit(put(1, "array.push", path="l"))
    alone.store.edit(put(2, "array.push", path="l"))
    message = alone.store.commit()
    assert message is not None and [op["value"] for op in message.ops] == [1, 2]


def test_64_cancel_after_others_messages(alone: Alone) -> None:
    alone.store.edit(add(1))
    alone.store.commit()
    alone.store.edit(put(100))
    alone.hear(add(10))
    assert alone.x == 100
    alone.store.cancel()
    assert alone.x == 11
    alone.store.cancel()


def test_65_an_empty_commit_sends_nothing(alone: Alone) -> None:
    assert alone.store.commit() is None and alone.sent == []


def test_a_bad_edit_changes_nothing(alone: Alone) -> None:
    alone.store.edit(put(1))
    with pytest.raises(VuerRefusal):
        alone.store.edit_batch([add(5), put("text")])
    assert alone.x == 1 and len(alone.store.edits) == 1


def test_49_an_ack_within_a_snapshot_clears_pending(alone: Alone) -> None:
    alone.store.edit(add(5))
    alone.store.commit()
    copy = Alone("z")
    copy.store.receive(_numbered(alone.sent[0], 2))
    snapshot = {"graph": copy.store.confirmed.to_json(), "journalIndex": 2}
    alone.store.load(snapshot, [], epoch="e1")
    assert alone.x == 10  # not known yet: shown on top
    alone.store.ack("a:1", 2)
    assert alone.store.pending == [] and alone.x == 5


def _numbered(message: Message, seq: int) -> Message:
    return Message(
        server_seq=seq, id=message.id, session_id=message.session_id, clock=message.clock,
        lamport=message.lamport, timestamp=0, ops=message.ops,
    )  # fmt: skip


def test_50_a_gap_is_buffered_and_asked_for(alone: Alone) -> None:
    six, seven = alone.message(add(1), seq=2), alone.message(add(10), seq=3)
    store = alone.store
    store.receive(seven)
    assert alone.x == 0 and alone.syncs == [1]
    store.receive(seven)
    assert alone.syncs == [1]  # once per 200 ms
    alone.now += 200
    store.receive(seven)
    assert alone.syncs == [1, 1]
    store.receive(six)
    assert (alone.x, store.confirmed_seq) == (11, 3)
    for message in (six, seven):
        store.receive(message)
    assert (alone.x, store.confirmed_seq) == (11, 3)


def test_52_a_refused_undo_is_taken_back(alone: Alone) -> None:
    alone.store.edit(put(5))
    alone.store.commit()
    alone.ack()
    alone.store.undo()
    assert alone.x == 0
    alone.refuse("undo_expired")
    assert alone.x == 5 and alone.errors == ["undo_expired"]
    assert alone.store.undo() is None


def test_54_undo_of_what_is_still_pending(alone: Alone) -> None:
    alone.store.edit(put(5))
    undo = alone.store.undo()  # commits the buffer first
    assert [m.is_meta for m in alone.sent] == [False, True] and alone.x == 0
    assert undo is not None and undo.targets == [("a:1", True)]
    alone.ack()
    assert alone.x == 0
    alone.ack()
    assert alone.x == 0 and alone.store.confirmed.value("n", "x") == 0


def test_undo_and_redo_stacks(alone: Alone) -> None:
    store = alone.store
    for value in (1, 2, 3):
        store.edit(put(value))
        store.commit()
    assert [store.undo() and alone.x for _ in range(2)] == [2, 1]
    assert [store.redo() and alone.x for _ in range(2)] == [2, 3]
    assert store.redo() is None
    store.undo()
    store.edit(put(9))
    store.commit()
    assert store.redo() is None  # a new commit forgets it
    store.undo()
    assert alone.x == 2
    alone.hear(put(50), lamport=50)
    store.undo()
    assert alone.x == 50  # only own messages are undone


def test_an_undo_of_another_session_is_seen(alone: Alone) -> None:
    message = alone.hear(put(7))
    undo = {"otype": "meta.undo", "key": "_meta", "path": "_meta", "targetMsgId": message.id}
    alone.hear(undo)
    assert alone.x == 0


def test_a_rewritten_message_replaces_the_pending_one(alone: Alone) -> None:
    alone.store.edit(put(5))
    alone.store.commit()
    sent = alone.sent[0]
    alone.store.ack(sent.id, 2, {
        "serverSeq": 2, "id": sent.id, "sessionId": "a", "clock": {}, "lamportTime": 1,
        "timestamp": 0, "ops": [put(6)],
    })  # fmt: skip
    assert alone.x == 6 and alone.store.pending == []


def test_base_waits_until_the_servers_floor_is_settled(alone: Alone) -> None:
    store = alone.store
    for _ in range(5):
        alone.hear(add())
    store.settle(floor_seq=4, floor_at=9, durable_seq=0)
    assert store.floor_seq == 0  # an undo of 2..4 may still come, up to 9
    target = store.tail[2].id
    alone.hear({"otype": "meta.undo", "key": "_meta", "path": "_meta", "targetMsgId": target})
    assert alone.x == 4
    alone.hear(add())
    alone.hear(add())
    assert store.floor_seq == 4 and len(store.tail) == 5
    assert alone.x == 6
    alone.hear({
        "otype": "meta.undo", "key": "_meta", "path": "_meta", "targetMsgId": store.tail[0].id,
    })  # fmt: skip
    assert alone.x == 5


def test_another_epoch_brings_back_what_was_not_safe(alone: Alone) -> None:
    store = alone.store
    for value in (1, 2, 3):
        store.edit(add(value))
        store.commit()
    alone.ack(2)
    alone.ack(3)
    store.settle(floor_seq=0, floor_at=0, durable_seq=2)
    snapshot = {"graph": {}, "journalIndex": 100}
    again = store.load(snapshot, [], epoch="e2", durable_seq=100)
    assert [message.id for message in again] == ["a:2", "a:3"]


def test_what_a_snapshot_held_already_is_kept_until_it_is_safe(alone: Alone) -> None:
    """Its ack comes for a seq that is confirmed: a crash may still take it."""
    store = alone.store
    store.edit(add())
    store.commit()
    store.load({"graph": store.confirmed.to_json(), "journalIndex": 5}, [], epoch="e1")
    store.ack("a:1", 3)
    assert store.pending == []
    again = store.load({"graph": {}, "journalIndex": 100}, [], epoch="e2", durable_seq=100)
    assert [message.id for message in again] == ["a:1"]


def test_text_edits_are_anchored(alone: Alone) -> None:
    store = alone.store
    at = {"key": "n", "path": "t"}
    store.edit({"otype": "text.insert", "position": 0, "value": "hello", **at})
    store.edit({"otype": "text.insert", "position": 99, "value": "!", **at})
    store.edit({"otype": "text.replace", "position": 1, "length": 3, "value": "u", **at})
    assert store.graph.value("n", "t") == "huo!"
    message = store.commit()
    assert message is not None and [op.get("id") for op in message.ops] == ["a:0", "a:6"]
    assert message.ops[1]["rm"] == [["a:1", 3]]
    store.undo()
    assert store.graph.value("n", "t") == ""


def test_numbers_of_characters_are_never_given_twice(alone: Alone) -> None:
    store = alone.store
    insert = {"otype": "text.insert", "key": "n", "path": "t", "position": 0, "value": "ab"}
    store.edit(insert)
    store.cancel()
    store.edit(insert)
    assert store.edits[0]["id"] == "a:2"


def test_subscribe(alone: Alone) -> None:
    seen: list[Graph] = []
    end = alone.store.subscribe(seen.append)
    alone.store.edit(put(5))
    alone.hear(add())
    end()
    end()
    alone.store.cancel()
    assert [graph.value("n", "x") for graph in seen] == [5, 5]


def test_an_ack_of_something_unknown_asks_for_it(alone: Alone) -> None:
    alone.store.ack("a:99", 2)
    assert alone.syncs == [1]


def test_create_graph_and_bad_sessions() -> None:
    assert isinstance(create_graph("alice", lambda message: None), GraphStore)
    for bad in ("", "a b", "x" * 65, "@init"):
        with pytest.raises(ValueError):
            create_graph(bad)


# -- graphs as values ------------------------------------------------------------------------------


def test_apply_message_by_serverseq_and_by_id() -> None:
    (start,) = sequenced({"messages": []})
    empty = create_empty_graph()
    graph = apply_message(empty, start)
    assert empty.get("n") is None and graph.applied_seq == 1
    assert apply_message(graph, start) is graph
    raw: dict[str, Any] = {
        "id": "m", "sessionId": "a", "clock": {}, "lamportTime": 1, "timestamp": 0, "ops": [add(5)],
    }  # fmt: skip
    with pytest.raises(SequenceGap) as gap:
        apply_message(graph, {**raw, "serverSeq": 3})
    assert gap.value.expected == 2
    once = apply_message(graph, raw)
    assert apply_message(once, raw) is once and "m" in once.applied_ids
    assert (graph.value("n", "x"), once.value("n", "x")) == (0, 5)
    undo = {**raw, "id": "u", "ops": [{"otype": "meta.undo", "targetMsgId": "m"}]}
    assert apply_message(once, undo).value("n", "x") == 0
    assert apply_message(once.settled(), undo).value("n", "x") == 5


def test_register_otype(alone: Alone) -> None:
    name = "number.toggle"
    register_otype(name, lambda op: op["value"] in (1, 2), lambda c, op: (c or 0) ^ op["value"])
    try:
        with pytest.raises(ValueError):
            register_otype(name, lambda op: True, lambda c, op: c)
        alone.store.edit(put(2, name))
        assert alone.x == 2
        alone.hear(put(2, name))
        assert alone.x == 0
        with pytest.raises(VuerRefusal):
            alone.store.edit(put(3, name))
    finally:
        del EFFECTS[name], REGISTERED[name]
