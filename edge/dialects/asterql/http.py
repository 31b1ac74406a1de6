"""AsterQL over HTTP: the socket's upgrade, event streams, publishing, views (asterql.md sections 4
and 7).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from aiohttp import web

from actors.dialects.asterql.envelope import parse_envelope
from actors.dialects.asterql.keys import check_scope
from actors.dialects.asterql.plan import COLL
from actors.reply import FutureReply
from actors.snapshot import Snapshot
from actors.types import Address, Appended, Duplicate, Rejected
from edge.auth import Action, Principal
from edge.dialects.asterql.connection import Connection
from edge.dialects.asterql.frames import quote
from edge.dialects.asterql.stream import EventStream
from edge.dialects.asterql.views import (
    Pages,
    ScopeRead,
    View,
    ViewContext,
    decode_params,
    params_hash,
)  # fmt: skip
from edge.problems import Problem
from edge.requests import credentials_of, from_allowed_origin, require, server_of
from edge.websocket import can_take_over, take_over, wants_websocket
from edge.websocket_plain import serve_plain
from infra import limits
from infra.errors import AuthError, TenantRefused

BASE = "/api/sync"


def add_routes(app: web.Application, base: str = BASE) -> None:
    """Mount the dialect."""
    app.router.add_get(f"{base}/socket", socket)
    app.router.add_get(f"{base}/events", events)
    app.router.add_post(f"{base}/publish", publish)
    app.router.add_get(f"{base}/views/{{view}}", view)


# -- socket ------------------------------------------------------------------------------------


async def socket(request: web.Request) -> web.StreamResponse:
    """Upgrade. Credentials come with the request or in the first frame."""
    server = server_of(request)
    if not wants_websocket(request):
        raise Problem("bad_frame", "this is a WebSocket endpoint; see docs/asterql.md")
    _check_origin(request)
    server.admit()
    credentials = credentials_of(request)
    principal: Principal | None = None
    try:
        principal = await server.runtime.recognise(credentials)
    except AuthError as error:
        if credentials.token is not None or isinstance(error, TenantRefused):
            raise

    if request.transport is None:  # gone while it was being recognised
        raise Problem("closed", "the client has gone")

    def open_session(sink: Any) -> Connection:
        connection = Connection(server.runtime, sink, principal, credentials.tenant)
        server.connections.add(connection)
        return connection

    if can_take_over(request) and request.transport is not None:
        return take_over(request, server.sockets, open_session)
    return await serve_plain(request, server.sockets, open_session)


def _check_origin(request: web.Request) -> None:
    if not from_allowed_origin(request):
        raise Problem("forbidden", "pages of this origin may not; see cors_origins")


# -- event stream --------------------------------------------------------------------------------


async def events(request: web.Request) -> web.StreamResponse:
    """One scope as server-sent events; `Last-Event-ID` ({epoch}.{seq}) overrides `since`."""
    server = server_of(request)
    scope = request.query.get("scope", "")
    check_scope(scope)
    principal = await require(request, scope, Action.READ)
    server.admit()
    sub: dict[str, Any] = {"type": "sub", "scope": scope}
    if (since := request.query.get("since")) is not None:
        sub["since"] = _number(since)
    if last := request.headers.get("Last-Event-ID"):
        epoch, _, seq = last.rpartition(".")
        if not epoch.isascii():
            raise Problem("bad_since", "Last-Event-ID: the id of an event of this stream")
        sub.update(epoch=epoch, since=_number(seq))
    stream = EventStream()
    connection = Connection(server.runtime, stream, principal)
    stream.epoch_now = lambda: connection.epoch_of(scope)
    server.connections.add(connection)
    try:
        connection.handle(quote(sub))
        return await stream.run(request)
    finally:
        connection.close()
        server.connections.discard(connection)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise Problem("bad_since", "since: a seq from 0 to 2^53-1")
    return int(text)


# -- publish -------------------------------------------------------------------------------------


class PublishBody(msgspec.Struct):
    """The body of `POST publish`."""

    scope: str
    envelope: msgspec.Raw
    level: Literal["local", "replicated"] = "local"


_decode_publish = msgspec.json.Decoder(PublishBody).decode


async def publish(request: web.Request) -> web.Response:
    """Append one envelope; safe to repeat because of its eventId."""
    _check_origin(request)
    try:
        async with asyncio.timeout(limits.STALL_MAX_S):  # nobody holds a request open for ever
            data = await request.read()
        body = _decode_publish(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise Problem("bad_envelope", f'body: {{"scope","envelope"}}: {error}') from error
    check_scope(body.scope)
    principal = await require(request, body.scope, Action.WRITE)
    server = server_of(request)
    server.spend(principal, len(bytes(body.envelope)))
    draft = parse_envelope(bytes(body.envelope), body.scope)
    reply = FutureReply()
    server.runtime.port.append(
        Address(principal.tenant, body.scope), [draft], reply, None,
        replicated=body.level == "replicated",
    )  # fmt: skip
    outcomes, _ = await reply.future
    match outcomes[0]:
        case Appended(first=seq):
            duplicate = False
        case Duplicate(seq=seq):
            duplicate = True
        case Rejected() as refused:
            raise Problem(
                refused.code, refused.message, retry_after_ms=refused.retry_after_ms,
                detail=refused.detail,
            )  # fmt: skip
    return web.json_response({"seq": seq, "eventId": draft.cause, "duplicate": duplicate})


# -- views ---------------------------------------------------------------------------------------


async def view(request: web.Request) -> web.Response:
    """`views/scope` and the application's own."""
    server = server_of(request)
    id = request.match_info["view"]
    if token := request.query.get("page"):
        return await _next_page(request, token)
    params = decode_params(request.query.get("p"))
    if id == "scope":
        return await _scope_view(request, params)
    registered = server.views.get(id)
    if not isinstance(registered, View):
        raise Problem("not_found", f"no view {id[:80]!r}; register it with register_view")
    return await _app_view(request, registered, params)


async def _scope_view(request: web.Request, params: Mapping[str, Any]) -> web.Response:
    scope = params.get("scope")
    if not isinstance(scope, str):
        raise Problem("bad_params", 'p: {"scope": …}')
    check_scope(scope)
    principal = await require(request, scope, Action.READ)
    server = server_of(request)
    address = Address(principal.tenant, scope)
    bounds = await server.runtime.port.bounds(address)
    tag = f"v1-scope-{params_hash(params)}"
    if _unchanged(request, f'W/"{tag}-{bounds.epoch}-{bounds.head}"'):
        return web.Response(status=304, headers=_cache(f'W/"{tag}-{bounds.epoch}-{bounds.head}"'))
    snapshot = await server.runtime.port.snapshot(address, COLL)
    pages = await _pages(request, snapshot or [])
    if snapshot is not None:
        snapshot.close()
    epoch, seq = (snapshot.epoch, snapshot.seq) if snapshot else ("", 0)
    head = {
        "viewId": "scope", "paramsHash": params_hash(params), "scope": scope, "epoch": epoch,
        "seq": seq,
    }  # fmt: skip
    return await _first_page(request, principal, head, pages, f'W/"{tag}-{epoch}-{seq}"')


async def _app_view(
    request: web.Request, registered: View, params: Mapping[str, Any]
) -> web.Response:
    server = server_of(request)
    principal = await require(request, registered.id, Action.READ)

    async def read(scope: str) -> ScopeRead:
        if not await server.runtime.may(principal, scope, Action.READ):
            raise Problem("forbidden", f"no read access to {scope!r}")
        return await server.read_scope(principal.tenant, scope)

    result = await registered.load(params, ViewContext(read))
    entities = sorted((key, msgspec.json.encode(record)) for key, record in result.entities.items())
    pages = await _pages(request, entities)
    head: dict[str, Any] = {
        "viewId": registered.id, "paramsHash": params_hash(params), "scopes": result.scopes,
        "classes": registered.classes, "classVersions": result.class_versions,
    }  # fmt: skip
    if result.data is not None:
        head["data"] = result.data
    tag = f'W/"v1-{registered.id}-{params_hash({"p": params, "h": pages.hash, "m": head})}"'
    if _unchanged(request, tag):
        pages.close()
        return web.Response(status=304, headers=_cache(tag))
    return await _first_page(request, principal, head, pages, tag)


async def _pages(request: web.Request, entities: Snapshot | list[tuple[str, bytes]]) -> Pages:
    server = server_of(request)
    pages: Pages = await server.runtime.port.run(lambda: Pages(server.spool_dir, entities))
    return pages


async def _first_page(
    request: web.Request, principal: Principal, head: dict[str, Any], pages: Pages, tag: str
) -> web.Response:
    server = server_of(request)
    start = msgspec.json.encode({**head, "hash": pages.hash})[:-1] + b',"entities":['
    token = server.held_views.hold(start, pages, _owner(principal)) if len(pages) > 1 else None
    body = await _document(request, start, pages, 0, token)
    if token is None:
        pages.close()
    return web.Response(body=body, content_type="application/json", headers=_cache(tag))


async def _next_page(request: web.Request, token: str) -> web.Response:
    server = server_of(request)
    principal = await server.runtime.recognise(credentials_of(request))
    held, id, index = server.held_views.find(token, _owner(principal))
    body = await _document(request, held.head, held.pages, index, id)
    return web.Response(
        body=body, content_type="application/json", headers={"Cache-Control": "private, no-store"}
    )


def _owner(principal: Principal) -> str:
    """Whose view it is; the tenant, being printable, ends before the null."""
    return f"{principal.tenant}\0{principal.id}"


async def _document(
    request: web.Request, head: bytes, pages: Pages, index: int, token: str | None
) -> bytes:
    entities: bytes = await server_of(request).runtime.port.run(lambda: pages.page(index))
    more = f'"{token}.{index + 1}"' if index + 1 < len(pages) else "null"
    return head + entities + f'],"next":{more}}}'.encode()


def _unchanged(request: web.Request, tag: str) -> bool:
    return tag in [part.strip() for part in request.headers.get("If-None-Match", "").split(",")]


def _cache(tag: str) -> dict[str, str]:
    return {"ETag": tag, "Cache-Control": "private, no-cache"}
