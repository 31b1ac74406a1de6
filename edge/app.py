"""The aiohttp application: routes, middlewares, and the few pages every server has."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from actors.hosts_port import HostsPort
from edge import actors, admin, tenant_paths, transfer
from edge.dialects.asterql import http as asterql
from edge.dialects.para import http as para
from edge.dialects.stratasync import http as stratasync
from edge.dialects.vuer import http as vuer
from edge.metrics import counts_of, render
from edge.openapi import document
from edge.replaying import replay
from edge.requests import SERVER, answer_errors, cors, mounted_at, principal_of, server_of
from edge.version import VERSION
from infra.sqlite import SQLITE_VERSION

if TYPE_CHECKING:
    from edge.server import Server

WEB = Path(__file__).parent / "web"
MODULES = frozenset([WEB / "holdfast.js", WEB / "para.js", WEB / "vuer.js", *WEB.glob("vuer/*.js")])
_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; object-src 'none';"
    " base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def build_app(server: Server) -> web.Application:
    """Everything one server answers."""
    middlewares = [cors(server.config.cors_origins), answer_errors]
    if isinstance(server.remote, HostsPort) and server.config.host_instance:
        middlewares.append(replay(server.remote.elsewhere, _tenant_of))
    app = web.Application(
        middlewares=middlewares,
        client_max_size=server.config.body_bytes_max,
    )
    app[SERVER] = server
    router = app.router
    router.add_get("/", _root)
    router.add_get("/healthz", _healthz)
    router.add_get("/readyz", _readyz)
    router.add_get("/version", _version)
    router.add_get("/metrics", _metrics)
    router.add_get("/openapi.json", _openapi)
    router.add_get("/console", _console)
    router.add_get("/console/{file}", _console_file)
    for name in ("holdfast.js", "para.js", "vuer.js"):
        router.add_get(f"/{name}", _module)
    router.add_get("/vuer/{file}", _module)
    asterql.add_routes(app)
    server.keep.add_routes(app)
    vuer.add_routes(app, server.rooms, server.config.rtc_root)
    actors.add_routes(app)
    transfer.add_routes(app)  # before what takes any path below a scope
    admin.add_routes(app)
    if server.strata is not None:
        stratasync.add_routes(app, server.strata)
    if server.para is not None:
        para.add_routes(app, server.para)
    tenant_paths.add_routes(app, server.runtime.tenancy)  # last: it must hide nothing
    return app


async def _tenant_of(request: web.Request) -> str:
    return (await principal_of(request)).tenant


async def _root(request: web.Request) -> web.Response:
    raise web.HTTPFound(f"{mounted_at(request)}/console")


async def _healthz(request: web.Request) -> web.Response:
    """The process answers."""
    return web.json_response({"status": "ok"})


async def _readyz(request: web.Request) -> web.Response:
    """New clients are welcome."""
    server = server_of(request)
    stopping = server.runtime.stopping or (server.hosts is not None and server.hosts.draining)
    return web.json_response(
        {"status": "stopping" if stopping else "ready"}, status=503 if stopping else 200
    )


async def _version(request: web.Request) -> web.Response:
    return web.json_response(
        {
            "version": VERSION,
            "python": platform.python_version(),
            "sqlite": SQLITE_VERSION,
            "dialects": ["asterql", "starkeep", "vuer-rtc"]
            + (["stratasync"] if server_of(request).strata is not None else [])
            + (["para-sync"] if server_of(request).para is not None else []),
        }
    )


async def _metrics(request: web.Request) -> web.Response:
    await admin.require_admin(request)
    server = server_of(request)
    edges = [counts_of(server), *await server.other_edges()]
    return web.Response(
        body=render(edges, await server.inspector.report()),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def _openapi(request: web.Request) -> web.Response:
    return web.Response(body=msgspec.json.encode(document()), content_type="application/json")


async def _console(request: web.Request) -> web.FileResponse:
    return web.FileResponse(WEB / "console" / "index.html", headers=_SECURITY)


async def _console_file(request: web.Request) -> web.FileResponse:
    name = request.match_info["file"]
    if name == "index.html":  # its links are relative to where it stands
        raise web.HTTPFound(f"{mounted_at(request)}/console")
    if name not in {"console.js", "console.css", "icon.svg"}:
        raise web.HTTPNotFound()
    return web.FileResponse(WEB / "console" / name, headers=_SECURITY)


async def _module(request: web.Request) -> web.FileResponse:
    path = WEB / request.path.removeprefix("/")
    if path not in MODULES:
        raise web.HTTPNotFound()
    headers = {**_SECURITY, "Access-Control-Allow-Origin": "*"}
    return web.FileResponse(path, headers=headers)
