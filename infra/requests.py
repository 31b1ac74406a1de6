"""One replica's requests: counted, and repeated for as long as the store is in trouble.

What is repeated is the very same call, so it must be one that may land twice: a creation whose
bytes are compared, a listing, a read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from infra import ids
from infra.errors import Fenced, StorageError
from infra.meter import Kind
from infra.objects import ObjectBusy, ObjectMissing
from infra.replicator import Service

log = logging.getLogger("holdfast.replica")

T = TypeVar("T")
RETRY_FIRST_MS = 50
RETRY_MAX_MS = 5_000
REFUSED_RETRY_MS = 15_000  # credentials and buckets are mended by people


class Requests:
    """`trouble` is the last error while there is any, `trouble_since` when it began. `over` ends
    the repeating.
    """

    def __init__(self, service: Service, prefix: str) -> None:
        self.counts: dict[Kind, int] = {"put": 0, "list": 0, "get": 0, "delete": 0}
        self.trouble: StorageError | None = None
        self.trouble_since: int | None = None
        self.over = False
        self._flying: set[asyncio.Future[Any]] = set()
        self._service = service
        self._prefix = prefix

    async def persist(self, work: Callable[[], T], kind: Kind) -> T:
        """Have a thread do it until it is done. Raises Fenced, and StorageError `corrupt`."""
        delay = RETRY_FIRST_MS
        while True:
            self.counts[kind] += 1
            try:
                done = await self.run(work)
            except (ObjectBusy, ObjectMissing):
                pause = RETRY_FIRST_MS
            except Fenced:
                raise
            except StorageError as error:
                if error.code == "corrupt":
                    raise
                self._note(error)
                pause = delay if error.retryable else REFUSED_RETRY_MS
                delay = min(RETRY_MAX_MS, delay * 2)
            else:
                self.trouble = self.trouble_since = None
                return done
            if self.over:
                raise asyncio.CancelledError
            await asyncio.sleep(pause * (0.5 + ids.random()) / 1000)

    async def run(self, work: Callable[[], T]) -> T:
        """Have a thread do it once. A caller that is cancelled leaves it to `landed`."""
        future = self._service.start(work)
        self._flying.add(future)
        future.add_done_callback(self._landed)
        done: T = await asyncio.shield(future)
        return done

    async def landed(self) -> None:
        """Wait until no thread works for this replica any more, whatever became of it."""
        if self._flying:
            await asyncio.wait(list(self._flying))

    def _landed(self, future: asyncio.Future[Any]) -> None:
        self._flying.discard(future)
        if not future.cancelled():
            future.exception()  # looked at: whoever waited may be gone

    def _note(self, error: StorageError) -> None:
        if self.trouble_since is None:
            self.trouble_since = self._service.now_ms()
            log.warning("the bucket does not take it prefix=%s error=%s", self._prefix, error)
        self.trouble = error
