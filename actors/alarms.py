"""Durable alarms: rows of a scope's ledger, run at or after their time, at least once.

One timer per host waits for the earliest due time in the index. A handler that fails is tried again
with growing delay; its row goes only after it has succeeded, so a crash in between runs it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from actors.due_marks import DueMarks
from actors.mailbox import Request
from actors.reply import FutureReply
from actors.types import Address
from actors.wakes import Why
from infra.errors import HoldfastError
from infra.paths import ledger_path
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    from actors.host import Host
    from actors.scope import Scope

log = logging.getLogger("holdfast.alarms")

DUE_MAX = 64  # scopes looked at in one go
SOON_MAX = 4096
DELAY_MAX_MS = 300_000
LOOK_MAX_S = 3600.0  # the clock may be set; look again at least this often

AlarmHandler = Callable[[Address, str, int, str | None, int], Awaitable[None]]
"""(address, name, due at ms, payload, attempt counted from 1)"""


class Alarms:
    """The host's timer and the runs under way."""

    def __init__(self, host: Host, handler: AlarmHandler | None) -> None:
        self.marks: DueMarks | None = None  # where several hosts own the scopes in turn
        self._host = host
        self._handler = handler
        self._tasks = TaskOwner()
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[Address] = set()
        self._stopped = False

    def look(self) -> None:
        """Set the timer to the earliest alarm. Call after an alarm was set."""
        if self._handler is None or self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        due_at = self._host.index.next_due(self._running)
        if due_at is not None:
            delay = min(LOOK_MAX_S, max(0.0, (due_at - self._host.now_ms()) / 1000))
            self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def soon(self, within_ms: int) -> set[Address]:
        """Whose handlers run, or will within that time: no use in putting them to sleep."""
        if self._handler is None:
            return set()
        due = self._host.index.due(self._host.now_ms() + within_ms, SOON_MAX)
        return {*self._running, *due}

    def stop(self) -> None:
        """Start no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    async def aclose(self) -> None:
        await self._tasks.aclose()

    async def set(self, address: Address, name: str, due_at_ms: int, payload: str | None) -> None:
        """Durable on return: the handler runs at `due_at_ms` or later, at least once."""
        if self.marks is not None:
            await self.marks.lower(address, due_at_ms)
        await self.submit(address, [(name, due_at_ms, payload, 0)], []).taken()
        # Again: an alarm run that read the rows before this commit may have set a later time.
        self._host.index.lower_due(address, due_at_ms)
        self.look()

    @property
    def handled(self) -> bool:
        """Whether the application has a handler."""
        return self._handler is not None

    def expect(self, address: Address, due_at: int) -> None:
        """A scope that may not be on this disk has an alarm, due then or later."""
        index = self._host.index
        path = ledger_path(self._host.directory, *address)
        if not path.exists():
            index.add(address, path)
            index.evict(address)
        index.lower_due(address, due_at)
        self.look()

    def opened(self, scope: Scope) -> None:
        """The file came from the bucket, or another host may have written to it."""
        due_at = min((due for _, due, _, _ in scope.ledger.alarms()), default=None)
        if due_at is not None:
            self._host.index.lower_due(scope.address, due_at)
            self.look()

    async def cancel(self, address: Address, name: str) -> bool:
        """Take an alarm back; whether there was one."""
        found = [(name, alarm[1]) for alarm in await self.of(address) if alarm[0] == name]
        if found:
            await self.submit(address, [], found).taken()
        return bool(found)

    def submit(
        self,
        address: Address,
        alarms: list[tuple[str, int, str | None, int]],
        done: list[tuple[str, int]],
    ) -> FutureReply:
        """Set and end alarms in the scope's next commit; its reply comes when they are durable."""
        reply = FutureReply()
        self._host.submit(address, Request([], reply, None, alarms=alarms, alarms_done=done))
        for _, due_at, _, _ in alarms:
            self._host.index.lower_due(address, due_at)
            self._host.barrier.mark(self._host.index)
        return reply

    async def of(
        self, address: Address, why: Why = Why.READ
    ) -> list[tuple[str, int, str | None, int]]:
        """(name, due_at, payload, attempts) of the scope's alarms, soonest first."""
        scope = await self._host.awake(address, why)
        return [] if scope is None else scope.ledger.alarms()

    def _fire(self) -> None:
        for address in self._host.index.due(self._host.now_ms(), DUE_MAX + len(self._running)):
            if address not in self._running:
                self._running.add(address)
                self._tasks.spawn(self._run_scope(address), name=f"alarm {address.scope[:40]}")
        self.look()  # for the scopes whose handlers do not run: nobody waits for another's

    async def _run_scope(self, address: Address) -> None:
        try:
            await self._run_due(address)
        except HoldfastError as error:
            if error.code == "moved":  # its owner rings
                self._host.index.set_due(address, None)
                return
            log.warning("alarm put off scope=%s error=%s", address.scope, error)
            self._host.index.set_due(address, self._host.now_ms() + DELAY_MAX_MS)
        finally:
            self._running.discard(address)
            self.look()

    async def _run_due(self, address: Address) -> None:
        now = self._host.now_ms()
        alarms = await self.of(address, Why.ALARM)
        for name, due_at, payload, attempts in alarms:
            if due_at <= now:
                await self._run_one(address, name, due_at, payload, attempts)
        if alarms:  # else there may be no scope, and none is made
            await self._host.settled(address)
        left = await self.of(address, Why.ALARM)
        due = min((due for _, due, _, _ in left), default=None)
        if self.marks is not None:
            await self.marks.settle(address, due)
        self._host.index.set_due(address, due)

    async def _run_one(
        self, address: Address, name: str, due_at: int, payload: str | None, attempts: int
    ) -> None:
        assert self._handler is not None
        try:
            await self._handler(address, name, due_at, payload, attempts + 1)
        except Exception:  # the user's code: whatever it raises means "not done"
            delay = min(DELAY_MAX_MS, 1000 * 2 ** min(attempts, 20))
            log.exception(
                "alarm failed scope=%s name=%s attempt=%d", address.scope, name, attempts + 1
            )
            later = (name, self._host.now_ms() + delay, payload, attempts + 1)
            if (name, due_at) in [alarm[:2] for alarm in await self.of(address)]:
                self.submit(address, [later], [])  # else the handler set it anew
        else:
            # Only if it is still the one that ran: the handler may have set it anew.
            self.submit(address, [], [(name, due_at)])
