"""Which scopes of a shared bucket have alarms: one small object for each, so that whoever owns the
scope next rings for it, though nobody opens it.

`<prefix>/~due/<tenant>/<scope>` is `{"tenant", "scope", "due_at"}`, with the names as
`infra.layout.escape` writes them (no tenant is called `~due`). It is written before the alarm is
committed and goes after the last one has rung: `due_at` may be too early, never too late, and an
early one costs a wake for nothing. Truth is the scope's ledger.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from actors.types import Address
from infra.layout import escape
from infra.objects import LIST_KEYS_MAX, ObjectInfo, ObjectMissing, ObjectStore, join_key

FOLDER: Final = "~due"
MARKS_MAX: Final = 100_000
MARK_BYTES_MAX: Final = 4096


class Due(msgspec.Struct, frozen=True):
    """A mark: an alarm of this scope is due then, or later."""

    tenant: str
    scope: str
    due_at: int

    @property
    def address(self) -> Address:
        return Address(self.tenant, self.scope)


_decode: Final = msgspec.json.Decoder(Due).decode
_encode: Final = msgspec.json.encode


class DueMarks:
    """Of one host; `run` runs in a thread. Every method raises StorageError."""

    def __init__(
        self, store: ObjectStore, prefix: str, run: Callable[[Callable[[], Any]], Awaitable[Any]]
    ) -> None:
        self._store = store
        self._folder = join_key(prefix, FOLDER) + "/"
        self._run = run
        self._known: dict[Address, int] = {}  # what this host has written
        self._seen: dict[str, tuple[ObjectInfo, Due | None]] = {}  # by key

    async def lower(self, address: Address, due_at: int) -> None:
        """An alarm is about to be set."""
        if self._known.get(address, due_at + 1) > due_at:
            await self.settle(address, due_at)

    async def settle(self, address: Address, due_at: int | None) -> None:
        """The earliest there is now; None: there is none."""
        known = self._known.get(address)
        if due_at is not None and known == due_at:
            return
        key = f"{self._folder}{escape(address.tenant)}/{escape(address.scope)}"
        if due_at is None:
            await self._run(lambda: self._store.delete([key]))
            self._known.pop(address, None)
            return
        body = _encode(Due(*address, due_at))
        await self._run(lambda: self._store.put(key, body))
        if len(self._known) >= MARKS_MAX:
            self._known.clear()
        self._known[address] = due_at

    async def look(self) -> list[Due]:
        """All there are."""
        found: list[Due] = await self._run(self._look)
        return found

    def _look(self) -> list[Due]:
        seen: dict[str, tuple[ObjectInfo, Due | None]] = {}
        after, more = "", True
        while more and len(seen) < MARKS_MAX:
            listing = self._store.list(self._folder, after=after, limit=LIST_KEYS_MAX)
            for info in listing.objects:
                before = self._seen.get(info.key)
                if before is None or before[0] != info:
                    before = (info, self._read(info.key))
                seen[info.key] = before
                after = info.key
            more = listing.truncated
        self._seen = seen
        return [due for _, due in seen.values() if due is not None]

    def _read(self, key: str) -> Due | None:
        try:
            return _decode(self._store.get(key, end=MARK_BYTES_MAX))
        except (ObjectMissing, msgspec.MsgspecError):
            return None
