"""Why scopes are awake, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.attendance import HostAttendance, ProcessLife, merged
from actors.host import Host
from actors.host_settings import HostSettings
from actors.types import Address, EntryPage, Page
from actors.wakes import SLEPT_MAX, Wake, Wakes, Why
from infra.errors import TryLater
from tests.support.ledgers import NOW, FakeTap
from tests.unit.test_host import A, B, Clock, closed, put


def attendance_of(host: Host) -> HostAttendance:
    return HostAttendance(host, ProcessLife("p1", NOW))


async def outline(host: Host, address: Address = A) -> dict[str, Any]:
    found = await attendance_of(host).outline(address)
    assert found is not None
    return found


async def settled(host: Host, address: Address = A) -> None:
    while host.open_scopes[address].busy:
        await host.settled(address)
        await asyncio.sleep(0)


def test_only_the_newest_sleepers_are_remembered() -> None:
    wakes = Wakes()
    for number in range(SLEPT_MAX + 1):
        wakes.began(Address("t", str(number)), Why.READ, number)
        wakes.ended(Address("t", str(number)), number + 1)
    assert len(wakes.slept) == SLEPT_MAX and not wakes.awake
    assert Address("t", "0") not in wakes.slept
    assert wakes.slept[Address("t", "1")] == Wake(Why.READ, 1, 2)
    wakes.ended(Address("t", "none"), 5)
    wakes.began(Address("t", "1"), Why.ALARM, 9)
    assert Address("t", "1") not in wakes.slept
    assert wakes.counts == {"read": SLEPT_MAX + 1, "alarm": 1} and wakes.first is Why.READ


async def test_what_wakes_a_scope_is_noted(tmp_path: Path) -> None:
    clock = Clock()
    async with Host(tmp_path, HostSettings(idle_s=60), now_ms=clock) as host:
        assert await attendance_of(host).outline(A) is None
        assert await attendance_of(host).wake(A) is None
        assert await attendance_of(host).sleep(A) is None
        await put(host, A, "e1")
        await settled(host)
        found = await outline(host)
        assert (found["state"], found["woken_by"], found["awake_since"]) == (
            "awake",
            "command",
            NOW,
        )
        assert (found["kept_by"], found["sleeps_at"]) == (["recent use"], NOW + 60_000)
        clock.now += 5
        asks: dict[str, Callable[[], Awaitable[Any]]] = {
            "read": lambda: host.bounds(A),
            "replay": lambda: host.read(A, 0, entries_max=9, bytes_max=999, joined=False),
            "subscribe": lambda: host.subscribe(A, FakeTap()),
            "admin": lambda: attendance_of(host).wake(A),
        }
        for why, ask in asks.items():
            await closed(host, A)
            found = await outline(host)
            assert (found["state"], found["slept_at"], found["kept_by"]) == (
                "asleep",
                clock.now,
                [],
            )
            await ask()
            assert (await outline(host))["woken_by"] == why
        assert (await outline(host))["followers"] == 1
        assert host.wakes.counts == {
            name: 1 for name in ("command", "read", "replay", "subscribe", "admin")
        }


async def test_to_ask_wakes_nothing(tmp_path: Path) -> None:
    async with Host(tmp_path) as host:
        await put(host, A, "e1")
        await put(host, B, "e1")
        await closed(host, A)
        opens = host.counts.opens
        found = await attendance_of(host).awake("", "", 10)
        assert [one["scope"] for one in found["scopes"]] == [B.scope]
        assert (found["processes"][0]["scopes_open"], found["processes"][0]["kept_by"]) == (
            1,
            ["always"],
        )
        assert (await attendance_of(host).awake("other", "", 10))["scopes"] == []
        assert (await attendance_of(host).awake("", "nope:", 10))["scopes"] == []
        await outline(host)
        assert host.counts.opens == opens


async def test_a_followed_sleeper_is_not_woken_to_say_where_it_stands(tmp_path: Path) -> None:
    async with Host(tmp_path) as host:
        await put(host, A, "e1", "e2")
        tap, more = FakeTap(), FakeTap()
        there = await host.subscribe(A, tap)
        await closed(host, A)
        opens = host.counts.opens
        assert await host.bounds(A) == there == await host.subscribe(A, more)
        page = await host.read(A, 2, entries_max=9, bytes_max=999, joined=False)
        assert isinstance(page, Page) and (page.bodies, page.bounds) == ([], there)
        seen = await host.visible(A, 2, "[]", entries_max=9, bytes_max=999)
        assert isinstance(seen, EntryPage) and (seen.entries, seen.bounds) == ([], there)
        assert host.counts.opens == opens and A not in host.open_scopes
        await put(host, A, "e3")
        assert host.counts.opens == opens + 1 and host.resting == {}
        assert (await host.bounds(A)).head == 3
        assert [len(one.batches) for one in (tap, more)] == [1, 1], "both follow"
        await closed(host, A)
        host.unsubscribe(A, tap)
        assert A in host.resting
        host.unsubscribe(A, more)
        assert host.resting == {}, "nobody follows: it costs nothing"


async def test_sleep_waits_for_what_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Host(tmp_path) as host:
        await put(host, A, "e1")
        scope = host.open_scopes[A]
        waiting = [asyncio.ensure_future(put(host, A, f"more{n}")) for n in range(3)]
        await asyncio.sleep(0)
        assert scope.busy and "commands" in (await outline(host))["kept_by"]
        found = await attendance_of(host).sleep(A)
        assert found is not None and (found["state"], found["woken_by"]) == ("asleep", "command")
        assert [len(one) for one in await asyncio.gather(*waiting)] == [1, 1, 1]
        await put(host, A, "e2")
        gate = asyncio.Event()
        monkeypatch.setattr("actors.attendance.SLEEP_WAIT_S", 0.05)
        monkeypatch.setattr(host, "sleep", lambda _scope: gate.wait())
        with pytest.raises(TryLater, match="kept awake"):
            await attendance_of(host).sleep(A)


async def test_a_scope_whose_alarm_is_due_does_not_sleep(tmp_path: Path) -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    async def on_alarm(*_alarm: object) -> None:
        running.set()
        await go_on.wait()

    clock = Clock()
    async with Host(tmp_path, HostSettings(idle_s=0), on_alarm=on_alarm, now_ms=clock) as host:
        await put(host, A, "e1")
        await host.alarms.set(A, "wake", NOW + 1, None)
        async with asyncio.timeout(20):
            while A in host.open_scopes:
                await asyncio.sleep(0.01)
            assert (await outline(host))["alarm_due"] == NOW + 1
            clock.now += 1
            host.alarms.look()
            await running.wait()
            found = await outline(host)
            assert (found["woken_by"], found["kept_by"]) == ("alarm", ["alarm"])
            await asyncio.sleep(0.2)  # the sweep comes by every 0.05 s
            assert A in host.open_scopes, "its handler runs"
            go_on.set()
            while A in host.open_scopes:
                await asyncio.sleep(0.01)
        assert (await outline(host))["alarm_due"] is None


def test_a_tenants_process_says_when_it_ends() -> None:
    host: Any = SimpleNamespace(open_scopes={}, wakes=Wakes())
    life = ProcessLife("t1", NOW, tenant="t1", idle_s=2.5)
    assert life.report(host)["woken_by"] is None
    life.idle_since = NOW + 10
    found = life.report(host)
    assert (found["kept_by"], found["sleeps_at"]) == (["recent use"], NOW + 2510)
    host.wakes.began(A, Why.ALARM, NOW)
    host.open_scopes[A] = object()
    found = life.report(host)
    assert (found["woken_by"], found["kept_by"], found["sleeps_at"]) == ("alarm", ["scopes"], None)
    two = merged([{"processes": [found], "scopes": []}] * 2, 5)
    assert len(two["processes"]) == 2 and two["scopes"] == []
