"""Rendezvous hashing: everybody computes the same owner, and little moves when members change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import ConfigError
from infra.placement import rendezvous
from infra.placement.rendezvous import WEIGHT_MAX, Key, Member, Owners, owner, ranked
from tests.support.vectors import vectors

ROOT = Path(__file__).resolve().parents[2]
KEYS = [("default", f"run:{number}") for number in range(4000)]
names = st.text(min_size=1, max_size=12)
keys = st.tuples(names, names)
members = st.lists(
    st.builds(Member, names, st.integers(1, 5)), max_size=6, unique_by=lambda member: member.name
)


@pytest.mark.parametrize("case", vectors("rendezvous"), ids=lambda case: "/".join(case["key"]))
def test_vectors(case: dict[str, Any]) -> None:
    given_members = [Member(name, weight) for name, weight in case["members"]]
    assert ranked(tuple(case["key"]), given_members) == case["ranked"]


@given(keys, members, st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(
    key: Key, found: list[Member], chance: Random
) -> None:
    mixed = chance.sample(found, len(found))
    assert owner(key, mixed) == owner(key, found)
    assert ranked(key, mixed) == ranked(key, found)
    assert owner(key, found) == (ranked(key, found)[0] if found else None)


@given(st.lists(keys, max_size=8), members)
def test_what_is_remembered_is_what_is_drawn(wanted: list[Key], found: list[Member]) -> None:
    owners = Owners(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendezvous, "KEYS_MAX", 3)
        for key in wanted * 2:
            assert owners.of(key) == owner(key, found)
            assert len(owners._known) <= 3


@given(keys, members.filter(bool))
def test_without_its_owner_a_key_goes_to_the_next(key: Key, found: list[Member]) -> None:
    order = ranked(key, found)
    for gone in found:
        rest = [member for member in found if member != gone]
        assert ranked(key, rest) == [name for name in order if name != gone.name]


@given(keys, members.filter(bool), st.integers(1, 5))
def test_more_weight_never_takes_a_key_away(key: Key, found: list[Member], more: int) -> None:
    heavier = Member(found[0].name, found[0].weight + more)
    if owner(key, found) == heavier.name:
        assert owner(key, [heavier, *found[1:]]) == heavier.name
    else:
        assert owner(key, [heavier, *found[1:]]) in (heavier.name, owner(key, found))


def test_shares_follow_weights() -> None:
    found = Counter(owner(key, [Member("a"), Member("b", 2), Member("c", 5)]) for key in KEYS)
    for name, share in (("a", 1 / 8), ("b", 2 / 8), ("c", 5 / 8)):
        assert abs(found[name] / len(KEYS) - share) < 0.03, found


def test_parts_do_not_run_into_each_other() -> None:
    three = [Member(f"host-{number}") for number in range(50)]
    assert ranked(("ab", "c"), three) != ranked(("a", "bc"), three)
    assert ranked(("ab",), three) != ranked(("a", "b"), three)


def test_every_process_computes_the_same() -> None:
    program = (
        "from infra.placement.rendezvous import Member, owner;"
        "print(''.join(owner(('t', str(n)), {Member('a'), Member('b'), Member('c')})"
        " for n in range(64)))"
    )
    answers = {
        subprocess.check_output(
            [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    }
    assert len(answers) == 1 and len(set(answers.pop().strip())) == 3


@pytest.mark.parametrize(("name", "weight"), [("", 1), ("a", 0), ("a", WEIGHT_MAX + 1)])
def test_members_that_cannot_be(name: str, weight: int) -> None:
    with pytest.raises(ConfigError):
        Member(name, weight)


def test_nobody_owns_where_nobody_is() -> None:
    assert owner(("default", "run:1"), []) is None
