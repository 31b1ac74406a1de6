"""The scope view over HTTP: entities and position of one scope at one moment, as pages.

Pure: addresses and the folding of pages; the requests are the client's. All pages of a view answer
for the same seq; where the server has let it go (410) the whole view is read again.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from actors.dialects.asterql.canonical import canonical
from edge.client.effects import SyncError

BASE_PATH = "/api/sync"
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


@dataclass(frozen=True, slots=True)
class ScopeView:
    """All entities of a scope at `(epoch, seq)`; items are `{"key", "value", "version"}`."""

    scope: str
    epoch: str
    seq: int
    hash: str | None
    entities: tuple[Mapping[str, Any], ...]


@dataclass(slots=True)
class ViewPages:
    """Pages of one view, gathered."""

    scope: str
    epoch: str = ""
    seq: int = 0
    hash: str | None = None
    entities: list[Mapping[str, Any]] = field(default_factory=list)
    next: str | None = None

    def add(self, page: Mapping[str, Any]) -> bool:
        """Take a page; True while another one follows, at `next`."""
        self.epoch, self.seq = page["epoch"], page["seq"]
        self.hash = page.get("hash", self.hash)
        self.entities.extend(page["entities"])
        self.next = page.get("next")
        return self.next is not None

    def view(self) -> ScopeView:
        """The whole."""
        return ScopeView(self.scope, self.epoch, self.seq, self.hash, tuple(self.entities))


def base_url(url: str) -> str:
    """`http(s)://…` without a trailing slash, from a server, mount or socket address.

    An address without a path means the default mount, `/api/sync`. Raises ValueError on another
    scheme than http, https, ws, wss, or without a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise ValueError(f"{url!r} is not an http(s) or ws(s) address")
    path = parts.path.rstrip("/").removesuffix("/socket") or BASE_PATH
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, "", ""))


def socket_url(base: str) -> str:
    """The WebSocket address of a mount given as `base_url` gives it."""
    return "ws" + base.removeprefix("http") + "/socket"


def view_url(base: str, scope: str, next_page: str | None = None) -> str:
    """Address of the first or a following page of the scope view."""
    params = base64.urlsafe_b64encode(canonical({"scope": scope}).encode()).rstrip(b"=").decode()
    url = f"{base}/views/scope?p={params}"
    return url if next_page is None else f"{url}&page={quote(next_page, safe='')}"


def view_refusal(status: int, body: Any) -> SyncError:
    """The error in a problem body; a view that expired, and a busy server, are retryable."""
    problem = body if isinstance(body, dict) else {}
    code = problem.get("code") or f"http_{status}"
    error = SyncError(problem.get("detail") or problem.get("title") or code, code=code)
    error.retryable = bool(problem.get("retryable")) or status in (410, 429, 503)
    error.retry_after_ms = problem.get("retry_after_ms")
    return error
