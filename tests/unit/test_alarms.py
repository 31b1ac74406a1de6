"""Durable alarms: at or after their time, at least once, with a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from actors.host import Host
from actors.types import Address
from tests.support.ledgers import NOW

A, B = Address("default", "run:r1"), Address("default", "run:r2")
Run = tuple[Address, str, str | None, int]


class Alarmed:
    """A host whose handler remembers its runs and does what the test says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = NOW
        self.runs: list[Run] = []
        self.ran = asyncio.Condition()
        self.act: Callable[[Run], object] = lambda _run: None
        self.host = self.again()

    def again(self) -> Host:
        """The next process over the same directory."""
        self.host = Host(self.path, on_alarm=self._handle, now_ms=lambda: self.now)
        return self.host

    async def _handle(
        self, address: Address, name: str, due_at: int, payload: str | None, attempt: int
    ) -> None:
        assert due_at <= self.now
        run = (address, name, payload, attempt)
        async with self.ran:
            self.runs.append(run)
            self.ran.notify_all()
        answer = self.act(run)
        if asyncio.iscoroutine(answer):
            await answer

    async def wait_runs(self, count: int) -> list[Run]:
        async with asyncio.timeout(20), self.ran:
            await self.ran.wait_for(lambda: len(self.runs) >= count)
        return self.runs

    async def at(self, now: int, *, runs: int) -> list[Run]:
        """Set the clock and wait until there were as many runs; then for their rows."""
        self.now = now
        self.host.alarms.look()
        await self.wait_runs(runs)
        await self.quiet()
        return self.runs

    async def quiet(self) -> None:
        async with asyncio.timeout(20):
            while self.host.alarms._running:
                await asyncio.sleep(0)


async def test_an_alarm_runs_once_at_its_time(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)
    async with alarmed.host as host:
        await host.alarms.set(A, "tick", NOW + 60_000, "p")
        await alarmed.quiet()
        assert alarmed.runs == []
        assert await alarmed.at(NOW + 60_000, runs=1) == [(A, "tick", "p", 1)]
        assert await host.alarms.of(A) == []
        assert host.index.next_due() is None


async def test_a_failing_alarm_is_tried_again_later_and_later(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)

    def fail(_run: Run) -> None:
        raise RuntimeError("not today")

    async with alarmed.host as host:
        alarmed.act = fail
        await host.alarms.set(A, "tick", NOW, None)
        await alarmed.wait_runs(1)
        await alarmed.quiet()
        delays = []
        for attempt in range(2, 6):
            ((_, due_at, _, attempts),) = await host.alarms.of(A)
            delays.append(due_at - alarmed.now)
            assert attempts == attempt - 1
            runs = await alarmed.at(due_at, runs=attempt)
            assert runs[-1] == (A, "tick", None, attempt)
        assert delays == [1000, 2000, 4000, 8000]
        alarmed.act = lambda _run: None
        ((_, due_at, _, _),) = await host.alarms.of(A)
        await alarmed.at(due_at, runs=6)
        assert await host.alarms.of(A) == []


async def test_an_alarm_survives_a_restart(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)
    async with alarmed.host as host:
        await host.alarms.set(A, "tick", NOW + 5000, None)
    alarmed.now = NOW + 5000
    async with alarmed.again():
        assert await alarmed.wait_runs(1) == [(A, "tick", None, 1)]


async def test_an_alarm_under_way_at_the_end_runs_again(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)
    alarmed.act = lambda _run: asyncio.Event().wait()  # never ends
    async with alarmed.host as host:
        await host.alarms.set(A, "tick", NOW, None)
        await alarmed.wait_runs(1)
    alarmed.act = lambda _run: None
    async with alarmed.again():
        assert (await alarmed.wait_runs(2))[-1] == (A, "tick", None, 1)


async def test_a_cancelled_alarm_does_not_run(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)
    async with alarmed.host as host:
        await host.alarms.set(A, "tick", NOW + 1000, None)
        await host.alarms.set(A, "tock", NOW + 1000, None)
        assert await host.alarms.cancel(A, "tick") is True
        assert await host.alarms.cancel(A, "tick") is False
        assert await alarmed.at(NOW + 1000, runs=1) == [(A, "tock", None, 1)]


async def test_an_alarm_set_anew_replaces_the_old_one(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)
    async with alarmed.host as host:
        await host.alarms.set(A, "tick", NOW + 1000, "old")
        await host.alarms.set(A, "tick", NOW + 9000, "new")
        alarmed.now = NOW + 1000
        alarmed.host.alarms.look()
        assert await alarmed.at(NOW + 9000, runs=1) == [(A, "tick", "new", 1)]


async def test_a_handler_may_set_its_alarm_anew(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)
    async with alarmed.host as host:

        def again(run: Run) -> object:
            return host.alarms.set(A, "tick", alarmed.now + 1000, f"{len(alarmed.runs)}")

        alarmed.act = again
        await host.alarms.set(A, "tick", NOW, "0")
        await alarmed.wait_runs(1)
        await alarmed.quiet()
        for n in range(1, 4):
            runs = await alarmed.at(NOW + n * 1000, runs=n + 1)
            assert runs[-1] == (A, "tick", str(n), 1)
        assert len(await host.alarms.of(A)) == 1


async def test_a_slow_handler_keeps_no_other_scope_waiting(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)
    end = asyncio.Event()
    async with alarmed.host as host:
        alarmed.act = lambda run: end.wait() if run[0] == A else None
        await host.alarms.set(A, "slow", NOW, None)
        await alarmed.wait_runs(1)
        await host.alarms.set(B, "quick", NOW + 50, None)  # not due yet when the timer is set
        host.alarms._fire()
        alarmed.now = NOW + 50
        assert await alarmed.wait_runs(2) == [(A, "slow", None, 1), (B, "quick", None, 1)]
        end.set()
        await alarmed.quiet()


async def test_an_alarm_set_while_another_ends_is_not_forgotten(tmp_path: Path) -> None:
    alarmed = Alarmed(tmp_path)
    async with alarmed.host as host:
        await host.alarms.set(A, "later", NOW + 1000, None)
        # As if the run of another alarm had read the rows just before this one was committed.
        host.alarms.submit(A, [("fresh", NOW + 500, None, 0)], [])
        setting = asyncio.create_task(host.alarms.set(A, "late", NOW + 500, None))
        await asyncio.sleep(0)
        host.index.set_due(A, None)
        await setting
        assert host.index.next_due() == NOW + 500
