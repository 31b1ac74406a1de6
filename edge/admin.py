"""Inspection for operators, under /v1. Needs an admin token outside `dev`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from actors.types import Address
from edge.auth import Action, Principal
from edge.problems import Problem
from edge.requests import principal_of, server_of
from infra.errors import HoldfastError

if TYPE_CHECKING:
    from edge.server import Server

LIST_MAX = 500


def add_routes(app: web.Application) -> None:
    """Mount the admin surface."""
    app.router.add_get("/v1/scopes", _list)
    app.router.add_get("/v1/scopes/{tenant}/{scope:.+}", _show)
    app.router.add_get("/v1/hosts", _hosts)
    app.router.add_post("/v1/hosts/{name}/drain", _drain)
    app.router.add_get("/v1/whoami", _whoami)


async def require_admin(request: web.Request) -> Principal:
    """The sender, if an admin. Raises AuthError or Problem forbidden."""
    principal = await principal_of(request)
    if not await server_of(request).runtime.may(principal, "", Action.ADMIN):
        raise Problem("forbidden", "an admin token is needed")
    return principal


async def _whoami(request: web.Request) -> web.Response:
    principal = await principal_of(request)
    return web.json_response(
        {"id": principal.id, "tenant": principal.tenant, "expires_at_ms": principal.expires_at_ms}
    )


async def _hosts(request: web.Request) -> web.Response:
    """The live hosts by name, as this one sees them; none where there is one host only."""
    await require_admin(request)
    hosts = server_of(request).hosts
    found = [] if hosts is None else await hosts.admin.hosts()
    return web.json_response({"hosts": found})


async def _drain(request: web.Request) -> web.Response:
    """Have a host hand over its scopes; answers once it has begun."""
    await require_admin(request)
    hosts, name = server_of(request).hosts, request.match_info["name"]
    if hosts is None:
        raise Problem("not_found", "this server is one host alone")
    await hosts.admin.drain(name)
    return web.json_response({"name": name, "state": "draining"}, status=202)


async def _list(request: web.Request) -> web.Response:
    """Scopes in order of name. Query: tenant, prefix, after, limit."""
    await require_admin(request)
    query = request.query
    tenant = query.get("tenant", "default")
    try:
        limit = min(LIST_MAX, max(1, int(query.get("limit", "100"))))
    except ValueError as error:
        raise Problem("bad_params", "limit: a number") from error
    server = server_of(request)
    found = await server.inspector.scopes(
        tenant, query.get("prefix", ""), query.get("after", ""), limit + 1
    )
    after = found[limit - 1]["scope"] if len(found) > limit else None
    scopes = [_here(server, outline) for outline in found[:limit]]
    return web.json_response({"scopes": scopes, "next": after})


def _here(server: Server, outline: dict[str, Any]) -> dict[str, Any]:
    """With what only this edge knows."""
    address = Address(outline["tenant"], outline["scope"])
    return {**outline, "subscribers": server.runtime.feeds.readers(address)}


async def _show(request: web.Request) -> web.Response:
    """One scope, awake."""
    await require_admin(request)
    server = server_of(request)
    address = Address(request.match_info["tenant"], request.match_info["scope"])
    try:
        found = await server.inspector.show(address)
    except HoldfastError as error:
        raise Problem(error.code, str(error)) from error
    if found is None:
        raise Problem("not_found", f"no scope {address.scope!r} in tenant {address.tenant!r}")
    return web.json_response(_here(server, found))
