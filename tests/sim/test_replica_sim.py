"""Many seeds of tests/support/replica_sim.py: hosts, replicas and a bucket that misbehaves.

HOLDFAST_SIM_RUNS is how many runs there are in all, HOLDFAST_SEED the first seed, drawn where it is
not given. A failure names its seed; the threads of a store make a repetition likely, not certain.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.support.replica_sim import MODES, simulate

RUNS = int(os.environ.get("HOLDFAST_SIM_RUNS", "30"))
SEED = int(os.environ.get("HOLDFAST_SEED", random.SystemRandom().randrange(10**9)))
SHARE = 4  # of the runs that each state machine gets


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
async def test_many_seeds(tmp_path: Path, mode: str) -> None:
    count = max(1, RUNS // SHARE // len(MODES))
    print(f"replica {mode}: seeds {SEED} to {SEED + count - 1}", flush=True)
    for seed in range(SEED, SEED + count):
        await simulate(tmp_path, seed, mode)
