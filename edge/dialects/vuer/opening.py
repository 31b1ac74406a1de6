"""The rooms of a server of ours: scopes of its host, behind its own access hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.port import StatePort
from actors.types import Address
from edge.auth import Action, Principal
from edge.dialects.vuer.actor_broker import ActorBroker
from edge.dialects.vuer.journal import JournalService
from edge.dialects.vuer.repositories import LedgerRepository
from edge.dialects.vuer.server import RTCServer

if TYPE_CHECKING:
    from edge.runtime import Runtime

_ACTIONS = {"join": Action.READ, "write": Action.WRITE, "undo_any": Action.ADMIN}


class HostedRooms(RTCServer):
    """Asks the server's `authorize`: `read` to join, `write` to send messages, and `admin` to undo
    what other sessions did.
    """

    def __init__(self, port: StatePort, runtime: Runtime) -> None:
        super().__init__(JournalService(LedgerRepository(port)), ActorBroker(port))
        self._runtime = runtime

    @property
    def stopping(self) -> bool:
        """See RTCServer."""
        return self._runtime.stopping

    async def may(self, principal: Principal, address: Address, action: str) -> bool:
        """See RTCServer."""
        answer = self._runtime.authorize(principal, address.scope, _ACTIONS[action])
        return answer if isinstance(answer, bool) else await answer
