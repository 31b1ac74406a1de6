"""The output gate: what may leave when disk and bucket have passed so far, by hand and by model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from actors.gate import LOCAL, REPLICATED, Gate, Opened, Waiting
from actors.mailbox import Request
from tests.support.ledgers import FakeReply


def request(tag: Any, *, replicated: bool = False) -> Request:
    return Request([], FakeReply(), tag, replicated=replicated)


def batch(last: int, position: int, *requests: Request, at: int = 0, first: int = 0) -> Waiting:
    return Waiting(first or last, last, position, at, [f"b{last}"], list(requests))


def tags(opened: Opened | list[Request]) -> list[Any]:
    requests = opened if isinstance(opened, list) else opened.requests
    return [request.tag for request in requests]


def lasts(opened: Opened) -> list[int]:
    return [batch.last for batch in opened.batches]


def gate_at(level: str, *, head: int = 0) -> Gate:
    """One with a replica that is known to have what the file held when it was opened."""
    gate = Gate(head, level, replica=True)
    gate.pass_bucket(0, head)
    return gate


# -- levels --------------------------------------------------------------------------------


def test_without_a_replica_the_disk_is_all_there_is() -> None:
    gate = Gate(4, LOCAL, replica=False)
    assert (gate.released, gate.durable) == (4, 4)
    gate.hold(batch(5, 1, request("a", replicated=True)))
    assert not gate.urgent
    opened = gate.pass_disk(1)
    assert (lasts(opened), tags(opened)) == ([5], ["a"])
    assert (gate.released, gate.durable) == (5, 5) and not gate


def test_local_leaves_with_the_disk_and_is_durable_with_the_bucket() -> None:
    gate = gate_at(LOCAL)
    gate.hold(batch(1, 1, request("a")))
    assert gate and not gate.urgent
    assert tags(gate.pass_disk(1)) == ["a"]
    assert (gate.released, gate.durable) == (1, 0) and not gate
    opened = gate.pass_bucket(1, 1)
    assert (opened.batches, opened.requests, gate.durable) == ([], [], 1)


def test_replicated_leaves_with_the_bucket() -> None:
    gate = gate_at(REPLICATED)
    gate.hold(batch(1, 1, request("a")))
    assert gate.urgent
    assert gate.pass_disk(1) == Opened([], [])
    assert (gate.released, gate.durable) == (0, 0)
    opened = gate.pass_bucket(1, 1)
    assert (lasts(opened), tags(opened)) == ([1], ["a"])
    assert (gate.released, gate.durable) == (1, 1) and not gate.urgent


def test_what_the_bucket_has_waits_for_this_disk_too() -> None:
    gate = gate_at(REPLICATED)
    for n in (1, 2):
        gate.hold(batch(n, n, request(n)))
    gate.pass_disk(1)
    assert tags(gate.pass_bucket(2, 2)) == [1]
    assert tags(gate.pass_disk(2)) == [2]


def test_marks_never_go_back() -> None:
    gate = gate_at(LOCAL)
    for n in (1, 2):
        gate.hold(batch(n, n))
    assert lasts(gate.pass_disk(2)) == [1, 2]
    gate.pass_bucket(2, 2)
    assert gate.pass_disk(1) == Opened([], []) and gate.pass_bucket(1, 1) == Opened([], [])
    assert (gate.passed, gate.shipped, gate.durable, gate.released) == (2, 2, 2, 2)


def test_what_the_file_held_before_is_not_taken_for_shipped() -> None:
    # A duplicate rests on entries that only this disk may have: its answer waits for the bucket.
    gate = Gate(7, REPLICATED, replica=True)
    assert (gate.released, gate.durable) == (7, 0)
    gate.hold(batch(7, 0, request("duplicate"), first=8))
    assert gate.urgent and gate.pass_disk(0) == Opened([], [])
    assert tags(gate.pass_bucket(0, 7)) == ["duplicate"]
    assert gate.durable == 7


def test_the_head_after_the_last_batch_that_left_is_what_is_shown() -> None:
    gate = gate_at(REPLICATED)
    for n in range(1, 6):
        gate.hold(batch(n * 10, n, request(n), first=n * 10 - 9))
    gate.pass_disk(5)
    opened = gate.pass_bucket(3, 30)
    assert (lasts(opened), tags(opened), gate.released) == ([10, 20, 30], [1, 2, 3], 30)


# -- requests that ask for more than the level ---------------------------------------------


def test_a_raised_request_waits_though_its_entries_are_shown() -> None:
    gate = gate_at(LOCAL)
    gate.hold(batch(1, 1, request("a"), request("b", replicated=True), request("c")))
    assert gate.urgent, "the bucket is waited for as soon as the disk has it"
    opened = gate.pass_disk(1)
    assert (lasts(opened), tags(opened), gate.released) == ([1], ["a", "c"], 1)
    assert gate and gate.urgent
    assert tags(gate.pass_bucket(1, 1)) == ["b"]
    assert not gate and not gate.urgent


def test_a_raised_request_about_what_is_shipped_waits_for_nothing() -> None:
    gate = gate_at(LOCAL)
    gate.hold(batch(1, 1))
    gate.pass_disk(1)
    gate.pass_bucket(1, 1)
    gate.hold(batch(1, 1, request("again", replicated=True), first=2))
    assert not gate.urgent
    assert tags(gate.pass_disk(1)) == ["again"]


def test_the_bucket_answers_raised_requests_up_to_its_position_only() -> None:
    gate = gate_at(LOCAL)
    for n in (1, 2, 3):
        gate.hold(batch(n, n, request(n, replicated=True)))
    assert tags(gate.pass_disk(3)) == []
    assert tags(gate.pass_bucket(2, 2)) == [1, 2]
    assert gate.urgent and tags(gate.pass_bucket(3, 3)) == [3]


# -- lowering the level --------------------------------------------------------------------


def test_a_lowered_level_holds_once_the_bucket_knows_of_it() -> None:
    gate = gate_at(REPLICATED)
    gate.lower_level_after(2)
    for n in (1, 2, 3):
        gate.hold(batch(n, n, request(n)))
    gate.pass_disk(3)
    assert tags(gate.pass_bucket(1, 1)) == [1] and gate.level == REPLICATED
    opened = gate.pass_bucket(2, 2)
    assert gate.level == LOCAL
    assert (tags(opened), gate.released, gate.durable) == ([2, 3], 3, 2), "3 needs the disk only"


def test_a_raised_request_goes_on_waiting_when_the_level_is_lowered() -> None:
    gate = gate_at(REPLICATED)
    gate.lower_level_after(1)
    gate.hold(batch(1, 1))
    gate.hold(batch(2, 2, request("raised", replicated=True), request("plain")))
    gate.pass_disk(2)
    opened = gate.pass_bucket(1, 1)
    assert (lasts(opened), tags(opened)) == ([1, 2], ["plain"])
    assert gate.urgent and tags(gate.pass_bucket(2, 2)) == ["raised"]


# -- when nobody takes it ------------------------------------------------------------------


def test_the_oldest_answer_that_waits_is_known() -> None:
    gate = gate_at(REPLICATED)
    assert gate.oldest_unshipped_at() is None
    gate.hold(batch(1, 1, request("a"), at=10))
    gate.hold(batch(2, 2, request("b"), at=20))
    assert gate.oldest_unshipped_at() == 10
    gate.pass_disk(2)
    gate.pass_bucket(1, 1)
    assert gate.oldest_unshipped_at() == 20

    local = gate_at(LOCAL)
    local.hold(batch(1, 1, request("a"), at=10))
    local.hold(batch(2, 2, request("b", replicated=True), at=20))
    local.pass_disk(2)
    assert local.oldest_unshipped_at() == 20, "nobody waits for the first"


def test_giving_up_answers_everybody_and_keeps_the_entries() -> None:
    gate = gate_at(REPLICATED)
    gate.hold(batch(1, 1, request("a"), request("b", replicated=True)))
    gate.hold(batch(2, 2, request("c")))
    gate.pass_disk(1)
    assert tags(gate.give_up()) == ["a", "b", "c"] and gate.give_up() == []
    assert gate and gate.released == 0
    gate.pass_disk(2)
    opened = gate.pass_bucket(2, 2)
    assert (lasts(opened), tags(opened), gate.released) == ([1, 2], [], 2)


def test_giving_up_at_level_local_leaves_those_who_wait_for_the_disk() -> None:
    gate = gate_at(LOCAL)
    gate.hold(batch(1, 1, request("raised", replicated=True)))
    gate.hold(batch(2, 2, request("plain")))
    gate.pass_disk(1)
    assert tags(gate.give_up()) == ["raised"]
    assert tags(gate.pass_disk(2)) == ["plain"]


def test_dropping_answers_everybody_and_shows_nothing_more() -> None:
    gate = gate_at(LOCAL)
    gate.hold(batch(1, 1, request("raised", replicated=True)))
    gate.hold(batch(2, 2, request("plain")))
    gate.pass_disk(1)
    assert sorted(tags(gate.drop())) == ["plain", "raised"]
    assert not gate and gate.drop() == []
    gate.pass_disk(2)
    assert gate.pass_bucket(2, 2) == Opened([], []) and gate.released == 1


# -- by model ------------------------------------------------------------------------------


class GateMachine(RuleBasedStateMachine):
    """Says of each batch and request, from the marks alone, whether it may have left.

    `held` are batches in their order; what has left and who was answered is written down as the
    gate says so, and compared with what the marks allow.
    """

    level = LOCAL
    replica = True

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(0, self.level, replica=self.replica)
        self.held: list[tuple[int, int, list[Request]]] = []  # (position, last, requests)
        self.head = self.position = self.passed = 0
        self.shipped = -1
        self.lower_from: int | None = None
        self.left = 0  # batches that left
        self.answered: dict[int, str] = {}  # tag -> how
        self.order: list[int] = []
        self.asked = 0

    def _hold(self, entries: int, wanted: list[bool]) -> None:
        before = self.head
        self.head += entries
        self.position += 1 if entries else 0
        requests = []
        for replicated in wanted:
            self.asked += 1
            requests.append(request(self.asked, replicated=replicated and self.replica))
        self.held.append((self.position, self.head, list(requests)))
        bodies = [str(n) for n in range(before + 1, self.head + 1)]
        self.gate.hold(Waiting(before + 1, self.head, self.position, 0, bodies, requests))
        if not entries and self.gate.passed >= self.position:  # as Scope does: nobody else will
            self._take(self.gate.pass_disk(self.position))

    @rule(entries=st.integers(0, 3), wanted=st.lists(st.booleans(), max_size=3))
    def commit(self, entries: int, wanted: list[bool]) -> None:
        self._hold(entries, wanted)

    @rule(back=st.integers(0, 4))
    def disk(self, back: int) -> None:
        self.passed = max(self.passed, self.position - back)
        self._take(self.gate.pass_disk(max(0, self.position - back)))

    @precondition(lambda self: self.replica)
    @rule(back=st.integers(0, 4))
    def bucket(self, back: int) -> None:
        """The bucket gets what the disk has, and says how far its head is."""
        position = max(0, self.passed - back)
        head = max((last for at, last, _ in self.held if at <= position), default=0)
        self.shipped = max(self.shipped, position)
        self._take(self.gate.pass_bucket(position, head))

    @precondition(lambda self: self.replica and self.lower_from is None)
    @rule()
    def lower(self) -> None:
        self.lower_from = self.position + 1
        self.gate.lower_level_after(self.position + 1)

    @rule()
    def give_up(self) -> None:
        for given in self.gate.give_up():
            self._answer(given, "given up")

    def teardown(self) -> None:
        released = self.gate.released
        for given in self.gate.drop():
            self._answer(given, "dropped")
        assert len(self.answered) == self.asked, "somebody waits for ever"
        assert self.gate.pass_disk(self.position) == Opened([], [])
        assert self.gate.released == released and not self.gate

    def _take(self, opened: Opened) -> None:
        for found in opened.batches:
            position, last, _ = self.held[self.left]  # the next one, in the order of the commits
            assert (found.position, found.last) == (position, last)
            self.left += 1
        for given in opened.requests:
            self._answer(given, "answered")
            self.order.append(given.tag)

    def _answer(self, given: Request, how: str) -> None:
        assert given.tag not in self.answered, "answered twice"
        self.answered[given.tag] = how

    def _is_low(self) -> bool:
        lowered = self.lower_from is not None and self.shipped >= self.lower_from
        return self.level == LOCAL or not self.replica or lowered

    @invariant()
    def nothing_leaves_early_or_late(self) -> None:
        limit = self.passed if self._is_low() else min(self.passed, self.shipped)
        assert self.left == sum(1 for position, _, _ in self.held if position <= limit)
        for n, (position, _, requests) in enumerate(self.held):
            for asked in requests:
                waits = asked.replicated and position > self.shipped
                due = n < self.left and not waits
                how = self.answered.get(asked.tag)
                assert (how is not None) == due or how == "given up", (asked.tag, how, due)

    @invariant()
    def the_marks_hold(self) -> None:
        gate = self.gate
        shown = self.held[self.left - 1][1] if self.left else 0
        assert gate.released == shown
        assert gate.durable <= gate.released <= self.head
        if self.replica:
            reached = [last for at, last, _ in self.held if at <= self.shipped]
            assert gate.durable == max(reached, default=0)
        else:
            assert gate.durable == gate.released

    @invariant()
    def it_knows_who_waits(self) -> None:
        waiting = [
            (position, asked.replicated)
            for n, (position, _, requests) in enumerate(self.held)
            for asked in requests
            if asked.tag not in self.answered
        ]
        assert not waiting or self.gate
        for_bucket = [at for at, raised in waiting if raised or not self._is_low()]
        if self.replica and any(position > self.shipped for position in for_bucket):
            assert self.gate.urgent
        if self.left == len(self.held) and self.shipped == self.position:
            assert not self.gate and not self.gate.urgent

    @invariant()
    def plain_answers_come_in_order(self) -> None:
        plain = {asked.tag for _, _, all_ in self.held for asked in all_ if not asked.replicated}
        raised = {asked.tag for _, _, all_ in self.held for asked in all_ if asked.replicated}
        for kind in (plain, raised):
            told = [tag for tag in self.order if tag in kind]
            assert told == sorted(told)


class Replicated(GateMachine):
    level = REPLICATED


class Alone(GateMachine):
    replica = False


@pytest.mark.parametrize("machine", [GateMachine, Replicated, Alone])
def test_the_gate_against_its_marks(machine: type[GateMachine]) -> None:
    limits = settings(max_examples=80, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(machine, settings=limits)
