"""Random histories of a vuer room end alike everywhere: server, its base and journal, all stores.

Two to five clients, all families of operations, text, undo and redo, over a network that loses,
repeats, reorders and disconnects; compaction on both sides, and crashes that roll the room back.
`HOLDFAST_VUER_RUNS` is how many, `HOLDFAST_SEED` the first seed (make sim: tests/sim).
"""

from __future__ import annotations

import pytest

from tests.support.vuer_ops import act
from tests.support.vuer_room import Network, disagreements

RUNS, STEPS = 2000, 80
BLOCK = 200


def converge(seed: int, steps: int = STEPS) -> None:
    net = Network(seed)
    net.run(steps, act)
    assert disagreements(net) == [], f"seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("block", range(RUNS // BLOCK))
def test_histories_end_alike(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        converge(seed)
