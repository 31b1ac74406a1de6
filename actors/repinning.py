"""Edges when a scope has moved to another process: what was sent to the old one and refused goes to
the new one, in order, and before anything newer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from actors import link_wire as w
from actors.peer import WAITING_MAX
from actors.pins import Pin, table_of
from actors.sent import EMPTY, Sent, rejected
from actors.types import Address, Outcome
from infra.errors import Busy, HoldfastError
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    from actors.peer import Peer
    from actors.remote import RemotePort

BARRIER_WAIT_S: Final = 5.0


class Repinning:
    """Of one edge. `held` are appends of scopes whose older ones are still on their way: those that
    are new (True) and those that were refused.
    """

    def __init__(self, port: RemotePort) -> None:
        self._port = port
        self.held: dict[Address, list[tuple[Sent, bool]]] = {}

    def learn(self, pins: Iterable[Pin], tasks: TaskOwner) -> None:
        """All pins there are. Those that are new here are followed up in tasks."""
        port = self._port
        table = table_of(pins)
        before = {address: port.peer_of(address) for address in table}
        port.placed.pins = table
        for address, old in before.items():
            if port.peer_of(address) is not old:
                port.follow_again(address)
                if address not in self.held:  # else its follow-up ends at the newest place
                    self.held[address] = []
                    tasks.spawn(self._follow_up(address, old), name="moved")
        port.beside.look()

    def hold(self, request: Sent) -> bool:
        """Whether a new append has to wait. Raises Busy for one too many."""
        queue = self.held.get(request.address)
        if queue is None:
            return False
        if len(queue) >= WAITING_MAX:
            raise Busy("too much waits for the scope", retry_after_ms=100)
        queue.append((request, True))
        return True

    def hold_back(self, request: Sent) -> bool:
        """Whether an append that was refused has to wait."""
        queue = self.held.get(request.address)
        if queue is not None:
            queue.append((request, False))
        return queue is not None

    async def _follow_up(self, address: Address, old: Peer) -> None:
        try:
            if old.link is not None:
                # Its answer comes after those to all that was sent before: refusals, by now.
                with contextlib.suppress(HoldfastError):
                    asked = w.encode(w.Ask(*address))
                    await old.link.call("bounds", asked, within_s=BARRIER_WAIT_S)
        finally:
            waiting = [*self.held.pop(address), *((one, False) for one in old.take(address))]
            waiting.sort(key=lambda one: one[0].number)
            for request, new in waiting:
                self._go_on(request, new=new)

    def _go_on(self, request: Sent, *, new: bool) -> None:
        port = self._port
        peer = port.peer_of(request.address)
        if not new:
            request.go_to(peer)
            peer.repeat(request)
            return
        request.peer = peer
        try:
            peer.put(request)
        except HoldfastError as error:
            refused: list[Outcome] = [rejected(error)] * len(request.drafts)
            request.reply.settle(request.tag, refused, EMPTY)
            port.flush_later(request.reply)
