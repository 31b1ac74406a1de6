"""Inspection for operators, under /v1. Needs an admin token outside `dev`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from actors.types import Address
from edge.auth import Action, Principal
from edge.problems import Problem
from edge.requests import named_tenant, principal_of, server_of
from infra.errors import HoldfastError, TenantRefused

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
    principal = await principal_of(request, anywhere=True)
    if not await server_of(request).runtime.may(principal, "", Action.ADMIN):
        raise Problem("forbidden", "an admin token is needed")
    return principal


def address_asked(request: web.Request) -> Address:
    """The scope of the path. Raises TenantRefused where the address is another tenant's."""
    tenant = tenant_asked(request, request.match_info["tenant"])
    return Address(tenant, request.match_info["scope"])


def tenant_asked(request: web.Request, tenant: str | None) -> str:
    """The tenant asked about: at the address of one, that one only."""
    named = named_tenant(request)
    if named is not None and tenant not in (None, named):
        raise TenantRefused("at this address there is one tenant, and that is another")
    return tenant or named or "default"


async def _whoami(request: web.Request) -> web.Response:
    principal = await principal_of(request, anywhere=True)
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
    tenant = tenant_asked(request, query.get("tenant"))
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
    address = address_asked(request)
    try:
        found = await server.inspector.show(address)
    except HoldfastError as error:
        raise Problem(error.code, str(error)) from error
    if found is None:
        raise Problem("not_found", f"no scope {address.scope!r} in tenant {address.tenant!r}")
    return web.json_response(_here(server, found))
