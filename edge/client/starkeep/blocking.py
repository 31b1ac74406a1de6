"""The engine for programs without an event loop: one loop of its own, kept between calls."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from edge.client.starkeep.engine import SyncEngine
from edge.client.starkeep.types import ExchangeResult

T = TypeVar("T")


class BlockingSyncEngine:
    """An engine whose calls return when they are done. Use as `with`, in one thread.

    `run` runs other coroutines of the same engine's parts, such as closing a transport.
    """

    def __init__(self, engine: SyncEngine) -> None:
        self.engine = engine
        self._runner = asyncio.Runner()

    def exchange(self) -> ExchangeResult:
        """See SyncEngine.exchange."""
        return self.run(self.engine.exchange())

    def drain(self) -> ExchangeResult:
        """See SyncEngine.drain."""
        return self.run(self.engine.drain())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the engine's loop."""
        return self._runner.run(work)

    def close(self) -> None:
        """End the loop."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
