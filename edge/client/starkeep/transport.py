"""The ways to a peer: in this process, or over HTTP with either version's way to sign requests.

aiohttp is imported with the first request, so that importing the engine costs nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import io
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from actors.dialects.starkeep.wire import Answer, Exchange, decode_answer, encode_request
from edge.client.starkeep.responder import Responder
from edge.client.starkeep.types import ObjectData, ObjectPage, StoredObject, SyncError
from infra import clock
from infra.objects import ObjectMissing, StoreUnavailable

if TYPE_CHECKING:
    import aiohttp

EXCHANGE: Final = "/sync/exchange"
PIECE_BYTES: Final = 1 << 18
CONNECT_WAIT_S: Final = 20.0
READ_WAIT_S: Final = 60.0  # without a byte

GetAuthHeader = Callable[[], str | Awaitable[str | None] | None]
SignRequest = Callable[[str, str, bytes], Mapping[str, str] | Awaitable[Mapping[str, str]]]


class InProcessSyncTransport:
    """A peer in this process."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder

    async def exchange(self, request: Exchange) -> Answer:
        """One round. Raises what the responder raises."""
        return self._responder.respond(request)


def hmac_signer(app_id: str, secret: str, now_ms: Callable[[], int] = clock.now_ms) -> SignRequest:
    """Sign as the real product does: app id, time and an HMAC over method, path and body."""

    def sign(method: str, path: str, body: bytes) -> Mapping[str, str]:
        at = str(now_ms())
        covered = b"" if method in ("GET", "HEAD") else body
        signed = f"{app_id}:{method}:{path}:{at}:".encode() + covered
        digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
        return {
            "X-Starkeep-App-Id": app_id, "X-Starkeep-App-Ts": at, "X-Starkeep-App-Sig": digest,
        }  # fmt: skip

    return sign


class HttpPeer:
    """An address, who asks, and the session; shared by the transport and the storage of a peer.

    `get_auth_header` gives the Authorization header of version 0.1.0, `sign_request(method, path,
    body)` the headers of later ones. Path is decoded and relative to the base. A body cannot be
    signed before it is known, so a signed upload is held in memory; where the peer does not look at
    the body (a host that returns `{"Authorization": …}`), `buffer_uploads=False` streams it, signed
    as empty.
    """

    def __init__(
        self,
        base_url: str,
        *,
        get_auth_header: GetAuthHeader | None = None,
        sign_request: SignRequest | None = None,
        session: aiohttp.ClientSession | None = None,
        buffer_uploads: bool | None = None,
    ) -> None:
        self.base = base_url.rstrip("/")
        self.buffer_uploads = sign_request is not None if buffer_uploads is None else buffer_uploads
        self._get_auth_header = get_auth_header
        self._sign_request = sign_request
        self._session = session
        self._own_session = session is None

    def session(self) -> aiohttp.ClientSession:
        """The session, made when it is first needed."""
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, connect=CONNECT_WAIT_S, sock_read=READ_WAIT_S
            )
            self._session = aiohttp.ClientSession(timeout=timeout)
        return self._session

    async def headers(self, method: str, path: str, body: bytes = b"") -> dict[str, str]:
        """Who asks, for one request."""
        found: dict[str, str] = {}
        if self._get_auth_header is not None:
            value = self._get_auth_header()
            value = await value if inspect.isawaitable(value) else value
            if value:
                found["Authorization"] = value
        if self._sign_request is not None:
            signed = self._sign_request(method, path, body)
            found.update(await signed if inspect.isawaitable(signed) else signed)
        return found

    async def aclose(self) -> None:
        """Close the session where it is ours."""
        if self._own_session and self._session is not None:
            await self._session.close()
            self._session = None


class HttpSyncTransport:
    """A peer over HTTP. Give the URL, or a `HttpPeer` that is shared with its storage."""

    def __init__(
        self,
        base_url: str | HttpPeer,
        *,
        get_auth_header: GetAuthHeader | None = None,
        sign_request: SignRequest | None = None,
    ) -> None:
        if isinstance(base_url, str):
            base_url = HttpPeer(
                base_url, get_auth_header=get_auth_header, sign_request=sign_request
            )
        self.peer = base_url

    async def exchange(self, request: Exchange) -> Answer:
        """One round. Raises SyncError for any status but 2xx; what the network raises, and
        MsgspecError for an answer that is no JSON, pass.
        """
        body = encode_request(request.watermarks, request.records, request.rows, request.limit)
        headers = {
            "Content-Type": "application/json", **await self.peer.headers("POST", EXCHANGE, body)
        }  # fmt: skip
        target = self.peer.base + EXCHANGE
        async with self.peer.session().post(
            target, data=_payload(body), headers=headers
        ) as response:
            text = await response.read()
            if not 200 <= response.status < 300:
                said = text[:2000].decode(errors="replace")
                raise SyncError(
                    f"{EXCHANGE} failed: {response.status} {response.reason} {said}",
                    status=response.status,
                )
        return decode_answer(text)

    async def aclose(self) -> None:
        """Close the session."""
        await self.peer.aclose()


class HttpObjectStorage:
    """The blobs of a peer; fits ObjectStorage as far as the file routes go."""

    def __init__(self, base_url: str | HttpPeer, **options: Any) -> None:
        self.peer = HttpPeer(base_url, **options) if isinstance(base_url, str) else base_url

    async def init(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Close the session."""
        await self.peer.aclose()

    async def health_check(self) -> bool:
        """Whether `GET /health` is answered well."""
        import aiohttp

        try:
            headers = await self.peer.headers("GET", "/health")
            async with self._request("GET", "/health", headers) as answer:
                return bool(answer.status < 300)
        except (aiohttp.ClientError, OSError):
            return False

    async def has(self, key: str) -> bool:
        """See ObjectStorage."""
        return await self.stat(key) is not None

    async def stat(self, key: str) -> StoredObject | None:
        """See ObjectStorage. Peers of the real product tell neither size nor hash."""
        import aiohttp

        headers = await self.peer.headers("HEAD", f"/files/{key}")
        try:
            async with self._request("HEAD", _at(key), headers) as answer:
                if answer.status == 404:
                    return None
                self._check(answer, "HEAD", key)
                size = int(answer.headers.get("Content-Length", "0"))
                digest = answer.headers.get("X-Content-SHA256") or None
                return StoredObject(size, answer.headers.get("Content-Type"), digest)
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailable(f"HEAD {key!r}: {error}") from error

    async def get(self, key: str) -> ObjectData | None:
        """See ObjectStorage."""
        try:
            data = b"".join([piece async for piece in self.read(key)])
        except ObjectMissing:
            return None
        return ObjectData(data, len(data))

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """See ObjectStorage; metadata is not sent."""
        headers = await self.peer.headers("PUT", f"/files/{key}", data)
        await self._put(key, _payload(data), headers, content_type)
        return StoredObject(len(data), content_type)

    async def read(
        self, key: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """See ObjectStorage."""
        import aiohttp

        headers = await self.peer.headers("GET", f"/files/{key}")
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        try:
            async with self._request("GET", _at(key), headers) as answer:
                if answer.status == 404:
                    raise ObjectMissing(f"the peer has no object {key!r}")
                self._check(answer, "GET", key)
                async for piece in answer.content.iter_chunked(PIECE_BYTES):
                    yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailable(f"GET {key!r}: {error}") from error

    async def write(
        self,
        key: str,
        chunks: AsyncIterable[bytes],
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """See ObjectStorage; metadata is not sent."""
        if self.peer.buffer_uploads:
            return await self.put(
                key, b"".join([chunk async for chunk in chunks]), content_type=content_type
            )
        size = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                size += len(chunk)
                yield chunk

        headers = await self.peer.headers("PUT", f"/files/{key}")
        await self._put(key, counted(), headers, content_type)
        return StoredObject(size, content_type)

    async def _put(
        self, key: str, body: Any, headers: dict[str, str], content_type: str | None
    ) -> None:
        import aiohttp

        if content_type is not None:
            headers["Content-Type"] = content_type
        try:
            async with self._request("PUT", _at(key), headers, body) as answer:
                self._check(answer, "PUT", key)
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailable(f"PUT {key!r}: {error}") from error

    async def delete(self, key: str) -> None:
        """See ObjectStorage."""
        import aiohttp

        headers = await self.peer.headers("DELETE", f"/files/{key}")
        try:
            async with self._request("DELETE", _at(key), headers) as answer:
                self._check(answer, "DELETE", key)
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailable(f"DELETE {key!r}: {error}") from error

    async def list(
        self, prefix: str = "", *, limit: int = 1000, cursor: str | None = None
    ) -> ObjectPage:
        """The file routes list nothing."""
        raise SyncError("the file routes of a peer cannot be listed")

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> Any:
        from yarl import URL

        target = URL(self.peer.base + path, encoded=True)  # %2F stays %2F
        return self.peer.session().request(method, target, headers=headers, data=body)

    def _check(self, answer: aiohttp.ClientResponse, method: str, key: str) -> None:
        if answer.status >= 500 or answer.status == 429:
            raise StoreUnavailable(f"{method} {key!r}: {answer.status} {answer.reason}")
        if answer.status >= 300:
            raise SyncError(
                f"{method} {key!r}: {answer.status} {answer.reason}", status=answer.status
            )


def _payload(body: bytes) -> Any:
    """A large body is written in pieces: in one it would hold up the event loop."""
    return body if len(body) < PIECE_BYTES else io.BytesIO(body)


def _at(key: str) -> str:
    return "/files/" + quote(key, safe="")
