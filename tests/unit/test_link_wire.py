"""Answers to appends arrive as they were given, whether told one by one or as a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import link_wire as w
from actors.types import Appended, Bounds, Draft, Duplicate, Outcome, Rejected
from infra.errors import Busy
from infra.link.frames import LinkError

BOUNDS = Bounds("e", 9, 1, 8, floor_at=3, jump=2)
seqs = st.integers(1, 5)
outcomes = st.lists(
    st.one_of(
        st.builds(Appended, seqs, seqs, st.none() | st.just("kept")),
        st.builds(Duplicate, seqs, seqs, st.none() | st.just("kept"), st.none() | st.just("{}")),
        st.builds(Rejected, st.just("conflict"), st.just("no"), st.none() | st.just({"a": 1})),
    ),
    max_size=4,
)


def drafts(count: int) -> list[Draft]:
    return [Draft(f"c{number}", "k", "{}", 2) for number in range(count)]


def told(given: list[Outcome], sent: list[Draft], kept: list[Draft]) -> list[Outcome]:
    """What the edge, which kept its own drafts, makes of the actor's answer."""
    settled = w.decode_settled(w.encode_settled(given, sent, BOUNDS))
    assert settled.where.bounds() == BOUNDS
    return w.outcomes_of(settled, kept)


@given(outcomes | seqs.map(lambda n: [Appended(seq, seq) for seq in range(n, n + 3)]))
def test_outcomes_arrive(given: list[Outcome]) -> None:
    assert told(given, drafts(len(given)), drafts(len(given))) == given


def test_what_the_plan_noted_arrives_in_the_draft() -> None:
    sent, kept = drafts(2), drafts(2)
    sent[1].written = {"a": 1}
    assert told([Appended(4, 4), Appended(5, 5)], sent, kept) == [Appended(4, 4), Appended(5, 5)]
    assert [draft.written for draft in kept] == [None, {"a": 1}]


def test_a_run_is_told_as_one() -> None:
    run = w.encode_settled([Appended(seq, seq) for seq in range(1, 101)], drafts(100), BOUNDS)
    assert isinstance(w.decode_settled(run), w.Written) and len(bytes(run)) < 20


def test_an_error_arrives_with_its_class() -> None:
    (found,) = told([Rejected("busy", "later", error=Busy("later"))], drafts(1), drafts(1))
    assert isinstance(found, Rejected) and isinstance(found.error, Busy)


def test_a_request_without_drafts_can_be_refused() -> None:
    settled = w.decode_settled(w.encode_settled([Rejected("busy", "later")], [], BOUNDS))
    assert isinstance(settled, w.Settled)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_answers_to_other_drafts_are_an_error(count: int) -> None:
    answers: list[list[Outcome]] = [[Appended(1, 1), Appended(2, 2)], [Duplicate(1), Duplicate(1)]]
    for two in answers:
        settled = w.decode_settled(w.encode_settled(two, drafts(2), BOUNDS))
        with pytest.raises(ValueError):
            w.outcomes_of(settled, drafts(count))
    with pytest.raises(LinkError):
        w.decode_settled(b"\xff")
