"""`ObjectFeedClient` and `synced` against a server: two clients, echoes, rejections, groups, going
away and coming back, presence, queries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.ledger import Ledger
from edge.client.effects import SyncError
from edge.client.para import (
    PASSTHROUGH,
    ObjectFeedClient,
    SqliteIntentStore,
    SyncedObject,
    msgspec_schema,
    synced,
)
from infra.paths import ledger_path
from tests.support.app import PATIENCE_S, url_of
from tests.support.para import Bench, Cursor, Num, bench

pytestmark = pytest.mark.e2e
NUM = msgspec_schema(Num)


def client_of(b: Bench, user: str = "ada", **options: Any) -> ObjectFeedClient:
    return ObjectFeedClient(url_of(b.server, "/para/main/objectfeed"), user, **options)


async def until(found: Callable[[], bool]) -> None:
    """Wait for something that arrives by the loop."""
    async with asyncio.timeout(PATIENCE_S):
        while not found():
            await asyncio.sleep(0.005)


async def shows(held: SyncedObject, value: Any) -> None:
    await until(lambda: held.get() == value)


async def test_30_two_clients_follow(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, client_of(b) as one, client_of(b, "bob") as two:
        for n in range(9):
            await b.objects.put("num:1", {"n": n})
        seed = {"value": {"n": 2}, "schema_version": "1.0", "sequence": 3}
        mine, theirs = synced("num:1", NUM, one, seed=seed), synced("num:1", NUM, two)
        assert mine.get() == Num(2)
        await shows(mine, Num(8))
        await shows(theirs, Num(8))
        assert mine.meta().sequence == 9 and mine.replica.stats.gaps == 0
        await b.objects.put("num:1", {"n": 99})
        await shows(mine, Num(99))
        await shows(theirs, Num(99))
        await b.objects.delete("num:1")
        await shows(mine, None)
        await b.objects.put("num:1", {"n": 5})
        await shows(mine, Num(5))
        assert mine.meta().sequence == 12 and mine.meta().status == "ok"
        found = await one.refetch("num:1")
        assert found is not None and found.sequence == 12
        assert await one.refetch("num:404") is None
        b.calls.denied = {("ada", "num:2", "read")}
        with pytest.raises(SyncError):
            await one.refetch("num:2")
        with pytest.raises(SyncError):
            one.publish("num:1", found)
        assert (await b.objects.seeds("num:1", "num:404"))["num:1"]["sequence"] == 12
        mine.dispose()
        theirs.dispose()


async def test_37_likes_do_not_flicker(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, client_of(b) as client:
        await b.objects.put("counter:1", 0)
        held = synced("counter:1", PASSTHROUGH, client)
        await shows(held, 0)
        seen: list[Any] = []
        held.subscribe(seen.append)
        tickets = [held.set(value) for value in (1, 2, 3, 4)]
        assert held.get() == 4, "at once"
        for ticket in tickets:
            await ticket
        await until(lambda: not held.pending)
        assert seen == [1, 2, 3, 4] and held.confirmed == 4
        assert (await held.set(4)) == {"counter:1": 5}, "equal: confirmed, nothing changes"
        assert not held.pending
        held.dispose()


async def test_38_a_rejection_restores_once_all_are_answered(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, client_of(b) as client:
        await b.objects.put("num:1", {"n": 1})
        held = synced("num:1", NUM, client)
        await shows(held, Num(1))
        bad = client.intent("num:1", name="nothing of that name")
        good = held.set({"n": 2})
        assert held.get() == Num(2)
        with pytest.raises(SyncError) as refused:
            await bad
        assert refused.value.code == "unknown_intent"
        assert held.get() == Num(2), "the newer one is open"
        await good
        first = held.set({"n": 3})
        held._shown.set("anything")
        second = client.intent("num:1", name="nope")
        await first
        with pytest.raises(SyncError):
            await second
        await until(lambda: not held.pending)
        assert held.get() == Num(3), "what was accepted stays"
        with pytest.raises(SyncError):
            await held.set({"n": "no number"})
        assert held.get() == Num(3)
        held.dispose()


async def test_40_a_refused_group_rolls_both_arms_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, client_of(b) as client:
        await b.objects.tx({"num:1": {"n": 1}, "num:2": {"n": 2}})
        one, two = synced("num:1", NUM, client), synced("num:2", NUM, client)
        await shows(one, Num(1))
        await shows(two, Num(2))
        ticket = client.tx(
            [{"key": "num:1", "value": {"n": 10}}, {"key": "num:2", "value": {"n": "ten"}}]
        )
        one.show({"n": 10})
        assert one.get() == Num(10)
        with pytest.raises(SyncError) as refused:
            await ticket
        assert refused.value.code == "parse_failed"
        assert (one.get(), two.get()) == (Num(1), Num(2))
        good = client.tx([{"key": f"num:{n}", "value": {"n": n * 10}} for n in (1, 2)])
        assert await good == {"num:1": 2, "num:2": 2}
        await shows(one, Num(10))
        await shows(two, Num(20))
        assert one.meta().sequence == two.meta().sequence == 2
        with pytest.raises(SyncError) as crossed:
            await client.tx(
                [{"key": "num:1", "value": {"n": 1}}, {"key": "num:x/1", "value": {"n": 1}}]
            )
        assert crossed.value.code == "cross_scope"
        one.dispose()
        two.dispose()


async def test_offline_intents_are_replayed_under_their_ids(tmp_path: Path) -> None:
    store = SqliteIntentStore(tmp_path / "intents.db")
    async with bench(tmp_path / "data") as b:
        client = client_of(b, store=store)
        held = synced("counter:1", PASSTHROUGH, client)
        await client.intent("counter:1", name="add", input=1)
        await shows(held, 1)
    await until(lambda: not client.connected)
    tickets = [held.intent("add", 1, optimistic=lambda n: n + 1) for _ in range(3)]
    assert held.get() == 4 and [op.op_id for op in store.load()] == [t.op_id for t in tickets]
    await client.close()  # the process ends with its intents open
    store.close()
    store = SqliteIntentStore(tmp_path / "intents.db")
    async with bench(tmp_path / "data") as b:
        client = client_of(b, store=store)
        again = synced("counter:1", PASSTHROUGH, client)
        await shows(again, 4)
        await until(lambda: not store.load())
        found = await b.objects.get("counter:1")
        assert found is not None and (found.value, found.sequence) == (4, 4)
        assert b.calls.intents == [("ada", "add")] * 3
        await client.close()
    store.close()


@pytest.mark.parametrize("knows_epoch", [True, False])
async def test_32_a_restore_that_lost_changes(tmp_path: Path, knows_epoch: bool) -> None:
    async with bench(tmp_path) as b:
        for n in range(1, 8):
            await b.objects.put("num:1", {"n": n})
        address = b.objects.address("num:1")
        epoch = (await b.objects.port.bounds(address)).epoch
    ledger = Ledger.open(ledger_path(tmp_path, *address), address)
    ledger.move_epoch("restored", jump=1 << 20, at=1)
    ledger.close()
    async with bench(tmp_path) as b, client_of(b) as client:
        feed = await b.open()  # its replica has 9, which the restore has lost
        known = {"epoch": epoch} if knows_epoch else {}
        assert (await feed.sub("num:1", sequence=9, **known))["epoch"] == "restored"
        frame = await feed.frame()
        assert frame["baseline"] is True
        assert frame["envelope"]["sequence"] == 7 + (1 << 20)
        seed = {"value": {"n": 99}, "schema_version": "1.0", "sequence": 9}
        held = synced("num:1", NUM, client, seed=seed)
        await shows(held, Num(7))
        await b.objects.put("num:1", {"n": 8})
        await shows(held, Num(8))
        assert held.meta().sequence == 8 + (1 << 20)
        held.dispose()


async def test_a_history_that_is_cleared_under_its_followers(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, client_of(b) as client:
        await b.objects.put("num:1", {"n": 1})
        held = synced("num:1", NUM, client)
        await shows(held, Num(1))
        await b.server.host.clear(b.objects.address("num:1"))
        await shows(held, None)
        await b.objects.put("num:1", {"n": 2})
        await shows(held, Num(2))
        assert held.meta().status == "ok" and held.meta().sequence > 1
        held.dispose()


async def test_a_lost_answer_changes_nothing_twice(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, client_of(b) as client:
        held = synced("counter:1", PASSTHROUGH, client)
        b.calls.gate = asyncio.Event()
        await b.objects.put("post:1", {"title": "t"})
        ticket = client.intent("post:1", name="like")
        await until(lambda: b.calls.intents == [("ada", "like")])
        assert b.server.para is not None
        for connection in list(b.server.para.connections):
            connection.end(1001, "for the test")
        await until(lambda: not client.connected)
        b.calls.gate.set()  # the server decides while nobody hears it
        assert await ticket == {"post:1": 2}
        assert b.calls.intents == [("ada", "like")], "the repeat was answered from the ledger"
        held.dispose()


async def test_43_presence_of_clients(tmp_path: Path) -> None:
    cursor = msgspec_schema(Cursor)
    async with bench(tmp_path) as b, client_of(b) as one, client_of(b, "bob") as two:
        mine = one.presence("room:1", cursor, peer_id="ada")
        theirs = two.presence("room:1", cursor, peer_id="bob")
        mine.set(Cursor(1))
        await until(lambda: theirs.peers == {"ada": Cursor(1)})
        theirs.set({"x": 2})
        await until(lambda: mine.peers == {"bob": Cursor(2)})
        assert theirs.peers == {"ada": Cursor(1)}, "no own echo"
        assert b.server.para is not None
        for connection in list(b.server.para.connections):
            connection.end(1001, "for the test")
        await until(lambda: mine.peers == {})
        await until(lambda: mine.peers == {"bob": Cursor(2)} and theirs.peers == {"ada": Cursor(1)})
        mine.close()
        await until(lambda: theirs.peers == {})


async def test_queries_of_a_client(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, client_of(b) as client:
        await b.objects.put("num:1", {"n": 1})
        heard: list[tuple[list[str], list[str]]] = []
        off = client.query("num:", lambda keys, seeds: heard.append((keys, list(seeds))))
        await until(lambda: heard == [(["num:1"], ["num:1"])])
        await b.objects.put("num:2", {"n": 0})
        await until(lambda: heard[1:] == [(["num:2", "num:1"], ["num:2"])])
        off()


async def test_merged_and_server_fields_of_a_client(tmp_path: Path) -> None:
    from tests.support.para import merge_tags

    async with bench(tmp_path) as b, client_of(b, "ada") as client:
        await b.objects.put("post:1", {"title": "t", "likes": 5, "tags": ["a", "b"]})
        held = synced(
            "post:1", PASSTHROUGH, client, authority={"likes": "server", "tags": merge_tags}
        )
        await until(lambda: held.get() is not None)
        await b.objects.mutate("post:1", lambda value: {**value, "tags": ["a", "b", "c"]})
        await until(lambda: held.meta().sequence == 2)
        held.set({**held.get(), "likes": 99, "tags": ["a", "c", "d"]})
        assert held.get()["likes"] == 5, "undone before it is sent"
        await until(lambda: not held.pending)
        assert held.get()["tags"] == ["a", "c", "d"] and held.get()["likes"] == 5
        held.dispose()
