"""Fork, export and import where the scopes are in other processes: files cross links in parts."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from actors.transfer_links import RemoteTransfers
from actors.types import Address
from edge.application import Application
from edge.config import Config
from infra.errors import HoldfastError
from infra.link.connection import Link
from infra.link.errors import LinkLost
from tests.support.app import Client, patch, url_of
from tests.support.processes import ProcessesServer, several

BODY = "x" * 50_000
COUNT = 60  # 3 MB: more than a stream's credit


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ProcessesServer]:
    config = Config(port=0, data_dir=str(tmp_path), drain_timeout_s=2.0)
    async with several(config, Application(), "dev") as found:
        yield found


def elsewhere(server: ProcessesServer, scope: str) -> list[str]:
    """Names of scopes, the first two in another process than `scope`, the others beside it."""
    port = server.remote
    assert port is not None
    home = port.peer_of(Address("default", scope))
    names = [f"run:t{number}" for number in range(100)]
    away = [name for name in names if port.peer_of(Address("default", name)) is not home]
    near = [name for name in names if name not in away]
    return [*away[:2], *near[:2]]


async def filled(server: ProcessesServer, scope: str) -> dict[str, Any]:
    async with await Client.connect(server) as client:
        for number in range(COUNT):
            await client.publish(scope, patch(f"message:m{number}", f"e{number}", text=BODY))
    return await shown(server, scope)


async def call(
    server: ProcessesServer, method: str, path: str, **options: Any
) -> tuple[int, bytes, str]:
    async with (
        ClientSession() as session,
        session.request(method, url_of(server, path), **options) as answer,
    ):
        return answer.status, await answer.read(), answer.headers.get("X-Holdfast-Seq", "")


async def shown(server: ProcessesServer, scope: str) -> dict[str, Any]:
    status, body, _ = await call(server, "GET", f"/v1/scopes/default/{scope}")
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


async def test_a_scope_is_forked_into_another_process(server: ProcessesServer) -> None:
    before = await filled(server, "run:a")
    away, _, near, _ = elsewhere(server, "run:a")
    for name in (away, near):
        told = await call(server, "POST", f"/v1/scopes/default/{name}/fork", json={"from": "run:a"})
        assert told[0] == 201, told
        made = await shown(server, name)
        assert made["head"] == COUNT
        assert made["epoch"] != before["epoch"]
        async with await Client.connect(server) as client:
            await client.send({"type": "sub", "scope": name, "since": 0})
            assert await client.seqs(COUNT) == list(range(1, COUNT + 1))
            assert (await client.publish(name, patch(n=1)))["results"][0]["seq"] == COUNT + 1
        again = await call(
            server, "POST", f"/v1/scopes/default/{name}/fork", json={"from": "run:a"}
        )
        assert again[0] == 409
    assert (await shown(server, "run:a"))["head"] == COUNT, "the first one stays"
    missing = {"from": "run:none"}
    assert (await call(server, "POST", "/v1/scopes/default/run:z/fork", json=missing))[0] == 404
    old = {"from": "run:a", "at": "seq:1"}
    status, body, _ = await call(server, "POST", "/v1/scopes/default/run:z/fork", json=old)
    assert (status, json.loads(body)["code"]) == (400, "no_bucket")


@pytest.mark.parametrize("form", ["ndjson", "sqlite"])
async def test_an_export_is_imported_anywhere(server: ProcessesServer, form: str) -> None:
    await filled(server, "run:a")
    away, _, near, _ = elsewhere(server, "run:a")
    status, data, seq = await call(server, "GET", f"/v1/scopes/default/run:a/export?format={form}")
    assert (status, seq) == (200, str(COUNT)) and len(data) > COUNT * len(BODY)
    for name in (away, near):
        status, body, _ = await call(
            server, "POST", f"/v1/scopes/default/{name}/import?keep_epoch=0", data=io.BytesIO(data)
        )
        assert (status, json.loads(body)["head"]) == (201, COUNT)
        status, body, _ = await call(
            server, "POST", f"/v1/scopes/default/{name}/import", data=io.BytesIO(data)
        )
        assert (status, json.loads(body)["code"]) == (409, "conflict")
    status, body, _ = await call(
        server, "POST", "/v1/scopes/default/run:bad/import", data=io.BytesIO(data[: len(data) // 2])
    )
    assert (status, json.loads(body)["code"]) == (400, "bad_import")
    async with asyncio.timeout(20):  # removed behind the work of a thread
        while list(Path(server.config.data_dir).rglob("transfer-*")):
            await asyncio.sleep(0.01)


async def test_an_import_whose_answer_was_lost_is_recognised(
    server: ProcessesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(server, "run:a")
    away = elsewhere(server, "run:a")[0]
    port, transfers = server.remote, server.transfers
    assert port is not None and isinstance(transfers, RemoteTransfers)
    lost = 0
    used = port.with_link

    async def with_link(find: Any, use: Callable[[Link], Awaitable[Any]], within_s: float) -> Any:
        async def use_and_lose(link: Link) -> Any:
            nonlocal lost
            found = await use(link)
            lost += 1
            if lost == 2:  # the state has come, and the new scope was made
                raise LinkLost("just then")
            return found

        return await used(find, use_and_lose, within_s)

    monkeypatch.setattr(port, "with_link", with_link)
    made = await transfers.fork(Address("default", "run:a"), Address("default", away), None)
    assert (made.bounds.head, lost) == (COUNT, 3 + 1), "asked again, and found by its epoch"
    with pytest.raises(HoldfastError, match="exists"):
        await transfers.fork(Address("default", "run:a"), Address("default", away), None)


async def test_a_transfer_goes_on_after_the_process_has_died(server: ProcessesServer) -> None:
    before = await filled(server, "run:a")
    names = elsewhere(server, "run:a")

    async def fork(name: str) -> int:
        told = await call(server, "POST", f"/v1/scopes/default/{name}/fork", json={"from": "run:a"})
        return told[0]

    async with asyncio.TaskGroup() as group:
        forks = [group.create_task(fork(name)) for name in names]
        for actor in server.actors:
            await asyncio.sleep(0)
            await actor.kill()
            await actor.start()
    assert [task.result() for task in forks] == [201] * 4
    for name in names:
        assert (await shown(server, name))["head"] == before["head"]
