"""What the replicas of one host share: the store, a bounded pool of threads, settings, and money.

Requests of 10,000 scopes pass through THREADS threads; a scope that waits for one costs a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from infra.meter import Counts, Meter, Prices, monthly_cost, widened_interval_ms
from infra.objects import ObjectStore
from infra.tasks import TaskOwner

T = TypeVar("T")
THREADS = 16
INTERVAL_MAX_MS = 60_000  # as far as a budget stretches it
BUDGET_LOOK_MS = 10_000


class ReplicaSettings(msgspec.Struct, frozen=True):
    """Times in milliseconds. `budget`: money per month for requests, 0 is no limit."""

    put_interval_ms: int = 100
    max_stall_ms: int = 10_000
    history_ms: int = 3_600_000
    snapshots: int = 2
    budget: float = 0.0


class Service:
    """One for each host. `nonce` names this process life in every file it writes."""

    def __init__(
        self,
        store: ObjectStore,
        meter: Meter,
        settings: ReplicaSettings,
        *,
        nonce: int,
        spool: Path,
        now_ms: Callable[[], int],
    ) -> None:
        self.store = store
        self.meter = meter
        self.settings = settings
        self.nonce = nonce
        self.spool = spool
        self.now_ms = now_ms
        self.tasks = TaskOwner()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="holdfast-store")
        self._loop = asyncio.get_running_loop()
        self._began = self._looked_at = now_ms()
        self._looked: Counts = meter.counts
        self._interval_ms = settings.put_interval_ms

    async def run(self, work: Callable[[], T]) -> T:
        """Run it in a thread of the pool. A cancelled caller leaves the thread to finish."""
        done: T = await self.start(work)
        return done

    def start(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """The same as a future, for whoever must know when the thread is done with it."""
        return self._loop.run_in_executor(self._pool, work)

    def tick_ms(self) -> int:
        """Of the loop's clock, which never goes back; only differences mean anything."""
        return int(self._loop.time() * 1000)

    def call_later(self, ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(ms / 1000, callback)

    @property
    def pool(self) -> ThreadPoolExecutor:
        return self._pool

    def monthly_cost(self) -> float:
        """What the requests so far come to in 30 days, at the listed prices."""
        elapsed_s = (self.now_ms() - self._began) / 1000
        return monthly_cost(self.meter.counts, elapsed_s, Prices())

    def interval_ms(self, *, urgent: bool) -> int:
        """The least time between two requests of one scope, wider where a budget asks for it."""
        settings = self.settings
        if settings.budget:
            self._keep_budget(settings.budget)
            return self._interval_ms
        return settings.put_interval_ms if urgent else 0

    def _keep_budget(self, budget: float) -> None:
        elapsed_ms = self.now_ms() - self._looked_at
        if elapsed_ms < BUDGET_LOOK_MS:
            return
        counts = self.meter.counts
        monthly = monthly_cost(counts.since(self._looked), elapsed_ms / 1000, Prices())
        self._interval_ms = widened_interval_ms(
            self.settings.put_interval_ms, monthly, budget, INTERVAL_MAX_MS,
            current_ms=self._interval_ms,
        )  # fmt: skip
        self._looked, self._looked_at = counts, self.now_ms()

    async def aclose(self) -> None:
        """End every task; requests in flight are waited for, because a thread cannot be ended."""
        await self.tasks.aclose()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.store.close()
