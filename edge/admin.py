"""Inspection for operators, under /v1. Needs an admin token outside `dev`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from actors.types import Address
from edge.auth import Action, Principal
from edge.bucket_report import bucket_report, replica_report
from edge.problems import Problem
from edge.requests import principal_of, server_of
from infra.errors import HoldfastError

LIST_MAX = 500


def add_routes(app: web.Application) -> None:
    """Mount the admin surface."""
    app.router.add_get("/v1/scopes", _list)
    app.router.add_get("/v1/scopes/{tenant}/{scope:.+}", _show)
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


async def _list(request: web.Request) -> web.Response:
    """Scopes in order of name. Query: tenant, prefix, after, limit."""
    await require_admin(request)
    query = request.query
    tenant = query.get("tenant", "default")
    try:
        limit = min(LIST_MAX, max(1, int(query.get("limit", "100"))))
    except ValueError as error:
        raise Problem("bad_params", "limit: a number") from error
    rows = server_of(request).host.index.page(
        tenant, query.get("prefix", ""), query.get("after", ""), limit + 1
    )
    scopes = [_outline(request, Address(tenant, scope), path) for scope, path in rows[:limit]]
    after = rows[limit - 1][0] if len(rows) > limit else None
    return web.json_response({"scopes": scopes, "next": after})


def _outline(request: web.Request, address: Address, path: str) -> dict[str, Any]:
    """What is known without waking the scope."""
    server = server_of(request)
    outline: dict[str, Any] = {
        "tenant": address.tenant,
        "scope": address.scope,
        "open": False,
        "subscribers": server.runtime.feeds.readers(address),
    }
    try:
        outline["file_bytes"] = (server.host.directory / path).stat().st_size
    except OSError:
        outline["file_bytes"] = None
    scope = server.host.open_scopes.get(address)
    if scope is not None:
        header = scope.ledger.header
        outline.update(
            open=True, dialect=header.dialect, epoch=header.epoch, head=scope.bounds.head,
            floor=scope.bounds.floor, bytes=header.bytes,
        )  # fmt: skip
    return outline


async def _show(request: web.Request) -> web.Response:
    """One scope, awake."""
    await require_admin(request)
    server = server_of(request)
    address = Address(request.match_info["tenant"], request.match_info["scope"])
    try:
        alarms = await server.host.alarms.of(address)
    except HoldfastError as error:
        raise Problem(error.code, str(error)) from error
    scope = server.host.open_scopes.get(address)
    if scope is None:
        raise Problem("not_found", f"no scope {address.scope!r} in tenant {address.tenant!r}")
    header = scope.ledger.header
    path = scope.ledger.path
    outline = _outline(request, address, str(path.relative_to(server.host.directory)))
    return web.json_response(
        {
            **outline,
            "owner": header.owner,
            "materialize": header.materialize,
            "created_at": header.created_at,
            "file": str(path.relative_to(server.host.directory)),
            "alarms": [{"name": name, "due_at": due_at} for name, due_at, _, _ in alarms],
            "replica": replica_report(server.host, scope),
            "bucket": bucket_report(server.host),
        }
    )
