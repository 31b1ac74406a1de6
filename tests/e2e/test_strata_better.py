"""What the original loses and this server does not: the weaknesses W1 to W14 of the protocol's
section 13, each shown not to be ours.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from holdfast import Bootstrap, Standard, SyncModel
from tests.support.strata import Replica, strata, tx

pytestmark = pytest.mark.e2e


async def test_w01_a_bootstrap_is_a_snapshot(tmp_path: Path) -> None:
    """Rows that change while it runs are there, and whole."""
    async with strata(tmp_path) as ann:
        for start in range(0, 3000, 100):
            await ann.mutate(*[
                tx("INSERT", "Task", f"t{n:04}", {"title": "old", "workspaceId": "ws1"})
                for n in range(start, start + 100)
            ])  # fmt: skip

        async def edit() -> None:
            for number in range(160):
                await ann.write("UPDATE", "Task", f"t{number * 17:04}", {"title": f"new{number}"})

        async with asyncio.TaskGroup() as group:
            edits = group.create_task(edit())
            taken = []
            while not edits.done():
                taken.append(Replica().load(*await ann.bootstrap("onlyModels=Task")))
        log = (await ann.deltas("after=3000&limit=5000"))["actions"]
        final = Replica().load(*await ann.bootstrap("onlyModels=Task"))
        assert len(taken) > 1
        for replica in taken:
            assert len(replica.rows) == 3000
            assert all(row["workspaceId"] == "ws1" for row in replica.rows.values())
            for action in log:
                replica.apply(action)
            assert replica.rows == final.rows


async def test_w02_publication_is_in_commit_order_and_waits_for_no_hook(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def after(change: object) -> None:
        await released.wait()

    slow = SyncModel(
        "Slow", None, Bootstrap(fields=["id"]),
        Standard(insert_fields={}, actions="I", on_after_mutation=after),
    )  # fmt: skip
    async with strata(tmp_path, slow) as ann:
        socket = await ann.live(0)
        async with asyncio.TaskGroup() as group:
            held = group.create_task(ann.write("INSERT", "Slow", "s"))
            assert (await socket.action())["modelId"] == "s", "published while its hook runs"
            await ann.insert("t")
            assert (await socket.action())["modelId"] == "t"
            assert not held.done()
            released.set()


async def test_w03_a_repeat_in_flight_is_told_success(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        one = tx("INSERT", "Task", "t", {"workspaceId": "ws1"})
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ann.mutate(one)) for _ in range(16)]
        assert {task.result()["lastSyncId"] for task in asked} == {"1"}


async def test_w04_composite_deletes_are_judged_by_the_stored_row(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        label = {"taskId": "t", "labelId": "l", "workspaceId": "ws1"}
        await ann.write("INSERT", "TaskLabel", "x", label)
        forged = {**label, "workspaceId": "ws2"}
        result = await ann.as_user("eve").write("DELETE", "TaskLabel", "x", forged)
        assert result["error"] == "Access denied"
        assert len(await ann.rows("TaskLabel")) == 1


async def test_w05_revoked_members_get_nothing_more(tmp_path: Path) -> None:
    async with strata(tmp_path, groups={}) as ann:
        await ann.database.add_member("ann", "team")
        socket = await ann.live(0)
        assert (await ann.database.groups_of("ann")) == ("team", "ann")
        await ann.database.remove_member("ann", "team")
        await ann.database.mutate("INSERT", "Task", "secret", {"workspaceId": "team"})
        last = int(await ann.database.mutate("INSERT", "Notice", "n", {"text": "all"}))
        assert [a["modelName"] for a in await socket.upto(last)] == ["SyncGroup", "Notice"]


async def test_w06_moving_a_row_between_groups(tmp_path: Path) -> None:
    async with strata(tmp_path, groups={"ann": ["ws1", "ws2"], "eve": ["ws2"]}) as ann:
        old, new = await ann.live(0, ["ws1"]), await ann.as_user("eve").live(0)
        await ann.insert("t", title="moving")
        assert (await old.action())["action"] == "I"
        denied = await ann.write("UPDATE", "Task", "t", {"workspaceId": "ws3"})
        assert denied["error"] == "Access denied"
        moved = tx("UPDATE", "Task", "t", {"workspaceId": "ws2", "done": True})
        result = await ann.mutate(moved)
        assert result["lastSyncId"] == "3", "the later of the two: both have arrived by then"
        gone, here = await old.action(), await new.action()
        assert (gone["action"], gone["syncId"], gone["clientTxId"]) == (
            "D", "2", moved["clientTxId"],
        )  # fmt: skip
        assert (here["action"], here["groupId"], "clientId" in here) == ("I", "ws2", False)
        assert here["data"]["title"] == "moving" and here["data"]["done"] is True
        assert await ann.mutate(moved) == result, "and a repeat is told the same"
        assert list(await ann.as_user("eve").rows("Task")) == ["t"]
        stranger = await ann.as_user("bob").write("UPDATE", "Task", "t", {"title": "x"})
        assert stranger["error"] == "Access denied"


async def test_w07_errors_hold_nothing_of_the_inside(tmp_path: Path) -> None:
    bad = SyncModel(
        "Bad", None, Bootstrap(fields=["id"], scope="json_extract(:user_id, '$.column') = 1"),
        Standard(insert_fields={"v": "string"}, update_fields=["v"]),
    )  # fmt: skip
    async with strata(tmp_path, bad) as ann:
        await ann.write("INSERT", "Bad", "b", {"v": "x"})
        again = await ann.write("INSERT", "Bad", "b", {"v": "y"})
        assert again["error"] == "Invalid mutation: record already exists"
        status, body = await ann.get("/bootstrap?onlyModels=Bad")
        assert status == 503 and b"column" not in body and b"SELECT" not in body


async def test_w08_a_bad_transaction_is_named_and_big_bodies_pass(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        good = tx("INSERT", "Task", "t", {"workspaceId": "ws1"})
        wrong = {**tx("INSERT", "Task", "u"), "payload": None}
        status, body = await ann.post("/mutate", {"batchId": "b", "transactions": [good, wrong]})
        assert status == 400 and json.loads(body)["clientTxId"] == wrong["clientTxId"]
        big = [
            tx("INSERT", "Task", f"b{n}", {"workspaceId": "ws1", "title": "x" * 500_000})
            for n in range(8)
        ]
        huge = tx("INSERT", "Task", "huge", {"workspaceId": "ws1", "title": "x" * 1_100_000})
        answer = await ann.mutate(*big, huge, good)
        assert [r["success"] for r in answer["results"]] == [*[True] * 8, False, True]
        assert "at most 1048576" in answer["results"][8]["error"]


async def test_w09_inserts_are_logged_as_stored(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t", title=5)
        (action,) = (await ann.deltas())["actions"]
        row = (await ann.rows("Task"))["t"]
        del row["__class"]
        assert action["data"] == row and row["title"] == 5 and row["done"] is False


async def test_w10_a_batch_is_one_commit(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t")
        before = ann.server.host.counts.commits
        await ann.mutate(*[tx("UPDATE", "Task", "t", {"title": str(n)}) for n in range(100)])
        assert ann.server.host.counts.commits == before + 1


async def test_w12_a_slow_bootstrap_holds_no_transaction(tmp_path: Path) -> None:
    """Backpressure: what is sent is spooled. W11 is tests/e2e/test_strata_processes.py."""
    async with strata(tmp_path) as ann:
        for start in range(0, 40, 4):
            await ann.mutate(*[
                tx("INSERT", "Task", f"t{n}", {"workspaceId": "ws1", "title": "x" * 500_000})
                for n in range(start, start + 4)
            ])  # fmt: skip
        url = ann.server.info.url + ann.base + "/bootstrap"  # type: ignore[union-attr]
        async with ann.session.get(url, headers={"Authorization": "Bearer ann"}) as answer:
            await answer.content.readline()
            service = ann.server.strata
            assert service is not None and service.spools == 1
            await ann.write("UPDATE", "Task", "t0", {"title": "during"})
            rest = await answer.read()
        assert rest.count(b"\n") == 40 and b"during" not in rest
        assert service.spools == 0
        assert not [path for path in tmp_path.rglob("tmp*")], "the spool has no name"


async def test_w13_dedupe_outlives_the_log(tmp_path: Path) -> None:
    async with strata(tmp_path, retain=50) as ann:
        one = tx("INSERT", "Notice", "first", {"text": "x"})
        await ann.mutate(one)
        for _ in range(6):
            await ann.mutate(*[tx("UPDATE", "Notice", "first", {"text": "y"}) for _ in range(100)])
        assert (await ann.get("/deltas?after=1"))[0] == 409
        assert (await ann.mutate(one))["lastSyncId"] == "1"


async def test_w14_deletes_tell_keys_only(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t")
        await ann.write("DELETE", "Task", "t", {"id": "t", "note": "for everybody to see"})
        (action,) = (await ann.deltas("after=1"))["actions"]
        assert action["data"] == {"id": "t", "workspaceId": "ws1"}
