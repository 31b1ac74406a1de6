"""`RTCClient` against real servers: edits, restarts, kills between commit and ack, lost history."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.dialects.vuer.message import VuerRefusal
from edge.client.vuer.client import RTCClient
from edge.client.vuer.store import GraphStore
from infra import clock
from tests.support.app import PATIENCE_S, running, token, url_of
from tests.support.process import ServerProcess
from tests.support.rtc import ROOM, Peer, insert, op

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def two(url: str) -> AsyncIterator[tuple[RTCClient, RTCClient]]:
    """`ann` and `bob` in the room."""
    async with (
        asyncio.timeout(3 * PATIENCE_S),
        await RTCClient.connect(url, ROOM, "ann") as ann,
        await RTCClient.connect(url, ROOM, "bob") as bob,
    ):
        yield ann, bob


async def agree(*clients: RTCClient) -> str:
    """All of them, and the server, have the same scene; its hash."""
    for client in clients:
        await client.settled()
    seq, found = await clients[0].check()
    for client in clients:
        await client.reached(seq)
        assert client.store.confirmed.hash() == found
        assert client.store.graph.hash() == found
    return found


def edit(client: RTCClient, *ops: dict[str, Any]) -> None:
    client.store.edit_batch(list(ops))
    client.store.commit()


async def test_edits_undo_and_text_of_two_who_type(tmp_path: Path) -> None:
    async with running(tmp_path) as server, two(url_of(server)) as (ann, bob):
        edit(ann, insert("n", x=1))
        await agree(ann, bob)
        for number in range(50):
            edit(ann, op("number.add", "n", "x", 1))
            edit(bob, op("number.add", "n", "x", 2))
            for client in (ann, bob):
                typed = {"otype": "text.insert", "key": "n", "path": "t", "position": number}
                edit(client, typed | {"value": "ab"[client is bob]})
        await agree(ann, bob)
        assert ann.store.graph.value("n", "x") == 151
        text = str(ann.store.graph.value("n", "t"))
        assert sorted(text) == ["a"] * 50 + ["b"] * 50
        bob.store.undo()
        bob.store.undo()
        await agree(ann, bob)
        assert ann.store.graph.value("n", "x") == 149
        bob.store.redo()
        await agree(ann, bob)


async def test_more_than_a_burst_is_sent_in_order_and_refused_by_nobody(tmp_path: Path) -> None:
    refused: list[VuerRefusal] = []
    async with (
        running(tmp_path) as server,
        asyncio.timeout(3 * PATIENCE_S),
        await RTCClient.connect(url_of(server), ROOM, "ann", on_error=refused.append) as ann,
    ):
        for number in range(650):
            edit(ann, insert(f"n{number}"))
        await agree(ann)
        assert ann.store.confirmed_seq == 650 and refused == []


async def test_a_refusal_takes_back_what_was_shown(tmp_path: Path) -> None:
    refused: list[VuerRefusal] = []
    read_only = token("rtc:*", subject="ann")
    async with running(tmp_path, mode="serve") as server, asyncio.timeout(60):
        async with await RTCClient.connect(
            url_of(server), ROOM, "ann", token=read_only, on_error=refused.append
        ) as ann:
            edit(ann, insert("n"))
            assert "n" in ann.store.graph.nodes
            await ann.settled()
            assert "n" not in ann.store.graph.nodes and refused[0].code == "forbidden"
        with pytest.raises(Exception, match="refused the token"):
            await RTCClient.connect(url_of(server), ROOM, "ann", token="bad")
        stranger = token("rtc:elsewhere", subject="x")
        with pytest.raises(Exception, match="no access"):
            await RTCClient.connect(url_of(server), ROOM, "x", token=stranger)


async def test_members_and_presence(tmp_path: Path) -> None:
    async with running(tmp_path) as server, two(url_of(server)) as (ann, bob):
        bob.present({"at": [1, 2]})
        while ann.members != {"bob": {"at": [1, 2]}}:
            await asyncio.sleep(0.01)
        async with await RTCClient.connect(url_of(server), ROOM, "eve") as eve:
            assert eve.members == {"ann": None, "bob": {"at": [1, 2]}}
        await bob.aclose()
        while ann.members:
            await asyncio.sleep(0.01)


async def test_a_server_that_restarts(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "dev") as server:
        async with two(server.url) as (ann, bob):
            edit(ann, insert("n", x=0))
            await agree(ann, bob)
            for _ in range(2):
                loop = asyncio.get_running_loop()
                edit(ann, op("number.add", "n", "x", 1))
                assert await loop.run_in_executor(None, server.stop) == 0
                edit(ann, op("number.add", "n", "x", 1))
                edit(bob, op("number.add", "n", "x", 1))
                await loop.run_in_executor(None, server.start)
                await agree(ann, bob)
            assert bob.store.graph.value("n", "x") == 6


async def test_58_killed_between_commit_and_ack(tmp_path: Path) -> None:
    """Each increment counts once, whatever the kill caught in the middle."""
    with ServerProcess(tmp_path, "dev") as server:
        async with two(server.url) as (ann, bob):
            loop = asyncio.get_running_loop()
            edit(ann, insert("n", x=0))
            await agree(ann, bob)
            total = 0
            for _ in range(3):
                for _ in range(60):
                    edit(ann, op("number.add", "n", "x", 1))
                    edit(bob, op("number.add", "n", "x", 1))
                    total += 2
                # As soon as a part of them is acknowledged.
                head = ann.store.confirmed_seq
                await ann.reached(head + 5)
                await loop.run_in_executor(None, server.stop, signal.SIGKILL)
                await loop.run_in_executor(None, server.start)
                await agree(ann, bob)
                assert bob.store.graph.value("n", "x") == total
        async with await Peer.joined(server.url, "eve") as eve:
            ids = [m["id"] for m in eve.seen[0]["journal"]]
            assert len(ids) == len(set(ids)) == total + 1


async def test_a_room_that_lost_its_tail_is_refilled_by_its_authors(tmp_path: Path) -> None:
    """What a restore from the bucket has not got comes back from who wrote it (durableSeq)."""
    (tmp_path / "bucket").mkdir()
    bucket = f"file:{tmp_path / 'bucket'}"
    loop = asyncio.get_running_loop()
    store = GraphStore("ann", now_ms=clock.now_ms)
    with ServerProcess(tmp_path / "a", "dev", "--bucket", bucket) as first:
        async with await RTCClient.connect(first.url, ROOM, "ann", store=store) as ann:
            edit(ann, insert("n", x=0))
            await ann.settled()
            while store.durable_seq < 1:  # acks tell it, heartbeats would in time
                edit(ann, op("number.add", "n", "x", 1))
                await ann.settled()
                await asyncio.sleep(0.05)
            for _ in range(20):
                edit(ann, op("number.add", "n", "x", 1))
            await ann.settled()
            await loop.run_in_executor(None, first.stop, signal.SIGKILL)
    wanted, epoch = store.graph.value("n", "x"), store.epoch
    # The disk is gone as well; another host takes the bucket over.
    with ServerProcess(tmp_path / "b", "dev", "--bucket", bucket) as second:
        async with (
            asyncio.timeout(3 * PATIENCE_S),
            await RTCClient.connect(second.url, ROOM, "ann", store=store) as ann,
        ):
            await agree(ann)
            assert store.epoch != epoch and store.graph.value("n", "x") == wanted
            async with await Peer.joined(second.url, "eve", mode="graph") as eve:
                assert eve.seen[0]["snapshot"]["graph"]["nodes"]["n"]["x"] == wanted


async def test_a_store_that_was_edited_offline(tmp_path: Path) -> None:
    async with running(tmp_path) as server, asyncio.timeout(3 * PATIENCE_S):
        async with await RTCClient.connect(url_of(server), ROOM, "ann") as ann:
            edit(ann, insert("before"))
            await ann.settled()
        store = GraphStore("ann", now_ms=clock.now_ms, nonce="another")
        store.edit(insert("n", x=5))
        store.commit()  # its first message, as "before" was the first of that store
        async with await RTCClient.connect(url_of(server), ROOM, "ann", store=store) as ann:
            await agree(ann)
            assert ann.store.confirmed_seq == 2 and ann.store.graph.value("n", "x") == 5


async def test_nobody_can_use_an_id_before_its_author_does(tmp_path: Path) -> None:
    async with running(tmp_path) as server, two(url_of(server)) as (ann, bob):
        async with await Peer.joined(server, "eve") as eve:
            for number in range(1, 4):
                await eve.write(insert(f"e{number}"), id=f"ann:{number}")
        edit(ann, insert("n"))
        await agree(ann, bob)
        assert "n" in bob.store.graph.nodes


async def test_a_cleared_room_stays_empty(tmp_path: Path) -> None:
    async with running(tmp_path) as server, two(url_of(server)) as (ann, bob):
        edit(ann, insert("n"))
        await agree(ann, bob)
        epoch = ann.store.epoch
        await server.rooms.clear_room(ROOM)
        while epoch in (ann.store.epoch, bob.store.epoch):
            await asyncio.sleep(0.01)
        await agree(ann, bob)
        assert dict(ann.store.graph.nodes) == {}
        edit(bob, insert("m"))
        await agree(ann, bob)
