"""A scope leaves a process of one server for another, as the process sees it: `give` closes its
file once everything under way is answered, `pins` tells who has what from then on, `keep` takes a
`give` back. The supervisor asks (edge/processes/moves.py).
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

import msgspec

from actors import link_wire as w
from actors.host import Host
from actors.index import peek
from actors.pins import Pin, Placed
from actors.serving import Method, Moved, Serving
from actors.transfers import NotThere
from actors.types import Address
from actors.wakes import Why
from infra.errors import TryLater
from infra.link.connection import Link
from infra.paths import ledger_path

log = logging.getLogger("holdfast.moving")

GIVE_WAIT_S: Final = 20.0


class GiveAsk(msgspec.Struct, array_like=True):
    """`give` and `keep`. `turn` counts the moves of a supervisor's life: a `keep` may overtake the
    `give` that it takes back, where the process was stopped meanwhile.
    """

    tenant: str
    scope: str
    turn: int


decode_pins = w.Decoding(list[Pin])
_decode_give = w.Decoding(GiveAsk)


class Moving:
    """Of one process. `settle` before it listens."""

    def __init__(self, host: Host, placed: Placed) -> None:
        self._host = host
        self._placed = placed
        self._kept = 0  # the turn that was taken back last
        self.methods: dict[str, Method] = {
            "give": self._give, "keep": self._keep, "pins": self._pins,
        }  # fmt: skip

    async def settle(self) -> None:
        """Have the index hold the moved scopes that are ours, and none that are not."""
        host = self._host
        for address in list(self._placed.pins):
            if not self._placed.has(address):
                host.index.remove(address)
            elif not host.index.has(address):
                path = ledger_path(host.directory, *address)
                found = await host.run(partial(peek, path))
                host.index.add(address, path)
                if found is not None:
                    host.index.set_due(address, found[1])
        host.barrier.mark(host.index)
        host.alarms.look()

    async def _give(
        self, serving: Serving, _link: Link, _stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        asked: GiveAsk = _decode_give(payload)
        if asked.turn <= self._kept:
            raise Moved("it was taken back already")
        address = serving.address(asked.tenant, asked.scope)
        placed = self._placed
        placed.leaving.add(address)
        try:
            async with asyncio.timeout(GIVE_WAIT_S):
                await self._close(address)
        except TimeoutError as error:
            placed.keep(address)
            raise TryLater("the scope is kept awake", retry_after_ms=1000) from error
        except BaseException:
            placed.keep(address)
            raise
        serving.move(lambda one: one == address)
        return w.encode(True)

    async def _close(self, address: Address) -> None:
        """Returns with the file closed, and not to be opened again."""
        host = self._host
        if (
            await host.awake(address, Why.ADMIN) is None
        ):  # out of the bucket, where it is there only
            raise NotThere(f"no scope {address.scope!r} in tenant {address.tenant!r}")
        while (scope := host.open_scopes.get(address)) is not None:
            await host.sleep(scope)
        self._placed.gone.add(address)  # without a suspension: nobody opens it in between

    async def _keep(
        self, _serving: Serving, _link: Link, _stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        asked: GiveAsk = _decode_give(payload)
        self._kept = max(self._kept, asked.turn)
        self._placed.keep(Address(asked.tenant, asked.scope))
        return w.encode(True)

    async def _pins(
        self, serving: Serving, _link: Link, _stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        self._placed.learn(decode_pins(payload))
        await self.settle()
        serving.move(lambda address: not self._placed.accepts(address))
        return w.encode(True)
