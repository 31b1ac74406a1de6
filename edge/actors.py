"""Which scopes are awake and why, under /v1/actors. Needs an admin token outside `dev`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from actors.attendance import OUTLINES_MAX
from actors.types import Address
from edge.admin import require_admin
from edge.problems import Problem
from edge.requests import from_allowed_origin, server_of

About = Callable[[Address], Awaitable[dict[str, Any] | None]]


def add_routes(app: web.Application) -> None:
    """Mount them. A slash in a scope's name must be escaped here."""
    base = "/v1/actors/{tenant}/{scope:[^/]+}"
    app.router.add_get("/v1/actors", _list)
    app.router.add_get(base, _show)
    app.router.add_post(base + "/sleep", _sleep)
    app.router.add_post(base + "/wake", _wake)
    app.router.add_post(base + "/move", _move)


async def _list(request: web.Request) -> web.Response:
    """Processes, and scopes that are awake. Query: tenant, prefix, limit."""
    await require_admin(request)
    query = request.query
    try:
        limit = min(OUTLINES_MAX, max(1, int(query.get("limit", "100"))))
    except ValueError as error:
        raise Problem("bad_params", "limit: a number") from error
    attendance = server_of(request).attendance
    found = await attendance.awake(query.get("tenant", ""), query.get("prefix", ""), limit + 1)
    scopes = found["scopes"]
    return web.json_response({**found, "scopes": scopes[:limit], "more": len(scopes) > limit})


async def _show(request: web.Request) -> web.Response:
    """One scope; it is not woken."""
    await require_admin(request)
    return await _about(request, server_of(request).attendance.outline)


async def _sleep(request: web.Request) -> web.Response:
    """Close its file once nothing is under way; sockets stay."""
    await _changing(request)
    return await _about(request, server_of(request).attendance.sleep)


async def _wake(request: web.Request) -> web.Response:
    """Open its file, out of the bucket where it must be."""
    await _changing(request)
    return await _about(request, server_of(request).attendance.wake)


async def _move(request: web.Request) -> web.Response:
    """Give it to another process; clients stay connected. Query: process."""
    await _changing(request)
    server = server_of(request)
    if server.mover is None:
        raise Problem("bad_params", "scopes move between the processes of `serve --actors A` only")
    process = request.query.get("process", "")
    address = Address(request.match_info["tenant"], request.match_info["scope"])
    await server.mover(address, process)
    return await _about(request, server.attendance.outline)


async def _changing(request: web.Request) -> None:
    if not from_allowed_origin(request):
        raise Problem("forbidden", "this page's origin may not; see cors_origins")
    await require_admin(request)


async def _about(request: web.Request, ask: About) -> web.Response:
    address = Address(request.match_info["tenant"], request.match_info["scope"])
    found = await ask(address)
    if found is None:
        raise Problem("not_found", f"no scope {address.scope!r} in tenant {address.tenant!r}")
    return web.json_response(found)
