"""Tenants by host name and by path: every mount of every dialect, and nobody in another's."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse
from yarl import URL

from edge.client.para.schema import PASSTHROUGH
from edge.config import Config
from edge.server import Server
from edge.tokens import mint
from holdfast import Application, Credentials, Principal, User, auth, embed
from infra import clock
from infra.errors import ConfigError
from infra.paths import tenant_home
from tests.support.app import PATIENCE_S, Json, patch, running, token, url_of
from tests.support.process import KEY, ServerProcess, children_of, role_of
from tests.support.strata import TASK

pytestmark = pytest.mark.e2e
RULES: dict[str, Any] = {
    "tenant_from": ("token", "host", "path"), "tenant_host": "{tenant}.sync.test",
    "tenant_path": "/t/{tenant}",
}  # fmt: skip
S = "run:r1"


class At:
    """One address of the server; `by` is what names the tenant in it."""

    def __init__(self, server: Server | str, session: ClientSession, by: str, tenant: str) -> None:
        prefix = f"/t/{tenant}" if by == "path" else ""
        self.base = (server if isinstance(server, str) else url_of(server)) + prefix
        self.headers = {"Host": f"{tenant}.sync.test"} if by == "host" else {}
        self.session = session

    async def call(
        self, method: str, path: str, body: Any = None, bearer: str | None = None, **headers: str
    ) -> tuple[int, bytes, Any]:
        """(status, body, headers)."""
        sent = {**self.headers, **headers}
        if bearer is not None:
            sent["Authorization"] = f"Bearer {bearer}"
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        url = URL(self.base + path, encoded=True)
        async with (
            asyncio.timeout(PATIENCE_S),
            self.session.request(
                method, url, data=data, headers=sent, allow_redirects=False
            ) as answer,
        ):
            return answer.status, await answer.read(), answer.headers

    @asynccontextmanager
    async def socket(self, path: str, bearer: str | None) -> AsyncIterator[ClientWebSocketResponse]:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        async with self.session.ws_connect(
            self.base + path, headers={**self.headers, **headers}
        ) as socket:
            yield socket


async def hear(socket: ClientWebSocketResponse) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return (await socket.receive()).data


def make_app() -> Application:
    """Tokens are `user@tenant`."""
    app = Application()

    @app.authenticate
    def authenticate(credentials: Credentials) -> Principal | None:
        user, _, tenant = (credentials.token or "").partition("@")
        return Principal(id=user, tenant=tenant, admin=user == "ops") if tenant else None

    @app.authorize
    def authorize(principal: Principal, scope: str, action: Any, resource: Any) -> bool:
        return principal.admin or action != "admin"

    def verify(bearer: str, name: str) -> User | None:
        user, _, tenant = bearer.partition("@")
        return User(user, tenant=tenant) if tenant else None

    app.stratasync(models=[TASK], auth=auth(verify, lambda user, name: ["w"]), root="main")
    app.objectfeed(root="main")
    app.synced("free", PASSTHROUGH)
    return app


VIEW = "/api/sync/views/scope?p=eyJzY29wZSI6InJ1bjpyMSJ9"  # of S
# What reads at each mount: a request that is answered to the tenant's own user, whatever there is.
READS = [
    ("GET", f"/api/sync/events?scope={S}"), ("GET", VIEW), ("GET", "/keep/attic/files/a"),
    ("GET", "/keep/attic/sync/namespaces"), ("GET", "/sync/bootstrap"),
    ("GET", "/strata/main/sync/bootstrap"), ("GET", "/strata/main/sync/deltas"),
    ("GET", "/para/default/objectfeed/snapshot/free:a"), ("GET", "/objectfeed/snapshot/free:a"),
]  # fmt: skip
SOCKETS = [
    "/api/sync/socket", "/rtc/studio?sessionId=a", "/rtc?sessionId=a", "/para/default/objectfeed",
    "/objectfeed", "/strata/main/sync/ws", "/sync/ws", "/keep/attic/sync/notices",
]  # fmt: skip
WRITE = {"scope": S, "envelope": patch(event="e1", n=1)}


@asynccontextmanager
async def served(tmp_path: Path, **more: Any) -> AsyncIterator[tuple[Server, ClientSession]]:
    config = {**RULES, "rtc_root": "studio", **more}
    async with (
        running(tmp_path, mode="serve", app=make_app(), **config) as server,
        ClientSession() as session,
    ):
        yield server, session


def with_query(path: str, bearer: str) -> str:
    """Strata's sockets know the token from the query only."""
    return f"{path}{'&' if '?' in path else '?'}token={bearer}"


@pytest.mark.parametrize("by", ["host", "path"])
async def test_every_mount_stands_under_a_tenant_and_keeps_others_out(
    tmp_path: Path, by: str
) -> None:
    async with served(tmp_path) as (server, session):
        at = At(server, session, by, "acme")
        for method, path in READS:
            status, body, _ = await at.call(method, path)
            assert status == 401, (path, body)
            status, body, _ = await at.call(method, path, bearer="eve@beta")
            assert status == 403, (path, body)
            assert b"another tenant" in body
            if "/strata/" not in path and not path.startswith("/sync"):
                assert json.loads(body)["code"] == "wrong_tenant"
        for path in SOCKETS:
            with pytest.raises(Exception, match="403"):
                async with at.socket(with_query(path, "eve@beta"), None):
                    pass
        homes = {tenant_home(tenant) for tenant in ("acme", "beta")}
        assert not homes & {path.name for path in tmp_path.rglob("*")}, "nothing was begun"
        for method, path in READS[1:]:  # the first is a stream without an end
            status, body, _ = await at.call(method, path, bearer="ada@acme")
            assert status in (200, 404), (path, body)
            assert status == 200 or "files" in path or "snapshot" in path
        for path in SOCKETS:
            async with at.socket(with_query(path, "ada@acme"), None) as socket:
                assert not socket.closed
        assert not [*tmp_path.rglob(f"{tenant_home('acme')}/*/*.db")], "no reader makes a ledger"


@pytest.mark.parametrize("by", ["host", "path"])
async def test_dialects_write_and_read_under_a_tenant(tmp_path: Path, by: str) -> None:
    async with served(tmp_path) as (server, session):
        at, bare = At(server, session, by, "acme"), At(server, session, "", "")
        ada = "ada@acme"
        status, body, _ = await at.call("POST", "/api/sync/publish", WRITE, ada)
        assert (status, json.loads(body)["seq"]) == (200, 1)
        async with at.socket("/api/sync/socket", ada) as socket:
            await socket.send_json({"type": "sub", "scope": S, "since": 0})
            assert json.loads(await hear(socket))["type"] == "subscribed"
            assert json.loads(await hear(socket))["envelope"]["seq"] == 1
        url = f"/api/sync/events?scope={S}&since=0"
        async with session.get(
            at.base + url, headers={**at.headers, "Authorization": f"Bearer {ada}"}
        ) as stream:
            async with asyncio.timeout(PATIENCE_S):
                while b"event: envelope" not in (line := await stream.content.readline()):
                    assert line, "the stream has ended"
        # The same ledger without a tenant in the address, and none of it in another's.
        status, body, _ = await bare.call("GET", VIEW, bearer=ada)
        assert [one["key"] for one in json.loads(body)["entities"]] == ["message:m1"]
        status, body, _ = await At(server, session, by, "beta").call("GET", VIEW, bearer="eve@beta")
        assert json.loads(body)["entities"] == []
        assert (await at.call("PUT", "/keep/attic/files/a%2Fb", b"abc", ada))[0] in (200, 201, 204)
        assert (await at.call("GET", "/keep/attic/files/a%2Fb", bearer=ada))[1] == b"abc"
        status, body, _ = await at.call("GET", "/keep/attic/files/a%2Fb/presign", bearer=ada)
        presigned = URL(json.loads(body)["url"], encoded=True)
        if by == "path":
            assert presigned.raw_path.startswith("/t/acme/keep/attic/files/")
            async with session.get(presigned) as answer:
                assert await answer.read() == b"abc"
        else:
            assert presigned.host == "acme.sync.test"
        status, body, _ = await At(server, session, by, "beta").call(
            "GET", "/keep/attic/files/a%2Fb?" + presigned.raw_query_string
        )
        assert (status, json.loads(body)["code"]) == (403, "wrong_tenant")
        task = {"id": "t1", "title": "x", "workspaceId": "w"}
        mutation = {
            "batchId": "b", "transactions": [{
                "clientTxId": "1", "clientId": "c", "modelName": "Task", "modelId": "t1",
                "action": "INSERT", "payload": task,
            }],
        }  # fmt: skip
        status, body, _ = await at.call(
            "POST", "/sync/mutate", mutation, ada, **{"Content-Type": "application/json"}
        )
        assert (status, json.loads(body)["success"]) == (200, True), body
        async with at.socket("/rtc/studio?sessionId=a", ada) as socket:
            await socket.send_json({"mtype": "join", "sessionId": "a", "roomId": "studio"})
            assert json.loads(await hear(socket))["mtype"] == "state"
        async with at.socket("/objectfeed", ada) as socket:
            await socket.send_json({"type": "sub", "key": "free:a"})
            assert json.loads(await hear(socket))["type"] in ("subscribed", "welcome")


async def test_the_first_frame_of_a_socket_is_held_to_its_address(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, session):
        for by in ("host", "path"):
            at = At(server, session, by, "acme")
            async with at.socket("/api/sync/socket", None) as socket:
                await socket.send_json({"type": "auth", "token": "eve@beta"})
                assert await hear(socket) == 4401
            async with at.socket("/api/sync/socket", None) as socket:
                await socket.send_json({"type": "auth", "token": "ada@acme"})
                assert json.loads(await hear(socket))["type"] == "authenticated"
            async with at.socket(with_query("/sync/ws", "ada@acme"), None) as socket:
                await socket.send_json({"type": "subscribe", "token": "eve@beta"})
                assert "Invalid token" in await hear(socket)


async def test_operators_see_one_tenant_at_its_address(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, session):
        at, bare = At(server, session, "path", "acme"), At(server, session, "", "")
        await at.call("POST", "/api/sync/publish", WRITE, "ada@acme")
        status, body, _ = await at.call("GET", "/v1/scopes", bearer="ops@acme")
        assert [one["scope"] for one in json.loads(body)["scopes"]] == [S], body
        for path in ("/v1/scopes?tenant=beta", f"/v1/scopes/beta/{S}"):
            status, body, _ = await at.call("GET", path, bearer="ops@acme")
            assert (status, json.loads(body)["code"]) == (403, "wrong_tenant")
        assert (await at.call("GET", "/v1/scopes", bearer="ops@default"))[0] == 403
        status, body, _ = await bare.call("GET", "/v1/scopes?tenant=acme", bearer="ops@default")
        assert len(json.loads(body)["scopes"]) == 1


async def test_pages_and_odd_paths(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, session):
        at = At(server, session, "path", "acme")
        for path in ("", "/"):
            status, _, headers = await at.call("GET", path)
            assert (status, headers["Location"]) == (302, "/t/acme/console")
        status, page, _ = await at.call("GET", "/console")
        assert status == 200
        named = re.findall(r'(?:href|src)="([^"#]+)"', page.decode())
        assert len(named) == 3
        for name in named:
            link = URL(at.base + "/console").join(URL(name))
            async with session.get(link) as answer:
                assert answer.status == 200, link
                assert answer.url.path.startswith("/t/acme/")
        assert (await at.call("GET", "/holdfast.js"))[0] == 200
        assert (await at.call("GET", "/healthz"))[0] == 200
        assert (await at.call("GET", "/t/beta/healthz"))[0] == 404, "no tenant within a tenant"
        assert (await at.call("POST", "/healthz"))[0] == 405
        for path in ("/t/", "/t//healthz", "/t/%00/healthz", f"/t/{'a' * 65}/healthz"):
            status, body, _ = await At(server, session, "", "").call("GET", path)
            assert (status, json.loads(body)["code"]) == (404, "unknown_tenant"), path


async def test_without_tokens_the_address_says_whose_scope_it_is(tmp_path: Path) -> None:
    async with (
        running(tmp_path, mode="dev", tenants=("acme", "beta", "default"), **RULES) as server,
        ClientSession() as session,
    ):
        at = At(server, session, "path", "acme")
        assert (await at.call("POST", "/api/sync/publish", WRITE))[0] == 200
        status, body, _ = await at.call("GET", "/v1/whoami")
        assert json.loads(body)["tenant"] == "acme"
        for by, tenant, count in (("host", "acme", 1), ("host", "beta", 0), ("", "", 0)):
            status, body, _ = await At(server, session, by, tenant).call("GET", VIEW)
            assert (status, len(json.loads(body)["entities"])) == (200, count)
        for by in ("host", "path"):
            other = At(server, session, by, "nobody")
            status, body, _ = await other.call("GET", VIEW)
            assert (status, json.loads(body)["code"]) == (404, "unknown_tenant")


async def test_signed_tokens_name_their_tenant(tmp_path: Path) -> None:
    rules = {**RULES, "tenant_from": ("host", "path")}
    async with running(tmp_path, mode="serve", **rules) as server, ClientSession() as session:
        at, bare = At(server, session, "host", "acme"), At(server, session, "", "")
        ours, plain = token("*", write=True, tenant="acme"), token("*", write=True)
        assert (await at.call("POST", "/api/sync/publish", WRITE, ours))[0] == 200
        assert (await at.call("POST", "/api/sync/publish", WRITE, plain))[0] == 403
        status, body, _ = await bare.call("POST", "/api/sync/publish", WRITE, ours)
        assert (status, json.loads(body)["code"]) == (404, "unknown_tenant")
        admin = token(admin=True)
        assert (await bare.call("GET", "/v1/scopes?tenant=acme", bearer=admin))[0] == 200


@pytest.mark.parametrize("path", ["/api/{tenant}", "/keep/{tenant}", "/sync/{tenant}"])
async def test_a_path_that_is_used_is_refused_at_start(tmp_path: Path, path: str) -> None:
    rules: dict[str, Any] = {"tenant_from": ("token", "path"), "tenant_path": path}
    with pytest.raises(ConfigError, match="is used already"):
        async with running(tmp_path, mode="serve", app=make_app(), **rules):
            pass
    config = Config(tenant_from=("path",), tenant_path="/t/{tenant}", data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="embedding"):
        embed(Server.__new__(Server), make_app(), config)  # type: ignore[arg-type]


async def test_no_process_is_started_for_a_tenant_that_was_guessed(tmp_path: Path) -> None:
    flags = ["--placement", "tenant", "--tenant-idle-s", "0", "--idle-s", "0"]
    flags += ["--tenant-from", "token,host,path", "--tenant-host", "{tenant}.sync.test"]
    flags += ["--tenant-path", "/t/{tenant}"]
    with ServerProcess.with_tokens(tmp_path, *flags) as server:

        def actors() -> list[int]:
            return [pid for pid in children_of(server.pid) if role_of(pid) == "actor"]

        def bearer(tenant: str) -> str:
            now = clock.now_ms()
            return mint(KEY, subject="u", now_ms=now, ttl_s=600, admin=True, tenant=tenant)

        async with ClientSession() as session:
            for by in ("host", "path"):
                at = At(server.url, session, by, "acme")
                for path in ("/api/sync/publish", VIEW, "/keep/attic/files/a", "/v1/scopes"):
                    method, body = ("POST", WRITE) if "publish" in path else ("GET", None)
                    assert (await at.call(method, path, body))[0] == 401
                    assert (await at.call(method, path, body, bearer("beta")))[0] == 403
                with pytest.raises(Exception, match="401"):
                    async with at.socket("/rtc/studio?sessionId=a", None):
                        pass
            assert actors() == []
            assert not [*(tmp_path / "data").glob("tenants/*")]
            at = At(server.url, session, "path", "acme")
            answer: Json = json.loads((await at.call("GET", VIEW, bearer=bearer("acme")))[1])
            assert answer["entities"] == []
            while actors():  # it has nothing, and ends
                await asyncio.sleep(0.01)
            assert not [*(tmp_path / "data").glob("tenants/*")], "reading left nothing behind"
            status, body_out, _ = await at.call("POST", "/api/sync/publish", WRITE, bearer("acme"))
            assert status == 200, body_out
            while actors():
                await asyncio.sleep(0.01)
            assert [*(tmp_path / "data").glob(f"tenants/{tenant_home('acme')}/due.json")]
        assert server.stop() == 0
