"""StrataSync sockets: the numbered cases of the protocol's section 12, 53 to 70, as far as they are
the server's; tests/e2e/test_strata_interop.py has the real client's side of them.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from actors.types import Address
from infra import clock
from tests.support.app import url_of
from tests.support.strata import NAME, Replica, Socket, Strata, ids_of, strata, tx

pytestmark = pytest.mark.e2e


async def fill(ann: Strata, count: int, start: int = 0) -> None:
    """Notices, by hundreds: `count` actions everybody sees."""
    for first in range(start, start + count, 100):
        await ann.mutate(*[
            tx("INSERT", "Notice", f"n{n}", {"text": "x"})
            for n in range(first, min(first + 100, start + count))
        ])  # fmt: skip


async def test_53_and_57_replay_comes_first(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await fill(ann, 5)
        replayed, ack = await (await ann.connect()).subscribe()
        assert replayed == [1, 2, 3, 4, 5]
        assert ack == {"afterSyncId": "5", "groups": ["ws1", "ann"], "type": "subscribed"}
        replayed, ack = await (await ann.connect()).subscribe(5)
        assert (replayed, ack["afterSyncId"]) == ([], "5")


async def test_54_a_full_page_and_none_after_it(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await fill(ann, 1000)
        replayed, ack = await (await ann.connect()).subscribe(0)
        assert replayed == list(range(1, 1001)) and ack["afterSyncId"] == "1000"


async def test_55_and_56_and_66_writes_during_replay_come_once_in_order(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await fill(ann, 3000)
        sockets = [await ann.connect() for _ in range(3)]

        async def write(writer: int) -> None:
            for number in range(100):
                payload = {"text": str(number)}
                await ann.write("INSERT", "Notice", f"w{writer}-{number}", payload)

        async def read(socket: Socket) -> list[int]:
            replayed, _ = await socket.subscribe(0)
            while not replayed or replayed[-1] < 3400:
                replayed += ids_of(await socket.frame())
            return replayed

        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(read(socket)) for socket in sockets]
            for writer in range(4):
                group.create_task(write(writer))
        assert all(task.result() == list(range(1, 3401)) for task in reads)


async def test_58_and_59_subscribing_again(tmp_path: Path) -> None:
    async with strata(tmp_path, groups={"ann": ["ws1", "ws2"]}) as ann:
        await ann.insert("a", "ws1")
        await ann.insert("b", "ws2")
        socket = await ann.connect()
        assert (await socket.subscribe(0, ["ws1"]))[0] == [1]
        replayed, ack = await socket.subscribe(0, ["ws2"])
        assert (replayed, ack["groups"]) == ([2], ["ws2"])
        await socket.send({"type": "subscribe", "token": "bad"})
        assert await socket.frame() == {"message": "Invalid token", "type": "error"}
        await ann.insert("c", "ws2")
        await socket.send({"type": "subscribe"})
        wanted = {"message": "Authentication required", "type": "error"}
        assert await socket.frame() == wanted, "and no action before it: the old stream ended"
        assert (await socket.subscribe(2))[0] == [3]


async def test_60_the_socket_goes_during_replay(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await fill(ann, 2000)
        service = ann.server.strata
        assert service is not None
        socket = await ann.connect()
        await socket.ask(0)
        await socket.frame()
        await socket.close()
        address = Address("default", f"strata:{NAME}")
        while service.feeds.readers(address) or service.connections:
            await asyncio.sleep(0.001)
        assert ann.calls.closed == ["ann"]


async def test_61_groups_cannot_be_resolved(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        ann.calls.resolver_raises = True
        socket = await ann.connect()
        await socket.ask(0)
        message = "Failed to resolve sync groups"
        assert await socket.frame() == {"message": message, "type": "error"}
        assert await socket.frame() == {"closed": 1011, "reason": message}


async def test_62_a_stale_cursor(tmp_path: Path) -> None:
    async with strata(tmp_path, retain=50) as ann:
        await fill(ann, 500)
        socket = await ann.connect()
        await socket.ask(1)
        assert await socket.frame() == {
            "code": "BOOTSTRAP_REQUIRED", "type": "error",
            "message": "A fresh bootstrap is required before subscribing to deltas",
        }  # fmt: skip
        assert (await socket.subscribe(500))[0] == []
        replayed, _ = await (await ann.connect()).subscribe(0)
        assert replayed[-1] == 500


async def test_63_what_is_ignored(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        socket = await ann.connect()
        for text in ("{", "5", '"x"', "null", '{"type":"doc_view"}', "[" * 100_000):
            await socket.send(text)
        await socket.socket.send_bytes(b"\x00")
        assert (await socket.subscribe(0))[0] == []
        assert ann.calls.messages == []
        await socket.send({"type": "doc_view", "state": "start"})
        await socket.send([1])
        await socket.subscribe(0)
        assert ann.calls.messages == [("ann", {"type": "doc_view", "state": "start"}), ("ann", [1])]


async def test_64_a_silent_peer(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        socket = await ann.live()
        (held,) = ann.server.sockets.sockets
        held.tick(held.heard_at + 31, silence_s=75, stall_s=30)  # pings
        assert not socket.socket.closed
        held.tick(held.heard_at + 76, silence_s=75, stall_s=30)
        assert await socket.frame() == {"closed": 1011, "reason": "Heartbeat timeout"}


async def test_65_and_67_drops_and_long_absence(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t")
        replica = Replica().load(*await ann.bootstrap())
        for round_ in range(30):
            socket = await ann.connect()
            await socket.ask(replica.cursor)
            for number in range(10):
                await ann.write("UPDATE", "Task", "t", {"title": f"{round_}-{number}"})
            for _ in range(round_ % 7):
                frame = await socket.frame()
                if frame["type"] == "delta":
                    replica.apply(frame["packet"]["actions"][0])
            await socket.close()
        await fill(ann, 2500)
        while True:
            page = await ann.deltas(f"after={replica.cursor}")
            for action in page["actions"]:
                replica.apply(action)
            if not page["hasMore"]:
                break
        whole = Replica().load(*await ann.bootstrap())
        assert (replica.rows, replica.cursor) == (whole.rows, whole.cursor)


async def test_70_memberships_change_at_their_place_in_the_log(tmp_path: Path) -> None:
    async with strata(tmp_path, groups={"ann": []}) as ann:
        eve, database = ann.as_user("eve"), ann.database
        ann.calls.groups["eve"] = ["ws2"]
        socket = await ann.live(0)
        await eve.insert("before", "ws2")
        gained = int(await database.add_member("ann", "ws2"))
        action = await socket.action()
        assert (action["action"], action["groupId"], action["syncId"]) == ("G", "ann", str(gained))
        assert action["data"]["subscribedSyncGroups"] == ["ws2", "ann"]
        # As the client does: fetch the rows of the new group, then subscribe again.
        query = f"type=partial&firstSyncId={gained}&syncGroups=ws2&noSyncPackets=true"
        _, rows = await ann.bootstrap(query)
        assert [row["id"] for row in rows] == ["before"]
        assert (await socket.subscribe(gained, ["ws2", "ann"]))[0] == []
        during = await eve.insert("during", "ws2")
        assert (await socket.action())["syncId"] == str(during)
        lost = int(await database.remove_member("ann", "ws2"))
        await eve.insert("after", "ws2")
        last = await ann.insert("own", "ann")
        seen = [int(a["syncId"]) for a in await socket.upto(last)]
        assert seen == [lost, last], "nothing of the group behind its end"
        assert await database.members_of("ann") == ()
        assert [r["id"] for r in (await ann.bootstrap())[1]] == ["own"]


async def test_gain_and_loss_in_one_batch_with_writes(tmp_path: Path) -> None:
    """Exactly at their seq: also where writes before and after stand in the same commit."""
    async with strata(tmp_path, groups={"ann": [], "eve": ["ws2"]}) as ann:
        database, eve = ann.database, ann.as_user("eve")
        await database.add_member("ann", "ws2")
        socket = await ann.live(1)
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(eve.insert(f"a{number}", "ws2"))
            group.create_task(database.remove_member("ann", "ws2"))
            for number in range(20):
                group.create_task(eve.insert(f"b{number}", "ws2"))
        last = await ann.insert("own", "ann")
        shown = await socket.upto(last)
        page = await eve.deltas("limit=5000")
        (change,) = [a for a in shown if a["action"] == "G"]
        cut = int(change["syncId"])
        visible = [int(a["syncId"]) for a in page["actions"] if 1 < int(a["syncId"]) < cut]
        assert [int(a["syncId"]) for a in shown] == [*visible, cut, last]


async def test_resolver_changes_by_invalidation(tmp_path: Path) -> None:
    async with strata(tmp_path, groups={"ann": ["ws1", "ws2"]}) as ann:
        socket = await ann.live(0)
        ann.calls.groups["ann"] = ["ws1"]
        changed = int(await ann.database.invalidate_groups("ann"))
        await ann.database.mutate("INSERT", "Task", "hidden", {"workspaceId": "ws2"})
        last = await ann.insert("shown", "ws1")
        assert [int(a["syncId"]) for a in await socket.upto(last)] == [changed, last]


async def test_an_expired_token_closes_the_socket(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        ann.calls.expires["ann"] = clock.now_ms() + 3_600_000
        socket = await ann.live(0)
        (held,) = ann.server.strata.connections  # type: ignore[union-attr]
        assert held.principal is not None
        ann.calls.expires["ann"] = clock.now_ms() - 1
        await socket.subscribe(0)
        assert await socket.frame() == {"closed": 4401, "reason": "the token expired"}


async def test_upgrades_need_a_token(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        for token in ("", "bad"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await ann.connect(token)
            assert refused.value.status == 401
        url = url_of(ann.server, "/strata/forbidden/sync/ws?token=ann")
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await ann.session.ws_connect(url)


async def test_live_editing_messages_reach_the_others(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        first, second = await ann.live(), await ann.as_user("bob").live()
        update = {"type": "yjs_update", "payload": "AAA=", "connId": "x", "seq": 1}
        await first.send(update)
        assert await second.frame() == {**update, "from": "ann"}
        assert ann.database.broadcast("room", {"type": "session_state"}) == 2
        assert await first.frame() == {"type": "session_state"}, "and not its own message"
        assert ann.database.broadcast("elsewhere", {}) == 0
        await second.close()
        while ann.database.broadcast("room", {"type": "session_state"}) == 2:
            await asyncio.sleep(0.001)
        assert ann.calls.subscribed == [("ann", None), ("bob", None)]


async def test_a_subscribe_hook_may_refuse(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await fill(ann, 1)
        socket = await ann.as_user("unwelcome").connect()
        await socket.ask(0)
        socket.token = "ann"
        assert (await socket.subscribe(0))[0] == [1], "nothing came of the first"
        assert ann.calls.subscribed[1] == ("ann", "unwelcome")


async def test_a_reader_that_does_not_read_delays_nobody(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        stuck, other = await ann.live(0), await ann.live(0)
        (one, two) = ann.server.sockets.sockets
        text = "x" * 100_000
        for number in range(100):  # more than the socket's buffers hold
            await ann.write("INSERT", "Notice", f"n{number}", {"text": text})
            await other.action()
        assert one.congested or two.congested
        seen = [int((await stuck.action())["syncId"]) for _ in range(100)]
        assert seen == list(range(1, 101))
