"""StrataSync databases whose machine is lost: what was acknowledged is in the bucket, and comes
back with its log, rows, memberships and dedupe memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from actors.ledger import Ledger
from actors.types import Address
from infra.paths import ledger_path
from tests.support.strata import NAME, Replica, strata, tx

pytestmark = pytest.mark.e2e
ADDRESS = Address("default", f"strata:{NAME}")


async def test_the_disk_is_lost_after_the_answer(tmp_path: Path) -> None:
    data, bucket = tmp_path / "data", f"file:{tmp_path / 'bucket'}"
    (tmp_path / "bucket").mkdir()
    one = tx("INSERT", "Task", "t1", {"title": "saved", "workspaceId": "ws1"})
    async with strata(data, bucket=bucket) as ann:
        assert ann.server.host.settings.policy(ADDRESS).level == "replicated"
        answer = await ann.mutate(one)
        await ann.write("INSERT", "Comment", "c", {"taskId": "t1", "workspaceId": "ws1"})
        await ann.database.add_member("ann", "ws9")
        before = Replica().load(*await ann.bootstrap())
        socket = await ann.live(0)
        shutil.copytree(tmp_path / "bucket", tmp_path / "kept")  # as it is now, mid-flight
        await socket.close()
    shutil.rmtree(data)
    async with strata(data, bucket=f"file:{tmp_path / 'kept'}") as ann:
        after = Replica().load(*await ann.bootstrap())
        assert after.rows == before.rows
        assert (await ann.mutate(one))["success"] and answer["success"]
        assert await ann.rows("Task") == {"t1": {**before.rows[("Task", "t1")], "__class": "Task"}}
        assert await ann.database.members_of("ann") == ("ws9",)
        by_task = {"modelName": "Comment", "indexedKey": "taskId", "keyValue": "t1"}
        assert [row["id"] for row in await ann.batch(by_task)] == ["c"]
        await ann.insert("t2")


async def test_numbers_jump_where_history_may_have_been_cut(tmp_path: Path) -> None:
    """Cursors of before the jump are stale, so clients bootstrap; rows are as they were."""
    async with strata(tmp_path) as ann:
        await ann.insert("t1")
        await ann.write("INSERT", "Comment", "c", {"taskId": "t1", "workspaceId": "ws1"})
        before = await ann.rows("Task")
    ledger = Ledger.open(ledger_path(tmp_path, *ADDRESS), ADDRESS)
    ledger.move_epoch("e2", jump=2**20, at=1_795_200_000_000)
    ledger.close()
    async with strata(tmp_path) as ann:
        assert await ann.rows("Task") == before
        assert (await ann.get("/deltas?after=2"))[0] == 409
        socket = await ann.connect()
        await socket.ask(2)
        assert (await socket.frame())["code"] == "BOOTSTRAP_REQUIRED"
        meta, _ = await ann.bootstrap()
        assert int(meta["lastSyncId"]) == 2**20 + 2
        assert await ann.insert("t2") == 2**20 + 3
