"""Starkeep on a server: every space at `/keep/{name}`, one of them at the root if configured.

`{base}` is a combined space; `{base}/apps/starkeep-drive` and `{base}/apps/{appId}` are the
channels of a split one. Who asks is settled before a body is parsed; a signed body before it is
used.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Final, TypeVar
from urllib.parse import quote, unquote

import msgspec
from aiohttp import web

from actors.dialects.starkeep.channels import COMBINED, DRIVE_CHANNEL, Channel
from actors.dialects.starkeep.namespaces import DeclareBody, Namespace
from actors.dialects.starkeep.naming import DRIVE, BadName, check_app_id, check_object_key
from actors.types import Address
from edge.admin import address_asked, require_admin
from edge.auth import Action, Principal
from edge.dialects.starkeep.handler import (
    FILES,
    SMALL_BODY_BYTES_MAX,
    decode_json,
    error_response,
    failure,
    handle,
    key_of,
    read_body,
)
from edge.dialects.starkeep.notices import SOCKETS, close_sockets, serve_notices
from edge.dialects.starkeep.signatures import Presigner, Signed, app_of, is_signed
from edge.dialects.starkeep.spaces import GC_GRACE_MS, FileInfo, Spaces
from edge.problems import Problem
from edge.requests import from_allowed_origin, mounted_at, named_tenant, principal_of, server_of
from infra.errors import AuthError, HoldfastError
from infra.limits import SCOPE_BYTES_MAX

T = TypeVar("T")
MOUNT: Final = "/keep"
KIND: Final = "keep:"
NAMESPACES: Final = "/sync/namespaces"
NOTICES: Final = "/sync/notices"
REST: Final = r"/{rest:[\s\S]*}"  # of a path; the raw one is what is read
ROOT_PATHS: Final = ("/sync" + REST, "/files" + REST, "/apps" + REST, "/health")


class Keep:
    """The dialect's share of a server. `secrets` are those of signed requests, by
    `{space}/{app id}`; `root` is the space that stands at the root as well.
    """

    def __init__(
        self,
        spaces: Spaces,
        *,
        secrets: Mapping[str, str],
        presigner: Presigner,
        root: str = "",
    ) -> None:
        self.spaces = spaces
        self.presigner = presigner
        self._secrets = secrets
        self._root = root

    def add_routes(self, app: web.Application) -> None:
        """Mount the dialect."""
        app[SOCKETS] = set()
        app.on_shutdown.append(close_sockets)
        app.on_cleanup.append(self._close)
        app.router.add_route("*", MOUNT + REST, self._at_mount)
        app.router.add_post("/v1/gc/{tenant}/{scope:.+}", self._collect)
        if self._root:
            for path in ROOT_PATHS:
                app.router.add_route("*", path, self._at_root)

    async def _close(self, app: web.Application) -> None:
        await self.spaces.aclose()

    async def _at_mount(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0].removeprefix(MOUNT + "/")
        name, slash, rest = path.partition("/")
        base = f"{mounted_at(request)}{MOUNT}/{name}"
        return await self._answer(request, name, slash + rest, base)

    async def _at_root(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        return await self._answer(request, quote(self._root, safe=""), path, mounted_at(request))

    async def _collect(self, request: web.Request) -> web.StreamResponse:
        """What of a space nobody refers to, and with `dry_run=0` let go of it."""
        await require_admin(request)
        address = address_asked(request)
        if not address.scope.startswith(KIND):
            raise Problem("bad_scope", f"only scopes of kind {KIND!r} have files")
        grace = request.query.get("grace_s", "")
        if grace and not (grace.isascii() and grace.isdigit() and len(grace) < 10):
            raise Problem("bad_params", "grace_s: whole seconds")
        found = await self.spaces.collect(
            address, dry_run=request.query.get("dry_run") != "0",
            grace_ms=int(grace) * 1000 if grace else GC_GRACE_MS,
        )  # fmt: skip
        return _json(found)

    async def _answer(
        self, request: web.Request, name: str, path: str, base: str
    ) -> web.StreamResponse:
        try:
            call = _Call(self, request, space_of(name), path, base)
            found = await call.answer()
        except (HoldfastError, web.HTTPException) as error:
            return failure(error)
        if found is not None:
            return found
        return error_response(404, "not_found", "nothing at this address")

    def secret_of(self, name: str, app_id: str) -> str | None:
        """What signs the requests of an app to a space."""
        return self._secrets.get(f"{name}/{app_id}")


class _Call:
    """One request: where it goes, who asks, and what they may. Fits handler.Base once allowed."""

    def __init__(self, keep: Keep, request: web.Request, name: str, path: str, base: str) -> None:
        self._keep = keep
        self._spaces = keep.spaces
        self._request = request
        self._server = server_of(request)
        self._name = name
        self._scope = KIND + name
        self._channel, self._path = channel_in(path)
        self._base = base + path[: len(path) - len(self._path)]
        self._signed: Signed | None = None
        self._principal: Principal | None = None
        self._address = Address("default", self._scope)
        self.body_bytes_max = keep.spaces.settings.body_bytes_max

    async def answer(self) -> web.StreamResponse | None:
        """The answer; None where nothing is here. Raises HoldfastError."""
        if not from_allowed_origin(self._request):
            raise Problem("forbidden", "pages of this origin may not; see cors_origins")
        if await self._is_presigned():
            return await handle(self._request, self._path, self)
        reads = self._request.method in ("GET", "HEAD") or self._path == "/sync/exchange"
        await self._recognise(Action.READ if reads else Action.WRITE)
        special = await self._special()
        if special is not None:
            return special
        return await handle(self._request, self._path, self)

    # -- who asks ----------------------------------------------------------------------------------

    async def _is_presigned(self) -> bool:
        if "sig" not in self._request.query or not self._path.startswith(FILES):
            return False
        tenant = self._keep.presigner.tenant_of(
            self._request.query, self._request.method, self._scope, key_of(self._path),
            self._server.runtime.now_ms(),
        )  # fmt: skip
        assert tenant is not None
        self._server.runtime.tenancy.admit(tenant, named_tenant(self._request))
        self._address = Address(tenant, self._scope)
        return True

    async def _recognise(self, action: Action) -> None:
        headers = {name.lower(): value for name, value in self._request.headers.items()}
        if is_signed(headers):
            app_id = app_of(headers)
            mounted = app_id == (self._channel.app_id or self._name)
            if self._channel.kind == "drive":
                mounted = app_id == DRIVE
            secret = self._keep.secret_of(self._name, app_id)
            if secret is None or not mounted:
                raise AuthError("no such app signs for this address")
            path = unquote(self._path)
            now_ms = self._server.runtime.now_ms()
            self._signed = Signed(headers, self._request.method, path, secret, now_ms)
            if self._request.method in ("GET", "HEAD", "DELETE"):
                self._signed.check()
            self._principal = Principal(id=f"app:{app_id}")
            tenancy = self._server.runtime.tenancy
            tenancy.admit(self._principal.tenant, named_tenant(self._request))
            return
        self._principal = await principal_of(self._request)
        self._address = Address(self._principal.tenant, self._scope)
        await self._require(action)

    async def _require(self, action: Action) -> None:
        if self._signed is not None:
            return  # the secret is the right to everything on its channel
        assert self._principal is not None
        if not await self._server.runtime.may(self._principal, self._scope, action):
            raise Problem("forbidden", f"no {action} access to this space")

    # -- routes beside exchange and files ----------------------------------------------------------

    async def _special(self) -> web.StreamResponse | None:
        path, method = self._path, self._request.method
        if path == "/health" and method in ("GET", "HEAD"):
            return web.json_response({"status": "ok"})
        if path == NOTICES and method == "GET":
            assert self._principal is not None
            return await serve_notices(self._request, self._address, self._channel, self._principal)
        if path == NAMESPACES and method == "GET":
            found = await self._spaces.namespaces(self._address)
            return _json([_shown(n) for n in found if self._channel.takes(n.app_id)])
        if path.startswith(NAMESPACES + "/"):
            return await self._namespace(unquote(path.removeprefix(NAMESPACES + "/")))
        if method == "POST" and path == "/files/presign":
            asked = await self._small_body(_PresignBody)
            # The URL is good below every base of the space: what this one may is settled here.
            self._check_key(asked.key)
            return _json({"url": self._presigned("PUT", check_object_key(asked.key))})
        if method == "POST" and path == "/files/confirm":
            asked = await self._small_body(_PresignBody)
            known = await self.stat(asked.key)
            return web.Response(status=404 if known is None else 204)
        if method == "GET" and path.startswith(FILES) and path.endswith("/presign"):
            key = key_of(path.removesuffix("/presign"))
            if await self.stat(key) is None:
                return web.Response(status=404)
            return _json({"url": self._presigned("GET", key)})
        return None

    async def _small_body(self, wanted: type[T]) -> T:
        """A small JSON body, once its signature fits."""
        body = await read_body(self._request, SMALL_BODY_BYTES_MAX)
        if self._signed is not None:
            self._signed.check(body)
        return decode_json(body, wanted)

    def _presigned(self, method: str, key: str) -> str:
        query = self._keep.presigner.query(
            method, self._address.tenant, self._scope, key, self._server.runtime.now_ms()
        )
        origin = self._request.url.origin()
        return f"{origin}{self._base}{FILES}{quote(key, safe='')}?{query}"

    async def _namespace(self, app_id: str) -> web.StreamResponse | None:
        check_app_id(app_id)
        if self._channel.kind == "drive" or not self._channel.takes(app_id):
            raise Problem("forbidden", "another app's tables are not this channel's")
        method = self._request.method
        if method == "PUT":
            wanted = await self._small_body(DeclareBody)
            namespace = Namespace(app_id, wanted.tables, wanted.files_enabled)
            return _json(_shown(await self._spaces.declare(self._address, namespace)))
        if method == "DELETE":
            await self._spaces.withdraw(self._address, app_id)
            return web.Response(status=204)
        if method != "GET":
            return None
        found = await self._spaces.namespace(self._address, app_id)
        if found is None:
            return error_response(404, "not_found", "no such namespace")
        return _json(_shown(found))

    # -- handler.Base ------------------------------------------------------------------------------

    async def exchange(self, body: bytes) -> bytes:
        """See Base."""
        if self._signed is not None:
            self._signed.check(body)
        exchange = self._spaces.decode(body)
        if len(exchange):
            await self._require(Action.WRITE)
        return await self._spaces.exchange(self._address, self._channel, exchange, body)

    async def stat(self, key: str) -> FileInfo | None:
        """See Base."""
        self._check_key(key)
        return await self._spaces.stat(self._address, key)

    def read(self, info: FileInfo, start: int, end: int) -> AsyncIterator[bytes]:
        """See Base."""
        return self._spaces.read(self._address, info, start, end)

    async def write(self, key: str, chunks: AsyncIterable[bytes], content_type: str | None) -> None:
        """See Base."""
        self._check_key(key)
        if self._signed is not None:
            chunks = self._signed.checked(chunks)
        await self._spaces.write(self._address, key, chunks, content_type)

    async def delete(self, key: str) -> None:
        """See Base."""
        self._check_key(key)
        await self._spaces.delete(self._address, key)

    def _check_key(self, key: str) -> None:
        """An app's channel reaches no other app's files."""
        foreign = key.startswith("apps/") and not key.startswith(f"apps/{self._channel.app_id}/")
        if self._channel.kind == "app" and foreign:
            raise Problem("forbidden", "another app's files are not this channel's")


class _PresignBody(msgspec.Struct, rename="camel"):
    key: str
    content_type: str | None = None


def space_of(raw: str) -> str:
    """The name of a space, from its raw path segment. Raises BadName."""
    name = unquote(raw, errors="surrogateescape")
    fits = 0 < len(name.encode("utf-8", "surrogateescape")) <= SCOPE_BYTES_MAX - len(KIND)
    if not fits or not name.isprintable() or "/" in name:
        raise BadName("the name of a space is text without slashes and control characters")
    return name


def channel_in(path: str) -> tuple[Channel, str]:
    """(channel, raw path below it) of a raw path below a space. Raises BadName."""
    if not path.startswith("/apps/"):
        return COMBINED, path
    raw, slash, rest = path.removeprefix("/apps/").partition("/")
    app_id = unquote(raw)
    if app_id == DRIVE:
        return DRIVE_CHANNEL, slash + rest
    return Channel("app", check_app_id(app_id)), slash + rest


def _shown(namespace: Namespace) -> dict[str, object]:
    tables = [{"name": t.name, "pkColumns": list(t.pk_columns)} for t in namespace.tables]
    return {
        "appId": namespace.app_id, "tables": tables, "filesEnabled": namespace.files_enabled,
        "tableNames": list(namespace.table_names),
    }  # fmt: skip


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
