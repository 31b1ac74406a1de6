"""The routes of one base: exchange and files, over anything that can exchange and keep files.

A handler answers or says that the request is not its own, so it composes with other routes. It
routes on the raw path: `%2F` and `/` in a key mean the same, and nothing is decoded twice.
Errors have the shape of this dialect, `{"error": "<text>", "code": "<word>"}`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web

from actors.dialects.starkeep.naming import BadName, check_object_key
from edge.contents import TooLarge
from edge.dialects.starkeep.spaces import FileInfo
from edge.problems import status_of_error
from infra import limits
from infra.errors import HoldfastError
from infra.objects import ObjectMissing

log = logging.getLogger("holdfast.starkeep")
T = TypeVar("T")

EXCHANGE: Final = "/sync/exchange"
FILES: Final = "/files/"
PIECE_BYTES: Final = 1 << 18
SMALL_BODY_BYTES_MAX: Final = 64 << 10
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Stored bytes are somebody's: a browser must not run them as a page of this server.
_INERT = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}


class Base(Protocol):
    """What the routes of one base need. Every call is made for one request, already allowed."""

    body_bytes_max: int

    async def exchange(self, body: bytes) -> bytes:
        """The answer to an exchange. Raises BadExchange and other HoldfastErrors."""

    async def stat(self, key: str) -> FileInfo | None:
        """What is stored under the key."""

    def read(self, info: FileInfo, start: int, end: int) -> AsyncIterator[bytes]:
        """Its bytes, in pieces."""

    async def write(self, key: str, chunks: AsyncIterable[bytes], content_type: str | None) -> None:
        """Store bytes under the key."""

    async def delete(self, key: str) -> None:
        """Forget the key."""


async def handle(request: web.Request, path: str, base: Base) -> web.StreamResponse | None:
    """The answer to a request for the raw `path` below a base; None where it is not ours."""
    try:
        if path == EXCHANGE and request.method == "POST":
            body = await read_body(request, base.body_bytes_max)
            return _json(await base.exchange(body))
        if path.startswith(FILES):
            return await _file(request, path, base)
    except (HoldfastError, web.HTTPException) as error:
        return failure(error)
    except TimeoutError:
        return error_response(408, "stalled", f"no byte came for {limits.STALL_MAX_S} s")
    except ConnectionError:
        raise
    except Exception:  # the top: no traceback reaches a client, and the process lives on
        log.exception("request failed path=%s", path[:200])
        return error_response(500, "internal", "see the server's log")
    return None


async def _file(request: web.Request, path: str, base: Base) -> web.StreamResponse | None:
    if request.method not in ("GET", "HEAD", "PUT", "DELETE"):
        return None
    key = key_of(path)
    if request.method == "PUT":
        await base.write(key, chunks_of(request), content_type_of(request))
        return web.Response()
    if request.method == "DELETE":
        await base.delete(key)
        return web.Response(status=204)
    info = await base.stat(key)
    if info is None:
        return web.Response(status=404)
    return await send_file(request, info, base)


async def send_file(request: web.Request, info: FileInfo, base: Base) -> web.StreamResponse:
    """A stored object, or the range of it that is asked for."""
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Type": info.content_type or "application/octet-stream", **_INERT,
    }  # fmt: skip
    etag = f'"{info.hash}"' if info.hash else "none"  # no tag reads so: one is quoted
    if info.hash:
        headers.update({"ETag": etag, "X-Content-SHA256": info.hash})
    known = [tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")]
    if "*" in known or etag in [tag.removeprefix("W/") for tag in known]:  # proxies weaken tags
        return web.Response(status=304, headers=headers)
    start, end = 0, info.size
    status = 200
    wanted = request.headers.get("Range")
    if wanted is not None and request.headers.get("If-Range", etag) == etag:
        found = parse_range(wanted, info.size)
        if found == ():
            headers["Content-Range"] = f"bytes */{info.size}"
            return error_response(416, "bad_range", "the object is shorter", headers=headers)
        if found is not None:
            start, end = found  # type: ignore[misc]
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{info.size}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = end - start
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    pieces = base.read(info, start, end)
    # The first piece before the head: an object the store has lost is 404, not a broken stream.
    first = b""
    async for piece in pieces:
        first = piece
        break
    await response.prepare(request)
    if first:
        await response.write(first)
    async for piece in pieces:
        await response.write(piece)
    await response.write_eof()
    return response


def parse_range(text: str, size: int) -> tuple[int, int] | tuple[()] | None:
    """(start, end) of a single range, () where the object has none of it, None to ignore it."""
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        count = int(match[2])
        return (max(0, size - count), size) if count and size else ()
    start = int(match[1])
    end = min(size, int(match[2]) + 1) if match[2] else size
    if match[2] and int(match[2]) < start:
        return None
    return (start, end) if start < size else ()


def key_of(path: str) -> str:
    """The object key in a raw path, decoded once. Raises BadName."""
    raw = path.removeprefix(FILES).encode("utf-8", "surrogateescape")
    if _BAD_ESCAPE.search(raw):
        raise BadName("an object key has a bad percent escape")
    try:
        key = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise BadName("an object key is UTF-8 text") from error
    return check_object_key(key)


def content_type_of(request: web.Request) -> str | None:
    """The Content-Type the client sent, None for none."""
    found = request.headers.get("Content-Type")
    return found[:255] if found else None


async def chunks_of(request: web.Request) -> AsyncIterator[bytes]:
    """The body in pieces. Raises TimeoutError where none comes for STALL_MAX_S, HTTPBadRequest for
    a body that is not in the encoding it claims.
    """
    pieces = request.content.iter_chunked(PIECE_BYTES).__aiter__()
    while True:
        async with asyncio.timeout(limits.STALL_MAX_S):
            try:
                piece = await pieces.__anext__()
            except StopAsyncIteration:
                return
            except web.RequestPayloadError as error:
                reason = "the body is not in the encoding it claims"
                raise web.HTTPBadRequest(reason=reason) from error
        yield piece


async def read_body(request: web.Request, size_max: int) -> bytes:
    """The body. Raises TooLarge as soon as it is known to be."""
    if request.content_length is not None and request.content_length > size_max:
        raise TooLarge(f"the body is longer than {size_max} bytes")
    body = bytearray()
    async for chunk in chunks_of(request):
        body += chunk
        if len(body) > size_max:
            raise TooLarge(f"the body is longer than {size_max} bytes")
    return bytes(body)


def decode_json(body: bytes, wanted: type[T]) -> T:
    """A small JSON body. Raises BadName for what is none."""
    try:
        return msgspec.json.decode(body, type=wanted)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadName(f"the body: {error}") from error


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def failure(error: HoldfastError | web.HTTPException) -> web.Response:
    """The answer to what went wrong."""
    if isinstance(error, web.HTTPException):
        if error.status < 400:
            raise error
        return error_response(error.status, "bad_request", error.reason)
    if isinstance(error, ObjectMissing):
        return web.Response(status=404)
    status = status_of_error(error)
    headers = {}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(max(1, (error.retry_after_ms + 999) // 1000))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="holdfast"'
    return error_response(status, error.code, str(error), headers=headers)


def error_response(
    status: int, code: str, text: str, *, headers: dict[str, str] | None = None
) -> web.Response:
    """An error in the shape of this dialect."""
    kept = {k: v for k, v in (headers or {}).items() if k != "Content-Type"}
    body = msgspec.json.encode({"error": text, "code": code})
    return web.Response(status=status, body=body, content_type="application/json", headers=kept)
