"""Why scopes are awake, since when, and how long the last ones were. Pure.

A scope that sleeps costs nothing: of those that have slept only the newest are remembered, for an
operator who asks soon after.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import StrEnum
from typing import Final, NamedTuple

from actors.types import Address

SLEPT_MAX: Final = 1024


class Why(StrEnum):
    """What woke a scope: the first thing that wanted its file."""

    COMMAND = "command"  # a write, or an alarm that was set
    READ = "read"  # of its state
    REPLAY = "replay"  # of its entries, for a follower that catches up
    SUBSCRIBE = "subscribe"
    ALARM = "alarm"
    ADMIN = "admin"
    TRANSFER = "transfer"  # fork, export, import
    UPLOAD = "upload"  # the bucket lacked something
    TAKEOVER = "takeover"  # another writer went on with its history


class Wake(NamedTuple):
    """One time awake; milliseconds of wall time. `slept_at` is None while it lasts."""

    why: Why
    since: int
    slept_at: int | None = None


class Wakes:
    """Of one host."""

    def __init__(self) -> None:
        self.awake: dict[Address, Wake] = {}
        self.slept: OrderedDict[Address, Wake] = OrderedDict()
        self.counts: dict[str, int] = {}  # by reason, since the process began
        self.first: Why | None = None

    def began(self, address: Address, why: Why, at: int) -> None:
        """Its file was opened."""
        self.first = self.first or why
        self.awake[address] = Wake(why, at)
        self.slept.pop(address, None)
        self.counts[why] = self.counts.get(why, 0) + 1

    def ended(self, address: Address, at: int) -> None:
        """Its file was closed."""
        wake = self.awake.pop(address, None)
        if wake is None:
            return
        self.slept[address] = wake._replace(slept_at=at)
        if len(self.slept) > SLEPT_MAX:
            self.slept.popitem(last=False)
