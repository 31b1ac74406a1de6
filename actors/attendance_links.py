"""Attendance (actors/attendance.py) over links: a process tells of its own scopes, an edge asks all
processes, or the one that has the scope. A tenant's process that sleeps is not woken to be asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from actors import link_wire as w
from actors.attendance import SLEEP_WAIT_S, HostAttendance, merged
from actors.inspection import Report
from actors.remote import RemotePort
from actors.serving import Method, Serving
from actors.types import Address
from infra.link.connection import Link

WAIT_S: Final = SLEEP_WAIT_S + 10.0
Running = Callable[[], Awaitable[list[str]]]
"""The tenants that have a process now."""


def attendance_methods(own: HostAttendance) -> dict[str, Method]:
    """What a process answers to edges."""

    async def awake(_: Serving, link: Link, stream: int, payload: msgspec.Raw) -> msgspec.Raw:
        asked: w.ScopesAsk = w.decode_scopes(payload)
        return w.encode(await own.awake(asked.tenant, asked.prefix, asked.limit))

    def about_one(method: Callable[[Address], Awaitable[Report | None]]) -> Method:
        async def answer(
            serving: Serving, link: Link, stream: int, payload: msgspec.Raw
        ) -> msgspec.Raw:
            asked: w.Ask = w.decode_ask(payload)
            return w.encode(await method(serving.address(asked.tenant, asked.scope)))

        return answer

    return {
        "awake": awake,
        "outline": about_one(own.outline),
        "sleep_scope": about_one(own.sleep),
        "wake_scope": about_one(own.wake),
    }


class RemoteAttendance:
    """Of all processes behind a port; fits Attendance. `running` where each tenant has its own,
    `may_exist` whether a scope of one that sleeps can be somewhere.
    """

    def __init__(
        self, port: RemotePort, running: Running | None = None,
        may_exist: Callable[[Address], bool] = lambda _address: True,
    ) -> None:  # fmt: skip
        self._port = port
        self._running = running
        self._may_exist = may_exist

    async def awake(self, tenant: str, prefix: str, limit: int) -> Report:
        port = self._port
        asked = w.ScopesAsk(tenant, prefix, "", limit)
        if self._running is None:
            return merged(await port.ask_all("awake", asked), limit)
        answers = []
        for name in await self._awake_tenants():
            if not tenant or name == tenant:
                answer = await port.call(Address(name, ""), "awake", asked)
                answers.append(w.decode_plain(answer))
        return merged(answers, limit)

    async def outline(self, address: Address) -> Report | None:
        return await self._one("outline", address)

    async def sleep(self, address: Address) -> Report | None:
        return await self._one("sleep_scope", address)

    async def wake(self, address: Address) -> Report | None:
        return await self._ask("wake_scope", address)

    async def _awake_tenants(self) -> list[str]:
        """Those that have a process and are not about to end it: to ask would start it anew."""
        assert self._running is not None
        return sorted(one for one in await self._running() if not self._port.asleep(one))

    async def _one(self, method: str, address: Address) -> Report | None:
        if self._running is None or address.tenant in await self._awake_tenants():
            return await self._ask(method, address)
        if not self._may_exist(address):
            return None
        return {
            "tenant": address.tenant, "scope": address.scope, "state": "asleep", "process": None,
            "followers": None, "alarm_due": None, "woken_by": None, "awake_since": None,
            "slept_at": None, "kept_by": [], "sleeps_at": None,
        }  # fmt: skip

    async def _ask(self, method: str, address: Address) -> Report | None:
        answer = await self._port.call(address, method, w.Ask(*address), WAIT_S)
        found: Report | None = w.decode_plain(answer)
        return found
