"""The numbered edge cases of the protocol that are about the hub, over both ledgers.

Numbers are those of the protocol's table of edge cases; those about sockets, histories and views
are in the files beside this one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge.dialects.asterql.hub import PublishError, SyncHub
from tests.support.app import Json, patch
from tests.support.hub import LEDGERS, Peer, S, fill, fixed, hub_over

pytestmark = pytest.mark.e2e


@pytest.fixture(params=LEDGERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def hub(kind: str, tmp_path: Path) -> AsyncIterator[SyncHub]:
    async with hub_over(kind, tmp_path) as found:
        yield found


async def head_of(hub: SyncHub) -> int:
    return (await hub.ledger.bounds(S)).head


async def test_edge_22_failed_envelope_stores_nothing_and_takes_no_seq(hub: SyncHub) -> None:
    await hub.publish(S, fixed(patch(n=1)))
    handed: list[int] = []

    def failing(seq: int) -> Json:
        handed.append(seq)
        patches = [
            {"op": "set", "path": "/n", "value": 99},
            {"op": "appendText", "path": "/n", "delta": "x"},
        ]
        return {**patch(), "entities": [{"key": "message:m1", "patches": patches}]}

    with pytest.raises(PublishError) as caught:
        await hub.publish(S, failing)
    assert caught.value.code == "patch_failed"
    assert (caught.value.entity, caught.value.index, caught.value.reason) == (
        "message:m1", 1, "type_mismatch",
    )  # fmt: skip
    assert await head_of(hub) == 1
    assert (await hub.read_scope(S)).entities == {"message:m1": {"n": 1}}
    published = await hub.publish(S, fixed(patch(n=2)))
    assert published.envelope is not None
    assert published.envelope["seq"] == 2 and handed == [2]


async def test_edge_25_since_head_replays_nothing(hub: SyncHub) -> None:
    await fill(hub, 3)
    frames = await Peer(hub).sub(since=3)
    assert [frame["type"] for frame in frames] == ["subscribed", "caughtUp"]
    assert frames[0]["since"] == frames[0]["head"] == frames[1]["seq"] == 3


async def test_edge_26_since_ahead_of_head(hub: SyncHub) -> None:
    await fill(hub, 3)
    (frame,) = await Peer(hub).sub(since=4)
    assert (frame["code"], frame["reason"]) == ("snapshot_required", "ahead_of_head")
    assert (frame["head"], frame["floor"]) == (3, 0) and frame["epoch"]


async def test_edge_27_since_at_and_below_the_floor(kind: str, tmp_path: Path) -> None:
    async with hub_over(kind, tmp_path, retain=5) as hub:
        await fill(hub, 20)
        bounds = await hub.ledger.bounds(S)
        assert bounds.head - bounds.floor == 5
        peer = Peer(hub)
        frames = await peer.sub(since=bounds.floor)
        assert frames[0]["floor"] == bounds.floor
        assert peer.seqs == list(range(bounds.floor + 1, 21))
        (frame,) = await Peer(hub).sub(since=bounds.floor - 1)
        assert (frame["code"], frame["reason"]) == ("snapshot_required", "below_floor")
        assert frame["floor"] == bounds.floor


async def test_edge_28_publish_during_sub_is_in_head_or_delivered(hub: SyncHub) -> None:
    for number in range(30):
        peer = Peer(hub)
        peer.send({"type": "sub", "scope": S})
        for _ in range(number % 5):
            await asyncio.sleep(0)
        await hub.publish(S, fixed(patch(n=number)))
        last = await hub.publish(S, fixed(patch(n=-number)))
        assert last.envelope is not None
        end = last.envelope["seq"]
        subscribed = await peer.until("subscribed")
        if subscribed["head"] < end:
            await peer.seq(end)
        assert peer.seqs == list(range(subscribed["head"] + 1, end + 1))


async def test_edge_29_duplicate_returns_the_first_envelope(hub: SyncHub) -> None:
    peer = Peer(hub)
    await peer.sub()
    first = await hub.publish(S, fixed(patch(event="same", n=1)))
    second = await hub.publish(S, fixed(patch(event="same", n=2)))
    assert second.duplicate and not first.duplicate
    assert second.envelope == first.envelope
    await hub.publish(S, fixed(patch(n=3)))
    await peer.seq(2)
    assert peer.seqs == [1, 2]


class Mistake(Exception):
    pass


@pytest.mark.parametrize("wrong", [{"scope": "run:other"}, {"seq": 7}, {"kind": "nope"}])
async def test_edge_30_factory_with_wrong_members(hub: SyncHub, wrong: Json) -> None:
    with pytest.raises(PublishError) as caught:
        await hub.publish(S, lambda seq: {**patch(n=1), "seq": seq, "scope": S, **wrong})
    assert caught.value.code == "bad_envelope"
    assert await head_of(hub) == 0


async def test_edge_30_factory_raises(hub: SyncHub) -> None:
    def make(seq: int) -> Json:
        raise Mistake(f"at {seq}")

    with pytest.raises(Mistake, match="at 1"):
        await hub.publish(S, make)
    assert await head_of(hub) == 0
    published = await hub.publish(S, lambda seq: {**patch(n=1), "seq": seq, "scope": S})
    assert published.envelope is not None and published.envelope["seq"] == 1


async def test_edge_31_sub_twice_does_not_double(hub: SyncHub) -> None:
    await fill(hub, 2)
    peer = Peer(hub)
    await peer.sub(since=0)
    peer.send({"type": "sub", "scope": S})
    again = await peer.until("subscribed")
    assert again["since"] == 2
    await hub.publish(S, fixed(patch(n=1)))
    await peer.seq(3)
    assert peer.seqs == [1, 2, 3]
    await peer.sub(since=1)
    assert peer.seqs == [1, 2, 3, 2, 3]


async def test_edge_32_unsub_during_replay(kind: str, tmp_path: Path) -> None:
    async with hub_over(kind, tmp_path, page_size=4) as hub:
        await fill(hub, 40)
        peer = Peer(hub)
        peer.send({"type": "sub", "scope": S, "since": 0})
        await peer.seq(4)
        peer.send({"type": "unsub", "scope": S})
        await peer.until("unsubscribed")
        await hub.publish(S, fixed(patch(n=1)))
        peer.send({"type": "ping"})
        await peer.until("pong")
        assert "event" not in peer.types[peer.types.index("unsubscribed") :]
        assert peer.seqs == list(range(1, len(peer.seqs) + 1)) and len(peer.seqs) < 40


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_edge_33_authorize_raises(kind: str, tmp_path: Path, asynchronous: bool) -> None:
    def broken(scope: str, user: Any) -> bool:
        if scope == S:
            raise Mistake("no")
        return True

    async def broken_later(scope: str, user: Any) -> bool:
        await asyncio.sleep(0)
        return broken(scope, user)

    hook = broken_later if asynchronous else broken
    async with hub_over(kind, tmp_path, authorize=hook) as hub:
        peer = Peer(hub)
        (frame,) = await peer.sub()
        assert (frame["type"], frame["code"]) == ("scopeError", "forbidden")
        assert "Mistake" not in frame["message"]
        assert (await peer.sub("run:other"))[-1]["type"] == "caughtUp"
        assert not peer.connection.closed


async def test_edge_35_snapshot_envelope_drops_what_it_omits(hub: SyncHub) -> None:
    await hub.publish(S, fixed(patch("a:e1", n=1)))
    await hub.publish(S, fixed(patch("a:e2", n=1)))
    entities = [{"key": "a:e2", "value": {"n": 5}}]
    await hub.publish(S, fixed({"eventId": "s", "kind": "snapshot", "entities": entities}))
    view = await hub.read_scope(S)
    assert view.entities == {"a:e2": {"n": 5}} and view.seq == 3


async def test_edge_36_patch_after_delete_starts_from_nothing(hub: SyncHub) -> None:
    await hub.publish(S, fixed(patch("a:e1", old=1)))
    entities = [{"key": "a:e1", "deleted": True}]
    await hub.publish(S, fixed({"eventId": "d", "kind": "patch", "entities": entities}))
    assert (await hub.read_scope(S)).entities == {}
    await hub.publish(S, fixed(patch("a:e1", new=2)))
    assert (await hub.read_scope(S)).entities == {"a:e1": {"new": 2}}


async def test_edge_39_a_new_epoch_lies_above_every_old_cursor(hub: SyncHub) -> None:
    await fill(hub, 42)
    live = Peer(hub)
    old = (await live.sub(since=42))[0]["epoch"]
    await hub.clear(S)
    ended = await live.until("scopeError")
    assert (ended["code"], ended["reason"]) == ("snapshot_required", "epoch_changed")
    start = 42 + 2**20
    bounds = await hub.ledger.bounds(S)
    assert (bounds.head, bounds.floor) == (start, start) and bounds.epoch != old
    (frame,) = await Peer(hub).sub(since=42, epoch=old)
    assert frame["reason"] == "epoch_changed" and frame["epoch"] == bounds.epoch
    (frame,) = await Peer(hub).sub(since=42)
    assert frame["reason"] == "below_floor"
    view = await hub.read_scope(S)
    assert (view.seq, view.entities) == (start, {})
    assert (await live.sub(since=view.seq, epoch=view.epoch))[-1]["type"] == "caughtUp"
    published = await hub.publish(S, fixed(patch(n=1)))
    assert published.envelope is not None and published.envelope["seq"] == start + 1
    await live.seq(start + 1)


async def test_edge_39_scope_first_followed_while_empty(hub: SyncHub) -> None:
    early = Peer(hub)
    await early.sub()
    await fill(hub, 2)
    await early.seq(2)
    subscribed = (await Peer(hub).sub(since=0))[0]
    assert subscribed["epoch"] == (await hub.ledger.bounds(S)).epoch != ""
    await hub.clear(S)
    assert (await early.until("scopeError"))["reason"] == "epoch_changed"


async def test_edge_41_send_that_raises_ends_only_its_own_connection(hub: SyncHub) -> None:
    before, after = Peer(hub), Peer(hub)
    await before.sub()
    frames: list[str] = []

    def send(text: str) -> None:
        frames.append(text)
        if '"event"' in text:
            raise ConnectionResetError("gone")

    broken = hub.connect(send, "broken")
    broken.handle_message(f'{{"type":"sub","scope":"{S}"}}')
    while not any("caughtUp" in text for text in frames):
        await asyncio.sleep(0)
    await after.sub()
    for number in range(1, 4):
        await hub.publish(S, fixed(patch(n=number)))
    await before.seq(3)
    await after.seq(3)
    assert before.seqs == after.seqs == [1, 2, 3]
    await broken.wait_closed()
    assert broken.closed and sum('"event"' in text for text in frames) == 1


async def test_edge_41_async_send_that_raises(hub: SyncHub) -> None:
    async def send(text: str) -> None:
        raise ConnectionResetError("gone")

    broken = hub.connect(send, "broken")
    broken.handle_message(f'{{"type":"sub","scope":"{S}"}}')
    await broken.wait_closed()
    await fill(hub, 2)
    assert await head_of(hub) == 2


async def test_edge_42_publish_after_close(kind: str, tmp_path: Path) -> None:
    async with hub_over(kind, tmp_path) as hub:
        await fill(hub, 1)
    with pytest.raises(PublishError) as caught:
        await hub.publish(S, fixed(patch(n=1)))
    assert caught.value.code == "closed"


async def test_edge_43_invalidate_touches_no_entity(hub: SyncHub) -> None:
    peer = Peer(hub)
    await peer.sub()
    await hub.publish(S, fixed(patch(n=1)))
    before = await hub.read_scope(S)
    invalidate = {"eventId": "i", "kind": "invalidate", "classes": ["todo"]}
    await hub.publish(S, fixed({**invalidate, "classVersions": {"todo": 3}}))
    after = await hub.read_scope(S)
    assert (after.entities, after.hash) == (before.entities, before.hash)
    assert (before.seq, after.seq) == (1, 2)
    await peer.seq(2)
    assert peer.seen[-1]["envelope"]["classes"] == ["todo"]
