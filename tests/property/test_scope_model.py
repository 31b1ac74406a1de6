"""A scope, its file and its followers against a plain list and a dict, in any order of events.

Publishing, commits, barrier passes, crashes, joins, congestion and every suspension of a reader are
separate rules, so hypothesis interleaves them at will (edge cases 22 to 29, 35 and 36 of the
AsterQL dialect).
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.rows import BIG_ROW_BYTES
from actors.scope import Scope
from actors.types import Appended, Duplicate, Outcome, Rejected, Retention, ScopePolicy
from tests.support.followers import Edge, Follower
from tests.support.ledgers import ADDRESS, Bench, FakeReply, check_file, draft, set_patch

RETAIN = 12
ITEMS, DOCS = ("item:1", "item:2"), ("doc:1", "doc:2")
items, docs = st.sampled_from(ITEMS), st.sampled_from(DOCS)
keys = st.sampled_from(ITEMS + DOCS)
delays = st.lists(st.integers(0, 2), min_size=1, max_size=4)

Step = tuple[str, dict[str, Any]]  # (what it should become, envelope)


class Model:
    """What the file should hold."""

    def __init__(self) -> None:
        self.head = 0
        self.ids: dict[int, str] = {}  # seq -> eventId, of the whole epoch
        self.causes: dict[str, int] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def accept(self, envelope: dict[str, Any]) -> Outcome | str:
        """The outcome to expect; "refused" where the envelope must be."""
        cause = envelope["eventId"]
        if cause in self.causes:
            return Duplicate(self.causes[cause])
        rows = copy.deepcopy(self.rows)
        if envelope["kind"] == "snapshot":
            rows = {}
        for entity in envelope.get("entities", ()):
            if not self._fold(rows, entity):
                return "refused"
        self.head += 1
        self.rows = rows
        self.ids[self.head] = cause
        self.causes[cause] = self.head
        return Appended(self.head, self.head)

    def _fold(self, rows: dict[str, dict[str, Any]], entity: dict[str, Any]) -> bool:
        key = entity["key"]
        if "deleted" in entity:
            rows.pop(key, None)
        elif "value" in entity:
            rows[key] = entity["value"]
        else:
            record = rows.setdefault(key, {})
            for patch in entity["patches"]:
                name = patch["path"][1:]
                if patch["op"] == "set":
                    record[name] = patch["value"]
                elif patch["op"] == "appendText":
                    record[name] = record.get(name, "") + patch["delta"]
                else:
                    return False
        return True


class ScopeMachine(RuleBasedStateMachine):
    """`waiting` are requests no turn has taken; `unanswered` those whose answer must still come."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="holdfast-model-"))
        self.bench = Bench(self.home / "x.db", ScopePolicy(Retention(entries=RETAIN)))
        self.model = Model()
        self.count = 0
        self.waiting: list[tuple[FakeReply, list[dict[str, Any]]]] = []
        self.unanswered: list[tuple[FakeReply, list[Outcome | str]]] = []
        self.passes: list[tuple[list[tuple[Scope, int]], int]] = []  # with the head at the start
        self.safe = 0  # what a power cut would leave
        self.delays = [0, 1]
        self._begin()

    def _begin(self) -> None:
        self.followers: list[Follower] = []
        self.edge = Edge(self.bench.scope, page_entries=4, delays=self._delay)

    def _delay(self) -> int:
        self.delays.append(self.delays.pop(0))
        return self.delays[0]

    def _released(self) -> int:
        assert self.bench.scope.released <= self.safe, "shown before the barrier passed it"
        return self.bench.scope.released

    # -- writing
    # -------------------------------------------------------------------------------------

    def _append(self, envelopes: list[dict[str, Any]]) -> None:
        reply = self.bench.append([draft(envelope) for envelope in envelopes])
        self.waiting.append((reply, envelopes))

    def _envelope(self, *entities: dict[str, Any], kind: str = "patch") -> dict[str, Any]:
        self.count += 1
        return {"eventId": f"e{self.count}", "kind": kind, "entities": list(entities)}

    @rule(wanted=st.lists(st.tuples(items, st.integers(0, 9)), min_size=1, max_size=8))
    def publish(self, wanted: list[tuple[str, int]]) -> None:
        patched = [{"key": key, "patches": [set_patch("/n", n)]} for key, n in wanted]
        self._append([self._envelope(entity) for entity in patched])

    @rule(key=docs, big=st.booleans())
    def grow(self, key: str, big: bool) -> None:
        text = "x" * (BIG_ROW_BYTES + 1 if big else 3)
        patch = {"op": "appendText", "path": "/t", "delta": text}
        self._append([self._envelope({"key": key, "patches": [patch]})])

    @rule(key=items)
    def publish_refused_between_good_ones(self, key: str) -> None:
        lost = {"key": key, "patches": [set_patch("/n", "lost")]}
        bad = {"key": "doc:1", "patches": [set_patch("/n", 1), {"op": "nope", "path": "/n"}]}
        good = {"key": key, "patches": [set_patch("/m", self.count)]}
        self._append([self._envelope(good), self._envelope(lost, bad), self._envelope(good)])

    @rule(back=st.integers(0, 40), key=keys)
    def publish_again(self, back: int, key: str) -> None:
        other = self._envelope({"key": key, "patches": [set_patch("/n", "other")]})
        self._append([{**other, "eventId": f"e{max(1, self.count - 1 - back)}"}])

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self._append([self._envelope({"key": key, "deleted": True})])

    @rule(listed=st.sets(keys))
    def publish_snapshot(self, listed: set[str]) -> None:
        values = [{"key": key, "value": {"n": 0}} for key in sorted(listed)]
        self._append([self._envelope(*values, kind="snapshot")])

    @rule()
    def turn(self) -> None:
        before = self.bench.shell.counts.commits
        self.bench.shell.turns(1)
        scope = self.bench.scope
        if not scope._mailbox and self.waiting:
            for reply, envelopes in self.waiting:
                self.unanswered.append((reply, [self.model.accept(e) for e in envelopes]))
            self.waiting.clear()
        assert self.bench.shell.counts.commits - before <= 1
        assert scope.head == self.model.head
        self._compare_answers()

    @rule()
    def begin_pass(self) -> None:
        self.passes.append((self.bench.shell.begin_pass(), self.bench.scope.head))

    @precondition(lambda self: self.passes)
    @rule()
    def end_pass(self) -> None:
        noted, head = self.passes.pop(0)
        self.safe = head
        self.bench.shell.end_pass(noted)
        self._compare_answers()

    @rule()
    def turn_and_pass(self) -> None:
        self.turn()
        self.begin_pass()
        while self.passes:
            self.end_pass()

    def _compare_answers(self) -> None:
        left = []
        for reply, wanted in self.unanswered:
            if not reply.answers:
                left.append((reply, wanted))
                continue
            for got, want in zip(reply.outcomes, wanted, strict=True):
                if want == "refused":
                    assert isinstance(got, Rejected) and got.code == "patch_failed"
                elif isinstance(want, Duplicate):
                    assert isinstance(got, Duplicate) and got.seq == want.seq
                    assert got.seq <= self._released()
                else:
                    assert isinstance(got, Appended) and got == want
                    assert got.last <= self._released()
        self.unanswered = left

    @rule()
    def crash(self) -> None:
        self.edge.tasks.drop()
        self.waiting.clear()
        self.unanswered.clear()
        self.passes.clear()
        self.bench.crash()
        assert self.bench.scope.head == self.model.head
        self.safe = self.model.head  # a killed process leaves what it committed
        self._begin()

    # -- reading
    # -------------------------------------------------------------------------------------

    @rule(
        back=st.one_of(st.none(), st.integers(-2, RETAIN + 4)),
        batch=st.booleans(), durable=st.booleans(),
    )  # fmt: skip
    def join(self, back: int | None, batch: bool, durable: bool) -> None:
        follower = Follower(self.edge, ADDRESS.scope, self._released)
        self.followers.append(follower)
        since = {} if back is None else {"since": max(0, self._released() - back)}
        follower.ask("sub", batch=batch, **since)

    @precondition(lambda self: self.edge.tasks.waiting)
    @rule(which=st.integers(0, 30), times=st.integers(1, 6), delays=delays)
    def step(self, which: int, times: int, delays: list[int]) -> None:
        self.delays = delays
        for _ in range(times):
            if self.edge.tasks.waiting:
                self.edge.tasks.step(which)

    @rule(batch=st.booleans())
    def join_and_catch_up(self, batch: bool) -> None:
        self.join(None, batch, False)
        self.run_readers()

    @rule()
    def run_readers(self) -> None:
        """Every suspended reader goes on until it waits for its socket."""
        for _ in range(200):
            if self.edge.tasks.waiting:
                self.edge.tasks.step(0)

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0, 30), catch_up=st.booleans())
    def congested_meanwhile(self, which: int, catch_up: bool) -> None:
        follower = self.followers[which % len(self.followers)]
        follower.congested = True
        self.publish([("item:1", self.count)])
        self.turn_and_pass()
        follower.congested = False
        if catch_up:
            self.run_readers()

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0, 30))
    def congest(self, which: int) -> None:
        follower = self.followers[which % len(self.followers)]
        follower.congested = not follower.congested

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0, 30), back=st.integers(0, RETAIN), batch=st.booleans())
    def sub_again(self, which: int, back: int, batch: bool) -> None:
        follower = self.followers[which % len(self.followers)]
        follower.ask("sub", since=max(0, self._released() - back), batch=batch)

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0, 30))
    def unsub(self, which: int) -> None:
        self.followers[which % len(self.followers)].ask("unsub")

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0, 30))
    def hang_up(self, which: int) -> None:
        self.followers.pop(which % len(self.followers)).connection.close()

    # -- always
    # --------------------------------------------------------------------------------------

    @invariant()
    def nobody_sees_what_is_not_there(self) -> None:
        for follower in self.followers:
            for seq, event_id in follower.seen.items():
                assert self.model.ids[seq] == event_id

    @invariant()
    def the_file_is_whole(self) -> None:
        header = self.bench.scope.ledger.header
        assert self._released() <= header.head == self.model.head
        assert header.floor <= max(0, header.head - 1)

    def teardown(self) -> None:
        try:
            self._come_to_rest()
            checked = check_file(self.bench.path)
            assert checked.rows == self.model.rows
            assert checked.causes == self.model.causes
            for follower in self.followers:
                if follower.accepted and follower.ended is None:
                    assert follower.live and follower.cursor == self.model.head
                else:
                    allowed = {"below_floor", "ahead_of_head", "unsubscribed"}
                    assert follower.ended in allowed
        finally:
            self.edge.tasks.drop()
            self.bench.close()
            shutil.rmtree(self.home)

    def _come_to_rest(self) -> None:
        for _ in range(2000):
            if not (self.waiting or self.unanswered or self.edge.tasks.waiting):
                break
            for follower in self.followers:
                follower.congested = False
            self.turn_and_pass()
            if self.edge.tasks.waiting:
                self.edge.tasks.step(0)
        assert not self.edge.tasks.waiting and not self.unanswered


ScopeMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
TestScopeModel = ScopeMachine.TestCase
