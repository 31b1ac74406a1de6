"""One scope as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientResponse, ClientSession

from edge.server import Server
from tests.support.app import PATIENCE_S, Client, patch, running, token, url_of

pytestmark = pytest.mark.e2e
S = "run:r1"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path, cors_origins=("https://ok.example",)) as found:
        yield found


@asynccontextmanager
async def stream(server: Server, query: str, **headers: str) -> AsyncIterator[ClientResponse]:
    async with (
        ClientSession() as session,
        session.get(url_of(server, f"/api/sync/events?{query}"), headers=headers) as found,
    ):
        yield found


async def block(answer: ClientResponse) -> dict[str, str]:
    """The next event's fields; {} at the end of the stream. Comments are left out."""
    fields: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE_S):
        while line := (await answer.content.readline()).decode():
            if line == "\n":
                if fields:
                    return fields
                continue
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                fields[name] = value
    return fields


async def test_replay_then_live_with_ids(server: Server) -> None:
    async with await Client.connect(server) as client:
        await client.publish(S, patch(n=1), patch(text="line\nbreak\u2028é"))
        async with stream(server, f"scope={S}&since=0") as answer:
            assert answer.content_type == "text/event-stream"
            first, second = await block(answer), await block(answer)
            await client.publish(S, patch(n=3))
            third = await block(answer)
        seqs = [json.loads(found["data"])["seq"] for found in (first, second, third)]
        assert seqs == [1, 2, 3] and first["event"] == "envelope"
        epoch, _, seq = third["id"].rpartition(".")
        bounds = await server.host.bounds(next(iter(server.host.open_scopes)))
        assert (epoch, seq) == (bounds.epoch, "3")
        value = json.loads(second["data"])["entities"][0]["patches"][0]["value"]
        assert value == "line\nbreak\u2028é"
        async with stream(
            server, f"scope={S}&since=0", **{"Last-Event-ID": second["id"]}
        ) as answer:
            assert json.loads((await block(answer))["data"])["seq"] == 3


@pytest.mark.parametrize(
    "raw",
    [
        ' {\n"eventId":"e",\r\n"kind":"patch","entities":[]} ',
        '{"at":5,"eventId":"e","kind":"patch","entities":[]}',
    ],
)
async def test_a_body_stays_one_line(server: Server, raw: str) -> None:
    async with ClientSession() as session:
        body = f'{{"scope":"{S}","envelope":{raw}}}'
        async with session.post(url_of(server, "/api/sync/publish"), data=body) as answer:
            assert answer.status == 200
    async with stream(server, f"scope={S}&since=0") as answer:
        found = await block(answer)
        assert json.loads(found["data"])["eventId"] == "e" and found["id"].endswith(".1")


@pytest.mark.parametrize(
    ("query", "last", "reason"),
    [("since=9", None, "ahead_of_head"), ("since=0", "other.1", "epoch_changed")],
)
async def test_scope_error_ends_the_stream(
    server: Server, query: str, last: str | None, reason: str
) -> None:
    async with await Client.connect(server) as client:
        await client.publish(S, patch(n=1))
        headers = {"Last-Event-ID": last} if last else {}
        async with stream(server, f"scope={S}&{query}", **headers) as answer:
            found = await block(answer)
            assert found["event"] == "scopeError"
            frame = json.loads(found["data"])
            assert (frame["code"], frame["reason"]) == ("snapshot_required", reason)
            assert await block(answer) == {}


async def test_refusals_are_problems(server: Server) -> None:
    for query in ("", "scope=", f"scope={S}&since=x", f"scope={S}&since=-1", "scope=strata:x"):
        async with stream(server, query) as answer:
            assert answer.status == 400 and answer.content_type == "application/problem+json"


async def test_allowed_origins_may_read_the_stream(server: Server) -> None:
    async with stream(server, f"scope={S}&since=0", Origin="https://ok.example") as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "https://ok.example"
    async with stream(server, f"scope={S}&since=0", Origin="https://no.example") as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_the_end_of_a_stream_is_noticed_and_an_expired_token_ends_it(tmp_path: Path) -> None:
    async with running(tmp_path, mode="serve") as server:
        async with stream(server, f"scope={S}&token={token('doc:*')}") as answer:
            assert answer.status == 403
        async with stream(server, f"scope={S}&since=0&token={token('run:*')}") as answer:
            assert answer.status == 200
            (held,) = server.connections
            assert held.principal is not None
            held.principal = type(held.principal)(id="u1", expires_at_ms=1)
            server._tick()
            assert await block(answer) == {}
            assert not server.connections


async def test_stop_ends_streams(tmp_path: Path) -> None:
    async with ClientSession() as session:
        async with running(tmp_path) as server:
            answer = await session.get(url_of(server, f"/api/sync/events?scope={S}&since=0"))
            assert answer.status == 200
        assert await block(answer) == {}


async def test_ids_of_a_stream_opened_before_the_first_write_carry_the_epoch(
    server: Server,
) -> None:
    async with (
        await Client.connect(server) as client,
        stream(server, f"scope={S}") as answer,
    ):
        await client.publish(S, patch(n=1))
        found = await block(answer)
        async with stream(server, f"scope={S}", **{"Last-Event-ID": "another.1"}) as stale:
            refused = await block(stale)
    epoch, _, seq = found["id"].partition(".")
    assert seq == "1" and len(epoch) == 26
    assert json.loads(refused["data"])["reason"] == "epoch_changed"
