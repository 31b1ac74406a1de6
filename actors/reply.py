"""A Reply for one caller that awaits the answer to one append."""

from __future__ import annotations

import asyncio
from typing import Any

from actors.types import Bounds, Outcome, Rejected
from infra.errors import StorageError


class FutureReply:
    """`await reply.future` gives (outcomes, bounds), after release."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[tuple[list[Outcome], Bounds]] = loop.create_future()

    def settle(self, tag: Any, outcomes: list[Outcome], bounds: Bounds) -> None:
        if not self.future.done():  # the caller may have gone
            self.future.set_result((outcomes, bounds))

    def flush(self) -> None:
        """Nothing is gathered here."""

    async def taken(self) -> None:
        """Wait for a request without drafts, whose only other outcome is that it was refused.

        Raises StorageError then.
        """
        outcomes, _ = await self.future
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                raise StorageError(
                    outcome.message, code=outcome.code, retry_after_ms=outcome.retry_after_ms
                )
