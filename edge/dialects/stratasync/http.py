"""StrataSync over HTTP: bootstrap, batch, deltas, mutate, and the socket's upgrade.

Answers have the shapes of the original, errors too (stratasync.md sections 3 to 5). Requests are
checked before their sender is. Long answers are spooled at one seq and sent from there in pieces.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from actors.dialects.stratasync.models import MEMBERS
from actors.dialects.stratasync.plan import effective_groups, stored_groups
from actors.dialects.stratasync.reads import (
    BootstrapWork,
    LookupWork,
    Metadata,
    Viewer,
    asked_of,
)  # fmt: skip
from actors.json_text import mended
from actors.scan import Spool, Work
from actors.types import Address, Entry, Resync
from edge.dialects.stratasync import frames as f
from edge.dialects.stratasync.auth import GroupsFailed, User, bearer_of
from edge.dialects.stratasync.connection import StrataConnection
from edge.dialects.stratasync.feed import Audience
from edge.dialects.stratasync.requests import (
    Invalid,
    bootstrap_ask,
    deltas_ask,
    lookups_ask,
    transactions_ask,
)  # fmt: skip
from edge.dialects.stratasync.service import StrataService
from edge.dialects.stratasync.writes import Writer
from edge.problems import status_of
from edge.requests import allow_origin, from_allowed_origin, named_tenant, server_of
from edge.waiting import body_at_hand
from edge.websocket import can_take_over, take_over, wants_websocket
from edge.websocket_plain import serve_plain
from infra import ids, limits
from infra.errors import AuthError, Busy, HoldfastError, ProtocolError, TenantRefused

log = logging.getLogger("holdfast.stratasync")
BODY_BYTES_MAX: Final = 16 << 20  # clients never get past a 413: more than any batch they make
CHUNK_BYTES: Final = 64 << 10
SPOOLS_MAX: Final = 64
PAGE_BYTES_MAX: Final = 8 << 20  # one answer of `deltas`
HEARTBEAT_TIMEOUT: Final = (1011, "Heartbeat timeout")
NDJSON: Final = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-cache"}
SERVICE: web.AppKey[StrataService] = web.AppKey("stratasync")

Answer = Callable[[web.Request, StrataService, str], Awaitable[web.StreamResponse]]


def add_routes(app: web.Application, service: StrataService, prefix: str = "") -> None:
    """Mount `/strata/{name}/sync/…`, and `/sync/…` where the application names a root."""
    app[SERVICE] = service
    bases = [prefix + "/strata/{name}/sync"]
    if service.declared.root is not None:
        bases.append(prefix + "/sync")
    for base in bases:
        app.router.add_get(f"{base}/bootstrap", _handler(_bootstrap))
        app.router.add_get(f"{base}/deltas", _handler(_deltas))
        app.router.add_get(f"{base}/ws", _handler(_socket), allow_head=False)
        app.router.add_post(f"{base}/batch", _handler(_batch))
        app.router.add_post(f"{base}/mutate", _handler(_mutate))
        app.router.add_route("*", base + "/{rest:.*}", _nowhere)


def _handler(answer: Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        service = request.app[SERVICE]
        name = request.match_info.get("name", service.declared.root or "")
        try:
            return await answer(request, service, name)
        except Invalid as error:
            return _json(400, error.body(ids.new_id()))
        except _Malformed as error:
            return _json(error.status, error.body())
        except TenantRefused as error:
            return _json(status_of(error.code), {"error": str(error)})
        except AuthError as error:
            return _json(401, {"error": str(error)})
        except GroupsFailed as error:
            return _json(500, {"error": str(error)})
        except HoldfastError as error:
            return _failed(error)

    return handle


class _Malformed(ProtocolError):
    """A body that is no JSON, or too much of it; `code` as the original's framework names it."""

    def __init__(self, status: int, code: str, error: str, message: str) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.error = error

    def body(self) -> dict[str, Any]:
        return {
            "statusCode": self.status, "code": self.code, "error": self.error,
            "message": str(self),
        }  # fmt: skip


def _json(status: int, body: Any) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json"
    )


def _failed(error: HoldfastError) -> web.Response:
    """What is no fault of the client. It repeats a 503 by itself, and repeating is safe."""
    if isinstance(error, ProtocolError):
        return _json(404, {"message": "No such database", "error": "Not Found", "statusCode": 404})
    log.warning("request failed code=%s error=%s", error.code, error)
    body = {"statusCode": 503, "error": "Service Unavailable", "message": f"{error.code}; repeat"}
    answer = _json(503, body)
    answer.headers["Retry-After"] = str(max(1, ((error.retry_after_ms or 0) + 999) // 1000))
    return answer


async def _nowhere(request: web.Request) -> web.Response:
    message = f"Route {request.method}:{request.path} not found"
    return _json(404, {"message": message, "error": "Not Found", "statusCode": 404})


# -- who asks ------------------------------------------------------------------------------------


async def _user(request: web.Request, service: StrataService, name: str) -> User:
    token = bearer_of(request.headers.get("Authorization"))
    return await service.user(token, name, named_tenant(request))


async def _viewer(
    request: web.Request, service: StrataService, name: str, asked: tuple[str, ...] = ()
) -> tuple[Address, Viewer]:
    user = await _user(request, service, name)
    address = service.address(user, name)
    resolved = await service.declared.auth.groups(user.user_id, name)
    return address, Viewer(user.user_id, resolved, asked)


def _query(request: web.Request) -> dict[str, list[str]]:
    return {key: request.query.getall(key) for key in request.query}


async def _body(request: web.Request) -> tuple[Any, int]:
    """(the decoded body, its bytes). Raises _Malformed."""
    data = body_at_hand(request)
    if data is None:
        data = await _awaited(request)
    size = len(data)
    if size > BODY_BYTES_MAX:
        raise _too_large()
    if not size:
        raise _Malformed(
            400, "FST_ERR_CTP_EMPTY_JSON_BODY", "Bad Request",
            "Body cannot be empty when content-type is set to 'application/json'",
        )  # fmt: skip
    try:
        return _decoded(data), size
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise _Malformed(
            400, "FST_ERR_CTP_INVALID_JSON_BODY", "Bad Request",
            "Body is not valid JSON but content-type is set to 'application/json'",
        ) from error  # fmt: skip


async def _awaited(request: web.Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    async with asyncio.timeout(limits.STALL_MAX_S):
        async for part in request.content.iter_any():
            size += len(part)
            if size > BODY_BYTES_MAX:
                raise _too_large()
            parts.append(part)
    return b"".join(parts)


def _too_large() -> _Malformed:
    return _Malformed(
        413, "FST_ERR_CTP_BODY_TOO_LARGE", "Payload Too Large", "Request body is too large"
    )


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return msgspec.json.decode(mended(data.decode()))


# -- reading -------------------------------------------------------------------------------------


async def _bootstrap(request: web.Request, service: StrataService, name: str) -> web.StreamResponse:
    ask = bootstrap_ask(_query(request))
    address, viewer = await _viewer(request, service, name, ask.groups)
    registry = service.declared.registry
    spool = await _scan(service, address, BootstrapWork(viewer, ask.only, ask.schema_hash))
    if spool is None:  # never written: nothing is created for a reader
        groups = effective_groups(viewer.resolved, (), viewer.user)
        names = registry.models if ask.only is None else ask.only
        meta = Metadata(
            "0", dict.fromkeys(names, 0), ask.schema_hash, asked_of(viewer, groups) or groups
        )
    else:
        meta = spool.result
    return await _stream(request, service, msgspec.json.encode(meta) + b"\n", spool)


async def _batch(request: web.Request, service: StrataService, name: str) -> web.StreamResponse:
    body, _ = await _body(request)
    requests = lookups_ask(body)
    address, viewer = await _viewer(request, service, name)
    spool = await _scan(service, address, LookupWork(viewer, requests))
    return await _stream(request, service, b"", spool)


async def _scan(service: StrataService, address: Address, work: Work) -> Spool | None:
    if service.spools >= SPOOLS_MAX:
        raise Busy("too many long answers are under way", retry_after_ms=1000)
    service.spools += 1
    try:
        spool = await service.port.scan(address, work)
    except BaseException:
        service.spools -= 1
        raise
    if spool is None:
        service.spools -= 1
    return spool


async def _stream(
    request: web.Request, service: StrataService, head: bytes, spool: Spool | None
) -> web.StreamResponse:
    """Send the head and the spool, and close it."""
    response = web.StreamResponse(headers=NDJSON)
    if "Origin" in request.headers and from_allowed_origin(request):
        allow_origin(request, response)  # before the middleware could: the head leaves now
    try:
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        if head:
            await response.write(head)
        if spool is not None:
            while chunk := await _chunk(service, spool):
                async with asyncio.timeout(limits.STALL_MAX_S):
                    await response.write(chunk)
        await response.write_eof()
    except (TimeoutError, ConnectionError):
        # The head is out: an end in the middle is all that can be told.
        if request.transport is not None:
            request.transport.abort()
    finally:
        if spool is not None:
            service.spools -= 1
            spool.close()
    return response


async def _chunk(service: StrataService, spool: Spool) -> bytes:
    if spool.in_memory:
        return spool.read(CHUNK_BYTES)
    data: bytes = await service.port.run(lambda: spool.read(CHUNK_BYTES * 4))
    return data


async def _deltas(request: web.Request, service: StrataService, name: str) -> web.StreamResponse:
    ask = deltas_ask(_query(request))
    user = await _user(request, service, name)
    address = service.address(user, name)
    bounds = await service.port.bounds(address)
    if 0 < ask.after < bounds.floor:
        return _stale()
    # The row before the resolver, and both before the pages: where a membership ends meanwhile, it
    # is heeded at its place in the log.
    (row,) = await service.port.get(address, [(MEMBERS, user.user_id)])
    resolved = await service.declared.auth.groups(user.user_id, name)
    authorized = effective_groups(resolved, stored_groups(row), user.user_id)
    asked = asked_of(Viewer(user.user_id, resolved, ask.groups), authorized)
    audience = Audience(user.user_id, asked, 0 if row is None else row.seq)
    groups = msgspec.json.encode(sorted({*audience.groups, user.user_id})).decode()
    found: list[Entry] = []
    cursor, size = max(ask.after, bounds.floor), 0
    while len(found) <= ask.limit and size < PAGE_BYTES_MAX and cursor < bounds.head:
        page = await service.port.visible(
            address, cursor, groups, entries_max=ask.limit + 1 - len(found),
            bytes_max=PAGE_BYTES_MAX,
        )  # fmt: skip
        if isinstance(page, Resync):
            if page.reason == "ahead_of_head":
                break
            return _stale()
        found += audience.pick(page.entries)
        size += sum(entry.size for entry in page.entries)
        cursor = page.last
    shown = found[: ask.limit]
    more = len(found) > len(shown) or (size >= PAGE_BYTES_MAX and cursor < bounds.head)
    last = shown[-1].seq if shown else ask.after
    return web.Response(
        body=f.page(shown, more=more, last=last).encode(), content_type="application/json"
    )


def _stale() -> web.Response:
    message = "A fresh bootstrap is required before fetching deltas"
    return _json(409, {"error": f.BOOTSTRAP_REQUIRED, "message": message})


# -- writing -------------------------------------------------------------------------------------


async def _mutate(request: web.Request, service: StrataService, name: str) -> web.StreamResponse:
    body, size = await _body(request)
    transactions = transactions_ask(body)
    user = await _user(request, service, name)
    address = service.address(user, name)
    resolved = await service.declared.auth.groups(user.user_id, name)
    writer = Writer(
        service.port, service.declared.registry, address, user, resolved, body_bytes=size
    )
    results = await writer.write(transactions)
    written = [result.sync_id for result in results if result.sync_id is not None]
    return _json(
        200,
        {
            "lastSyncId": str(max(written, default=0)),
            "results": [result.body() for result in results],
            "success": len(written) == len(results),
        },
    )


# -- the socket ----------------------------------------------------------------------------------


async def _socket(request: web.Request, service: StrataService, name: str) -> web.StreamResponse:
    token, tenant = request.query.get("token"), named_tenant(request)
    if not token:
        return _json(401, {"error": "Token required"})
    try:
        await service.user(token, name, tenant)
    except TenantRefused:
        raise
    except AuthError:
        return _json(401, {"error": "Invalid token"})
    if not wants_websocket(request):
        return web.Response(status=404)
    server = server_of(request)
    server.admit()

    def open_session(sink: Any) -> StrataConnection:
        sink.silent_close = HEARTBEAT_TIMEOUT
        connection = StrataConnection(service, sink, name, tenant)
        service.connections.add(connection)
        server.connections.add(connection)
        return connection

    if can_take_over(request) and request.transport is not None:
        return take_over(request, server.sockets, open_session)
    return await serve_plain(request, server.sockets, open_session)
