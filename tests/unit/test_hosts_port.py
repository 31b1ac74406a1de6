"""Scopes on several hosts: who is asked, how a scope moves, what a contradiction or a death does.

The hosts are real, over one store and loopback links; what they see of each other is set by hand.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from actors import link_wire as w
from actors.handing import close_scope
from actors.host import Host
from actors.host_settings import HostSettings
from actors.ownership import DETOUR_S, Ownership
from actors.types import Address, Draft, Page, Resync
from infra import clock
from infra.errors import ConfigError, HoldfastError
from infra.placement.hosts import HostInfo, HostState, View
from tests.support.hosts import bodies, codes, crash, host_at, put, running, seqs, shipped
from tests.support.hosts_ports import Follower, Node, nodes, owned_by
from tests.support.ledgers import draft, envelope
from tests.support.memory_store import MemoryStore

A, B, C = (HostInfo(name=name, link=f"tcp:{name}:1", life=f"{name}1") for name in "abc")
LEAVING = msgspec.structs.replace(B, state=HostState.DRAINING)


def address_of(name: str, view: View) -> Address:
    for number in range(1000):
        address = Address("default", f"run:{number}")
        owner = view.owner(address)
        if owner is not None and owner.name == name:
            return address
    raise AssertionError(name)


# -- the rule --------------------------------------------------------------------------------------


def test_the_routing_rule() -> None:
    own, both = Ownership("a"), View(hosts=(A, B))
    mine, other = address_of("a", both), address_of("b", both)
    assert own.place(mine, 0, is_open=False) is None, "nobody was seen yet"
    assert own.place(mine, 0, is_open=True) == "a", "what is open is served"
    assert own.saw(both) and not own.saw(View(hosts=(A, B), fresh=True))
    assert own.place(mine, 0, is_open=False) == "a" and own.mine(mine, 0)
    assert own.place(other, 0, is_open=False) == "b" and not own.mine(other, 0)
    assert own.place(other, 0, is_open=True) == "a", "until it is handed over"
    own.leaving.add(other)
    assert own.place(other, 0, is_open=True) == "b"
    own.detour(mine, "b", 0)
    assert own.place(mine, DETOUR_S - 0.1, is_open=False) == "b" and not own.mine(mine, 0)
    assert own.place(mine, DETOUR_S, is_open=False) == "a", "asked again after a while"
    own.detour(mine, "b", 0)
    assert own.saw(View(hosts=(A,))) and own.mine(mine, 0), "who has gone keeps nothing"
    assert own.owner(other) == "a"


def test_what_is_settled_has_to_be_claimed_anew_when_others_come_or_go() -> None:
    own = Ownership("a")
    own.saw(View(hosts=(A, B)))
    mine = address_of("a", own.view)
    own.settle(mine)
    own.saw(View(hosts=(A, B), fresh=True))
    assert own.settled(mine), "that the engine is heard or not changes nothing"
    own.saw(View(hosts=(A, LEAVING)))
    assert not own.settled(mine)
    own.settle(mine)
    own.lapsed()
    assert not own.settled(mine)
    own.settle(mine)
    own.unsettle(mine)
    assert not own.settled(mine)


def test_who_may_have_a_scope_is_asked() -> None:
    hosts = [HostInfo(name=f"h{number}", link="tcp:h:1") for number in range(9)]
    hosts[4] = msgspec.structs.replace(hosts[4], state=HostState.DRAINING)
    own = Ownership("h0")
    own.saw(View(hosts=tuple(hosts)))
    address = address_of("h0", own.view)
    asked = own.previous(address)
    assert asked[0] == "h4" and len(asked) == 4 and "h0" not in asked
    next_owner = View(hosts=tuple(hosts[1:])).owner(address)
    assert next_owner is not None and asked[1] == next_owner.name, "who has it without us"


def test_of_two_that_are_about_to_claim_one_gives_way() -> None:
    a, b = Ownership("a"), Ownership("b")
    for is_open, kept in ((True, (True, True)), (False, (True, False))):
        found = (
            a.keeps("b", is_open=is_open, is_waking=True),
            b.keeps("a", is_open=is_open, is_waking=True),
        )
        assert found == kept
    assert not a.keeps("b", is_open=False, is_waking=False)


# -- requests --------------------------------------------------------------------------------------


async def test_any_host_takes_a_write_and_the_owner_has_it(tmp_path: Path) -> None:
    async with nodes(tmp_path, MemoryStore(), "a", "b") as found:
        a, b = found["a"], found["b"]
        (address,) = owned_by("b", a)
        follower = Follower(a, address)
        await follower.start()
        assert seqs(await a.put(address, "e1")) == [1]
        assert seqs(await b.put(address, "e2")) == [2]
        assert await follower.until(2) == [1, 2]
        assert await a.events(address) == await b.events(address) == ["e1", "e2"]
        assert address in b.host.open_scopes and address not in a.host.open_scopes
        bounds = await a.port.bounds(address)
        assert (bounds.head, bounds.durable) == (2, 2)
        outline = (await a.port.scopes("default", "", "", 10))[0]
        assert (outline["scope"], outline["open"]) == (address.scope, True)


async def test_who_is_not_the_owner_says_moved(tmp_path: Path) -> None:
    async with nodes(tmp_path, MemoryStore(), "a", "b") as found:
        a, b = found["a"], found["b"]
        (address,) = owned_by("a", a)
        peer = a.port.peer("b")
        assert peer is not None and peer.link is not None
        pokes = b.placement.pokes
        with pytest.raises(HoldfastError) as caught:
            await peer.link.call("bounds", w.encode(w.Ask(*address)), within_s=10)
        assert caught.value.code == "moved" and caught.value.retryable
        assert b.placement.pokes > pokes, "somebody sees it otherwise: it looks again"


async def test_factories_run_where_the_request_came_from(tmp_path: Path) -> None:
    async with nodes(tmp_path, MemoryStore(), "a", "b") as found:
        a = found["a"]
        for name in ("a", "b"):
            (address,) = owned_by(name, a)

            def make(seq: int, at: int, scope: str = address.scope) -> Draft:
                return draft(envelope(f"e{seq}"), scope)

            wish = Draft("", "patch", "", 0, make=make)
            assert seqs(await a.ask(address, [wish])) == [1]
            assert await a.events(address) == ["e1"]


# -- moving ----------------------------------------------------------------------------------------


async def test_a_scope_is_handed_over_before_it_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.hosts_port.SWEEP_S", 600)  # nobody finds its way by chance
    store = MemoryStore()
    async with nodes(tmp_path, store, "a", "b", "c") as found:
        a, b, c = found["a"], found["b"], found["c"]
        addresses = owned_by("b", a, 4)
        followers = [Follower(node, one) for one in addresses for node in (a, b, c)]
        for follower in followers:
            await follower.start()
        for address in addresses:
            await a.put(address, "e1", "e2")

        async def write(address: Address, done: asyncio.Event) -> int:
            number = 2
            while not done.is_set() or number < 6:
                number += 1
                for node in (a, b, c):
                    assert codes(await node.put(address, f"{node.name}{number}")) == ["ok"]
            return 2 + 3 * (number - 2)

        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(write(address, done)) for address in addresses]
            assert await b.port.drain(30)
            done.set()
        assert not b.host.open_scopes
        for address, task in zip(addresses, tasks, strict=True):
            for follower in followers:
                if follower.address == address:
                    assert await follower.until(task.result()) == [*range(1, task.result() + 1)]
                    assert follower.resets == 0
        assert [node.host.counts.fenced for node in found.values()] == [0, 0, 0]
        others = await a.port.admin.hosts()
        assert [(one["name"], one["state"]) for one in others] == [
            ("a", "up"), ("b", "draining"), ("c", "up")
        ]  # fmt: skip


async def test_a_host_that_joins_gets_its_share(tmp_path: Path) -> None:
    async with nodes(tmp_path, MemoryStore(), "a", "b") as found:
        a, b = found["a"], found["b"]
        (address,) = owned_by("b", a)
        for node in (a, b):
            node.placement.see(a.info)
        await a.put(address, "e1")
        follower = Follower(a, address)
        await follower.start()
        assert address in a.host.open_scopes
        # The newcomer sees both at once; the other is a little late.
        b.placement.see(a.info, b.info)
        assert seqs(await b.put(address, "e2")) == [2], "served by who has it"
        assert address in a.host.open_scopes
        a.placement.see(a.info, b.info)
        assert seqs(await a.put(address, "e3")) == [3]
        await opened(b, address)
        assert await b.events(address) == ["e1", "e2", "e3"]
        assert await follower.until(3) == [1, 2, 3]
        assert a.host.counts.fenced == b.host.counts.fenced == 0


async def opened(node: Node, address: Address) -> None:
    async with asyncio.timeout(30):
        while address not in node.host.open_scopes:
            await asyncio.sleep(0.01)


async def test_two_that_both_take_a_scope_for_theirs_agree_on_one(tmp_path: Path) -> None:
    async with nodes(tmp_path, MemoryStore(), "a", "b") as found:
        a, b = found["a"], found["b"]
        heavy = msgspec.structs.replace(b.info, weight=60)
        b.placement.see(a.info, heavy)
        address = next(one for one in owned_by("b", b, 50) if one in owned_by("a", a, 50))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(node.put(address, node.name)) for node in (a, b)]
        assert sorted(seqs(tasks[0].result() + tasks[1].result())) == [1, 2]
        assert sorted(await a.events(address)) == sorted(await b.events(address)) == ["a", "b"]
        assert a.host.counts.fenced == b.host.counts.fenced == 0
        assert len(a.host.open_scopes) + len(b.host.open_scopes) == 1


async def test_a_dead_hosts_scopes_are_claimed_by_the_log(tmp_path: Path) -> None:
    store = MemoryStore()
    async with nodes(tmp_path, store, "a", "b", "c") as found:
        a, b, c = found["a"], found["b"], found["c"]
        (address,) = owned_by("b", a)
        follower = Follower(a, address)
        await follower.start()
        assert seqs(await a.put(address, "e1")) == [1]
        await b.die()
        peer = a.port.peer("b")
        while peer is not None and peer.link is not None:
            await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(a.put(address, "e2"))
        while peer is not None and peer.idle:
            await asyncio.sleep(0)
        for node in (a, c):
            node.placement.see(a.info, c.info)
        assert seqs(await waiting) == [2]
        assert seqs(await c.put(address, "e1")) == [1], "known from before"
        assert await follower.until(2) == [1, 2]


async def test_a_host_that_was_overtaken_is_fenced_and_its_writes_go_to_the_owner(
    tmp_path: Path,
) -> None:
    async with nodes(tmp_path, MemoryStore(), "a", "b") as found:
        a, b = found["a"], found["b"]
        (address,) = owned_by("b", a)
        assert seqs(await b.put(address, "e1")) == [1]
        follower = Follower(b, address)
        await follower.start()
        # Here the one has not been heard of for long; it does not know, and cannot be asked.
        b.port.handing.closed = True
        a.placement.see(a.info)
        assert seqs(await a.put(address, "e2")) == [2]
        b.port.handing.closed = False
        b.placement.may = False
        assert address in b.host.open_scopes
        late = asyncio.ensure_future(b.put(address, "e3"))
        while b.host.counts.fenced == 0:
            await asyncio.sleep(0.01)
        assert not late.done(), "it may not claim: it waits for a view"
        while b.host.waking is None or not b.host.waking.waking(address):
            await asyncio.sleep(0.01)
        while address in b.host.open_scopes:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not late.done() and not b.port.own.settled(address)
        b.placement.see(a.info)
        a.placement.see(a.info, b.info)
        assert seqs(await late) == [3], "sent on to the owner, and written once"
        assert await a.events(address) == ["e1", "e2", "e3"]
        assert await follower.until(3) == [1, 2, 3]


async def test_without_the_engine_what_is_settled_is_served_and_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.handing.CLAIM_WAIT_S", 0.2)
    async with nodes(tmp_path, MemoryStore(), "a", "b") as found:
        a = found["a"]
        settled, other = owned_by("a", a, 2)
        assert seqs(await a.put(settled, "e1")) == [1]
        for node in found.values():
            node.placement.may = False
        assert seqs(await a.put(settled, "e2")) == [2]
        assert await close_scope(a.host, settled, within_s=10)
        assert seqs(await a.put(settled, "e3")) == [3], "it had it, and nobody could take it"
        assert codes(await a.put(other, "e1")) == ["try_later"]
        a.placement.may = True
        assert seqs(await a.put(other, "e1")) == [1]


async def test_after_a_silence_every_scope_is_settled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, MemoryStore(), "a", "b") as found:
        a, b = found["a"], found["b"]
        (address,) = owned_by("a", a)
        assert seqs(await a.put(address, "e1")) == [1]
        follower = Follower(a, address)
        await follower.start()
        b.placement.see(b.info)
        monkeypatch.setattr(b.port.own, "previous", lambda _address: [])  # a cannot be asked
        assert seqs(await b.put(address, "e2")) == [2]
        a.placement.lapses += 1
        a.placement.tell()
        assert await follower.until(2) == [1, 2], "from the one that has it"
        b.placement.see(a.info, b.info)
        assert await a.events(address) == ["e1", "e2"]
        assert seqs(await a.put(address, "e3")) == [3]
        assert a.host.counts.fenced == 0, "it was noticed before the next write"


# -- alarms ----------------------------------------------------------------------------------------


async def test_alarms_ring_at_whoever_owns_the_scope_then(tmp_path: Path) -> None:
    store, rung = MemoryStore(), asyncio.Queue[tuple[str, str | None]]()

    async def ring(address: Address, name: str, due: int, payload: str | None, n: int) -> None:
        rung.put_nowait((name, payload))

    async with nodes(tmp_path, store, "a", "b", "c", on_alarm=ring) as found:
        a, b, c = found["a"], found["b"], found["c"]
        near, far, unset = owned_by("b", a, 3)
        await a.port.alarms.set(near, "near", 1, None)
        async with asyncio.timeout(30):
            assert await rung.get() == ("near", None)
        soon = clock.now_ms() + 3_600_000
        await a.port.alarms.set(far, "far", soon, '"x"')
        await a.port.alarms.set(unset, "no", soon, None)
        assert await a.port.alarms.cancel(unset, "no")
        assert b.host.index.next_due() == soon
        await b.die()
        # Time goes on; nobody opens anything.
        for node in (a, c):
            node.host.now_ms = lambda: soon + 1
            node.placement.see(a.info, c.info)
        async with asyncio.timeout(30):
            assert await rung.get() == ("far", '"x"')
            while any("~due/" in key for key in store.objects):
                await asyncio.sleep(0.01)
            while any(node.host.index.next_due() is not None for node in (a, c)):
                await asyncio.sleep(0.01)
        assert rung.empty()


async def test_what_only_this_disk_has_keeps_it_from_becoming_one_of_several(
    tmp_path: Path,
) -> None:
    address = Address("default", "run:1")
    alone = Host(tmp_path / "before", HostSettings())
    async with running(alone):
        assert seqs(await put(alone, address, "e1")) == [1]
        await crash(alone, tmp_path / "a")
    store = MemoryStore()
    with pytest.raises(ConfigError, match="run:1"):
        await Node("a", tmp_path, store).port.start()
    async with running(host_at(tmp_path / "a", store)) as again:
        assert await bodies(again, address) == ["e1"]
        await shipped(again, address)
        await again.aclose()
    async with nodes(tmp_path, store, "a", "b") as found:
        assert await found["b"].events(address) == ["e1"]


async def test_who_has_seen_more_makes_a_host_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, MemoryStore(), "a", "b", "c") as found:
        a, b, c = found["a"], found["b"], found["c"]
        (address,) = owned_by("a", a)
        assert seqs(await a.put(address, "e1")) == [1]
        # The others take the owner for dead for a moment, of which it hears nothing.
        for node in (b, c):
            node.placement.see(b.info, c.info)
        monkeypatch.setattr("actors.ownership.Ownership.previous", lambda _own, _address: [])
        assert seqs(await b.put(address, "e2")) == [2]
        for node in (b, c):
            monkeypatch.setattr(node.port.handing, "sweep", lambda: None)  # nobody hands over
            node.placement.see(a.info, b.info, c.info)
        assert (await a.port.bounds(address)).head == 1, "it does not know"
        for node in (c, a):
            page = await node.port.read(
                address, 2, entries_max=10, bytes_max=1 << 20, joined=False
            )  # fmt: skip
            assert isinstance(page, Page) and page.bounds.head == 2
        page = await c.port.read(address, 3, entries_max=10, bytes_max=1 << 20, joined=False)
        assert isinstance(page, Resync) and page.reason == "ahead_of_head", "nobody has"
        assert await a.events(address) == ["e1", "e2"]
