"""A few histories of tests/support/replica_sim.py; `make sim` plays many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import HoldfastError
from tests.support.replica_sim import MODES, simulate

SEEDS = range(100, 106)
CONTROL_SEEDS = range(30)


@pytest.mark.parametrize("mode", MODES)
async def test_seeds(tmp_path: Path, mode: str) -> None:
    for seed in SEEDS:
        await simulate(tmp_path, seed, mode)


async def test_without_conditional_writes_something_is_lost(tmp_path: Path) -> None:
    for seed in CONTROL_SEEDS:
        try:
            await simulate(tmp_path, seed, "shared", plain=True)
        except (AssertionError, HoldfastError, TimeoutError):
            return
    pytest.fail("the model does not see what it should")
