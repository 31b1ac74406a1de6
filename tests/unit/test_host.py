"""The host: scopes of one directory, opened and closed beneath those who use them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.host import Host
from actors.host_settings import HostSettings
from actors.reply import FutureReply
from actors.rows import BIG_ROW_BYTES
from actors.types import Address, Appended, Draft, Outcome, Page, Rejected, ScopePolicy
from infra.barrier import Barrier
from infra.errors import ConfigError, HoldfastError, Unavailable
from infra.paths import ledger_path
from tests.support.ledgers import NOW, FakeTap, check_file, draft, drafts, envelope

A = Address("default", "run:r1")
B = Address("default", "run:r2")


class Clock:
    """The wall, as far as the host looks at it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def host_at(path: Path, **settings: Any) -> Host:
    return Host(path, HostSettings(**settings), now_ms=Clock())


async def publish(host: Host, address: Address, wanted: list[Draft]) -> list[Outcome]:
    reply = FutureReply()
    host.append(address, wanted, reply, None)
    async with asyncio.timeout(20):
        outcomes, _ = await reply.future
    return outcomes


async def put(host: Host, address: Address, *event_ids: str) -> list[Outcome]:
    return await publish(
        host, address, [draft(envelope(event_id), address.scope) for event_id in event_ids]
    )


async def bodies(host: Host, address: Address, after: int = 0) -> list[str]:
    page = await host.read(address, after, entries_max=512, bytes_max=1 << 20, joined=False)
    assert isinstance(page, Page)
    return [msgspec.json.decode(body)["eventId"] for body in page.bodies]


async def closed(host: Host, address: Address) -> None:
    """Close the scope as the sweep would, and wait for it."""
    scope = host.open_scopes[address]
    while scope.busy:
        await host.settled(address)
    host.close_scope(scope)
    await asyncio.wait([host.returns[scope]])
    assert address not in host.open_scopes


# -- files ---------------------------------------------------------------------------------


async def test_reading_makes_no_file(tmp_path: Path) -> None:
    async with host_at(tmp_path) as host:
        tap = FakeTap()
        assert await bodies(host, A) == []
        assert (await host.bounds(A)).epoch == ""
        assert await host.snapshot(A, "entity") is None
        await host.subscribe(A, tap)
        assert await host.clear(A) == await host.bounds(A)
        assert not ledger_path(tmp_path, *A).exists() and not host.open_scopes
        await put(host, A, "a")
        assert tap.seqs == [1], "who followed a scope that was not there follows it now"


async def test_a_closed_scope_wakes_and_goes_on(tmp_path: Path) -> None:
    async with host_at(tmp_path) as host:
        tap = FakeTap()
        await put(host, A, "a")
        await host.subscribe(A, tap)
        await closed(host, A)
        assert not Path(f"{ledger_path(tmp_path, *A)}-wal").exists()
        assert await bodies(host, A) == ["a"]
        assert await put(host, A, "b") == [Appended(2, 2)]
        assert tap.seqs == [2]
        assert host.counts.opens == 2
    check_file(ledger_path(tmp_path, *A))


async def test_what_comes_during_a_close_is_not_lost(tmp_path: Path) -> None:
    async with host_at(tmp_path) as host:
        await put(host, A, "a")
        host.close_scope(host.open_scopes[A])
        during = FutureReply()
        host.append(A, drafts("b"), during, None)
        page = await host.read(A, 0, entries_max=9, bytes_max=9999, joined=False)
        assert isinstance(page, Page) and page.last >= 1
        assert (await during.future)[0] == [Appended(2, 2)]
        assert await bodies(host, A) == ["a", "b"]


async def test_what_comes_while_the_host_stops_is_answered(tmp_path: Path) -> None:
    host = host_at(tmp_path)
    await host.start()
    await put(host, A, "a")
    host._stopping = True
    host.close_scope(host.open_scopes[A])
    late = FutureReply()
    host.append(A, drafts("b"), late, None)
    (outcome,) = (await late.future)[0]
    assert isinstance(outcome, Rejected) and outcome.code == "closed"
    host._stopping = False
    await host.aclose()
    assert sorted(check_file(ledger_path(tmp_path, *A)).causes) == ["a"]


async def test_the_idlest_scopes_make_room(tmp_path: Path) -> None:
    clock = Clock()
    async with Host(tmp_path, HostSettings(open_max=4), now_ms=clock) as host:
        for n in range(12):
            clock.now += 1
            await put(host, Address("default", f"run:{n}"), "a")
            returns = list(host.returns.values())
            if returns:
                await asyncio.wait(returns)
            assert len(host.open_scopes) <= 4
        assert Address("default", "run:11") in host.open_scopes
        for n in range(12):
            assert await bodies(host, Address("default", f"run:{n}")) == ["a"]


async def test_a_directory_has_one_host(tmp_path: Path) -> None:
    async with host_at(tmp_path):
        with pytest.raises(ConfigError, match="another"):
            await host_at(tmp_path).start()
    async with host_at(tmp_path) as host:
        await put(host, A, "a")


async def test_stopping_lets_answers_out(tmp_path: Path) -> None:
    host, reply = host_at(tmp_path), None
    await host.start()
    reply = FutureReply()
    host.append(A, drafts("a", "b"), reply, None)
    await host.aclose()
    assert (await reply.future)[0] == [Appended(1, 1), Appended(2, 2)]
    with pytest.raises(HoldfastError):
        host.append(A, drafts("c"), FutureReply(), None)


async def test_tenants_do_not_meet(tmp_path: Path) -> None:
    other = Address("acme", A.scope)
    async with host_at(tmp_path) as host:
        await put(host, A, "a")
        await put(host, other, "b")
        assert (await bodies(host, A), await bodies(host, other)) == (["a"], ["b"])


# -- a file that cannot be used ------------------------------------------------------------


async def test_a_damaged_file_stops_its_scope_only(tmp_path: Path) -> None:
    async with host_at(tmp_path) as host:
        await put(host, A, "a")
        await put(host, B, "b")
        await closed(host, A)
        ledger_path(tmp_path, *A).write_bytes(b"not a database at all" * 1000)
        for _ in range(2):
            with pytest.raises(HoldfastError) as caught:
                await put(host, A, "c")
            assert caught.value.code == "unavailable"
            with pytest.raises(HoldfastError):
                await bodies(host, A)
        assert ledger_path(tmp_path, *A).read_bytes()[:5] == b"not a", "left as it is"
        assert await put(host, B, "d") == [Appended(2, 2)]


async def test_an_empty_file_is_a_scope_nobody_wrote(tmp_path: Path) -> None:
    path = ledger_path(tmp_path, *A)
    path.parent.mkdir(parents=True)
    path.touch()
    async with host_at(tmp_path) as host:
        assert await bodies(host, A) == []
        assert path.stat().st_size == 0
        assert await put(host, A, "a") == [Appended(1, 1)]


async def test_a_disk_that_fails_stops_the_scope_and_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_at(tmp_path) as host:
        big = [{"op": "appendText", "path": "/t", "delta": "x" * (BIG_ROW_BYTES + 1)}] * 2
        await publish(host, A, [draft(envelope("a", big[0])), draft(envelope("tail", big[1]))])
        await put(host, A, "tail2")
        await put(host, B, "b")
        tap, broken = FakeTap(), host.open_scopes[A]
        await host.subscribe(A, tap)
        whole = Barrier._pass

        def one_fails(self: Barrier, items: Any) -> Any:
            error = OSError(5, "Input/output error")
            return [
                (item, position, error if item is broken else failed)
                for item, position, failed in whole(self, items)
            ]

        with monkeypatch.context() as patched:
            patched.setattr(Barrier, "_pass", one_fails)
            patched.setattr(Barrier, "quick", lambda _self, _item: False)
            (lost,) = await put(host, A, "lost")
        assert isinstance(lost, Rejected) and tap.seqs == []
        with pytest.raises(Unavailable):
            await put(host, A, "c")
        assert await bodies(host, A) == ["a", "tail", "tail2"]
        assert await put(host, B, "d") == [Appended(2, 2)]
        assert broken._rows.lagging
        position = broken.position
        await closed(host, A)
        assert broken.position == position, "a file that cannot be trusted is not written to"
        with pytest.raises(Unavailable):
            await bodies(host, A)


async def test_what_a_killed_process_left_is_synced_before_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_at(tmp_path) as host:
        await put(host, A, "a")
    order: list[str] = []
    synced = Barrier.sync_all

    def sync_all(self: Barrier) -> None:
        order.append("sync")
        synced(self)

    monkeypatch.setattr(Barrier, "sync_all", sync_all)
    async with host_at(tmp_path):
        assert order == [], "a clean end leaves nothing to sync"
    killed = host_at(tmp_path)
    await killed.start()
    monkeypatch.setattr(killed.index, "close", killed.index._db.close)  # without the clean mark
    await killed.aclose()
    async with host_at(tmp_path):
        assert order == ["sync"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    await mount_or_skip("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place))
    try:
        async with host_at(place) as host:
            kept: list[str] = []
            refused: list[Rejected] = []
            for n in range(60):
                wanted = draft(envelope(f"e{n}", pad="x" * 40_000))
                (outcome,) = await publish(host, A, [wanted])
                if isinstance(outcome, Rejected):
                    refused.append(outcome)
                else:
                    kept.append(f"e{n}")
            assert kept and {outcome.code for outcome in refused} == {"disk_full"}
            assert await bodies(host, A) == kept
    finally:
        await command("umount", str(place))


async def mount_or_skip(*argv: str) -> None:
    if await command("mount", *argv):
        pytest.skip("this system does not let us mount")


async def command(*argv: str) -> int:
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


# -- clear and snapshot --------------------------------------------------------------------


async def test_clear_begins_above_every_old_cursor(tmp_path: Path) -> None:
    # Edge case 39.
    async with host_at(tmp_path) as host:
        tap = FakeTap()
        await put(host, A, "a", "b")
        before = await host.subscribe(A, tap)
        host.append(A, drafts("c"), FutureReply(), None)
        after = await host.clear(A)
        assert after.epoch != before.epoch
        assert after.head == after.floor == 3 + 2**20
        assert [bounds.epoch for bounds in tap.resets] == [after.epoch]
        assert await put(host, A, "a") == [Appended(after.head + 1, after.head + 1)]


async def test_clear_while_the_scope_is_being_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_at(tmp_path) as host:
        await put(host, A, "a")
        host.append(A, drafts("b"), FutureReply(), None)
        settled, closings = host.settled, iter([True])

        async def settled_then_closed(address: Address) -> None:
            await settled(address)
            if next(closings, False):
                host.close_scope(host.open_scopes[A])  # as making room for others would

        monkeypatch.setattr(host, "settled", settled_then_closed)
        async with asyncio.timeout(20):
            bounds = await host.clear(A)
        assert bounds.head == 2 + 2**20
        assert await put(host, A, "c") == [Appended(3 + 2**20, 3 + 2**20)]


async def test_a_snapshot_is_of_one_seq_tails_included(tmp_path: Path) -> None:
    async with Host(tmp_path, HostSettings(policy=lambda _a: ScopePolicy())) as host:
        text = {"op": "appendText", "path": "/t", "delta": "x" * (BIG_ROW_BYTES + 1)}
        await publish(host, A, [draft(envelope("big", text, key="doc:1"))])
        for n in range(30):
            more = {"op": "appendText", "path": "/t", "delta": "."}
            wanted = [
                draft(envelope(f"d{n}", more, key="doc:1")),
                draft(envelope(f"i{n}", {"op": "increment", "path": "/n"})),
            ]
            reply = FutureReply()
            host.append(A, wanted, reply, None)  # writes go on beside the snapshot
            snapshot = await host.snapshot(A, "entity")
            assert snapshot is not None
            rows = {key: msgspec.json.decode(body) for key, body in snapshot}
            assert snapshot.seq <= host.open_scopes[A].released
            dots, odd = divmod(snapshot.seq - 1, 2)
            assert odd == 0 and rows["doc:1"]["t"].count(".") == dots
            assert rows.get("item:1", {"n": 0})["n"] == dots
            snapshot.close()
            await reply.future
