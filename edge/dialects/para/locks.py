"""Keys in use by somebody who reads, computes and writes: one at a time, in the order they came.

The writer checks the revision anyway; waiting here spares the rounds that would lose.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from actors.types import Address


class KeyLocks:
    """Locks that exist while somebody holds or waits for them."""

    def __init__(self) -> None:
        self._locks: dict[tuple[Address, str], tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def hold(self, address: Address, keys: Iterable[str]) -> AsyncIterator[None]:
        """Have all of the keys to oneself."""
        taken: list[tuple[Address, str]] = []
        try:
            for key in sorted(set(keys)):  # in one order, or two groups could wait for each other
                name = (address, key)
                lock, users = self._locks.get(name, (None, 0))
                lock = lock or asyncio.Lock()
                self._locks[name] = (lock, users + 1)
                try:
                    await lock.acquire()
                except BaseException:
                    self._leave(name)
                    raise
                taken.append(name)
            yield
        finally:
            for name in reversed(taken):
                self._locks[name][0].release()
                self._leave(name)

    def _leave(self, name: tuple[Address, str]) -> None:
        lock, users = self._locks[name]
        if users == 1:
            del self._locks[name]
        else:
            self._locks[name] = (lock, users - 1)
