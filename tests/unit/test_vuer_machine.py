"""The client's machine: joins, sends in order and within limits, repairs, on a made-up clock."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actors.dialects.vuer.message import VuerRefusal
from edge.client.vuer.machine import BURST, HEARTBEAT_EVERY_S, SILENCE_S, RtcMachine
from edge.client.vuer.store import GraphStore
from infra.errors import ProtocolError
from tests.support.rtc import Json, insert, message

EMPTY = {"graph": {"nodes": {}, "rootKey": ""}, "journalIndex": 0, "vectorClock": {},
         "lamportTime": 0, "epoch": "e1"}  # fmt: skip


class Rig:
    """A machine at second 100, and what it said."""

    def __init__(self) -> None:
        self.now = 100.0
        self.store = GraphStore("ann")
        self.machine = RtcMachine(self.store, self.now)
        self.errors: list[VuerRefusal] = []
        self.machine.on_error = self.errors.append
        self.store.bind(
            on_send=lambda _message: self.machine.flush(self.now),
            on_sync=self.machine.sync, on_error=self.errors.append,
        )  # fmt: skip

    def hear(self, **frame: Any) -> list[Json]:
        self.machine.received(msgspec.json.encode(frame), self.now)
        return self.said()

    def said(self) -> list[Json]:
        found, self.machine.outgoing = self.machine.outgoing, []
        return found

    def state(self, **members: Any) -> list[Json]:
        whole = {
            "mtype": "state", "epoch": "e1", "headSeq": 0, "floorSeq": 0, "floorAt": 0,
            "durableSeq": 0, "lamportTime": 0, "resume": False, "snapshot": EMPTY, "journal": [],
            "more": False, "members": [],
        }  # fmt: skip
        return self.hear(**(whole | members))

    def joined(self) -> Rig:
        self.machine.opened(self.now)
        self.said()
        self.state()
        return self

    def edit(self, key: str) -> None:
        self.store.edit(insert(key))
        self.store.commit()

    def tick(self, seconds: float) -> tuple[bool, list[Json]]:
        self.now += seconds
        return self.machine.tick(self.now), self.said()


def numbered(seq: int, session: str = "bob") -> Json:
    return message(session, seq, insert(f"{session}{seq}")) | {"serverSeq": seq}


def test_it_joins_where_it_was_and_sends_again_what_has_no_answer() -> None:
    rig = Rig()
    rig.edit("n")
    assert rig.said() == []  # not joined
    rig.machine.opened(rig.now)
    assert rig.said() == [{"mtype": "join"}]
    (sent,) = rig.state()
    assert sent["mtype"] == "crdt" and sent["msg"]["id"] == "ann:1"
    assert rig.hear(mtype="broadcast", msg=numbered(1)) == []
    rig.machine.gone()
    rig.machine.present({"at": 1})
    rig.machine.opened(rig.now)
    assert rig.said() == [{"mtype": "join", "since": 1, "epoch": "e1", "presence": {"at": 1}}]
    sent_again = rig.state(resume=True, snapshot=None)
    assert [frame["msg"]["id"] for frame in sent_again] == ["ann:1"]
    assert rig.hear(mtype="ack", msgId="ann:1", serverSeq=2, durableSeq=0) == []
    assert rig.store.pending == [] and rig.store.confirmed_seq == 2


def test_a_flood_is_sent_below_the_servers_limit() -> None:
    rig = Rig().joined()
    for number in range(BURST + 50):
        rig.edit(f"n{number}")
    assert len(rig.said()) == BURST
    ids: list[str] = []
    while len(ids) < 50:
        assert rig.machine.due() <= rig.now + 0.06
        alive, said = rig.tick(0.06)
        ids += [frame["msg"]["id"] for frame in said]
        assert alive and len(said) <= 7
    assert ids == [f"ann:{n}" for n in range(BURST + 1, BURST + 51)]


def test_what_may_be_repeated_is_sent_again_in_order_after_its_time() -> None:
    rig = Rig().joined()
    rig.edit("a")
    rig.edit("b")
    rig.said()
    refusal = {"error": "rate_limited", "message": "m", "retryable": True, "retryAfterMs": 700}
    assert rig.hear(mtype="error", msgId="ann:1", **refusal) == []
    rig.edit("c")
    assert rig.said() == [] and rig.tick(0.6)[1] == []
    assert [frame["msg"]["id"] for frame in rig.tick(0.2)[1]] == ["ann:1", "ann:2", "ann:3"]
    assert rig.errors == []


def test_a_refusal_takes_the_message_back_and_is_told() -> None:
    rig = Rig().joined()
    rig.edit("a")
    rig.hear(mtype="error", msgId="ann:1", error="forbidden", message="no", retryable=False)
    assert rig.store.pending == [] and [e.code for e in rig.errors] == ["forbidden"]
    assert "a" not in rig.store.graph.nodes
    rig.hear(mtype="error", error="session_taken", message="hers", retryable=False)
    assert rig.machine.ended is rig.errors[-1]


def test_gaps_are_asked_for_and_a_heartbeat_that_tells_of_more() -> None:
    rig = Rig().joined()
    assert rig.hear(mtype="broadcast", msg=numbered(3)) == [{"mtype": "sync", "since": 0}]
    rig.hear(mtype="broadcast", msgs=[numbered(1), numbered(2)])
    assert rig.store.confirmed_seq == 3
    beat = {"floorSeq": 0, "floorAt": 0, "durableSeq": 3, "now": 1}
    rig.hear(mtype="heartbeat", serverSeq=5, **beat)
    assert rig.tick(0.9)[1] == []
    assert rig.tick(0.2)[1] == [{"mtype": "sync", "since": 3}]
    rig.hear(mtype="heartbeat", serverSeq=5, **beat)
    rig.hear(mtype="broadcast", msgs=[numbered(4), numbered(5)])
    assert rig.tick(1.1)[1] == []


def test_heartbeats_and_silence() -> None:
    rig = Rig().joined()
    alive, (beat,) = rig.tick(HEARTBEAT_EVERY_S)
    assert alive and beat["mtype"] == "heartbeat" and beat["confirmedSeq"] == 0
    assert beat["vectorClock"] == {"ann": 0}
    alive, _ = rig.tick(SILENCE_S)
    assert not alive  # the socket is given up
    rig.machine.gone()
    assert rig.tick(1)[0]


def test_another_epoch_brings_back_what_was_not_safe_and_a_clear_does_not() -> None:
    for reason, again in (("restored", ["ann:1"]), ("cleared", [])):
        rig = Rig().joined()
        rig.edit("a")
        rig.said()
        rig.hear(mtype="ack", msgId="ann:1", serverSeq=1, durableSeq=0)
        rig.hear(mtype="reset", reason=reason, epoch="e2")
        sent = rig.state(epoch="e2", snapshot=EMPTY | {"journalIndex": 1 << 20, "epoch": "e2"})
        assert [frame["msg"]["id"] for frame in sent] == again


def test_members_and_what_they_point_at() -> None:
    rig = Rig()
    heard: list[dict[str, Any]] = []
    rig.machine.on_members = lambda members: heard.append(dict(members))
    rig.machine.opened(rig.now)
    rig.state(members=[{"sessionId": "ann"}, {"sessionId": "bob", "presence": 1}])
    rig.hear(mtype="members", joined=[{"sessionId": "eve"}], left=["bob"])
    rig.hear(mtype="presence", sessionId="eve", state=[2])
    rig.machine.gone()
    assert heard == [{"bob": 1}, {"eve": None}, {"eve": [2]}, {}]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mtype":"ack"}', '{"mtype":"state"}', "nul"])
def test_what_no_server_sends(text: str) -> None:
    rig = Rig().joined()
    with pytest.raises(ProtocolError):
        rig.machine.received(text, rig.now)


def test_what_later_servers_may_add_is_ignored() -> None:
    assert Rig().joined().hear(mtype="news", anything=1) == []
