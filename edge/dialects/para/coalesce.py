"""Work that is asked for again and again: one run at a time, and one more for all that came
meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.para")


class Coalesced:
    """`trigger` has `work` run; triggers during a run lead to exactly one after it."""

    def __init__(self, work: Callable[[], Awaitable[None]], tasks: TaskOwner, name: str) -> None:
        self._work = work
        self._tasks = tasks
        self._name = name
        self._running = False
        self._again = False
        self.stopped = False
        self.runs = 0

    def trigger(self) -> None:
        """Ask for a run."""
        if self.stopped:
            return
        if self._running:
            self._again = True
            return
        self._running = True
        try:
            self._tasks.spawn(self._run(), name=self._name)
        except RuntimeError:  # the owner is closing
            self._running = False
            self.stopped = True

    def stop(self) -> None:
        """No further runs; one under way ends by itself."""
        self.stopped = True

    async def _run(self) -> None:
        try:
            while not self.stopped:
                self._again = False
                self.runs += 1
                try:
                    await self._work()
                except Exception:  # user code: the next trigger runs it again
                    log.exception("run failed name=%s", self._name)
                if not self._again:
                    return
        finally:
            self._running = False
