"""What followers of a scope hear when the stream behind them is another."""

from __future__ import annotations

import pytest

from actors.followed import Followed
from actors.types import Address, Batch, Bounds

ADDRESS = Address("default", "run:1")


class Heard:
    """Fits actors.types.Tap."""

    def __init__(self) -> None:
        self.words: list[tuple[str, int]] = []

    def deliver(self, batch: Batch) -> None:
        self.words.append(("deliver", batch.last))

    def durable(self, bounds: Bounds) -> None:
        self.words.append(("durable", bounds.durable))

    def moved(self, bounds: Bounds) -> None:
        self.words.append(("moved", bounds.head))

    def reset(self, bounds: Bounds) -> None:
        self.words.append(("reset", bounds.head))


class Leaving:
    """Fits actors.followed.Stream."""

    source = "c"

    def __init__(self) -> None:
        self.left = False

    def leave(self) -> None:
        self.left = True


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds("E", 10, 0, 10), []),
        (Bounds("E", 12, 0, 12), [("moved", 12)]),
        (Bounds("E", 10, 0, 11), [("durable", 11)]),
        (Bounds("F", 3, 0, 3), [("reset", 3)]),
        (Bounds("E", 7, 0, 7), []),  # whoever has less of E has been away
    ],
)
def test_the_next_stream_begins(bounds: Bounds, words: list[tuple[str, int]]) -> None:
    again: list[Followed] = []
    followed = Followed(ADDRESS, again.append)
    followed.began(Bounds("E", 10, 0, 10))
    tap, stream = Heard(), Leaving()
    followed.taps.append(tap)
    followed.follow(stream)
    followed.began(bounds)
    assert tap.words == words
    in_the_past = bounds.epoch == "E" and bounds.head < 10
    assert stream.left is in_the_past and bool(again) is in_the_past
    assert followed.bounds.head == (10 if in_the_past else bounds.head)
