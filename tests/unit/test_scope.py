"""The actor: group commit, the output gate, refusals, bounds. Turns and barrier passes by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.mailbox import Request
from actors.scope import RELEASE_LAG_MAX
from actors.types import Appended, Draft, Duplicate, Page, Rejected, Resync
from infra.errors import HoldfastError
from tests.support.ledgers import (
    Bench,
    FakeReply,
    FakeTap,
    draft,
    drafts,
    envelope,
    set_patch,
)  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "x.db")
    yield bench
    bench.close()


def page(bench: Bench, after: int, **more: Any) -> Page | Resync:
    options = {"entries_max": 512, "bytes_max": 1 << 20, "joined": False, **more}
    return bench.scope.read(after, **options)


def head_in_file(bench: Bench) -> int:
    return int(bench.check().header["head"])


# -- group commit
# ------------------------------------------------------------------------------------


def test_what_waits_in_a_turn_is_one_commit(bench: Bench) -> None:
    first, second = bench.append(drafts("a", "b"), "t1"), bench.append(drafts("c"), "t2")
    bench.shell.settle()
    assert first.answers[0][:2] == ("t1", [Appended(1, 1), Appended(2, 2)])
    assert second.answers[0][:2] == ("t2", [Appended(3, 3)])
    assert bench.shell.counts.commits == 1
    assert bench.check().header["head"] == 3


def test_a_turn_takes_a_bounded_number_of_drafts(bench: Bench) -> None:
    replies = [bench.append(drafts(*(f"{n}.{m}" for m in range(256)))) for n in range(5)]
    bench.shell.turns()
    assert bench.shell.counts.commits == 3
    bench.shell.barrier()
    answers = [
        seq.first for reply in replies for seq in reply.outcomes if isinstance(seq, Appended)
    ]
    assert answers == list(range(1, 5 * 256 + 1))


def test_a_reply_that_waits_twice_is_flushed_once_a_pass(bench: Bench) -> None:
    reply = bench.append(drafts("a"))
    bench.append(drafts("b"), reply=reply)
    bench.shell.settle()
    assert len(reply.answers) == 2 and reply.flushed == 1


def test_a_refused_draft_leaves_no_trace_and_takes_no_number(bench: Bench) -> None:
    # Edge case 22.
    bad = envelope("bad", set_patch("/n", 99), {"op": "move", "path": "/n", "from": 0, "to": 1})
    reply = bench.append([*drafts("a"), draft(bad), *drafts("b")])
    bench.shell.settle()
    refused = reply.outcomes[1]
    assert isinstance(refused, Rejected) and refused.code == "patch_failed"
    assert refused.detail == {"entity": "item:1", "index": 1, "reason": "type_mismatch"}
    assert reply.outcomes[2] == Appended(2, 2)
    assert bench.rows() == {"item:1": {"n": "b"}}


def test_drafts_of_a_batch_see_the_ones_before_them(bench: Bench) -> None:
    add = {"op": "increment", "path": "/n"}
    reply = bench.append([draft(envelope(f"e{n}", add)) for n in range(10)])
    bench.shell.settle()
    assert reply.outcomes[-1] == Appended(10, 10)
    assert bench.rows() == {"item:1": {"n": 10}}


def test_a_refused_snapshot_does_not_clear(bench: Bench) -> None:
    bench.publish("a")
    parts = [{"key": f"item:{n}", "value": {"n": n}} for n in range(3)]
    bench.publish("s", key="item:2")
    snapshot = {"eventId": "snap", "kind": "snapshot", "entities": parts}
    reply = bench.append([draft(envelope("bad", {"op": "nope", "path": "/x"})), draft(snapshot)])
    bench.shell.settle()
    assert [type(outcome) for outcome in reply.outcomes] == [Rejected, Appended]
    assert bench.rows() == {f"item:{n}": {"n": n} for n in range(3)}  # edge case 35


def test_a_deleted_entity_begins_anew(bench: Bench) -> None:
    # Edge case 36.
    bench.publish("a")
    gone = {"eventId": "d", "kind": "patch", "entities": [{"key": "item:1", "deleted": True}]}
    reply = bench.append([draft(gone), draft(envelope("b", set_patch("/m", 1)))])
    bench.shell.settle()
    assert reply.outcomes == [Appended(2, 2), Appended(3, 3)]
    assert bench.rows() == {"item:1": {"m": 1}}


def test_an_invalidate_moves_the_head_only(bench: Bench) -> None:
    # Edge case 43.
    bench.publish("a")
    reply = bench.append([draft({"eventId": "i", "kind": "invalidate", "classes": ["x"]})])
    bench.shell.settle()
    assert reply.outcomes == [Appended(2, 2)]
    assert bench.rows() == {"item:1": {"n": "a"}}


# -- the gate
# ----------------------------------------------------------------------------------------


def test_nothing_leaves_before_release(bench: Bench) -> None:
    tap = FakeTap()
    bench.scope.taps.append(tap)
    reply = bench.append(drafts("a", "b"))
    bench.shell.turns()
    assert bench.scope.head == 2 and bench.scope.released == 0
    assert (reply.answers, tap.batches) == ([], [])
    assert page(bench, 0) == Page(1, 0, [], "", bench.scope.bounds)
    assert bench.scope.bounds.head == 0
    bench.shell.barrier()
    assert len(reply.outcomes) == 2 and tap.seqs == [1, 2]
    found = page(bench, 0)
    assert isinstance(found, Page) and (found.first, found.last) == (1, 2)


def test_a_pass_releases_only_what_it_noted(bench: Bench) -> None:
    tap = FakeTap()
    bench.scope.taps.append(tap)
    first = bench.append(drafts("a"))
    bench.shell.turns()
    noted = bench.shell.begin_pass()
    second = bench.append(drafts("b"))
    bench.shell.turns()
    bench.shell.end_pass(noted)
    assert (len(first.answers), len(second.answers), tap.seqs) == (1, 0, [1])
    found = page(bench, 0)
    assert isinstance(found, Page) and found.last == 1
    bench.shell.barrier()
    assert len(second.answers) == 1 and tap.seqs == [1, 2]


def test_a_duplicate_waits_for_what_it_repeats(bench: Bench) -> None:
    bench.append(drafts("a"))
    bench.shell.turns()
    again = bench.append(drafts("a"))
    bench.shell.turns()
    assert again.answers == []
    bench.shell.barrier()
    (found,) = again.outcomes
    assert isinstance(found, Duplicate) and found.seq == 1


def test_a_refusal_waits_for_the_state_it_depends_on(bench: Bench) -> None:
    bench.append([draft(envelope("a", set_patch("/n", "text")))])
    bench.shell.turns()
    refused = bench.append([draft(envelope("b", {"op": "increment", "path": "/n"}))])
    bench.shell.turns()
    assert refused.answers == []
    bench.shell.barrier()
    assert isinstance(refused.outcomes[0], Rejected)


def test_a_duplicate_of_released_state_needs_no_pass(bench: Bench) -> None:
    bench.publish("a")
    again = bench.append(drafts("a"))
    bench.shell.turns()
    assert [type(outcome) for outcome in again.outcomes] == [Duplicate]
    assert not bench.shell.marked and bench.shell.counts.commits == 1


def test_an_alarm_is_not_answered_before_it_is_durable(bench: Bench) -> None:
    reply, ask = FakeReply(), FakeReply()
    bench.scope.append(Request([], reply, None, alarms=[("tick", 5, None, 0)]))
    bench.shell.turns()
    bench.scope.append(Request([], ask, None))
    bench.shell.turns()
    assert (reply.answers, ask.answers) == ([], [])
    bench.shell.barrier()
    assert len(reply.answers) == len(ask.answers) == 1


def test_a_new_epoch_is_not_answered_before_it_is_durable(bench: Bench) -> None:
    bench.publish("a")
    bench.scope.begin_epoch("e2", 2**20)
    ask = bench.append([])
    bench.shell.turns()
    assert ask.answers == []
    bench.shell.barrier()
    assert ask.answers[0][2].epoch == "e2"


def test_answers_come_before_the_next_turn_sees_them(bench: Bench) -> None:
    bench.publish("a")
    (found,) = bench.publish("a")
    assert isinstance(found, Duplicate) and found.body is not None
    assert json.loads(found.body)["seq"] == 1
    (same_turn_first, same_turn_again) = bench.publish("c", "c")
    assert same_turn_first == Appended(2, 2)
    assert isinstance(same_turn_again, Duplicate) and same_turn_again.seq == 2


def test_taps_get_each_entry_once_in_order(bench: Bench) -> None:
    tap = FakeTap()
    bench.scope.taps.append(tap)
    for n in range(20):
        bench.append(drafts(f"e{n}", f"f{n}"))
        bench.shell.turns()
        if n % 3 == 0:
            bench.shell.barrier()
    bench.shell.barrier()
    assert tap.seqs == list(range(1, 41))
    assert [json.loads(body)["seq"] for batch in tap.batches for body in batch.bodies] == tap.seqs


def test_commits_stop_while_the_disk_is_far_behind(bench: Bench) -> None:
    for n in range(RELEASE_LAG_MAX + 5):
        bench.append(drafts(f"e{n}"))
        bench.shell.turns()
    assert bench.scope.head == RELEASE_LAG_MAX
    bench.shell.barrier()
    bench.shell.settle()
    assert bench.scope.released == RELEASE_LAG_MAX + 5


# -- expect, make, cursors
# ---------------------------------------------------------------------------


def test_expect_must_meet_the_head(bench: Bench) -> None:
    one, two, three = drafts("a", "b", "c")
    one.expect, two.expect, three.expect = 0, 0, 1
    reply = bench.append([one, two, three])
    bench.shell.settle()
    assert reply.outcomes[0] == Appended(1, 1)
    conflict = reply.outcomes[1]
    assert isinstance(conflict, Rejected) and conflict.code == "conflict"
    assert reply.outcomes[2] == Appended(2, 2)


def test_a_factory_that_raises_ends_only_its_own_draft(bench: Bench) -> None:
    # Edge case 30.
    wrong = ValueError("no envelope today")
    seen: list[tuple[int, int]] = []

    def make(seq: int, at: int) -> Draft:
        seen.append((seq, at))
        raise wrong

    reply = bench.append([*drafts("a"), Draft("", "", "", 0, make=make), *drafts("b")])
    bench.shell.settle()
    refused = reply.outcomes[1]
    assert isinstance(refused, Rejected) and refused.error is wrong
    assert seen == [(2, bench.shell.now)]
    assert reply.outcomes[2] == Appended(2, 2)


def test_a_factory_is_handed_the_seq_it_gets(bench: Bench) -> None:
    made = Draft("", "", "", 0, make=lambda seq, _at: draft(envelope(f"made-{seq}")))
    reply = bench.append([*drafts("a"), made])
    bench.shell.settle()
    assert reply.outcomes == [Appended(1, 1), Appended(2, 2)]
    assert bench.check().bodies[2]["eventId"] == "made-2"


def test_cursors_outside_the_history_are_told(bench: Bench) -> None:
    # Edge cases 25 to 27.
    bench.publish("a", "b")
    assert page(bench, 2) == Page(3, 2, [], "", bench.scope.bounds)
    ahead = page(bench, 3)
    assert isinstance(ahead, Resync) and ahead.reason == "ahead_of_head"


def test_a_batch_frame_stays_within_its_bytes(bench: Bench) -> None:
    for n in range(10):
        wanted = [draft(envelope(f"{n}.{m}", pad="x" * 600)) for m in range(20)]
        bench.append(wanted)
    bench.shell.settle()
    found = page(bench, 0, entries_max=512, bytes_max=64 << 10, joined=True)
    assert isinstance(found, Page) and 0 < found.last < 200
    assert len(found.joined) <= 64 << 10


def test_clearing_needs_a_quiet_scope(bench: Bench) -> None:
    tap = FakeTap()
    bench.scope.taps.append(tap)
    bench.append(drafts("a"))
    bench.shell.turns()
    with pytest.raises(HoldfastError) as caught:
        bench.scope.begin_epoch("e2", 2**20)
    assert caught.value.retryable
    bench.shell.settle()
    bench.scope.begin_epoch("e2", 2**20)
    bench.shell.settle()
    assert bench.scope.bounds.epoch == "e2" and bench.scope.bounds.floor == 2**20 + 1
    assert bench.publish("a") == [Appended(2**20 + 2, 2**20 + 2)], "a cause of the old epoch"
    assert bench.rows() == {"item:1": {"n": "a"}}
