"""Reading StrataSync databases: the numbered cases of the protocol's section 12, 1 to 19."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast import Bootstrap, ConfigError, Standard, SyncModel
from tests.support.strata import Calls, make_app, strata, tx

pytestmark = pytest.mark.e2e


async def test_01_a_user_without_groups_sees_null_group_and_own_rows(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t1")
        await ann.write("INSERT", "Notice", "n1", {"text": "all"})
        new = ann.as_user("new")
        await new.write("INSERT", "Workspace", "new", {"name": "mine"})
        meta, rows = await new.bootstrap()
        assert meta["subscribedSyncGroups"] == ["new"]
        assert [row["id"] for row in rows] == ["new", "n1"]


async def test_02_and_03_only_models(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t1")
        meta, rows = await ann.bootstrap("onlyModels=Nope,Task&schemaHash=cafe")
        assert meta["returnedModelsCount"] == {"Nope": 0, "Task": 1}
        assert meta["schemaHash"] == "cafe" and len(rows) == 1
        meta, rows = await ann.bootstrap("onlyModels=")
        assert (meta["returnedModelsCount"], rows) == ({}, [])


async def test_04_partial_needs_a_first_sync_id(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        status, body = await ann.get("/bootstrap?type=partial")
        assert status == 400
        found = json.loads(body)
        assert found["details"] == [
            {"field": "firstSyncId", "message": "firstSyncId is required for partial bootstrap"}
        ]
        assert (found["error"], found["source"]) == ("Validation failed", "query")
        assert (await ann.get("/bootstrap?type=partial&firstSyncId=3"))[0] == 200


async def test_05_and_06_groups_that_are_not_the_readers(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t1")
        await ann.as_user("eve").insert("t2", "ws2")
        await ann.write("INSERT", "Notice", "n1", {"text": "x"})
        meta, rows = await ann.bootstrap("syncGroups=ws2,ws1")
        assert meta["subscribedSyncGroups"] == ["ws1"]
        assert {row["id"] for row in rows} == {"t1", "n1"}
        assert (await ann.bootstrap("syncGroups=ws2"))[0]["subscribedSyncGroups"] == ["ws1", "ann"]
        page = await ann.deltas("syncGroups=ws2")
        assert [action["modelId"] for action in page["actions"]] == ["n1"]
        socket = await ann.connect()
        replayed, ack = await socket.subscribe(0, ["ws2"])
        assert (replayed, ack["groups"]) == ([3], [])


async def test_07_ten_thousand_rows_once_each_in_order(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        for start in range(0, 10_000, 100):
            await ann.mutate(*[
                tx("INSERT", "Task", f"t{n:05}", {"title": "x", "workspaceId": "ws1"})
                for n in range(start, start + 100)
            ])  # fmt: skip
        meta, rows = await ann.bootstrap("onlyModels=Task")
        assert meta["lastSyncId"] == "10000" and meta["returnedModelsCount"] == {"Task": 10_000}
        assert [row["id"] for row in rows] == [f"t{n:05}" for n in range(10_000)]


async def test_08_composite_cursor_over_a_thousand_rows(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        keys = [(f"t{n % 37}", f"l{n % 41:02}") for n in range(37 * 41)]
        for start in range(0, len(keys), 100):
            await ann.mutate(*[
                tx("INSERT", "TaskLabel", "any", {"taskId": t, "labelId": x, "workspaceId": "ws1"})
                for t, x in keys[start : start + 100]
            ])  # fmt: skip
        _, rows = await ann.bootstrap("onlyModels=TaskLabel")
        assert [(row["taskId"], row["labelId"]) for row in rows] == sorted(keys)


async def test_09_numeric_cursor(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        ranks = [n * 7 % 1009 for n in range(1009)]
        for start in range(0, len(ranks), 100):
            await ann.mutate(*[
                tx("INSERT", "Ranked", str(n), {"rank": n}) for n in ranks[start : start + 100]
            ])  # fmt: skip
        _, rows = await ann.bootstrap("onlyModels=Ranked")
        assert [row["id"] for row in rows] == list(range(1009))


async def test_10_text_comes_back_as_it_went(tmp_path: Path) -> None:
    text = 'line\u2028sep "quoted" \\ \U0001f600 \x00 \x1f\tend'
    async with strata(tmp_path) as ann:
        await ann.insert("t1", title=text)
        assert (await ann.rows("Task"))["t1"]["title"] == text
        assert (await ann.deltas())["actions"][0]["data"]["title"] == text


async def test_11_and_12_at_and_beyond_the_head(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        head = await ann.insert("t1")
        empty = {"actions": [], "hasMore": False, "lastSyncId": str(head)}
        assert await ann.deltas(f"after={head}") == empty
        page = await ann.deltas("after=9007199254740993")
        assert page == {"actions": [], "hasMore": False, "lastSyncId": "9007199254740993"}


async def test_13_beyond_64_bits_is_an_empty_page(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t1")
        page = await ann.deltas("after=" + "9" * 30)
        assert page == {"actions": [], "hasMore": False, "lastSyncId": "9" * 30}
        assert (await ann.deltas("after=" + "9" * 3000))["actions"] == []


async def test_14_and_15_limits(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        for start in range(0, 1100, 100):
            await ann.mutate(*[
                tx("INSERT", "Notice", str(n), {"text": "x"}) for n in range(start, start + 100)
            ])  # fmt: skip
        page = await ann.deltas("limit=0")
        assert (len(page["actions"]), page["hasMore"], page["lastSyncId"]) == (1000, True, "1000")
        assert len((await ann.deltas("limit=999999"))["actions"]) == 1100
        page = await ann.deltas("after=1000&limit=100")
        assert (len(page["actions"]), page["hasMore"]) == (100, False)
        for query in ("limit=-1", "limit=x", "after=", "after=1&after=2"):
            status, body = await ann.get("/deltas?" + query)
            assert status == 400 and json.loads(body)["source"] == "query", query


async def test_16_below_the_retained_log(tmp_path: Path) -> None:
    async with strata(tmp_path, retain=100) as ann:
        for start in range(0, 600, 100):
            await ann.mutate(*[
                tx("INSERT", "Notice", str(n), {"text": "x"}) for n in range(start, start + 100)
            ])  # fmt: skip
        status, body = await ann.get("/deltas?after=1")
        assert status == 409
        assert json.loads(body) == {
            "error": "BOOTSTRAP_REQUIRED",
            "message": "A fresh bootstrap is required before fetching deltas",
        }
        page = await ann.deltas("after=0&limit=5000")
        assert page["actions"][-1]["syncId"] == "600" and len(page["actions"]) < 600
        meta, rows = await ann.bootstrap()
        assert (meta["lastSyncId"], len(rows)) == ("600", 600)


async def test_17_an_empty_log_is_never_stale(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        assert await ann.deltas("after=5") == {"actions": [], "hasMore": False, "lastSyncId": "5"}
        _, ack = await (await ann.connect()).subscribe(5)
        assert ack["afterSyncId"] == "5"
        assert not list(tmp_path.rglob("strata*.db")), "a reader creates no file"


async def test_18_and_19_groups_interleave_and_null_passes(tmp_path: Path) -> None:
    groups = {"ann": ["a", "b"]}
    async with strata(tmp_path, groups=groups) as ann:
        for number in range(6):
            await ann.insert(f"t{number}", "ab"[number % 2])
            await ann.write("INSERT", "Notice", f"n{number}", {"text": "x"})
        page = await ann.deltas("syncGroups=a,b")
        assert [action["syncId"] for action in page["actions"]] == [str(n) for n in range(1, 13)]
        only = await ann.deltas("syncGroups=b")
        assert {action.get("groupId") for action in only["actions"]} == {"b", None}
        assert len(only["actions"]) == 9


async def test_lookups_by_key_and_group(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        for number in range(4):
            payload = {"body": "x", "taskId": f"t{number % 2}", "workspaceId": "ws1", "score": 5}
            await ann.write("INSERT", "Comment", f"c{number}", payload)
        foreign = {"body": "y", "taskId": "t0", "workspaceId": "ws2"}
        await ann.as_user("eve").write("INSERT", "Comment", "c9", foreign)
        by_task = {"modelName": "Comment", "indexedKey": "taskId", "keyValue": "t0"}
        by_id = {"modelName": "Comment", "indexedKey": "id", "keyValue": "c3"}
        in_ws2 = {"modelName": "Comment", "groupId": "ws2"}
        in_ws1 = {"modelName": "Comment", "groupId": "ws1"}
        unknown = {"modelName": "Nope", "groupId": "ws1"}
        rows = await ann.batch(by_task, by_id, unknown, in_ws2, firstSyncId="3")
        assert [row["id"] for row in rows] == ["c0", "c2", "c3"]
        assert [row["id"] for row in await ann.batch(in_ws1)] == ["c0", "c1", "c2", "c3"]
        by_score = {"modelName": "Comment", "indexedKey": "score", "keyValue": "5"}
        assert len(await ann.batch(by_score)) == 4
        refused = {"modelName": "Comment", "indexedKey": "body", "keyValue": "x"}
        assert await ann.batch(by_id, refused, by_task) == [
            {**rows[2]},
            {"message": 'Indexed key "body" is not allowed for model "Comment"', "type": "error"},
        ]


async def test_times_as_bootstrap_shows_them(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t0")
        put = ann.database.publish
        texts = {
            "2024-01-02T03:04:05.678Z": 1704164645678, "2024-01-02T03:04:05+01:00": 1704161045000,
            "2024-01-02": None, "yesterday": None, 12.5: 12.5, True: None,
        }  # fmt: skip
        for number, value in enumerate(texts):
            data = {"id": f"p{number}", "workspaceId": "ws1", "createdAt": value}
            await put("I", "Task", f"p{number}", data, group="ws1")
        days = {"2024-02-29": 1709164800000, " 2024-02-29 ": 1709164800000, "2023-02-29": None,
                "2024-13-01": None, 86_400_000: 86_400_000, 5: None}  # fmt: skip
        for number, value in enumerate(days):
            data = {"id": f"q{number}", "workspaceId": "ws1", "dueOn": value}
            await put("I", "Task", f"q{number}", data, group="ws1")
        rows = await ann.rows("Task")
        shown = [rows[f"p{number}"]["createdAt"] for number in range(len(texts))]
        assert shown == list(texts.values())
        assert [rows[f"q{n}"]["dueOn"] for n in range(len(days))] == list(days.values())


async def test_a_scope_condition_rules_reading(tmp_path: Path) -> None:
    """Rows one may see beyond one's groups, as the application says; and writing goes by groups."""
    shared = SyncModel(
        "Shared", "ownerId",
        Bootstrap(
            fields=["id", "ownerId", "team"],
            scope="ownerId = :user_id OR team IN (SELECT value FROM json_each(:workspace_groups))",
        ),
        Standard(insert_fields={"ownerId": "string", "team": "string"}, update_fields=["team"]),
    )  # fmt: skip
    async with strata(tmp_path, shared) as ann:
        bob, eve = ann.as_user("bob"), ann.as_user("eve")
        await bob.write("INSERT", "Shared", "s1", {"ownerId": "bob", "team": "ws1"})
        await bob.write("INSERT", "Shared", "s2", {"ownerId": "bob", "team": "bob"})
        assert [list(await user.rows("Shared")) for user in (ann, bob, eve)] == [
            ["s1"], ["s1", "s2"], [],
        ]  # fmt: skip
        denied = await ann.write("UPDATE", "Shared", "s1", {"team": "x"})
        assert denied["error"] == "Access denied"


def test_a_wrong_scope_condition_ends_the_start() -> None:
    bad = SyncModel("Bad", None, Bootstrap(fields=["id"], scope="nope = 1"), Standard({}))
    with pytest.raises(ConfigError, match=r"Bad.*nope"):
        make_app(Calls(), bad)


async def test_heads_and_unknown_paths(tmp_path: Path) -> None:
    async with strata(tmp_path, root="acme") as ann:
        await ann.insert("t1")
        ann.base = "/sync"
        assert len((await ann.bootstrap())[1]) == 1, "the root is the same database"
        for path in ("/bootstrap", "/deltas"):
            url = ann.server.info.url + ann.base + path  # type: ignore[union-attr]
            async with ann.session.head(url, headers=ann._headers()) as answer:
                assert (answer.status, await answer.read()) == (200, b"")
        status, body = await ann.get("/nope")
        assert status == 404 and json.loads(body) == {
            "message": "Route GET:/sync/nope not found", "error": "Not Found", "statusCode": 404,
        }  # fmt: skip
        assert await ann.get("/ws?token=ann") == (404, b"")
