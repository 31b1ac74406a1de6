"""Which scopes are awake here, why, and until when; and being told to sleep and to wake.

`Attendance` is what the admin surface asks; here it is answered for the scopes of one host. To ask
wakes nothing. Times are milliseconds of wall time.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final, Protocol

from actors.host import Host
from actors.inspection import Report
from actors.scope import Scope
from actors.types import Address
from actors.wakes import Why
from infra.errors import TryLater

SLEEP_WAIT_S: Final = 20.0
OUTLINES_MAX: Final = 5000


class Attendance(Protocol):
    """Fits one host, and many of them behind links."""

    async def awake(self, tenant: str, prefix: str, limit: int) -> Report:
        """`processes`, and the `scopes` that are awake; of all tenants where it is ""."""

    async def outline(self, address: Address) -> Report | None:
        """One scope, awake or asleep; None where there is none."""

    async def sleep(self, address: Address) -> Report | None:
        """Close the scope's file once nothing is under way. Raises TryLater where that does not
        come to be in time.
        """

    async def wake(self, address: Address) -> Report | None:
        """Open the scope's file. Raises what opening it raises."""


class ProcessLife:
    """A process that has scopes. One of a tenant (`idle_s` is not None) ends when nobody has wanted
    it for so long; what woke it is what woke its first scope.
    """

    def __init__(
        self, name: str, started_at: int, *, tenant: str | None = None, idle_s: float | None = None
    ) -> None:
        self.name = name
        self.tenant = tenant
        self.started_at = started_at
        self.idle_s = idle_s
        self.idle_since: int | None = None  # no file has been open since then

    def report(self, host: Host) -> Report:
        """As `awake` lists it."""
        kept_by = ["scopes"] if host.open_scopes else []
        sleeps_at = None
        if self.idle_s is None:
            kept_by = ["always"]
        elif self.idle_since is not None and not kept_by:
            kept_by = ["recent use"]
            sleeps_at = self.idle_since + int(self.idle_s * 1000)
        woken_by = "start" if self.idle_s is None else host.wakes.first
        return {
            "process": self.name, "tenant": self.tenant, "pid": os.getpid(),
            "woken_by": woken_by, "awake_since": self.started_at, "kept_by": kept_by,
            "sleeps_at": sleeps_at, "scopes_open": len(host.open_scopes),
            "wakes": dict(host.wakes.counts),
        }  # fmt: skip


class HostAttendance:
    """Of one host."""

    def __init__(self, host: Host, life: ProcessLife) -> None:
        self._host = host
        self.life = life

    async def awake(self, tenant: str, prefix: str, limit: int) -> Report:
        host = self._host
        soon = host.alarms.soon(self._idle_ms)
        found = sorted(
            address
            for address in host.open_scopes
            if (not tenant or address.tenant == tenant) and address.scope.startswith(prefix)
        )
        outlines = [self._awake(host.open_scopes[address], soon) for address in found[:limit]]
        return {"processes": [self.life.report(host)], "scopes": outlines}

    async def outline(self, address: Address) -> Report | None:
        host = self._host
        scope = host.open_scopes.get(address)
        if scope is not None:
            return self._awake(scope, host.alarms.soon(self._idle_ms))
        if not host.index.has(address):
            return None
        last = host.wakes.slept.get(address)
        return {
            **self._named(address, "asleep"),
            "woken_by": None if last is None else last.why,
            "awake_since": None if last is None else last.since,
            "slept_at": None if last is None else last.slept_at,
            "kept_by": [], "sleeps_at": None,
        }  # fmt: skip

    async def sleep(self, address: Address) -> Report | None:
        scope = self._host.open_scopes.get(address)
        if scope is not None:
            try:
                async with asyncio.timeout(SLEEP_WAIT_S):
                    await self._host.sleep(scope)
            except TimeoutError as error:
                kept = ", ".join(scope.under_way) or "others"
                raise TryLater(f"it is kept awake by {kept}", retry_after_ms=1000) from error
        return await self.outline(address)

    async def wake(self, address: Address) -> Report | None:
        if await self._host.awake(address, Why.ADMIN) is None:
            return None
        return await self.outline(address)

    @property
    def _idle_ms(self) -> int:
        return int(self._host.settings.idle_s * 1000)

    def _awake(self, scope: Scope, soon: set[Address]) -> Report:
        wake = self._host.wakes.awake[scope.address]
        kept_by, sleeps_at = scope.under_way, None
        if scope.address in soon:
            kept_by.append("alarm")
        if not kept_by:
            kept_by = ["recent use"]
            sleeps_at = scope.used_at + self._idle_ms
        return {
            **self._named(scope.address, "awake"),
            "woken_by": wake.why, "awake_since": wake.since, "slept_at": None,
            "kept_by": kept_by, "sleeps_at": sleeps_at,
        }  # fmt: skip

    def _named(self, address: Address, state: str) -> Report:
        return {
            "tenant": address.tenant, "scope": address.scope, "state": state,
            "process": self.life.name, "followers": len(self._host.taps.get(address, ())),
            "alarm_due": self._host.index.due_at(address),
        }  # fmt: skip


def merged(answers: list[Report], limit: int) -> Report:
    """What several processes told of themselves."""
    scopes = [outline for answer in answers for outline in answer["scopes"]]
    scopes.sort(key=lambda outline: (outline["tenant"], outline["scope"]))
    processes = [process for answer in answers for process in answer["processes"]]
    processes.sort(key=lambda process: str(process["process"]))
    return {"processes": processes, "scopes": scopes[:limit]}
