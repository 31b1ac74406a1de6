"""The state machines of tests/property again, with many more runs, in blocks of one seed each.

HOLDFAST_SIM_RUNS is how many runs each machine gets (`make sim` gives 2,000), HOLDFAST_SEED the
first block's seed, drawn where it is not given. Every block prints its seed; a failure names the
one it happened with, and the same two settings repeat it.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import tests.property

RUNS = int(os.environ.get("HOLDFAST_SIM_RUNS", "30"))
SEED = int(os.environ.get("HOLDFAST_SEED", random.SystemRandom().randrange(10**9)))
BLOCK = 100
STEPS = 60

Machine = type[RuleBasedStateMachine]


def machines() -> Iterator[Machine]:
    """Every state machine that a module of tests/property defines."""
    for module in pkgutil.iter_modules(tests.property.__path__):
        loaded = importlib.import_module(f"tests.property.{module.name}")
        for value in vars(loaded).values():
            ours = isinstance(value, type) and value.__module__ == loaded.__name__
            if ours and issubclass(value, RuleBasedStateMachine):
                yield value


def explore(machine: Machine, runs: int, first_seed: int) -> int:
    """Run the machine that often; how many blocks it took. A failure's note says how to repeat."""
    blocks = [min(BLOCK, runs - done) for done in range(0, runs, BLOCK)]
    for number, count in enumerate(blocks):
        chosen = first_seed + number
        print(f"{machine.__name__}: seed {chosen}, {count} runs", flush=True)
        seeded: Machine = seed(chosen)(type(machine.__name__, (machine,), {}))
        wanted = settings(
            max_examples=count, stateful_step_count=STEPS, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        try:
            run_state_machine_as_test(seeded, settings=wanted)
        except BaseException as error:
            error.add_note(f"again: HOLDFAST_SEED={chosen} HOLDFAST_SIM_RUNS={count} make sim")
            raise
    return len(blocks)


def test_there_are_machines() -> None:
    assert "ScopeMachine" in {machine.__name__ for machine in machines()}


@pytest.mark.slow
@pytest.mark.parametrize("machine", list(machines()))
def test_many_runs(machine: Machine) -> None:
    explore(machine, RUNS, SEED)


class Planted(RuleBasedStateMachine):
    """Fails in a way that needs several steps in order."""

    @initialize()
    def begin(self) -> None:
        self.count = 0

    @rule()
    def up(self) -> None:
        self.count += 1
        assert self.count < 4

    @rule()
    def back(self) -> None:
        self.count = 0


def test_a_planted_fault_is_found_and_its_seed_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError) as caught:
        explore(Planted, 2 * BLOCK, 5)
    (note,) = [text for text in caught.value.__notes__ if "again" in text]
    assert note == f"again: HOLDFAST_SEED=5 HOLDFAST_SIM_RUNS={BLOCK} make sim"
    assert f"Planted: seed 5, {BLOCK} runs" in capsys.readouterr().out


def test_blocks_have_seeds_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    class Calm(RuleBasedStateMachine):
        @rule()
        def nothing(self) -> None:
            """Never fails."""

    assert explore(Calm, 2 * BLOCK + 1, 9) == 3
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == [
        "9,",
        "10,",
        "11,",
    ]
