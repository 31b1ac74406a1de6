"""What strangers send to StrataSync databases: injection, guessed ids, big and broken bodies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from edge.config import Config
from holdfast import Application, ConfigError, embed
from tests.support.strata import Calls, Strata, make_app, strata, tx

pytestmark = pytest.mark.e2e
NASTY = [
    "'; DROP TABLE rows; --", 'Task" WHERE 1=1 --', "$.x') OR 1=1", "Task\x00", "..", "%", "*",
    "\ud7ff\U0010ffff", "{}", "__class", "__proto__", "constructor", "member", "rows", "scope",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
async def test_names_are_only_names(tmp_path: Path, text: str) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t")
        meta, rows = await ann.bootstrap(f"onlyModels={text.replace('%', '%25')}")
        assert rows == [] and set(meta["returnedModelsCount"].values()) <= {0}
        for request in (
            {"modelName": text, "indexedKey": "id", "keyValue": "t"},
            {"modelName": "Task", "indexedKey": "id", "keyValue": text},
            {"modelName": "Task", "groupId": text},
        ):
            assert await ann.batch(request) == []
        (line,) = await ann.batch({"modelName": "Task", "indexedKey": text, "keyValue": "t"})
        assert line["type"] == "error" and "not allowed" in line["message"]
        found = await ann.mutate(
            tx("INSERT", text, "x", {"workspaceId": "ws1"}),
            tx("INSERT", "Task", text, {"workspaceId": "ws1", text: text, "title": text}),
            tx("UPDATE", "Task", "t", {text: text}, client=text, key=text),
        )
        assert [result["success"] for result in found["results"]] == [False, True, True]
        rows_now = await ann.rows("Task")
        assert set(rows_now) == {"t", text} and rows_now[text]["title"] == text
        assert rows_now["t"].get(text) in (None, "Task")  # `__class` is the line's own
        page = await ann.deltas(f"after=2&syncGroups={text.replace('%', '%25')}")
        assert page["actions"] == []
        (mine,) = (await ann.deltas("after=2"))["actions"]
        assert (mine["clientId"], mine["clientTxId"]) == (text, text)


async def test_rows_of_others_by_guessed_ids(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        await ann.insert("t", title="secret")
        label = {"taskId": "t", "labelId": "l", "workspaceId": "ws1"}
        await ann.write("INSERT", "TaskLabel", "x", label)
        eve = ann.as_user("eve")
        stolen = {"title": "x", "workspaceId": "ws2"}
        answer = await eve.mutate(
            tx("UPDATE", "Task", "t", stolen), tx("DELETE", "Task", "t", stolen),
            tx("ARCHIVE", "Task", "t", {"archivedAt": 1}), tx("UNARCHIVE", "Task", "t"),
            tx("INSERT", "Task", "u", {"workspaceId": "ws1"}),
            tx("DELETE", "TaskLabel", "x", {**label, "workspaceId": "ws2"}),
        )  # fmt: skip
        assert {result["error"] for result in answer["results"]} == {"Access denied"}
        taken = await eve.write("INSERT", "Task", "t", {"workspaceId": "ws2"})
        assert taken["error"] == "Invalid mutation: record already exists"
        by_id = {"modelName": "Task", "indexedKey": "id", "keyValue": "t"}
        assert await eve.batch(by_id, {"modelName": "Task", "groupId": "ws1"}) == []
        assert (await eve.bootstrap("syncGroups=ws1"))[1] == []
        assert (await eve.deltas("syncGroups=ws1"))["actions"] == []
        assert (await (await eve.connect()).subscribe(0, ["ws1"]))[0] == []
        assert (await ann.rows("Task"))["t"]["title"] == "secret"


async def test_names_of_databases(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        for name in ("a%00b", "x" * 400, "%0a"):
            ann.base = f"/strata/{name}/sync"
            assert (await ann.get("/bootstrap"))[0] == 404
        ann.base = "/strata/..%2F..%2Fetc/sync"
        await ann.insert("t")
        assert list(await ann.rows("Task")) == ["t"]
        files = {path.resolve().is_relative_to(tmp_path) for path in tmp_path.rglob("*.db")}
        assert files == {True}
        ann.base = "/strata/other/sync"
        assert await ann.rows("Task") == {}, "databases are apart"


async def test_one_poisons_nobody(tmp_path: Path) -> None:
    """100 transactions, one of which cannot be written; and bodies no decoder should meet."""
    async with strata(tmp_path) as ann:
        batch = [tx("INSERT", "Task", f"t{n}", {"workspaceId": "ws1"}) for n in range(99)]
        poison = tx("INSERT", "Task", "p", {"workspaceId": "ws1", "dueOn": "x"})
        answer = await ann.mutate(*batch[:50], poison, *batch[50:])
        assert sum(result["success"] for result in answer["results"]) == 99
        deep: Any = "x"
        for _ in range(200):
            deep = [deep]
        for value in (deep, 10**400, 1e300, -0.0, "\x00", "", [None] * 10_000):
            status, _ = await ann.post(
                "/mutate", {"batchId": "b", "transactions": [
                    tx("UPDATE", "Task", "t1", {"title": value})]},
            )  # fmt: skip
            assert status in (200, 400), value
        for body in (
            b"[" * 200_000, b'{"batchId":"\xff"}', b'{"batchId":"b","transactions":[{"a":NaN}]}',
            b'{"batchId":"\\ud800","transactions":[]}', b"\x00" * 1000, b"[]", b"5", b"null",
        ):  # fmt: skip
            assert (await ann.post("/mutate", body))[0] == 400
        status, answer_body = await ann.post("/mutate", b" " * (17 << 20))
        found = json.loads(answer_body)
        assert (status, found["code"]) == (413, "FST_ERR_CTP_BODY_TOO_LARGE")
        assert len(await ann.rows("Task")) == 99, "and the database still answers"


async def test_half_of_a_surrogate_pair_holds_nobody_up(tmp_path: Path) -> None:
    """JavaScript writes it of a text cut within an emoji; a client would send a 400 for ever."""
    async with strata(tmp_path) as ann:
        socket = await ann.live(0)
        await socket.send(r'{"type":"doc_view","text":"\ud83d"}')
        cut = tx("INSERT", "Task", "t", {"workspaceId": "ws1", "title": "CUT"})
        body = json.dumps({"batchId": "b", "transactions": [cut]})
        status, answer = await ann.post("/mutate", body.replace("CUT", r"a\ud83d").encode())
        assert status == 200 and json.loads(answer)["success"]
        assert (await socket.action())["data"]["title"] == "a\ufffd"
        assert ann.calls.messages == [("ann", {"type": "doc_view", "text": "\ufffd"})]
        asked = rb'{"requests":[{"modelName":"Task","indexedKey":"id","keyValue":"\udc00"}]}'
        assert await ann.post("/batch", asked) == (200, b"")


async def test_what_is_nested_too_deep_is_refused_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with strata(tmp_path) as ann:
        deep: dict[int, Any] = {}
        for depth in (100, 101, 450, 900):
            deep[depth] = "x"
            for level in range(depth):
                deep[depth] = [deep[depth]] if level % 2 else {"a": deep[depth]}
        answer = await ann.mutate(*[
            tx("INSERT", "Task", f"t{depth}", {"workspaceId": "ws1", "title": value})
            for depth, value in deep.items()
        ])  # fmt: skip
        assert [result.get("error") for result in answer["results"]] == [
            None, *["Invalid value for title: nested deeper than 100"] * 3,
        ]  # fmt: skip
        assert (await ann.rows("Task"))["t100"]["title"] == deep[100]
        assert "Traceback" not in caplog.text


async def test_a_megabyte_of_details_is_cut(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        wrong = [{"modelName": "x" * 2000}] * 100
        status, body = await ann.post("/mutate", {"batchId": "b", "transactions": wrong})
        assert status == 400 and len(json.loads(body)["details"]) == 100
        status, body = await ann.post("/batch", {"requests": [5] * 1000})
        assert json.loads(body)["details"] == [
            {"field": "requests", "message": "At most 100 requests are allowed"}
        ]


async def test_a_flood_of_frames_ends_the_socket(tmp_path: Path) -> None:
    async with strata(tmp_path) as ann:
        ann.calls.gate = asyncio.Event()
        socket = await ann.live(0)
        for _ in range(200):
            await socket.send({"type": "doc_view", "text": "x" * 100_000})
        while "closed" not in (frame := await socket.frame()):
            pass
        assert frame["closed"] in (1006, 1008)


async def test_cors_for_browsers_of_other_origins(tmp_path: Path) -> None:
    async with strata(tmp_path, cors_origins=("https://app.example",)) as ann:
        headers = {"Origin": "https://app.example"}
        url = ann.server.info.url + ann.base  # type: ignore[union-attr]
        async with ann.session.options(
            url + "/mutate",
            headers={
                **headers,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,x-app-version",
            },
        ) as answer:
            assert answer.status == 204
            allowed = answer.headers["Access-Control-Allow-Headers"].split(", ")
            assert {"authorization", "content-type", "x-app-version"} <= set(allowed)
        async with ann.session.options(
            url + "/mutate", headers={**headers, "Access-Control-Request-Headers": "a b; c"}
        ) as answer:
            assert "a b" not in answer.headers["Access-Control-Allow-Headers"]
        for path in ("/bootstrap", "/deltas", "/nope"):
            async with ann.session.get(
                url + path, headers={**headers, "Authorization": "Bearer ann"}
            ) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"


async def test_embedded_in_another_application(tmp_path: Path) -> None:
    calls = Calls()
    calls.groups = {"ann": ["ws1"]}
    site = web.Application()

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="ours")

    site.router.add_get("/", hello)
    with pytest.raises(ConfigError):
        embed(web.Application(), Application())
    server = embed(site, make_app(calls), Config(data_dir=str(tmp_path)), prefix="/data")
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with ClientSession(f"http://{host}:{port}") as session:
        ann = Strata(server, session, calls, "ann")
        ann.base = "/data/strata/acme/sync"
        async with session.get("/") as answer:
            assert await answer.text() == "ours"
        headers = {"Authorization": "Bearer ann"}
        one = {"batchId": "b", "transactions": [tx("INSERT", "Task", "t", {"workspaceId": "ws1"})]}
        async with session.post(f"{ann.base}/mutate", json=one, headers=headers) as answer:
            assert (await answer.json())["success"] is True
        async with session.ws_connect(f"{ann.base}/ws?token=ann") as socket:
            await socket.send_json({"type": "subscribe", "token": "ann"})
            assert (await socket.receive_json())["packet"]["lastSyncId"] == "1"
    await runner.cleanup()
