"""A scope when its mailbox is full, its disk is full, or its file can no longer be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.types import Appended, Page, Rejected
from infra import limits
from infra.errors import Busy, FileRefused, StorageError, Unavailable
from tests.support.ledgers import Bench, FakeTap, draft, drafts, envelope, set_patch


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "x.db")
    yield bench
    bench.close()


# -----------------------------------------------------------------------------


def test_a_full_mailbox_takes_nothing(bench: Bench) -> None:
    few = limits.MAILBOX_DRAFTS_MAX // 512
    for n in range(few):
        bench.append(drafts(*(f"{n}.{m}" for m in range(512))))
    with pytest.raises(Busy) as caught:
        bench.append(drafts("one more"))
    assert caught.value.retryable and caught.value.retry_after_ms
    bench.shell.settle()
    assert bench.scope.released == limits.MAILBOX_DRAFTS_MAX
    assert bench.publish("one more") == [Appended(few * 512 + 1, few * 512 + 1)]


def test_a_mailbox_is_bounded_in_bytes(bench: Bench) -> None:
    big = "x" * 200_000
    with pytest.raises(Busy):
        for n in range(200):
            bench.append([draft(envelope(f"e{n}", set_patch("/t", big), key=f"item:{n}"))])
    waiting = sum(d.size for request in bench.scope._mailbox for d in request.drafts)
    assert waiting <= limits.MAILBOX_BYTES_MAX + 300_000


@pytest.mark.parametrize("code", ["disk_full", "read_only"])
def test_a_failed_commit_refuses_and_stores_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    bench.publish("a")

    def refuse(_write: object) -> None:
        raise StorageError("no room", code=code)

    with monkeypatch.context() as patched:
        patched.setattr(bench.scope.ledger, "commit", refuse)
        (outcome,) = bench.publish("b")
    assert isinstance(outcome, Rejected) and outcome.code == code and outcome.retry_after_ms
    assert not bench.shell.failures
    assert bench.rows() == {"item:1": {"n": "a"}}
    assert bench.publish("b") == [Appended(2, 2)], "the cause must be free again"
    assert bench.rows() == {"item:1": {"n": "b"}}


def test_an_unexpected_error_in_a_commit_leaves_nobody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(_write: object) -> None:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    with monkeypatch.context() as patched:
        patched.setattr(bench.scope.ledger, "commit", explode)
        (outcome,) = bench.publish("b")
    assert isinstance(outcome, Rejected)
    assert bench.check().header["head"] == 0


def test_damage_found_by_a_commit_ends_the_scope(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_write: object) -> None:
        raise FileRefused("damaged")

    monkeypatch.setattr(bench.scope.ledger, "commit", refuse)
    (outcome,) = bench.publish("a")
    assert isinstance(outcome, Rejected) and outcome.code == "unavailable"
    assert len(bench.shell.failures) == 1
    with pytest.raises(Unavailable):
        bench.append(drafts("b"))


def test_a_failed_barrier_shows_nothing_of_what_it_lost(bench: Bench) -> None:
    tap = FakeTap()
    bench.scope.taps.append(tap)
    bench.publish("a")
    doomed = bench.append(drafts("b", "a"))
    bench.shell.turns()
    waiting = bench.append(drafts("c"))
    noted = bench.shell.begin_pass()
    bench.shell.failed(bench.scope, StorageError("the disk did not take it"))
    bench.shell.end_pass(noted)
    bench.shell.turns()
    outcomes = [*doomed.outcomes, *waiting.outcomes]
    assert len(outcomes) == 3
    assert all(isinstance(o, Rejected) and o.code == "storage" for o in outcomes)
    assert tap.seqs == [1] and bench.scope.released == 1
    found = bench.scope.read(0, entries_max=9, bytes_max=9999, joined=False)
    assert isinstance(found, Page) and found.last == 1
    with pytest.raises(Unavailable):
        bench.append(drafts("d"))
