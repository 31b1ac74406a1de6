"""Views: a scope's entities, or an application's own, as pages that all answer for one seq.

A view over one page is held for 60 s as an unlinked file, not as an open read transaction, so
nothing of the scope waits for a slow reader. `paramsHash` is 32 hex digits of SHA-256 over the
canonical parameters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from actors.dialects.asterql.canonical import canonical, hash_record_version, snapshot_hash
from actors.snapshot import MEMORY_BYTES_MAX, Snapshot
from edge.problems import Problem
from infra import ids, limits


class ScopeRead(msgspec.Struct, frozen=True):
    """A scope's state at one seq: `entities` maps key to record."""

    epoch: str
    seq: int
    entities: dict[str, Any]


class ViewContext(msgspec.Struct, frozen=True):
    """What a view's `load` may ask: `await ctx.read(scope)`, as far as the caller may read."""

    read: Callable[[str], Awaitable[ScopeRead]]


class ViewResult(msgspec.Struct, frozen=True):
    """`entities` maps key to record; `scopes` the seq each scope was read at."""

    entities: Mapping[str, Any]
    scopes: Mapping[str, int] = {}
    data: Any = None
    class_versions: Mapping[str, int] = {}


class View(msgspec.Struct, frozen=True):
    """An application's view. `classes` names what invalidates it."""

    id: str
    load: Callable[[Mapping[str, Any], ViewContext], Awaitable[ViewResult]]
    classes: Sequence[str] = ()


def view_id(query: str) -> str:
    """The id of a registered query text: `v_` and 32 hex digits over its normalised white space."""
    return "v_" + hashlib.sha256(" ".join(query.split()).encode()).hexdigest()[:32]


def decode_params(text: str | None) -> dict[str, Any]:
    """The `p` parameter: base64url of JSON, padding optional. Raises Problem bad_params."""
    try:
        raw = base64.urlsafe_b64decode((text or "e30") + "==")
        params = msgspec.json.decode(raw)
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError) as error:
        raise Problem("bad_params", "p: base64url of a JSON object") from error
    if not isinstance(params, dict):
        raise Problem("bad_params", "p: base64url of a JSON object")
    return params


def params_hash(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(params).encode()).hexdigest()[:32]


class Pages:
    """A finished view: entities as JSON text, cut into pages. Built in a thread."""

    def __init__(self, spool_dir: Path, entities: Sequence[tuple[str, bytes]] | Snapshot) -> None:
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            max_size=MEMORY_BYTES_MAX, dir=str(spool_dir)
        )
        self._pages: list[tuple[int, int]] = []  # (offset, bytes)
        self._lock = threading.Lock()
        self.hash = snapshot_hash(self._write(entities))

    def _write(self, entities: Sequence[tuple[str, bytes]] | Snapshot) -> list[tuple[str, str]]:
        versions: list[tuple[str, str]] = []
        start = count = 0
        for key, body in entities:
            version = hash_record_version(msgspec.json.decode(body))
            versions.append((key, version))
            name = msgspec.json.encode(key)
            text = b'{"key":%b,"value":%b,"version":"%b"}' % (name, body, version.encode())
            size = self._spool.tell() - start
            if count and (
                count == limits.VIEW_PAGE_ENTITIES or size + len(text) > limits.VIEW_PAGE_BYTES
            ):
                self._pages.append((start, size))
                start, count = self._spool.tell(), 0
            self._spool.write(b"," + text if count else text)
            count += 1
        self._pages.append((start, self._spool.tell() - start))
        return versions

    def __len__(self) -> int:
        return len(self._pages)

    def page(self, index: int) -> bytes:
        """The entities of one page, joined by commas. Reads a file: in a thread where it is large.

        Raises Problem view_expired where it was closed meanwhile.
        """
        offset, size = self._pages[index]
        with self._lock:  # pages of one view may be asked for in two threads at once
            if self._spool.closed:
                raise Problem("view_expired", "the view is no longer held; start again")
            self._spool.seek(offset)
            return self._spool.read(size)

    def close(self) -> None:
        with self._lock:
            self._spool.close()


class Held(msgspec.Struct):
    """A view whose further pages somebody may still fetch."""

    head: bytes  # the document up to its entities
    pages: Pages
    owner: str
    expires_at: float


class HeldViews:
    """Bounded in number and time; the oldest goes first."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._held: dict[str, Held] = {}

    def hold(self, head: bytes, pages: Pages, owner: str) -> str:
        """Keep the pages for 60 s; the token for the next one."""
        self.expire()
        while len(self._held) >= limits.VIEWS_HELD_MAX:
            self._held.pop(next(iter(self._held))).pages.close()
        token = ids.new_id()
        self._held[token] = Held(head, pages, owner, self._monotonic() + limits.VIEW_HELD_S)
        return token

    def find(self, token: str, owner: str) -> tuple[Held, str, int]:
        """The view, its id and the page a token means. Raises Problem view_expired."""
        self.expire()
        id, _, index = token.partition(".")
        held = self._held.get(id)
        if held is None or held.owner != owner or not (index.isascii() and index.isdigit()):
            raise Problem("view_expired", "the view is no longer held; start again")
        if not 0 < int(index) < len(held.pages):
            raise Problem("view_expired", "no such page; start again")
        return held, id, int(index)

    def expire(self) -> None:
        now = self._monotonic()
        for token in [token for token, held in self._held.items() if held.expires_at <= now]:
            self._held.pop(token).pages.close()

    def close(self) -> None:
        for held in self._held.values():
            held.pages.close()
        self._held.clear()
