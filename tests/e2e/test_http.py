"""Publishing, views and the service's own pages over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from edge.application import Application
from edge.dialects.asterql.views import View, ViewContext, ViewResult
from edge.server import Server
from infra import limits
from tests.support.app import Client, Json, RawSocket, patch, running, token, url_of

pytestmark = pytest.mark.e2e
S = "run:r1"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path) as found:
        yield found


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path, mode="serve", publish_envelopes_per_s=3) as found:
        yield found


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as found:
        yield found


def params(**members: Any) -> str:
    """The `p` parameter without padding."""
    return base64.urlsafe_b64encode(json.dumps(members).encode()).decode().rstrip("=")


async def get(session: ClientSession, url: str, **headers: str) -> tuple[int, Any, Any]:
    """(status, decoded body or None, headers)."""
    async with session.get(url, headers=headers, allow_redirects=False) as answer:
        body = await answer.read()
        return answer.status, json.loads(body) if body[:1] in (b"{", b"[") else None, answer.headers


async def post(
    session: ClientSession, server: Server, envelope: Any, scope: str = S, bearer: str | None = None
) -> tuple[int, Json]:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    url = url_of(server, "/api/sync/publish")
    body = {"scope": scope, "envelope": envelope}
    async with session.post(url, json=body, headers=headers) as answer:
        decoded: Json = await answer.json(content_type=None)
        return answer.status, decoded


async def test_publish_and_its_refusals(server: Server, session: ClientSession) -> None:
    envelope = patch(event="e1", n=1)
    assert await post(session, server, envelope) == (
        200, {"seq": 1, "eventId": "e1", "duplicate": False},
    )  # fmt: skip
    assert await post(session, server, envelope) == (
        200, {"seq": 1, "eventId": "e1", "duplicate": True},
    )  # fmt: skip
    wrong = patch()
    wrong["entities"][0]["patches"] = [{"op": "appendText", "path": "/n", "delta": "x"}]
    status, problem = await post(session, server, wrong)
    assert (status, problem["code"], problem["entity"], problem["index"], problem["reason"]) == (
        409, "patch_failed", "message:m1", 0, "type_mismatch",
    )  # fmt: skip
    status, problem = await post(session, server, {**envelope, "seq": 4})
    assert (status, problem["code"]) == (400, "bad_envelope")
    status, problem = await post(session, server, envelope, scope="strata:x")
    assert (status, problem["code"]) == (400, "bad_scope")
    status, problem = await post(session, server, patch(t="x" * limits.ENVELOPE_BYTES_MAX))
    assert (status, problem["code"]) == (413, "too_large")


async def test_publish_needs_a_token_that_may(guarded: Server, session: ClientSession) -> None:
    status, problem = await post(session, guarded, patch(n=1))
    assert (status, problem["code"]) == (401, "unauthenticated")
    status, problem = await post(session, guarded, patch(n=1), bearer=token("run:*"))
    assert (status, problem["code"]) == (403, "forbidden")
    writer = token("run:*", write=True, subject="w")
    status, problem = await post(session, guarded, patch(n=1), "doc:1", writer)
    assert status == 403
    answers = [await post(session, guarded, patch(n=n), bearer=writer) for n in range(8)]
    assert [status for status, _ in answers][:6] == [200] * 6
    status, problem = answers[-1]
    assert (status, problem["code"], problem["retryable"]) == (429, "rate_limited", True)
    assert problem["retry_after_ms"] > 0


async def test_expired_and_foreign_tokens(guarded: Server, session: ClientSession) -> None:
    for bearer, code in (
        (token("run:*", write=True, ttl_s=1, now_ms=1_000_000), "token_expired"),
        ("x.y.z", "token_invalid"),
    ):
        status, problem = await post(session, guarded, patch(n=1), bearer=bearer)
        assert (status, problem["code"]) == (401, code)
        assert bearer not in json.dumps(problem)


async def test_publish_while_stopping(server: Server, session: ClientSession) -> None:
    server.runtime.stopping = True
    status, body, _ = await get(session, url_of(server, "/readyz"))
    assert (status, body) == (503, {"status": "stopping"})
    async with await RawSocket.connect(server) as raw:
        assert (await raw.upgrade()).startswith(b"HTTP/1.1 503")
    server.runtime.stopping = False


async def test_scope_view_etag_and_hash(server: Server, session: ClientSession) -> None:
    url = url_of(server, f"/api/sync/views/scope?p={params(scope=S)}")
    status, empty, _ = await get(session, url)
    assert status == 200 and (empty["seq"], empty["entities"], empty["next"]) == (0, [], None)
    await post(session, server, patch("a:2", n=1))
    await post(session, server, patch("a:1", n=2))
    status, view, headers = await get(session, url)
    assert [entity["key"] for entity in view["entities"]] == ["a:1", "a:2"]
    assert view["seq"] == 2 and view["viewId"] == "scope" and view["hash"].startswith("h1_")
    tag = headers["ETag"]
    assert tag == f'W/"v1-scope-{view["paramsHash"]}-{view["epoch"]}-2"'
    assert headers["Cache-Control"] == "private, no-cache"
    status, body, again = await get(session, url, **{"If-None-Match": f'"x", {tag}'})
    assert (status, body, again["ETag"]) == (304, None, tag)
    await post(session, server, patch("a:1", n=3))
    status, changed, _ = await get(session, url, **{"If-None-Match": tag})
    assert status == 200 and changed["seq"] == 3 and changed["hash"] != view["hash"]


async def test_views_obey_authorize(guarded: Server, session: ClientSession) -> None:
    url = url_of(guarded, f"/api/sync/views/scope?p={params(scope=S)}")
    assert (await get(session, url))[0] == 401
    bearer = f"Bearer {token('doc:*')}"
    assert (await get(session, url, Authorization=bearer))[0] == 403
    assert (await get(session, url + f"&token={token('run:*')}"))[0] == 200


async def test_edge_40_all_pages_are_of_one_seq(server: Server, session: ClientSession) -> None:
    entities: list[Json] = [{"key": f"a:{n}", "value": {"n": n}} for n in range(1000)]
    async with await Client.connect(server) as client:
        for part in range(3):
            keyed = [{**entity, "key": f"{entity['key']}-{part}"} for entity in entities]
            await client.publish(S, {"eventId": f"p{part}", "kind": "patch", "entities": keyed})
        base = url_of(server, "/api/sync/views/scope?")
        status, page, _ = await get(session, base + f"p={params(scope=S)}")
        pages = [page]
        while page["next"] is not None:
            await client.publish(S, patch("a:0-0", n=len(pages)), patch(f"b:{len(pages)}", n=1))
            status, page, _ = await get(session, base + f"page={page['next']}")
            assert status == 200
            pages.append(page)
        assert len(pages) == 3 and {page["seq"] for page in pages} == {3}
        assert len({page["hash"] for page in pages}) == len({page["epoch"] for page in pages}) == 1
        keys = [entity["key"] for page in pages for entity in page["entities"]]
        assert len(keys) == 3000 and len(set(keys)) == 3000
        await client.send({"type": "sub", "scope": S, "since": pages[0]["seq"]})
        assert await client.seqs(7) == [4, 5, 6, 7]


async def test_a_held_view_ends(server: Server, session: ClientSession) -> None:
    entities: list[Json] = [{"key": f"a:{n}", "value": {}} for n in range(1000)]
    for part in "xy":
        keyed = [{**entity, "key": entity["key"] + part} for entity in entities]
        await post(session, server, {"eventId": part, "kind": "patch", "entities": keyed})
    base = url_of(server, "/api/sync/views/scope?")
    _, page, _ = await get(session, base + f"p={params(scope=S)}")
    held = server.held_views._held
    assert len(held) == 1
    next(iter(held.values())).expires_at = 0
    status, problem, _ = await get(session, base + f"page={page['next']}")
    assert (status, problem["code"]) == (410, "view_expired") and not held
    for bad in ("x", "x.1", f"{page['next']}9", ".", "..", "x.-1"):
        assert (await get(session, base + f"page={bad}"))[0] == 410


async def test_application_views(tmp_path: Path, session: ClientSession) -> None:
    app = Application()

    async def load(given: Any, ctx: ViewContext) -> ViewResult:
        found = await ctx.read(given["scope"])
        entities = {key: record for key, record in found.entities.items() if record.get("done")}
        return ViewResult(entities, {given["scope"]: found.seq}, {"count": 1}, {"todo": 4})

    app.register_view(View("done", load, ("todo",)))
    async with running(tmp_path, app=app) as server:
        await post(session, server, patch("a:1", done=True))
        await post(session, server, patch("a:2", done=False))
        url = url_of(server, f"/api/sync/views/done?p={params(scope=S)}")
        status, view, headers = await get(session, url)
        assert status == 200 and [entity["key"] for entity in view["entities"]] == ["a:1"]
        assert (view["scopes"], view["classes"], view["classVersions"], view["data"]) == (
            {S: 2}, ["todo"], {"todo": 4}, {"count": 1},
        )  # fmt: skip
        assert view["hash"].startswith("h1_") and view["next"] is None
        assert (await get(session, url, **{"If-None-Match": headers["ETag"]}))[0] == 304
        status, problem, _ = await get(session, url_of(server, "/api/sync/views/other"))
        assert (status, problem["code"]) == (404, "not_found")


async def test_cors(tmp_path: Path, session: ClientSession) -> None:
    async with running(tmp_path, cors_origins=("https://ok.example",)) as server:
        url = url_of(server, "/version")
        _, _, headers = await get(session, url, Origin="https://ok.example")
        assert headers["Access-Control-Allow-Origin"] == "https://ok.example"
        _, _, headers = await get(session, url, Origin="https://no.example")
        assert "Access-Control-Allow-Origin" not in headers
        publish = url_of(server, "/api/sync/publish")
        async with session.options(publish, headers={"Origin": "https://ok.example"}) as answer:
            assert answer.status == 204 and "POST" in answer.headers["Access-Control-Allow-Methods"]
        for origin, allowed in (("https://no.example", False), ("https://ok.example", True),
                                (url_of(server), True)):  # fmt: skip
            body = json.dumps({"scope": S, "envelope": patch(n=1)})
            async with session.post(publish, data=body, headers={"Origin": origin}) as answer:
                assert answer.status == (200 if allowed else 403)
            async with await RawSocket.connect(server) as raw:
                assert server.info is not None
                answer_head = await raw.upgrade(
                    f"Origin: {origin.replace(f'127.0.0.1:{server.info.port}', 'test')}"
                )
                assert answer_head.startswith(b"HTTP/1.1 " + (b"101" if allowed else b"403"))


async def test_service_pages(server: Server, session: ClientSession) -> None:
    assert (await get(session, url_of(server, "/healthz")))[:2] == (200, {"status": "ok"})
    assert (await get(session, url_of(server, "/readyz")))[:2] == (200, {"status": "ready"})
    status, version, _ = await get(session, url_of(server, "/version"))
    assert status == 200 and "asterql" in version["dialects"]
    status, api, _ = await get(session, url_of(server, "/openapi.json"))
    assert status == 200 and api["openapi"].startswith("3.") and "/api/sync/publish" in api["paths"]
    status, _, headers = await get(session, url_of(server, "/"))
    assert status in (301, 302, 303, 307, 308) and headers["Location"] == "/console"
    status, _, headers = await get(session, url_of(server, "/console"))
    assert status == 200 and "default-src 'self'" in headers["Content-Security-Policy"]
    async with session.get(url_of(server, "/metrics")) as answer:
        assert "holdfast_connections" in await answer.text()
    async with session.delete(url_of(server, "/version")) as answer:
        problem = await answer.json(content_type=None)
        assert (answer.status, problem["status"]) == (405, 405)
        assert problem["code"] == "method_not_allowed" and "GET" in answer.headers["Allow"]


async def test_admin_pages_need_an_admin(guarded: Server, session: ClientSession) -> None:
    paths = ("/metrics", "/v1/scopes", f"/v1/scopes/default/{S}")
    for path in paths:
        assert (await get(session, url_of(guarded, path)))[0] == 401
        bearer = f"Bearer {token('*', write=True)}"
        assert (await get(session, url_of(guarded, path), Authorization=bearer))[0] == 403
    admin = token(admin=True)
    await post(session, guarded, patch(n=1), bearer=admin)
    for path in paths:
        status, *_ = await get(session, url_of(guarded, path), Authorization=f"Bearer {admin}")
        assert status == 200


async def test_scopes_are_listed_in_pages(server: Server, session: ClientSession) -> None:
    for number in range(5):
        await post(session, server, patch(n=1), scope=f"run:{number}")
    await post(session, server, patch(n=1), scope="doc:1")
    url = url_of(server, "/v1/scopes?prefix=run:&limit=2")
    found: list[str] = []
    after = ""
    while after is not None:
        _, body, _ = await get(session, url + f"&after={after}")
        found += [scope["scope"] for scope in body["scopes"]]
        after = body["next"]
    assert found == [f"run:{number}" for number in range(5)]
    _, shown, _ = await get(session, url_of(server, "/v1/scopes/default/run:3"))
    assert (shown["head"], shown["floor"], shown["open"]) == (1, 0, True)


async def test_tokens_are_not_logged(
    guarded: Server, session: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = token("run:*", write=True)
    await get(session, url_of(guarded, f"/api/sync/views/scope?p={params(scope=S)}&token={secret}"))
    await get(session, url_of(guarded, f"/nope?token={secret}"))
    await post(session, guarded, patch(n=1), bearer=secret)
    async with await RawSocket.connect(guarded) as raw:
        await raw.request(f"GET /x?token={secret}\x00 HTTP/1.1\r\n\r\n".encode())
    assert secret not in caplog.text and secret.split(".")[2] not in caplog.text


@pytest.mark.parametrize("name", ["holdfast.js", "para.js"])
async def test_modules_are_served_to_every_origin(
    server: Server, session: ClientSession, name: str
) -> None:
    async with session.get(url_of(server, f"/{name}")) as answer:
        assert answer.status == 200
        assert answer.content_type in ("text/javascript", "application/javascript")
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "export " in await answer.text()
