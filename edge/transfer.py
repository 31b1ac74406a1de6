"""Fork, export and import of scopes over HTTP, under /v1. Needs an admin token outside `dev`."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Final, get_args

import msgspec
from aiohttp import web

from actors.dialects.asterql.keys import check_scope
from actors.dialects.kinds import reserved_kind
from actors.moment import parse_at
from actors.transfers import Format, Made, Transferring
from actors.types import Address
from edge.admin import address_asked, require_admin
from edge.problems import Problem
from edge.requests import from_allowed_origin, server_of
from infra import clock, limits
from infra.errors import ConfigError

CHUNK_BYTES: Final = 1 << 20
_TYPES: Final = {"ndjson": "application/x-ndjson", "sqlite": "application/vnd.sqlite3"}


class ForkBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST fork`. `at` as `holdfast restore --at` takes it; None is now."""

    source: str = msgspec.field(name="from")
    at: str | None = None


_decode_fork = msgspec.json.Decoder(ForkBody).decode


def add_routes(app: web.Application) -> None:
    """Mount them. A slash in a scope's name must be escaped here."""
    base = "/v1/scopes/{tenant}/{scope:[^/]+}"
    app.router.add_post(base + "/fork", _fork)
    app.router.add_get(base + "/export", _export)
    app.router.add_post(base + "/import", _import)


async def _fork(request: web.Request) -> web.Response:
    """The scope of the path comes to be, with the state of `from`."""
    address = await _new_scope(request)
    try:
        async with asyncio.timeout(limits.STALL_MAX_S):  # nobody holds a request open for ever
            body = _decode_fork(await request.read())
        at = None if body.at is None else parse_at(body.at, now_ms=clock.now_ms())
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise Problem("bad_params", f'body: {{"from","at"}}: {error}') from error
    except ConfigError as error:
        raise Problem("bad_params", f"at: {error}") from error
    source = Address(address.tenant, body.source)
    return _made(address, await _transfers(request).fork(source, address, at))


async def _export(request: web.Request) -> web.StreamResponse:
    """The scope at one released seq, as a file. Query: format (ndjson or sqlite)."""
    await require_admin(request)
    form = request.query.get("format", "ndjson")
    if form not in get_args(Format):
        raise Problem("bad_params", f"format: {' or '.join(get_args(Format))}")
    kind: Format = "sqlite" if form == "sqlite" else "ndjson"
    export = await _transfers(request).export(_address(request), kind)
    with closing(export.file):
        response = web.StreamResponse(
            headers={"Content-Type": _TYPES[kind], "X-Holdfast-Seq": str(export.seq)}
        )
        response.content_length = export.size
        await response.prepare(request)
        run = server_of(request).port.run
        while chunk := await run(lambda: export.file.read(CHUNK_BYTES)):
            async with asyncio.timeout(server_of(request).config.stall_s):
                await response.write(chunk)
        await response.write_eof()
    return response


async def _import(request: web.Request) -> web.Response:
    """The scope of the path comes to be, out of the body. Query: keep_epoch=1."""
    address = await _new_scope(request)
    keep_epoch = request.query.get("keep_epoch", "0")
    if keep_epoch not in ("0", "1"):
        raise Problem("bad_params", "keep_epoch: 0 or 1")
    chunks = request.content.iter_chunked(CHUNK_BYTES)
    made = await _transfers(request).accept(address, chunks, keep_epoch=keep_epoch == "1")
    return _made(address, made)


async def _new_scope(request: web.Request) -> Address:
    """The address of the path, if the sender may make a scope there."""
    if not from_allowed_origin(request):
        raise Problem("forbidden", "this page's origin may not change scopes; see cors_origins")
    await require_admin(request)
    address = _address(request)
    if reserved_kind(address.scope) is None:  # the other kinds are their dialects' to check
        check_scope(address.scope)
    if not 0 < len(address.tenant.encode()) <= limits.TENANT_BYTES_MAX:
        raise Problem("bad_params", f"a tenant has 1 to {limits.TENANT_BYTES_MAX} bytes")
    return address


def _address(request: web.Request) -> Address:
    return address_asked(request)


def _transfers(request: web.Request) -> Transferring:
    transfers = server_of(request).transfers
    if transfers is None or server_of(request).runtime.stopping:
        raise Problem("closed", "the server is going away", retry_after_ms=1000)
    return transfers


def _made(address: Address, scope: Made) -> web.Response:
    bounds = scope.bounds
    made = {
        "tenant": address.tenant, "scope": address.scope, "epoch": bounds.epoch,
        "head": bounds.head, "floor": bounds.floor,
    }  # fmt: skip
    return web.json_response(made, status=201)
