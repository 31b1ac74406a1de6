"""What requests to an object store cost: counts by kind, money for a month, keeping to a budget.

Pure: time is an argument. The prices are those of Amazon S3 in its cheapest regions at the time of
writing; other stores' differ, and traffic and space are not in them.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from infra.objects import PART_BYTES

Kind = Literal["put", "list", "get", "delete"]
MONTH_S = 30 * 86_400
INTERVAL_MS_MIN = 10  # what an interval of 0 counts as when it has to be widened


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """Money for a thousand requests of each kind."""

    put: float = 0.005
    list: float = 0.005
    get: float = 0.0004
    delete: float = 0.0


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests by kind, and bytes of bodies sent and received."""

    put: int = 0
    list: int = 0
    get: int = 0
    delete: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def requests(self) -> int:
        """All kinds together."""
        return self.put + self.list + self.get + self.delete

    def since(self, earlier: Counts) -> Counts:
        """What came after `earlier`, a reading of the same meter."""
        return Counts(
            **{name: getattr(self, name) - getattr(earlier, name) for name in _COUNT_FIELDS}
        )


_COUNT_FIELDS = Counts.__struct_fields__


class Meter:
    """Adds up requests. Not thread-safe: infra/stores/metered.py holds a lock around it."""

    def __init__(self) -> None:
        self._requests: dict[Kind, int] = {"put": 0, "list": 0, "get": 0, "delete": 0}
        self._up = 0
        self._down = 0

    def add(self, kind: Kind, *, requests: int = 1, up: int = 0, down: int = 0) -> None:
        """Count requests of one kind with the bytes of their bodies, sent or received."""
        self._requests[kind] += requests
        self._up += up
        self._down += down

    @property
    def counts(self) -> Counts:
        """The sums so far."""
        return Counts(**self._requests, bytes_up=self._up, bytes_down=self._down)


def put_requests(body_bytes: int) -> int:
    """Requests it takes to store a file: one, or its parts with a beginning and an end."""
    return 1 if body_bytes <= PART_BYTES else 2 + -(-body_bytes // PART_BYTES)


def cost(counts: Counts, prices: Prices) -> float:
    """What these requests cost."""
    thousandfold = (
        counts.put * prices.put
        + counts.list * prices.list
        + counts.get * prices.get
        + counts.delete * prices.delete
    )
    return thousandfold / 1000


def monthly_cost(counts: Counts, elapsed_s: float, prices: Prices) -> float:
    """What a month of 30 days costs at the pace of `counts` in `elapsed_s`; 0 for no time."""
    return cost(counts, prices) * MONTH_S / elapsed_s if elapsed_s > 0 else 0.0


def widened_interval_ms(
    interval_ms: int,
    monthly: float,
    budget: float | None,
    maximum_ms: int,
    *,
    current_ms: int | None = None,
) -> int:
    """The interval between puts that keeps a month within `budget`; None is no budget.

    `monthly` was measured while `current_ms` (by default `interval_ms`, the configured one) was in
    force, so feeding each result back in settles where cost meets budget, and narrows again when
    the load falls. Never below `interval_ms`, and above `maximum_ms` only where that is.
    """
    if budget is None:
        return interval_ms
    most_ms = max(maximum_ms, interval_ms)
    if budget <= 0:
        return most_ms
    current_ms = max(interval_ms if current_ms is None else current_ms, INTERVAL_MS_MIN)
    wanted_ms = math.ceil(current_ms * monthly / budget)
    if wanted_ms <= INTERVAL_MS_MIN:
        return interval_ms
    return min(max(wanted_ms, interval_ms), most_ms)
