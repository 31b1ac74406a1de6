"""Requests signed with a shared secret, as the real product signs them, and presigned URLs. Pure.

The signature covers app id, method, path, time and body, so a body is checked before it is used;
one that is streamed is checked at its end, before anything refers to it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Final
from urllib.parse import urlencode

from infra.errors import AuthError

SKEW_MS: Final = 300_000
PRESIGNED_MS: Final = 3_600_000
_ID, _TS, _SIG = "x-starkeep-app-id", "x-starkeep-app-ts", "x-starkeep-app-sig"


def is_signed(headers: Mapping[str, str]) -> bool:
    """Whether the request claims to be (names in lower case)."""
    return _SIG in headers


class Signed:
    """A request whose head fits a secret and whose body is still to be seen. Raises AuthError."""

    def __init__(
        self, headers: Mapping[str, str], method: str, path: str, secret: str, now_ms: int
    ) -> None:
        app_id, at, given = headers.get(_ID, ""), headers.get(_TS, ""), headers.get(_SIG, "")
        if not (at.isascii() and at.isdigit() and len(at) <= 16):
            raise AuthError("X-Starkeep-App-Ts is no time in milliseconds")
        if abs(now_ms - int(at)) > SKEW_MS:
            raise AuthError(f"the request was signed more than {SKEW_MS} ms from now")
        # Header bytes that are no text come as lone surrogates: they are compared like any others.
        self._given = given.encode("utf-8", "surrogatepass")
        self._bodiless = method in ("GET", "HEAD")
        head = f"{app_id}:{method}:{path}:{at}:".encode("utf-8", "surrogatepass")
        self._mac = hmac.new(secret.encode(), head, hashlib.sha256)

    def check(self, body: bytes = b"") -> None:
        """The whole body. Raises AuthError."""
        if not self._bodiless:
            self._mac.update(body)
        if not hmac.compare_digest(self._mac.hexdigest().encode(), self._given):
            raise AuthError("the signature does not fit")

    async def checked(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The chunks; AuthError at their end where the signature does not fit."""
        async for chunk in chunks:
            self._mac.update(chunk)
            yield chunk
        self.check()


def app_of(headers: Mapping[str, str]) -> str:
    """The app a signed request claims to be of."""
    return headers.get(_ID, "")


class Presigner:
    """URLs that carry their own right to one method on one key, for an hour."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def query(self, method: str, tenant: str, scope: str, key: str, now_ms: int) -> str:
        """The query string of such a URL."""
        until = str(now_ms + PRESIGNED_MS)
        return urlencode(
            {"tenant": tenant, "until": until, "sig": self._sign(method, tenant, scope, key, until)}
        )

    def tenant_of(
        self, query: Mapping[str, str], method: str, scope: str, key: str, now_ms: int
    ) -> str | None:
        """The tenant a URL was signed for; None for a URL without signature. Raises AuthError."""
        given = query.get("sig")
        if given is None:
            return None
        tenant, until = query.get("tenant", ""), query.get("until", "")
        good = self._sign("GET" if method == "HEAD" else method, tenant, scope, key, until)
        if not hmac.compare_digest(good.encode(), given.encode("utf-8", "surrogatepass")):
            raise AuthError("the URL is signed for something else")
        if int(until) < now_ms:
            raise AuthError("the URL has expired")
        return tenant

    def _sign(self, *parts: str) -> str:
        # A length before each part: no two requests read the same.
        text = b"".join(
            b"%d:%b" % (len(data), data)
            for data in (part.encode("utf-8", "surrogatepass") for part in parts)
        )
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()
