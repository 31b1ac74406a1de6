"""What HTTP handlers share: the typed place of the server in an application, credentials, errors,
CORS.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from edge.auth import Action, Credentials, Principal
from edge.problems import Problem, problem, status_of_error
from infra import ids
from infra.errors import HoldfastError

if TYPE_CHECKING:
    from edge.server import Server

log = logging.getLogger("holdfast.http")
SERVER: web.AppKey[Server] = web.AppKey("server")
# In the match of a request whose path names a tenant (edge/tenant_paths.py).
TENANT: Final = "holdfast.tenant"
MOUNTED_AT: Final = "holdfast.mounted_at"
_REQUEST_ID = re.compile(r"[!-~]{1,64}")
_HEADER_LIST = re.compile(r"[A-Za-z0-9-]{1,64}( ?, ?[A-Za-z0-9-]{1,64}){0,49}")
_HEADERS = (
    "Authorization", "Content-Type", "If-None-Match", "If-Range", "Last-Event-ID", "Range",
    "X-Request-Id",
)  # fmt: skip
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def server_of(request: web.Request) -> Server:
    """The server this request came to."""
    return request.app[SERVER]


def named_tenant(request: web.Request) -> str | None:
    """The tenant that host name or path name. Raises TenantRefused where they name two."""
    return server_of(request).runtime.tenancy.named(request.host, request.match_info.get(TENANT))


def mounted_at(request: web.Request) -> str:
    """What stands before the request's path in its address, for links: "" or a tenant's path."""
    return request.match_info.get(MOUNTED_AT, "")


def credentials_of(request: web.Request) -> Credentials:
    """The bearer of the Authorization header, else the `token` query parameter."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    token = value.strip() if scheme.lower() == "bearer" else request.query.get("token")
    headers = {name.lower(): value for name, value in request.headers.items()}
    tenant = named_tenant(request)
    return Credentials(token or None, headers, dict(request.query), request.remote, tenant)


async def principal_of(request: web.Request, *, anywhere: bool = False) -> Principal:
    """Who sends the request. Raises AuthError."""
    runtime = server_of(request).runtime
    return await runtime.recognise(credentials_of(request), anywhere=anywhere)


async def require(request: web.Request, scope: str, action: Action) -> Principal:
    """The sender, if they may. Raises AuthError or Problem `forbidden`."""
    principal = await principal_of(request)
    if not await server_of(request).runtime.may(principal, scope, action):
        raise Problem("forbidden", f"no {action} access to this scope")
    return principal


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as a problem document; what nobody expected is logged and says nothing."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise  # a redirect
        request_id = _request_id(request)
        code = _HTTP_CODES.get(error.status, "bad_frame")
        body = problem(code, error.reason, request_id=request_id, status=error.status)
        answer = _answer(error.status, body, request_id, None)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except HoldfastError as error:
        detail = error.detail if isinstance(error, Problem) else None
        after, request_id = error.retry_after_ms, _request_id(request)
        body = problem(
            error.code, str(error), request_id=request_id, retryable=error.retryable,
            retry_after_ms=after, detail=detail,
        )  # fmt: skip
        return _answer(status_of_error(error), body, request_id, after)
    except TimeoutError:
        request_id = _request_id(request)
        body = problem("busy", "took too long", request_id=request_id, retryable=True)
        return _answer(503, body, request_id, 1000)
    except Exception:  # the top: no traceback reaches a client
        request_id = _request_id(request)
        log.exception("request failed id=%s path=%s", request_id, request.path)
        body = problem("internal", "see the server's log", request_id=request_id)
        return _answer(500, body, request_id, None)


def _request_id(request: web.Request) -> str:
    """The client's own, or a fresh one. For errors: drawing one for each request has its price."""
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else ids.new_id()


def _answer(status: int, body: bytes, request_id: str, after_ms: int | None) -> web.Response:
    headers = {"X-Request-Id": request_id}
    if after_ms is not None:
        headers["Retry-After"] = str(max(1, (after_ms + 999) // 1000))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="holdfast"'
    return web.Response(
        status=status, body=body, content_type="application/problem+json", headers=headers
    )


def cors(
    origins: tuple[str, ...],
) -> Middleware:
    """Let browsers of these origins call; `*` is all of them."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        allowed = origin is not None and ("*" in origins or origin in origins)
        if request.method == "OPTIONS" and allowed:
            response: web.StreamResponse = web.Response(status=204)
            response.headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, PUT, DELETE"
            # What the page asks for as well: StrataSync's transport sends headers of the app's own.
            asked = request.headers.get("Access-Control-Request-Headers", "")
            names = [*_HEADERS, *(asked.split(",") if _HEADER_LIST.fullmatch(asked) else ())]
            response.headers["Access-Control-Allow-Headers"] = ", ".join(
                dict.fromkeys(name.strip().lower() for name in names)
            )
            response.headers["Access-Control-Max-Age"] = "86400"
        else:
            response = await handler(request)
        if allowed and not response.prepared:
            allow_origin(request, response)
        return response

    return middleware


def allow_origin(request: web.Request, response: web.StreamResponse) -> None:
    """The headers of an answer that the browser of an allowed origin may read."""
    response.headers["Access-Control-Allow-Origin"] = request.headers.get("Origin") or "*"
    response.headers["Access-Control-Expose-Headers"] = (
        "Content-Range, ETag, Retry-After, X-Content-SHA256, X-Request-Id"
    )
    response.headers["Vary"] = "Origin"


def from_allowed_origin(request: web.Request) -> bool:
    """Whether no browser sent it, or one that shows a page of this server or of `cors_origins`.

    Browsers let any page open a socket or post plain text anywhere, CORS or not; with cookies or
    on a server that asks nobody for a token, such a page would act as its visitor.
    """
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    origins = server_of(request).config.cors_origins
    return "*" in origins or origin in origins or origin.partition("://")[2] == request.host


class PeerFaults(logging.Filter):
    """Drops the HTTP library's tracebacks of requests that are no HTTP: their sender was told."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError | ConnectionError)
