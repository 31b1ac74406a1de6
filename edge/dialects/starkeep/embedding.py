"""The routes of a base inside somebody else's server: a handler over any storage and transport."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from aiohttp import web

from actors.dialects.starkeep.wire import decode_exchange, encode, encode_answer
from edge.client.starkeep.responder import Responder
from edge.client.starkeep.transport import InProcessSyncTransport
from edge.client.starkeep.types import ObjectStorage, SyncTransport
from edge.dialects.starkeep.handler import handle
from edge.dialects.starkeep.spaces import FileInfo

BODY_BYTES_MAX = 64 << 20


class HttpSyncHandler:
    """Answers exchanges by `transport` (a `Responder` will do) and files from a storage.

    It checks nobody: put it behind what does. Call it with a request and, where it stands below a
    prefix, the raw path after it; None means that the request is not its own.
    """

    def __init__(
        self,
        transport: SyncTransport | Responder,
        object_storage: ObjectStorage,
        *,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        self.body_bytes_max = body_bytes_max
        self._transport: SyncTransport = (
            InProcessSyncTransport(transport) if isinstance(transport, Responder) else transport
        )
        self._storage = object_storage

    async def __call__(
        self, request: web.Request, path: str | None = None
    ) -> web.StreamResponse | None:
        """The answer, or None."""
        raw = request.raw_path.partition("?")[0] if path is None else path
        return await handle(request, raw, self)

    # -- handler.Base ------------------------------------------------------------------------------

    async def exchange(self, body: bytes) -> bytes:
        """See Base."""
        found = await self._transport.exchange(decode_exchange(body))
        return encode_answer(
            [record.text for record in found.records], [encode(row) for row in found.rows],
            found.responder_watermarks or {}, has_more=found.has_more,
        )  # fmt: skip

    async def stat(self, key: str) -> FileInfo | None:
        """See Base."""
        found = await self._storage.stat(key)
        if found is None:
            return None
        return FileInfo(key, found.content_hash or "", found.size, found.content_type)

    def read(self, info: FileInfo, start: int, end: int) -> AsyncIterator[bytes]:
        """See Base."""
        return self._storage.read(info.key, start=start, end=end)

    async def write(self, key: str, chunks: AsyncIterable[bytes], content_type: str | None) -> None:
        """See Base."""
        await self._storage.write(key, chunks, content_type=content_type)

    async def delete(self, key: str) -> None:
        """See Base."""
        await self._storage.delete(key)


def sync_application(handler: HttpSyncHandler) -> web.Application:
    """The handler as an aiohttp application, for `add_subapp` at any prefix."""

    async def answer(request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        prefix = request.match_info.route.resource
        base = "" if prefix is None else prefix.canonical.removesuffix("/{tail}")
        found = await handler(request, path.removeprefix(base))
        if found is None:
            raise web.HTTPNotFound()
        return found

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    return app
