"""The processes of tenants, as their supervisor has them: started when an edge wants one or an
alarm is due, gone when they have nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from actors import link_wire as w
from edge.processes.actor import DUE, Due
from infra import clock
from infra.errors import Busy, HoldfastError
from infra.link.connection import Answerer, Link
from infra.link.frames import LinkError
from infra.paths import tenant_home
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.tenants")

TENANTS_MAX: Final = 1024  # processes at once
AGAIN_S: Final = 1.0  # until a process that died with alarms or clients is started anew
LOOK_MAX_S: Final = 3600.0
TELL_WAIT_S: Final = 5.0

Start = Callable[[str], Awaitable[tuple[str, asyncio.Task[int]]]]
"""Starts the process of a tenant: (where it listens, a task that ends with its exit code)."""


class Tenants:
    """Fits infra.link.connection.Service, for edges."""

    def __init__(self, directory: Path, start: Start) -> None:
        self._directory = directory
        self._start = start
        self._places: dict[str, asyncio.Task[str]] = {}
        self._links: set[Link] = set()
        self._alarmed: set[str] = set()  # started for an alarm, of which an edge must know
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks = TaskOwner()

    def begin(self) -> None:
        """Have those tenants started later whose alarms are known, and others' looked at."""
        for home in sorted(self._directory.glob("tenants/*")):
            if (home / DUE).exists():
                self._sleep(_due_of(home))

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        if method in ("running", "alarmed"):
            told = self._places if method == "running" else self._alarmed
            link.done(stream, w.encode(sorted(told)))
            return None
        if method != "acquire":
            link.fail(stream, LinkError(f"no method {method[:40]!r}"))
            return None
        self._tasks.spawn(self._answer(link, stream, payload), name="acquire")
        return None

    def greeted(self, link: Link) -> None:
        """An edge is there."""
        self._links.add(link)

    def lost(self, link: Link) -> None:
        """An edge asks again when it wants something."""
        self._links.discard(link)

    async def _answer(self, link: Link, stream: int, payload: msgspec.Raw) -> None:
        try:
            tenant: str = w.decode_text(payload)
            link.done(stream, w.encode(await self.acquire(tenant)))
        except HoldfastError as error:
            link.fail(stream, error)
        except Exception as error:  # the top of a request: the supervisor goes on
            log.exception("tenant not started")
            link.fail(stream, error)

    async def acquire(self, tenant: str) -> str:
        """Where the tenant's process listens; it is started if there is none."""
        starting = self._places.get(tenant)
        if starting is None:
            if len(self._places) >= TENANTS_MAX:
                raise Busy(f"{TENANTS_MAX} tenants are awake", retry_after_ms=1000)
            if (timer := self._timers.pop(tenant, None)) is not None:
                timer.cancel()
            starting = self._tasks.spawn(self._live(tenant), name="tenant")
            self._places[tenant] = starting
        return await asyncio.shield(starting)

    async def _live(self, tenant: str) -> str:
        try:
            place, ended = await self._start(tenant)
        except BaseException:
            del self._places[tenant]
            raise
        self._tasks.spawn(self._ended(tenant, ended), name="tenant")
        if len(self._links) > 1:
            self._tasks.spawn(self._tell_awake(tenant), name="tell awake")
        return place

    async def _tell_awake(self, tenant: str) -> None:
        """Clients of several edges see each other by way of the process."""
        for link in tuple(self._links):
            with contextlib.suppress(HoldfastError):
                await link.call("awake", w.encode(tenant), within_s=TELL_WAIT_S)

    async def _ended(self, tenant: str, ended: asyncio.Task[int]) -> None:
        code = await asyncio.shield(ended)
        self._places.pop(tenant, None)
        self._alarmed.discard(tenant)
        if code == 0:
            self._sleep(_due_of(self._directory / "tenants" / tenant_home(tenant)))
            return
        log.warning("process of a tenant died code=%s", code)
        await asyncio.sleep(AGAIN_S)
        await self.acquire(tenant)

    def _sleep(self, note: Due | None) -> None:
        if note is None or note.due_at is None or note.tenant in self._timers:
            return
        delay_s = min(LOOK_MAX_S, max(0.0, (note.due_at - clock.now_ms()) / 1000))
        loop = asyncio.get_running_loop()
        self._timers[note.tenant] = loop.call_later(delay_s, self._due, note)

    def _due(self, note: Due) -> None:
        self._timers.pop(note.tenant, None)
        if note.due_at is not None and note.due_at > clock.now_ms():
            self._sleep(note)
        elif note.tenant not in self._places:
            self._tasks.spawn(self._alarm(note.tenant), name="tenant alarm")

    async def _alarm(self, tenant: str) -> None:
        """Start its process, and have one edge dial it: that one runs the handler."""
        self._alarmed.add(tenant)
        await self.acquire(tenant)
        for link in tuple(self._links):
            with contextlib.suppress(HoldfastError):
                await link.call("alarmed", w.encode(tenant), within_s=TELL_WAIT_S)
                return

    async def aclose(self) -> None:
        """Start no more."""
        for timer in self._timers.values():
            timer.cancel()
        await self._tasks.aclose()


def _due_of(home: Path) -> Due | None:
    try:
        return msgspec.json.decode((home / DUE).read_bytes(), type=Due)
    except (OSError, msgspec.MsgspecError):
        return None
