"""How many messages each session may still send, whichever of its sockets they come over. Pure.

An allowance outlives the socket that used it, or whoever connects anew would have a new one. It is
forgotten once it is full again, when it is worth no more than one that was never used.
"""

from __future__ import annotations

from actors.types import Address
from edge.budget import Budget
from edge.dialects.vuer import limits


class Allowances:
    """Of the sessions of this process's rooms that have sent something lately."""

    def __init__(self) -> None:
        self._used: dict[tuple[Address, str], Budget] = {}

    def __len__(self) -> int:
        return len(self._used)

    def take(self, address: Address, session: str, now: float) -> int:
        """0 if one more message may pass, else the milliseconds until it may."""
        budget = self._used.get((address, session))
        if budget is None:
            budget = Budget(limits.MESSAGES_PER_S, limits.MESSAGES_BURST, now)
            self._used[(address, session)] = budget
        return budget.take(1, now)

    def expire(self, now: float) -> None:
        """Forget those that are full again. To be called every second or so."""
        self._used = {key: held for key, held in self._used.items() if not held.is_full(now)}
