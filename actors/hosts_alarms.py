"""Alarms of the scopes of several hosts: set at whoever owns the scope, and rung by it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from actors.due_marks import Due, DueMarks
from actors.remote import RemoteAlarms
from actors.types import Address
from infra import clock
from infra.errors import StorageError

if TYPE_CHECKING:
    from actors.hosts_port import HostsPort

log = logging.getLogger("holdfast.hosts")

EVERY_S: Final = 60.0  # one listing each; at once when a host comes or goes
TURN_S: Final = 0.5


class HostsAlarms(RemoteAlarms):
    """Alarms of scopes on any host."""

    def __init__(self, port: HostsPort) -> None:
        super().__init__(port)
        self._hosts = port

    async def look_forever(self) -> None:
        """Have our host ring for every scope of ours, also for those that another had before."""
        host, own = self._hosts.host, self._hosts.own
        assert host.waking is not None, "hosts share a bucket"
        bucket = host.waking.replication
        marks = DueMarks(bucket.service.store, bucket.prefix, bucket.service.run)
        host.alarms.marks = marks
        generation, expected = -1, set[Due]()
        while True:
            if generation != own.generation:
                generation, expected = own.generation, set()
            again = clock.monotonic() + EVERY_S
            try:
                found = await marks.look()
                mine = {due for due in found if own.mine(due.address, clock.monotonic())}
                for due in mine - expected:
                    host.alarms.expect(due.address, due.due_at)
                expected = mine
            except StorageError as error:
                log.warning("alarms of others are not seen error=%s", error)
            while generation == own.generation and clock.monotonic() < again:  # noqa: ASYNC110
                await asyncio.sleep(TURN_S)

    async def set(self, address: Address, name: str, due_at_ms: int, payload: str | None) -> None:
        """Durable on return."""
        there, alarms = super().set, self._hosts.host.alarms
        await self._hosts.routed(
            address, lambda: alarms.set(address, name, due_at_ms, payload),
            lambda: there(address, name, due_at_ms, payload),
        )  # fmt: skip

    async def cancel(self, address: Address, name: str) -> bool:
        """Take an alarm back; whether there was one."""
        there, alarms = super().cancel, self._hosts.host.alarms
        return await self._hosts.routed(
            address, lambda: alarms.cancel(address, name), lambda: there(address, name)
        )
