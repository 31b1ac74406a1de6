"""One replica's requests: counted, and repeated for as long as the store is in trouble.

What is repeated is the very same call, so it must be one that may land twice: a creation whose
bytes are compared, a listing, a read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

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
        self._service = service
        self._prefix = prefix

    async def persist(self, work: Callable[[], T], kind: Kind) -> T:
        """Have a thread do it until it is done. Raises Fenced, and StorageError `corrupt`."""
        delay = RETRY_FIRST_MS
        while True:
            self.counts[kind] += 1
            try:
                done: T = await self._service.run(work)
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

    def _note(self, error: StorageError) -> None:
        if self.trouble_since is None:
            self.trouble_since = self._service.now_ms()
            log.warning("the bucket does not take it prefix=%s error=%s", self._prefix, error)
        self.trouble = error
