"""The client's protocol machine: frames and times in, effects out, no socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.client.effects import (
    Answered,
    CaughtUp,
    Deliver,
    Drop,
    DurableMoved,
    Effect,
    Failed,
    Send,
    SnapshotInfo,
    SnapshotRequired,
    SyncError,
)
from edge.client.machine import CONTROL_BURST, ClientMachine
from edge.client.outbox import ATTEMPTS_MAX, Outbox, Ticket
from edge.client.subscriptions import GAPS_MAX, reconnect_delay
from infra.errors import ProtocolError

S = "run:r1"
Json = dict[str, Any]


def frames(effects: list[Effect]) -> list[Json]:
    return [json.loads(effect.frame) for effect in effects if isinstance(effect, Send)]


def delivered(effects: list[Effect], consumer: int) -> list[int]:
    return [
        envelope["seq"]
        for effect in effects
        if isinstance(effect, Deliver) and effect.consumer == consumer
        for envelope in effect.envelopes
    ]


def env(seq: int, scope: str = S) -> Json:
    return {"eventId": f"e{seq}", "kind": "patch", "scope": scope, "seq": seq, "entities": []}


class Wire:
    """A machine with the server's half written by the test."""

    def __init__(self, outbox: Outbox | None = None) -> None:
        self.machine = ClientMachine(outbox)
        self.now = 100.0

    def open(self) -> list[Json]:
        return frames(self.machine.opened(self.now))

    def get(self, **frame: Any) -> list[Effect]:
        return self.machine.received(json.dumps(frame), self.now)

    def subscribed(self, since: int, head: int, epoch: str = "E", floor: int = 0) -> list[Effect]:
        return self.get(
            type="subscribed", scope=S, epoch=epoch, since=since, head=head, floor=floor
        )

    def events(self, *seqs: int) -> list[Effect]:
        return self.get(type="events", scope=S, envelopes=[env(seq) for seq in seqs])

    def subscribe(self, since: int | None, epoch: str | None = None) -> tuple[int, list[Json]]:
        consumer, effects = self.machine.subscribe(S, since, epoch, self.now)
        return consumer, frames(effects)

    def live(self, since: int = 0) -> int:
        """Open, subscribe one consumer at `since`, catch up there."""
        self.open()
        consumer, _ = self.subscribe(since)
        self.subscribed(since, since)
        self.get(type="caughtUp", scope=S, seq=since)
        return consumer

    def publish(self, *ids: str) -> tuple[Ticket, list[Json]]:
        envelopes = [{"eventId": name, "kind": "patch", "entities": []} for name in ids]
        ticket, effects = self.machine.publish(S, envelopes, self.now, durable=False)
        return ticket, frames(effects)


def test_sub_carries_the_cursor_and_asks_for_batches() -> None:
    wire = Wire()
    consumer, sent = wire.subscribe(5, "E")
    assert sent == []
    assert wire.open() == [{"type": "sub", "scope": S, "batch": True, "since": 5, "epoch": "E"}]
    wire.subscribed(5, 7)
    assert delivered(wire.events(6, 7), consumer) == [6, 7]
    assert wire.get(type="caughtUp", scope=S, seq=7) == [CaughtUp(consumer, 7)]
    single = wire.get(type="event", envelope=env(8))
    assert delivered(single, consumer) == [8]


def test_without_since_the_cursor_is_the_servers_head() -> None:
    wire = Wire()
    wire.open()
    consumer, sent = wire.subscribe(None)
    assert sent == [{"type": "sub", "scope": S, "batch": True}]
    wire.subscribed(41, 41)
    assert delivered(wire.events(42), consumer) == [42]
    wire.machine.disconnected(0.5)
    assert wire.open() == [{"type": "sub", "scope": S, "batch": True, "since": 42, "epoch": "E"}]


def test_edge_case_37_ahead_of_the_cursor_asks_for_a_replay_once() -> None:
    wire = Wire()
    consumer = wire.live(5)
    first = wire.events(7)
    assert delivered(first, consumer) == []
    assert frames(first) == [{"type": "replay", "scope": S, "since": 5}]
    assert wire.events(8) == []  # from before the replay; not asked for twice
    wire.subscribed(5, 8)
    assert delivered(wire.events(6, 7), consumer) == [6, 7]
    assert delivered(wire.events(8), consumer) == [8]


def test_a_gap_in_the_middle_delivers_what_is_before_it() -> None:
    wire = Wire()
    consumer = wire.live(0)
    effects = wire.events(1, 2, 4, 5)
    assert delivered(effects, consumer) == [1, 2]
    assert frames(effects) == [{"type": "replay", "scope": S, "since": 2}]


def test_missing_envelopes_show_at_caught_up() -> None:
    wire = Wire()
    wire.open()
    wire.subscribe(0)
    wire.subscribed(0, 3)
    wire.events(1, 2)
    effects = wire.get(type="caughtUp", scope=S, seq=3)
    assert frames(effects) == [{"type": "replay", "scope": S, "since": 2}]


def test_a_consumer_that_answers_gap_gets_it_again_and_a_snapshot_in_the_end() -> None:
    wire = Wire()
    consumer = wire.live(5)
    for _ in range(GAPS_MAX):
        wire.events(6)
        effects = wire.machine.gap(consumer, 6, wire.now)
        assert frames(effects) == [{"type": "replay", "scope": S, "since": 5}]
        wire.subscribed(5, 6)
    wire.events(6)
    effects = wire.machine.gap(consumer, 6, wire.now)
    assert effects == [SnapshotRequired(consumer, S, SnapshotInfo("gap", "E"))]
    assert not wire.machine.reads(consumer)
    assert delivered(wire.events(7), consumer) == []


def test_consumers_share_one_subscription_each_at_its_own_cursor() -> None:
    wire = Wire()
    first = wire.live(10)
    second, sent = wire.subscribe(3)
    assert [(frame["type"], frame["since"]) for frame in sent] == [("sub", 3)]
    wire.subscribed(3, 10)
    effects = wire.events(*range(4, 12))
    assert delivered(effects, first) == [11]
    assert delivered(effects, second) == list(range(4, 12))
    assert frames(wire.machine.unsubscribe(first, wire.now)) == []
    assert frames(wire.machine.unsubscribe(second, wire.now)) == [{"type": "unsub", "scope": S}]
    assert wire.machine.unsubscribe(second, wire.now) == []
    assert wire.events(12) == []


def test_a_late_consumer_without_cursor_joins_where_the_scope_is() -> None:
    wire = Wire()
    wire.live(10)
    consumer, effects = wire.machine.subscribe(S, None, None, wire.now)
    assert effects == [CaughtUp(consumer, 10)]
    assert delivered(wire.events(11), consumer) == [11]


def test_an_unsubscribe_and_return_while_old_events_are_under_way() -> None:
    wire = Wire()
    old = wire.live(5)
    wire.machine.unsubscribe(old, wire.now)
    new, sent = wire.subscribe(5)
    assert [frame["type"] for frame in sent] == ["sub"]
    assert delivered(wire.events(6), new) == [6]
    wire.get(type="unsubscribed", scope=S)
    wire.subscribed(5, 7)
    assert delivered(wire.events(6, 7), new) == [7]


def test_snapshot_required_rests_only_those_it_is_about() -> None:
    wire = Wire()
    wire.open()
    behind, _ = wire.subscribe(3)
    ahead, _ = wire.subscribe(50)
    error = {"type": "scopeError", "scope": S, "code": "snapshot_required", "message": ""}
    info = {"reason": "below_floor", "epoch": "E", "head": 60, "floor": 40}
    effects = wire.get(**error, **info)  # two subs are under way, so there are two answers
    assert effects == [SnapshotRequired(behind, S, SnapshotInfo("below_floor", "E", 60, 40))]
    assert [frame["since"] for frame in frames(wire.get(**error, **info))] == [50]
    assert not wire.machine.reads(behind)
    assert wire.machine.reads(ahead)
    wire.subscribed(50, 60)
    assert delivered(wire.events(51), ahead) == [51]
    restarted = frames(wire.machine.restart(behind, 45, "E", wire.now))
    assert [(frame["type"], frame["since"]) for frame in restarted] == [("sub", 45)]


def test_another_epoch_or_a_head_below_the_cursor_is_noticed_here_too() -> None:
    wire = Wire()
    wire.open()
    first, _ = wire.subscribe(3, "old")
    assert wire.subscribed(3, 9, "new") == [
        SnapshotRequired(first, S, SnapshotInfo("epoch_changed", "new", 9, 0))
    ]
    second, _ = wire.subscribe(12)
    effects = wire.subscribed(12, 9, "new")
    assert effects == [SnapshotRequired(second, S, SnapshotInfo("ahead_of_head", "new", 9, 0))]


def test_refusals_for_good_and_for_a_while() -> None:
    wire = Wire()
    wire.open()
    consumer, _ = wire.subscribe(0)
    moved = {"type": "scopeError", "scope": S, "code": "moved", "message": "", "retryAfterMs": 4000}
    assert wire.get(**moved) == []
    due = wire.machine.next_wakeup()
    assert due == wire.now + 4
    assert wire.machine.tick(due - 0.01) == []
    assert [frame["type"] for frame in frames(wire.machine.tick(due))] == ["sub"]
    (failed,) = wire.get(type="scopeError", scope=S, code="forbidden", message="no")
    assert isinstance(failed, Failed)
    assert (failed.consumer, failed.error.code) == (consumer, "forbidden")
    wire.machine.disconnected(0.0)
    assert wire.open() == []


def test_a_publish_may_ask_for_the_bucket_and_repeats_ask_again() -> None:
    wire = Wire()
    wire.open()
    ticket, effects = wire.machine.publish(
        S, [{"eventId": "a"}], wire.now, durable=True, level="replicated"
    )
    (sent,) = frames(effects)
    assert (sent["level"], sent["durable"]) == ("replicated", True)
    stalled = {"code": "try_later", "message": "the bucket", "retryAfterMs": 1000}
    wire.get(type="published", id=sent["id"], scope=S, results=[stalled])
    assert not ticket.done
    wire.now += 1.0
    (again,) = frames(wire.machine.tick(wire.now))
    assert {**again, "id": 0} == {**sent, "id": 0}
    wire.get(type="published", id=again["id"], scope=S, epoch="E", results=[{"seq": 1}])
    assert ticket.done
    _, plain = wire.publish("b")
    assert "level" not in plain[0] and "durable" not in plain[0]


@pytest.mark.parametrize("code", ["try_later", "fenced"])
def test_trouble_of_the_bucket_is_repeated_without_a_hint_too(code: str) -> None:
    wire = Wire()
    wire.open()
    ticket, (sent,) = wire.publish("a")
    wire.get(type="published", id=sent["id"], scope=S, results=[{"code": code}])
    assert not ticket.done


def test_durable_positions_reach_those_who_asked() -> None:
    wire = Wire()
    wire.live(0)
    consumer, effects = wire.machine.subscribe(S, 0, None, wire.now, durable=True)
    assert frames(effects)[0]["durable"] is True
    moved = wire.get(type="durable", scope=S, epoch="E", seq=9)
    assert moved == [DurableMoved(consumer, "E", 9)]


def test_two_missed_pongs_drop_the_socket() -> None:
    wire = Wire()
    wire.open()
    ping = [Send(b'{"type":"ping"}')]
    assert wire.machine.next_wakeup() == wire.now + 25
    assert wire.machine.tick(wire.now + 24.9) == []
    assert wire.machine.tick(wire.now + 25) == ping
    wire.now += 30
    wire.get(type="pong", now=1)
    assert wire.machine.tick(wire.now + 20) == ping
    assert wire.machine.tick(wire.now + 45) == ping
    (drop,) = wire.machine.tick(wire.now + 70)
    assert isinstance(drop, Drop)
    wire.machine.disconnected(0.0)
    assert wire.machine.next_wakeup() is None


def test_reconnect_delay_grows_to_thirty_seconds_and_starts_small_after_use() -> None:
    assert [reconnect_delay(n, 1.0) for n in (0, 1, 5, 6, 60, 5000)] == [0.5, 1, 16, 30, 30, 30]
    assert reconnect_delay(0, 0.0) == 0.25
    machine = ClientMachine()
    assert [machine.disconnected(0.0)[0] for _ in range(3)] == [0.25, 0.5, 1.0]
    machine.opened(0.0)
    machine.received('{"type":"pong"}', 1.0)
    assert machine.disconnected(0.0) == (0.25, [])


def test_subscriptions_are_paced_below_the_servers_limit() -> None:
    machine = ClientMachine()
    for n in range(1000):
        machine.subscribe(f"run:{n}", 0, None, 0.0)
    sent = [frame["scope"] for frame in frames(machine.opened(0.0))]
    assert len(sent) == CONTROL_BURST
    now = 0.0
    while len(sent) < 1000:
        due = machine.next_wakeup()
        assert due is not None
        assert due > now
        now = due
        sent += [frame["scope"] for frame in frames(machine.tick(now)) if frame["type"] == "sub"]
    assert sent == [f"run:{n}" for n in range(1000)]
    assert 4 < now < 6


def test_publish_answers_in_place_and_keeps_the_refusals() -> None:
    wire = Wire()
    wire.open()
    ticket, (sent,) = wire.publish("a", "b", "c")
    assert [item["eventId"] for item in sent["envelopes"]] == ["a", "b", "c"]
    assert sent["scope"] == S
    failed = {"code": "patch_failed", "message": "m", "entity": "m:1", "index": 0, "reason": "r"}
    results = [{"seq": 4}, {"seq": 2, "duplicate": True}, failed]
    answer = {"type": "published", "id": sent["id"], "scope": S, "epoch": "E", "results": results}
    assert wire.get(**answer) == [Answered(ticket)]
    assert wire.get(**answer) == []
    first, second, third = ticket.results
    assert first is not None and first.ok and first.seq == 4 and first.epoch == "E"
    assert second is not None and second.duplicate and second.event_id == "b"
    assert third is not None and not third.ok and third.reason == "r"


def test_publishes_unanswered_at_a_disconnect_go_out_again_in_order() -> None:
    wire = Wire()
    wire.open()
    frames_sent = [wire.publish(name)[1][0] for name in "abc"]
    second = frames_sent[1]
    wire.get(type="published", id=second["id"], scope=S, epoch="E", results=[{"seq": 1}])
    wire.machine.disconnected(0.0)
    _, sent = wire.publish("d")
    assert sent == []
    again = wire.open()
    assert again[:2] == [frames_sent[0], frames_sent[2]]
    assert [frame["envelopes"][0]["eventId"] for frame in again] == ["a", "c", "d"]


def test_busy_envelopes_are_repeated_after_the_hint_a_bounded_number_of_times() -> None:
    wire = Wire()
    wire.open()
    ticket, (sent,) = wire.publish("a", "b")
    busy = {"code": "busy", "message": "full", "retryAfterMs": 30_000}
    for attempt in range(ATTEMPTS_MAX):
        stored = [{"seq": 1}] if attempt == 0 else []
        effects = wire.get(
            type="published", id=sent["id"], scope=S, epoch="E", results=[*stored, busy]
        )
        if attempt < ATTEMPTS_MAX - 1:
            assert effects == []
            wire.machine.received('{"type":"pong"}', wire.now)
            before = frames(wire.machine.tick(wire.now + 29.9))
            assert [frame for frame in before if frame["type"] == "publish"] == []
            wire.machine.received('{"type":"pong"}', wire.now)
            wire.now += 30
            after = frames(wire.machine.tick(wire.now))
            (sent,) = [frame for frame in after if frame["type"] == "publish"]
            assert [item["eventId"] for item in sent["envelopes"]] == ["b"]
    assert effects == [Answered(ticket)]
    assert [result.code if result else "" for result in ticket.results] == [None, "busy"]
    assert wire.machine.outbox.retries == ATTEMPTS_MAX - 1


def test_with_a_window_of_one_a_busy_frame_is_not_overtaken() -> None:
    outbox = Outbox(window_frames=1)
    tickets = [outbox.put(S, [{"eventId": name}]) for name in "ab"]
    other = outbox.put("run:other", [{"eventId": "c"}])
    (first,) = outbox.take_ready(0.0)
    busy = {"code": "rate_limited", "message": "", "retryAfterMs": 1000}
    outbox.answered({"id": json.loads(first)["id"], "results": [busy]}, 0.0)
    seen = []
    for now in (0.5, 1.0, 1.0):
        (payload,) = outbox.take_ready(now)
        frame = json.loads(payload)
        seen.append(frame["envelopes"][0]["eventId"])
        outbox.answered({"id": frame["id"], "results": [{"seq": 1}]}, now)
    assert seen == ["c", "a", "b"]  # another scope need not wait
    assert other.done and all(ticket.done for ticket in tickets)


def test_a_frame_the_server_finds_too_large_is_found_and_refused() -> None:
    wire = Wire()
    wire.open()
    tickets = [wire.publish(name)[0] for name in "ab"]
    assert wire.machine.disconnected(0.0, 1009)[1] == []
    (again,) = wire.open()  # one at a time now
    assert again["envelopes"][0]["eventId"] == "a"
    assert wire.machine.disconnected(0.0, 1009)[1] == [Answered(tickets[0])]
    (result,) = tickets[0].results
    assert result is not None and result.code == "too_large"
    (last,) = wire.open()
    assert last["envelopes"][0]["eventId"] == "b"


def test_frames_stay_within_the_limits_and_the_window() -> None:
    outbox = Outbox(window_frames=2, frame_bytes_max=1000)
    envelopes = [{"eventId": f"e{n}", "pad": "x" * 200} for n in range(10)]
    too_large = {"eventId": "big", "pad": "x" * 2000}
    ticket = outbox.put(S, [*envelopes, too_large])
    result = ticket.results[10]
    assert result is not None and result.code == "too_large"
    seen: list[str] = []
    while not ticket.done:
        ready = outbox.take_ready(0.0)
        assert 1 <= len(ready) <= 2
        assert all(len(payload) <= 1000 for payload in ready)
        for payload in ready:
            frame = json.loads(payload)
            ids = [item["eventId"] for item in frame["envelopes"]]
            seen += ids
            outbox.answered({"id": frame["id"], "results": [{"seq": 1}] * len(ids)}, 0.0)
    assert seen == [f"e{n}" for n in range(10)]
    assert len(outbox) == 0


def test_at_most_512_envelopes_in_a_frame() -> None:
    wire = Wire()
    wire.open()
    _, sent = wire.publish(*[f"e{n}" for n in range(1025)])
    assert [len(frame["envelopes"]) for frame in sent] == [512, 512, 1]


def test_an_error_that_names_a_publish_settles_it_and_any_other_drops_the_socket() -> None:
    wire = Wire()
    wire.open()
    ticket, (sent,) = wire.publish("a")
    error = {"type": "error", "code": "bad_frame", "message": "m", "re": "publish"}
    assert wire.get(**error, id=sent["id"]) == [Answered(ticket)]
    (drop,) = wire.get(**error)
    assert isinstance(drop, Drop)


def test_an_answer_with_too_few_results_leaves_nothing_open() -> None:
    wire = Wire()
    wire.open()
    ticket, (sent,) = wire.publish("a", "b")
    wire.get(type="published", id=sent["id"], scope=S, epoch="E", results=[{"seq": 1}])
    assert [result.code if result else "" for result in ticket.results] == [None, "internal"]


def test_the_end_reaches_every_consumer_and_publish() -> None:
    wire = Wire()
    consumer = wire.live(0)
    ticket, _ = wire.publish("a")
    effects = wire.machine.refuse_all(SyncError("bye", code="closed"))
    assert effects[0] == Answered(ticket)
    assert isinstance(effects[1], Failed)
    assert effects[1].consumer == consumer
    assert wire.machine.idle


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", '{"type":"events"}', '{"type":"subscribed","scope":"run:r1"}']
)
def test_no_frame_of_the_protocol_is_a_protocol_error(text: str) -> None:
    wire = Wire()
    wire.live(0)
    with pytest.raises(ProtocolError):
        wire.machine.received(text, 0.0)


@settings(max_examples=60)
@given(st.data())
def test_any_loss_repeat_or_disconnect_delivers_each_envelope_once_in_order(
    data: st.DataObject,
) -> None:
    """A model server over a lossy wire: two consumers still see since+1 .. head, each once."""
    machine, now = ClientMachine(), 0.0
    starts = [data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6))]
    got: dict[int, list[int]] = {}
    inbox: list[Json] = []  # what the server was sent
    head = 6

    def absorb(effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                got[effect.consumer] += [one["seq"] for one in effect.envelopes]
            elif isinstance(effect, Send):
                inbox.append(json.loads(effect.frame))
            else:
                assert isinstance(effect, CaughtUp), effect

    def answer(lossy: bool) -> None:
        while inbox:
            frame = inbox.pop(0)
            since = frame["since"]
            told = {"type": "subscribed", "scope": S, "epoch": "E", "since": since}
            absorb(machine.received(json.dumps({**told, "head": head, "floor": 0}), now))
            seqs = list(range(since + 1, head + 1))
            if lossy:
                seqs = [seq for seq in seqs if data.draw(st.integers(0, 3))]
            if seqs:
                absorb(machine.received(json.dumps(events(seqs)), now))
            done = {"type": "caughtUp", "scope": S, "seq": head}
            absorb(machine.received(json.dumps(done), now))
            lossy = False  # a second loss at one cursor is the snapshot's case, tested above

    def events(seqs: list[int]) -> Json:
        return {"type": "events", "scope": S, "envelopes": [env(seq) for seq in seqs]}

    for since in starts:
        consumer, effects = machine.subscribe(S, since, None, now)
        got[consumer] = []
        absorb(effects)
    absorb(machine.opened(now))
    answer(lossy=True)
    for _ in range(data.draw(st.integers(0, 6))):
        step = data.draw(st.sampled_from(["live", "lost", "again", "reconnect"]))
        if step == "reconnect":
            machine.disconnected(0.5)
            inbox.clear()
            head += data.draw(st.integers(0, 2))
            absorb(machine.opened(now))
        elif step == "again":
            absorb(machine.received(json.dumps(events([head])), now))
        else:
            head += 1
            if step == "live":
                absorb(machine.received(json.dumps(events([head])), now))
        answer(lossy=False)
    head += 1
    absorb(machine.received(json.dumps(events([head])), now))
    answer(lossy=False)
    for consumer, since in zip(got, starts, strict=True):
        assert got[consumer] == list(range(since + 1, head + 1))
