"""What HTTP handlers share: the typed place of the server in an application, credentials, errors, CORS."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from edge.auth import Action, Credentials, Principal
from edge.problems import Problem, problem, status_of
from infra import ids
from infra.errors import AuthError, HoldfastError

if TYPE_CHECKING:
    from edge.server import Server

log = logging.getLogger("holdfast.http")
SERVER: web.AppKey[Server] = web.AppKey("server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def server_of(request: web.Request) -> Server:
    """The server this request came to."""
    return request.app[SERVER]


def credentials_of(request: web.Request) -> Credentials:
    """The bearer of the Authorization header, else the `token` query parameter."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    token = value.strip() if scheme.lower() == "bearer" else request.query.get("token")
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Credentials(token or None, headers, dict(request.query), request.remote)


async def principal_of(request: web.Request) -> Principal:
    """Who sends the request. Raises AuthError."""
    return await server_of(request).runtime.recognise(credentials_of(request))


async def require(request: web.Request, scope: str, action: Action) -> Principal:
    """The sender, if they may. Raises AuthError or Problem `forbidden`."""
    principal = await principal_of(request)
    if not await server_of(request).runtime.may(principal, scope, action):
        raise Problem("forbidden", f"no {action} access to this scope")
    return principal


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as a problem document; what nobody expected is logged and says nothing."""
    request_id = request.headers.get("X-Request-Id", "")[:64] or ids.new_id()
    try:
        return await handler(request)
    except web.HTTPException as error:
        code = {404: "not_found", 405: "not_found", 413: "too_large"}.get(error.status, "bad_frame")
        body = problem(code, error.reason, request_id=request_id)
        return _answer(error.status, body, request_id, None)
    except HoldfastError as error:
        code = "unauthenticated" if isinstance(error, AuthError) else error.code
        detail = error.detail if isinstance(error, Problem) else None
        after = error.retry_after_ms
        body = problem(
            error.code, str(error), request_id=request_id, retryable=error.retryable,
            retry_after_ms=after, detail=detail,
        )  # fmt: skip
        status = 401 if code == "unauthenticated" else status_of(code)
        return _answer(status, body, request_id, after)
    except TimeoutError:
        body = problem("busy", "took too long", request_id=request_id, retryable=True)
        return _answer(503, body, request_id, 1000)
    except Exception:  # the top: no traceback reaches a client
        log.exception("request failed id=%s path=%s", request_id, request.path)
        body = problem("internal", "see the server's log", request_id=request_id)
        return _answer(500, body, request_id, None)


def _answer(status: int, body: bytes, request_id: str, after_ms: int | None) -> web.Response:
    headers = {"X-Request-Id": request_id}
    if after_ms is not None:
        headers["Retry-After"] = str(max(1, (after_ms + 999) // 1000))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="holdfast"'
    return web.Response(
        status=status, body=body, content_type="application/problem+json", headers=headers
    )


def cors(origins: tuple[str, ...]) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """Let browsers of these origins call; `*` is all of them."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        allowed = origin is not None and ("*" in origins or origin in origins)
        if request.method == "OPTIONS" and allowed:
            response: web.StreamResponse = web.Response(status=204)
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Access-Control-Allow-Headers"] = (
                "Authorization, Content-Type, If-None-Match, Last-Event-ID, X-Request-Id"
            )
            response.headers["Access-Control-Max-Age"] = "86400"
        else:
            response = await handler(request)
        if allowed and not response.prepared:
            response.headers["Access-Control-Allow-Origin"] = origin or "*"
            response.headers["Access-Control-Expose-Headers"] = "ETag, Retry-After, X-Request-Id"
            response.headers["Vary"] = "Origin"
        return response

    return middleware
