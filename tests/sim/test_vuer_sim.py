"""Many seeds of tests/property/test_vuer_converges.py: fifty for each of HOLDFAST_SIM_RUNS, so
100,000 in `make sim`. HOLDFAST_SEED is the first one, drawn where it is not given.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.property.test_vuer_converges import converge

RUNS = int(os.environ.get("HOLDFAST_SIM_RUNS", "30")) * 50
SEED = int(os.environ.get("HOLDFAST_SEED", random.SystemRandom().randrange(10**9)))
BLOCK = 10_000


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, RUNS, BLOCK))
def test_many_histories_end_alike(first: int) -> None:
    count = min(BLOCK, RUNS - first)
    print(f"vuer: seeds {SEED + first} to {SEED + first + count - 1}", flush=True)
    for seed in range(SEED + first, SEED + first + count):
        converge(seed, steps=40 + seed % 100)
