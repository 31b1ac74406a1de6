"""A feed's fan-out when its receivers leave while it is under way."""

from __future__ import annotations

from collections.abc import Callable

from actors.types import Address, Batch, Bounds
from edge.dialects.asterql.connection import project
from edge.feed import Feed
from edge.wire import Frames


class Receiver:
    """Does `then` when offered something; `takes` is whether it has room."""

    def __init__(self, then: Callable[[], object] = lambda: None, *, takes: bool = True) -> None:
        self.cursor = 0
        self.batched = False
        self.got: list[str] = []
        self.behind = 0
        self.then, self.takes = then, takes

    def offer(self, frames: Frames) -> bool:
        self.then()
        if self.takes:
            self.got += frames.texts
        return self.takes

    def lagging(self) -> None:
        self.behind += 1

    def durable(self, bounds: Bounds) -> None:
        """Not of interest here."""

    def reset(self, bounds: Bounds) -> None:
        """Not of interest here."""


def batch(seq: int) -> Batch:
    return Batch(seq, seq, [f'{{"seq":{seq}}}'], Bounds("E", seq, 0, seq))


def feed_of(*receivers: Receiver) -> Feed:
    feed = Feed(Address("default", "run:r1"), project)
    feed.live.update(dict.fromkeys(receivers))
    return feed


def test_edge_41_one_that_leaves_while_it_is_offered_disturbs_nobody() -> None:
    first, last = Receiver(), Receiver()
    leaver = Receiver(lambda: feed.live.pop(leaver))
    feed = feed_of(first, leaver, last)
    feed.deliver(batch(1))
    feed.deliver(batch(2))
    assert len(first.got) == len(last.got) == 2 and len(leaver.got) == 1


def test_one_that_was_ended_by_another_gets_nothing_more() -> None:
    ended = Receiver()
    ender = Receiver(lambda: feed.live.pop(ended, None))
    feed = feed_of(ender, ended)
    feed.deliver(batch(1))
    assert ended.got == [] and len(ender.got) == 1


def test_the_congested_and_the_late_go_back_to_the_ledger() -> None:
    congested, late, good = Receiver(takes=False), Receiver(), Receiver()
    feed = feed_of(congested, late, good)
    late.cursor = -1
    feed.deliver(batch(1))
    assert (congested.behind, late.behind, good.behind) == (1, 1, 0)
    assert list(feed.live) == [good] and feed.tail == 1 and late.got == []
