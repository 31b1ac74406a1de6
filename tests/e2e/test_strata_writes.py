"""Writing StrataSync databases: the numbered cases of the protocol's section 12, 20 to 51."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from actors.ledger import Ledger
from holdfast import Bootstrap, Change, Composite, SyncModel, create_composite_sync_id
from infra.errors import StorageError
from tests.support.app import one_process_only
from tests.support.strata import Strata, strata, tx

pytestmark = pytest.mark.e2e
NOT_FOUND = "Invalid mutation: record not found"


def flags(answer: dict[str, Any]) -> list[bool]:
    return [result["success"] for result in answer["results"]]


async def errors_of(ann: Strata, *transactions: dict[str, Any]) -> list[str | None]:
    answer = await ann.mutate(*transactions)
    return [result.get("error") for result in answer["results"]]


async def test_20_and_21_a_failure_stops_nobody(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        answer = await ann.mutate(
            tx("INSERT", "Task", "t", {"title": "a", "workspaceId": "ws1"}),
            tx("UPDATE", "Task", "t", {"title": "b"}), tx("UPDATE", "Task", "nope", {"title": "c"}),
            tx("ARCHIVE", "Task", "t", {"archivedAt": 5}), tx("UNARCHIVE", "Task", "t"),
            tx("DELETE", "Task", "t", {"id": "t", "title": "b"}),
        )  # fmt: skip
        assert flags(answer) == [True, True, False, True, True, True]
        assert answer["success"] is False and answer["lastSyncId"] == "5"
        page = await ann.deltas()
        assert [a["action"] for a in page["actions"]] == ["I", "U", "A", "V", "D"]
        assert [a["data"] for a in page["actions"]][1:4] == [
            {"title": "b"}, {"archivedAt": 5}, {"archivedAt": None},
        ]  # fmt: skip
        answer = await ann.mutate(tx("UPDATE", "Task", "t"), tx("DELETE", "Task", "t"))
        assert (flags(answer), answer["lastSyncId"]) == ([False, False], "0")


async def test_22_and_23_repeats(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        socket = await ann.live(0)
        first = tx("INSERT", "Task", "t", {"title": "a", "workspaceId": "ws1"}, key="k")
        other = {**first, "payload": {"title": "other"}, "modelId": "t2"}
        answer = await ann.mutate(first, first, other)
        assert [result["syncId"] for result in answer["results"]] == ["1", "1", "1"]
        assert (await ann.mutate(other))["lastSyncId"] == "1"
        assert (await ann.as_user("eve").mutate(first))["lastSyncId"] == "1"
        foreign = tx("INSERT", "Task", "t2", {"workspaceId": "ws1"}, client="c2", key="k")
        assert (await ann.mutate(foreign))["lastSyncId"] == "2"
        assert [a["modelId"] for a in await socket.upto(2)] == ["t", "t2"]


async def test_24_a_failed_one_is_executed_when_its_cause_is_gone(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        update = tx("UPDATE", "Task", "t", {"title": "b"})
        assert flags(await ann.mutate(update)) == [False]
        await ann.insert("t")
        assert flags(await ann.mutate(update)) == [True]


async def test_25_eight_copies_at_once(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        for model, payload in (("Task", {}), ("Hooked", {"text": "x"})):
            one = tx("INSERT", model, "t", {**payload, "workspaceId": "ws1"})
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(ann.mutate(one)) for _ in range(8)]
            results = [task.result()["results"][0] for task in asked]
            assert all(result["success"] for result in results)
            assert len({result["syncId"] for result in results}) == 1
        assert len(ann.calls.changes) == 1, "the after-hook runs once"
        assert len((await ann.deltas())["actions"]) == 2


async def test_26_the_answer_is_lost_after_the_commit(tmp_path: Path) -> None:
    one = tx("INSERT", "Task", "t", {"workspaceId": "ws1"})
    async with strata(tmp_path) as ann:
        lost = await ann.mutate(one)
        assert await ann.mutate(one) == lost
    async with strata(tmp_path) as ann:  # another process later
        assert (await ann.mutate(one))["lastSyncId"] == lost["lastSyncId"]
        assert list(await ann.rows("Task")) == ["t"]


async def test_27_to_29_inserts(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t", title="first")
        again = tx("INSERT", "Task", "t", {"title": "second", "workspaceId": "ws1"})
        assert await errors_of(ann, again) == ["Invalid mutation: record already exists"]
        payload = {"id": "forged", "title": "x", "workspaceId": "ws1", "admin": True}
        await ann.write("INSERT", "Task", "u", payload)
        rows = await ann.rows("Task")
        assert (rows["t"]["title"], set(rows)) == ("first", {"t", "u"})
        (action,) = (await ann.deltas("after=1"))["actions"]
        assert action["data"]["id"] == "u" and "admin" not in action["data"]


async def test_30_and_31_what_an_update_may_touch(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        comment = {"body": "x", "taskId": "t", "workspaceId": "ws1"}
        await ann.write("INSERT", "Comment", "c", comment)
        forged = {"taskId": "other", "workspaceId": "ws2", "nope": 1}
        result = await ann.write("UPDATE", "Comment", "c", forged)
        assert result["success"] and result["syncId"] == "2"
        assert (await ann.deltas("after=1"))["actions"][0]["data"] == {}
        stranger = tx("UPDATE", "Comment", "c", {"body": "hacked", "workspaceId": "ws2"})
        assert await errors_of(ann.as_user("eve"), stranger) == ["Access denied"]
        assert (await ann.rows("Comment"))["c"] == {**comment, "__class": "Comment", "id": "c",
                                                    "score": 0}  # fmt: skip


async def test_32_to_34_missing_rows_and_models(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        words = ("UPDATE", "DELETE", "ARCHIVE", "UNARCHIVE")
        missing = [tx(word, "Task", "t", {"archivedAt": 1}) for word in words]
        assert await errors_of(ann, *missing) == [NOT_FOUND] * 4
        unknown = tx("INSERT", "Nope", "n", {"x": 1})
        assert await errors_of(ann, unknown) == ["Unknown model: Nope"]
        assert (await ann.deltas())["actions"] == []


async def test_33_the_row_goes_while_the_hook_looks_at_it(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.write("INSERT", "Hooked", "h", {"text": "a", "workspaceId": "ws1"})
        ann.calls.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            update = group.create_task(ann.write("UPDATE", "Hooked", "h", {"text": "b"}))
            while len(ann.calls.before) < 2:
                await asyncio.sleep(0)
            await ann.database.mutate("DELETE", "Hooked", "h")
            ann.calls.gate.set()
        assert update.result()["error"] == NOT_FOUND
        assert [a["action"] for a in (await ann.deltas())["actions"]] == ["I", "D"]


async def test_35_and_36_archiving(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t")
        assert await errors_of(
            ann,
            tx("ARCHIVE", "Task", "t"), tx("ARCHIVE", "Task", "t", {"archivedAt": None}),
            tx("ARCHIVE", "Task", "t", {"archivedAt": "2024-01-01T00:00:00Z"}),
            tx("ARCHIVE", "Task", "t", {"archivedAt": 10}),
            tx("ARCHIVE", "Task", "t", {"archivedAt": 20}),
        ) == [
            "archivedAt is required", "archivedAt is required",
            "Invalid instant value for archivedAt", None, None,
        ]  # fmt: skip
        assert (await ann.rows("Task"))["t"]["archivedAt"] == 20


async def test_37_to_41_actions_groups_and_access(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        comment = {"body": "x", "taskId": "t", "workspaceId": "ws1"}
        await ann.write("INSERT", "Comment", "c", comment)
        archive = tx("ARCHIVE", "Comment", "c", {"archivedAt": 1})
        assert await errors_of(ann, archive) == ['Unsupported action "A" for this model']
        assert await errors_of(ann.as_user("eve"), archive) == ["Access denied"]
        await ann.database.publish("I", "Task", "orphan", {"id": "orphan", "workspaceId": None})
        no_group = "Invalid mutation: missing required group identifier"
        assert await errors_of(
            ann,
            tx("UPDATE", "Task", "orphan", {"title": "x"}), tx("INSERT", "Task", "t", {}),
            tx("INSERT", "Task", "t", {"workspaceId": 5}),
            tx("INSERT", "Workspace", "foreign", {"name": "x"}),
            tx("INSERT", "Workspace", "ws1", {"name": "ours"}),
        ) == [no_group, no_group, no_group, "Access denied", None]  # fmt: skip
        result = await ann.as_user("eve").write("INSERT", "Notice", "n", {"text": "all"})
        (action,) = (await ann.deltas(f"after={int(result['syncId']) - 1}"))["actions"]
        assert "groupId" not in action


async def test_42_to_44_composite_models(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        label = {"taskId": "t", "labelId": "l", "workspaceId": "ws1"}
        await ann.write("INSERT", "TaskLabel", "anything", label)
        (action,) = (await ann.deltas())["actions"]
        id = create_composite_sync_id("TaskLabel", ["t", "l"])
        assert (action["modelId"], action["data"]) == (id, label)
        assert (await ann.bootstrap("onlyModels=TaskLabel"))[1][0]["id"] == id
        assert await errors_of(
            ann,
            tx("DELETE", "TaskLabel", "x", {"taskId": "t", "labelId": "other"}),
            tx("DELETE", "TaskLabel", "x", {}),
            tx("INSERT", "TaskLabel", "x", {"taskId": "t"}),
            tx("UPDATE", "TaskLabel", id, label),
            tx("DELETE", "TaskLabel", id, label),
        ) == [
            NOT_FOUND, NOT_FOUND, "Invalid mutation: no id for this TaskLabel",
            'Unsupported action "U" for this model', None,
        ]  # fmt: skip


async def test_a_composite_row_is_found_and_deleted_by_its_id(tmp_path: Path) -> None:
    """As `ensureModel` asks, and a client that no longer knows what the row was made of."""
    changes: list[Change] = []
    link = SyncModel(
        "Link",
        "workspaceId",
        Bootstrap(fields=["a", "b", "workspaceId"], allowed_indexed_keys=["id"]),
        Composite(
            insert_fields={"a": "string", "b": "string", "workspaceId": "string"},
            compute_id=lambda model, id, payload: f"{payload['a']}-{payload['b']}",
            on_after_mutation=changes.append,
        ),
    )  # fmt: skip
    async with strata(tmp_path, link) as ann:
        row = {"a": "1", "b": "2", "workspaceId": "ws1"}
        await ann.write("INSERT", "Link", "any", row)
        asked = {"modelName": "Link", "indexedKey": "id", "keyValue": "1-2"}
        assert await ann.batch(asked) == [{"__class": "Link", **row, "id": "1-2"}]
        assert await ann.as_user("eve").batch(asked) == []
        assert await errors_of(ann, tx("DELETE", "Link", "1-2")) == [None]
        assert [(change.action, change.id) for change in changes] == [("I", "1-2"), ("D", "1-2")]
        assert await ann.batch(asked) == []


async def test_45_and_46_hooks(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        insert = tx("INSERT", "Hooked", "h", {"text": "a", "workspaceId": "ws1"})
        ann.calls.refuse_with = "not on a Sunday"
        assert await errors_of(ann, insert) == ["not on a Sunday"]
        assert (await ann.deltas())["actions"] == []
        ann.calls.refuse_with = None
        assert await errors_of(ann, insert) == [None]
        assert (await ann.rows("Hooked"))["h"]["stampedBy"] == "ann"
        ann.calls.after_raises = True
        socket = await ann.live(1)
        result = await ann.write("UPDATE", "Hooked", "h", {"text": "b"})
        assert result["success"]
        assert result["warnings"] == ["onAfterMutation hook failed: mail is down"]
        assert (await socket.action())["data"] == {"text": "b", "stampedBy": "ann"}
        assert [change.action for change in ann.calls.changes] == ["I", "U"]
        assert ann.calls.changes[1].data == {"text": "b", "stampedBy": "ann"}
        ran = len(ann.calls.before)
        await ann.mutate(insert)
        assert len(ann.calls.before) == ran, "no hook runs for repeats"
        ann.calls.refuse_with = "keep it"
        assert await errors_of(ann, tx("DELETE", "Hooked", "h")) == ["keep it"]


@one_process_only
async def test_47_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t")

        def broken(self: Ledger, entries: object) -> None:
            raise StorageError("the log cannot be written")

        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "_write_rest", broken)  # after entries and rows
            update = tx("UPDATE", "Task", "t", {"title": "new"})
            status, _ = await ann.post("/mutate", {"batchId": "b", "transactions": [update]})
            assert status == 503, "the client repeats it by itself"
        assert (await ann.rows("Task"))["t"]["title"] == "t"
        assert len((await ann.deltas())["actions"]) == 1
        assert await errors_of(ann, update) == [None]


@pytest.mark.parametrize("value", ["2024-06-15", True, 86_400_001, 43_200_000])
async def test_48_days_that_are_none(tmp_path: Path, value: Any) -> None:
    async with strata(tmp_path) as ann:
        insert = tx("INSERT", "Task", "t", {"workspaceId": "ws1", "dueOn": value})
        assert await errors_of(ann, insert) == ["Invalid dateOnly value for dueOn"]


async def test_48_and_49_days_and_instants(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        for number, day in enumerate((0, -86_400_000, None)):
            await ann.insert(f"d{number}", dueOn=day)
        rows = await ann.rows("Task")
        assert [rows[f"d{n}"]["dueOn"] for n in range(3)] == [0, -86_400_000, None]
        wrong: list[Any] = ["2024-01-01T00:00:00Z", "now", {}, True]
        for value in wrong:
            insert = tx("INSERT", "Task", "t", {"workspaceId": "ws1", "createdAt": value})
            assert await errors_of(ann, insert) == ["Invalid instant value for createdAt"]
        far = tx("INSERT", "Task", "t", {"workspaceId": "ws1", "createdAt": 8.64e15 + 2})
        assert await errors_of(ann, far) == ["Invalid time value"]
        await ann.insert("t", createdAt=1.5)
        assert (await ann.rows("Task"))["t"]["createdAt"] == 1
        await ann.write("UPDATE", "Task", "t", {"createdAt": None})
        assert (await ann.rows("Task"))["t"]["createdAt"] is None


async def test_50_requests_out_of_shape(tmp_path: Path) -> None:
    good = tx("INSERT", "Task", "t", {"workspaceId": "ws1"})
    absent = "Invalid input: expected string, received undefined"
    words = '"INSERT"|"UPDATE"|"DELETE"|"ARCHIVE"|"UNARCHIVE"'
    cases: list[tuple[Any, list[str]]] = [
        ([good] * 101, ["At most 100 transactions are allowed"]),
        ([], ["At least one transaction is required"]),
        ([{**good, "payload": None}], ["Invalid input: expected record, received null"]),
        ([{**good, "payload": []}], ["Invalid input: expected record, received array"]),
        ([{**good, "action": "I"}], [f"Invalid option: expected one of {words}"]),
        (
            [{**good, "clientId": "", "modelId": "", "modelName": "", "clientTxId": ""}],
            ["Client ID is required", "Client transaction ID is required", "Model ID is required",
             "Model name is required"],
        ),
    ]  # fmt: skip
    async with strata(tmp_path) as ann:
        for transactions, messages in cases:
            body = {"batchId": "b", "transactions": transactions}
            status, answer = await ann.post("/mutate", body)
            found = json.loads(answer)
            assert (status, found["source"]) == (400, "body")
            assert found["details"] == [
                {"field": "transactions", "message": message} for message in messages
            ]
        shapeless: list[tuple[Any, tuple[str, str]]] = [
            ({"transactions": [good]}, ("batchId", absent)),
            ({"batchId": "", "transactions": [good]}, ("batchId", "Batch ID is required")),
            ([], ("root", "Invalid input: expected object, received array")),
            ("x", ("root", "Invalid input: expected object, received string")),
        ]  # fmt: skip
        for body, (field, message) in shapeless:
            status, answer = await ann.post("/mutate", body)
            assert json.loads(answer)["details"] == [{"field": field, "message": message}]
        for path in ("/mutate", "/batch"):
            status, answer = await ann.post(path, b"{")
            assert (status, json.loads(answer)["code"]) == (400, "FST_ERR_CTP_INVALID_JSON_BODY")
            status, answer = await ann.post(path, b"")
            assert (status, json.loads(answer)["code"]) == (400, "FST_ERR_CTP_EMPTY_JSON_BODY")
        assert list(await ann.rows("Task")) == []


async def test_51_bodies_are_checked_before_tokens(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        good = {"batchId": "b", "transactions": [tx("INSERT", "Notice", "n")]}
        for token, error in (
            (None, "Authorization header required"), ("", "Invalid authorization format"),
            ("two words", "Invalid authorization format"), ("bad", "Invalid token"),
            ("old", "Token expired"), ("boom", "Invalid token"),
        ):  # fmt: skip
            ann.token = token
            assert (await ann.post("/mutate", {"batchId": "b"}))[0] == 400
            assert (await ann.get("/bootstrap?type=partial"))[0] == 400
            status, body = await ann.post("/mutate", good)
            assert (status, json.loads(body)) == (401, {"error": error})
            assert (await ann.get("/deltas"))[0] == (await ann.get("/bootstrap"))[0] == 401
        ann.token = "ann"
        ann.calls.resolver_raises = True
        status, body = await ann.get("/deltas")
        assert (status, json.loads(body)) == (500, {"error": "Failed to resolve sync groups"})
        ann.calls.resolver_raises = False
        headers = {"Authorization": "  bEaReR   ann  "}
        assert (await ann.get("/deltas", headers=headers))[0] == 200
