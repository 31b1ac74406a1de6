"""Answers `fly-replay`: a proxy in front that knows the header takes the request to the host that
has its scope, so that a busy room costs no link between hosts.

A hint, and only for requests whose address names one scope: every host serves every request, over a
link where it has to. See <https://fly.io/docs/networking/dynamic-request-routing/>.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import unquote

from aiohttp import web
from aiohttp.typedefs import Middleware
from multidict import CIMultiDictProxy

from actors.types import Address
from edge.requests import Handler
from infra.errors import HoldfastError
from infra.placement.hosts import HostInfo

BODY_BYTES_MAX: Final = 1_000_000  # the proxy repeats no larger request
_PATH = re.compile(r"/(rtc|strata|keep)/([^/]+)")
_QUERY = re.compile(r"/api/sync/(?:events|views/.*)")
_SEEN: Final = ("fly-replay-src", "fly-replay-failed")  # it was repeated: here it stays

Elsewhere = Callable[[Address], HostInfo | None]
"""The other host that has the scope; None where that is this one, or nobody."""


def scope_of(raw_path: str, scope: str | None) -> str | None:
    """The scope that an address names, `scope` being its query parameter; None where it may be any
    or several.
    """
    if found := _PATH.match(raw_path):
        return f"{found[1]}:{unquote(found[2])}"
    return scope if _QUERY.fullmatch(raw_path) else None


def may_replay(headers: CIMultiDictProxy[str], *, has_body: bool) -> bool:
    """Whether the proxy would repeat the request, and has not done so."""
    if any(name in headers for name in _SEEN):
        return False
    length = headers.get("Content-Length", "")
    return not has_body or (length.isdecimal() and int(length) <= BODY_BYTES_MAX)


def replay(
    elsewhere: Elsewhere, tenant_of: Callable[[web.Request], Awaitable[str]]
) -> Middleware:  # fmt: skip
    """`tenant_of` raises HoldfastError for whom the handler is going to refuse."""

    async def target(request: web.Request) -> str:
        scope = scope_of(request.rel_url.raw_path, request.query.get("scope"))
        if scope is None or not may_replay(request.headers, has_body=request.can_read_body):
            return ""
        try:
            host = elsewhere(Address(await tenant_of(request), scope))
        except HoldfastError:
            return ""
        return "" if host is None else host.instance

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        instance = await target(request)
        if not instance:
            return await handler(request)
        # Without a proxy that takes it along, the client tries again; so does one whose host ended.
        return web.Response(
            status=503, text="another host has this scope",
            headers={
                "fly-replay": f"instance={instance};timeout=5s;fallback=prefer_self",
                "Retry-After": "1",
            },
        )  # fmt: skip

    return middleware
