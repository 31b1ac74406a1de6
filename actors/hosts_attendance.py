"""Attendance (actors/attendance.py) of several hosts: of our own scopes directly, of the others'
over links.
"""

from __future__ import annotations

from actors import link_wire as w
from actors.attendance import merged
from actors.attendance_links import RemoteAttendance
from actors.hosts_port import HostsPort
from actors.inspection import Report
from actors.types import Address


class HostsAttendance:
    """Fits Attendance."""

    def __init__(self, port: HostsPort) -> None:
        self._port = port
        self._there = RemoteAttendance(port)

    async def awake(self, tenant: str, prefix: str, limit: int) -> Report:
        own = await self._port.attendance.awake(tenant, prefix, limit)
        payload = w.encode(w.ScopesAsk(tenant, prefix, "", limit))
        others = [w.decode_plain(one) for one in await self._port.each("awake", payload)]
        return merged([own, *others], limit)

    async def outline(self, address: Address) -> Report | None:
        here, there = self._port.attendance, self._there
        return await self._port.routed(
            address, lambda: here.outline(address), lambda: there.outline(address)
        )

    async def sleep(self, address: Address) -> Report | None:
        here, there = self._port.attendance, self._there
        return await self._port.routed(
            address, lambda: here.sleep(address), lambda: there.sleep(address)
        )

    async def wake(self, address: Address) -> Report | None:
        here, there = self._port.attendance, self._there
        return await self._port.routed(
            address, lambda: here.wake(address), lambda: there.wake(address)
        )
