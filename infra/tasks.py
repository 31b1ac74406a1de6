"""Every background task has an owner that ends it. The only place that calls `create_task`.

A `TaskGroup` would end all of its tasks when one fails; a server wants the failure reported and the
others left alone, hence this small class. Its owner calls `aclose`, which cancels and waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

log = logging.getLogger("holdfast.tasks")
T = TypeVar("T")


class TaskOwner:
    """Tasks of one object; use as `async with`, or call `aclose` once."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start `coro`; an exception that nobody awaits is logged with its name.

        Raises RuntimeError once the owner is closed (and closes the coroutine).
        """
        if self._closed:
            coro.close()
            raise RuntimeError(f"task {name}: its owner is closed")
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed task=%s", task.get_name(), exc_info=error)

    async def aclose(self) -> None:
        """Cancel what still runs and wait for its end. Safe to call twice."""
        self._closed = True
        me = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not me]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
