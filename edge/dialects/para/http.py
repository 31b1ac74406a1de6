"""The routes of para-sync: the socket's upgrade, and snapshots of single objects."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from actors.dialects.para.keys import check_key
from edge.auth import Principal
from edge.dialects.para import frames as f
from edge.dialects.para.access import View
from edge.dialects.para.authority import SyncedAuthority
from edge.dialects.para.connection import ParaConnection
from edge.dialects.para.objects import envelope_of, read_rows, upcast
from edge.dialects.para.service import ParaService
from edge.problems import Problem
from edge.requests import from_allowed_origin, principal_of, server_of
from edge.websocket import can_take_over, take_over, wants_websocket
from edge.websocket_plain import serve_plain
from infra.errors import ProtocolError

SERVICE: web.AppKey[ParaService] = web.AppKey("para")
CODECS: Final[dict[str, f.FrameCodec]] = {"json": f.JSON, "msgpack": f.MSGPACK}


def add_routes(app: web.Application, service: ParaService, prefix: str = "") -> None:
    """Mount `/para/{name}/objectfeed`, and `/objectfeed` where the application names a root."""
    app[SERVICE] = service
    bases = [prefix + "/para/{name}/objectfeed"]
    if service.declared.root is not None:
        bases.append(prefix + "/objectfeed")
    for base in bases:
        app.router.add_get(base, _socket, allow_head=False)
        app.router.add_get(base + "/snapshot/{key:.+}", _snapshot)


async def _objects(request: web.Request) -> tuple[ParaService, Principal, SyncedAuthority]:
    """Raises AuthError and ProtocolError."""
    service = request.app[SERVICE]
    name = request.match_info.get("name", service.declared.root or "")
    principal = await principal_of(request)
    if "/" in name:  # %2F: parts of a namespace are not for clients to name
        raise ProtocolError("a namespace has no slash", code="bad_scope")
    return service, principal, service.authority(name, principal.tenant)


async def _socket(request: web.Request) -> web.StreamResponse:
    if not wants_websocket(request):
        raise Problem("not_found", "open a WebSocket here")
    server = server_of(request)
    if not from_allowed_origin(request):
        raise Problem("forbidden", "pages of this origin may not; see cors_origins")
    codec = CODECS.get(request.query.get("codec", "json"))
    if codec is None:
        raise Problem("bad_params", f"codec is one of {', '.join(CODECS)}")
    service, principal, authority = await _objects(request)
    server.admit()

    def open_session(sink: Any) -> ParaConnection:
        connection = ParaConnection(service, sink, principal, authority, codec)
        sink.frame_bytes_max = service.frame_bytes_max
        service.connections.add(connection)
        server.connections.add(connection)
        return connection

    if can_take_over(request) and request.transport is not None:
        return take_over(request, server.sockets, open_session)
    return await serve_plain(
        request, server.sockets, open_session, frame_bytes_max=service.frame_bytes_max
    )


async def _snapshot(request: web.Request) -> web.StreamResponse:
    service, principal, authority = await _objects(request)
    key = check_key(request.match_info["key"])
    kind, address = authority.kinds.of(key), authority.address(key)
    allowed = await authority.doorkeeper.ask(principal, address.scope, key, "read")
    if allowed is None:
        raise Problem("forbidden", "no read access to this key")
    held = await read_rows(service.port, address, [key])
    envelope = envelope_of(held.rows[0], held.bounds.jump)
    if envelope is None:
        raise Problem("not_found", "there is no such object")
    if envelope.deleted:
        raise Problem("deleted", "the object was deleted")
    tag = f'W/"{held.bounds.epoch}-{envelope.sequence}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if _matches(request.headers.get("If-None-Match", ""), tag):
        return web.Response(status=304, headers=headers)
    shown = View(kind, principal, key, allowed).show(upcast(kind, key, envelope))
    if shown is None:
        raise Problem("forbidden", "the object cannot be shown to you")
    if request.query.get("codec") == "msgpack":
        body = msgspec.msgpack.encode(f.members_of(shown))
        return web.Response(body=body, content_type="application/msgpack", headers=headers)
    text = f.JSON.encode(f.members_of(shown))
    return web.Response(body=text.encode(), content_type="application/json", headers=headers)


def _matches(header: str, tag: str) -> bool:
    tags = [part.strip() for part in header.split(",")]
    return "*" in tags or tag in tags or tag.removeprefix("W/") in tags
