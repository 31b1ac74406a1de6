"""Hosts find each other through the bucket they share: no further service, for two to five hosts.

`<prefix>/~hosts/<name>/<beat, 16 hex>` is a host's record; every renewal creates the next beat with
`If-None-Match` and deletes the one before. So one process alone holds a name: who finds its next
beat taken by another life, or a later one in the listing, began earlier and steps back. No tenant's
folder can be called `~hosts` (`infra.layout.escape`).

Costs one PUT, one LIST and one GET for each host in a renewal: about 5 dollars a month for each of
three hosts at the default of 5 seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from infra.errors import ProtocolError
from infra.objects import LIST_KEYS_MAX, ObjectExists, ObjectMissing, ObjectStore, join_key
from infra.placement.hosts import HOST_BYTES_MAX, HostInfo, decode_host, encode_host
from infra.placement.membership import Record
from infra.placement.placement import EngineUnavailable, NameTaken

FOLDER: Final = "~hosts"
TRIES: Final = 4
LISTINGS_MAX: Final = 16
T = TypeVar("T")


class BucketEngine:
    """Records as objects of `store` below `prefix`. Its calls run in one thread of its own."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._folder = join_key(prefix, FOLDER) + "/"
        self._beat = 0  # the newest of ours; 0: none yet
        self._known: dict[str, HostInfo] = {}  # by key: an object never changes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="holdfast-hosts")

    async def open(self, changed: Callable[[], None]) -> None:
        """Nothing to connect, and nobody calls when something changes."""

    async def renew(self, host: HostInfo) -> int:
        return await self._run(lambda: self._renew(host))

    async def look(self) -> list[Record]:
        return await self._run(self._look)

    async def leave(self, host: HostInfo) -> None:
        if self._beat:
            await self._run(lambda: self._store.delete([self._key(host.name, self._beat)]))

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _key(self, name: str, beat: int) -> str:
        return f"{self._folder}{name}/{beat:016x}"

    # -- in the thread -----------------------------------------------------------------------------

    def _renew(self, host: HostInfo) -> int:
        body = encode_host(host)
        old = [] if self._beat else self._beats(host.name)
        beat = max(old, default=self._beat) + 1
        for _ in range(TRIES):
            try:
                self._store.put(self._key(host.name, beat), body, if_absent=True)
            except ObjectExists:
                # A reply that was lost, or another life: of one that began with us, the later wins.
                there = self._read(self._key(host.name, beat))
                mine = there is not None and there.life == host.life
                if self._beat and there is not None and not mine:
                    raise NameTaken(f"another process runs as host {host.name}") from None
                old.append(beat)
                beat += 1
                continue
            if self._beat:
                old.append(self._beat)
            self._beat = beat
            self._store.delete([self._key(host.name, beat) for beat in old])
            return beat
        raise EngineUnavailable(f"host {host.name}: its record is written by others all the time")

    def _beats(self, name: str) -> list[int]:
        keys = self._keys(f"{self._folder}{name}/")
        return [beat for _, beat in map(self._parse, keys) if beat]

    def _look(self) -> list[Record]:
        newest: dict[str, tuple[int, str]] = {}
        for key in self._keys(self._folder):
            name, beat = self._parse(key)
            if beat:
                newest[name] = max(newest.get(name, (0, "")), (beat, key))
        records, known = [], {}
        for beat, key in newest.values():
            host = self._known.get(key) or self._read(key)
            if host is not None:
                known[key] = host
                records.append(Record(host, beat))
        self._known = known
        return records

    def _keys(self, prefix: str) -> list[str]:
        keys: list[str] = []
        for _ in range(LISTINGS_MAX):
            after = keys[-1] if keys else ""
            listing = self._store.list(prefix, after=after, limit=LIST_KEYS_MAX)
            keys += [info.key for info in listing.objects]
            if not listing.truncated:
                return keys
        raise EngineUnavailable(f"{self._store.url}: too many records below {prefix}")

    def _parse(self, key: str) -> tuple[str, int]:
        """Name and beat; beat 0 for whatever else lies there."""
        name, _, text = key.removeprefix(self._folder).partition("/")
        try:
            return name, int(text, 16) if len(text) == 16 else 0
        except ValueError:
            return name, 0

    def _read(self, key: str) -> HostInfo | None:
        """None where it has gone meanwhile, or is no record."""
        try:
            host = decode_host(self._store.get(key, end=HOST_BYTES_MAX + 1))
        except (ObjectMissing, ProtocolError):
            return None
        return host if key.startswith(f"{self._folder}{host.name}/") else None
