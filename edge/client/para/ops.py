"""The intents of one client that have no answer yet, in the order they were made. Pure.

Always true: intents of one key are sent in their order; one that waits (its keys have no baseline
yet, or the server asked for patience) holds up later ones of its keys and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec


class StoredOp(msgspec.Struct):
    """One intent, or a group of them, as it is kept until it is answered.

    `intents` have `key` and `value`, or `name` and `input`; `base` for merged fields.
    """

    op_id: str
    intents: list[dict[str, Any]]
    group: bool = False


class Op:
    """A stored one on its way. `settle(sequences, error)` is called once."""

    __slots__ = ("not_before", "sent", "settle", "stored")

    def __init__(
        self, stored: StoredOp, settle: Callable[[dict[str, int] | None, Any], None]
    ) -> None:
        self.stored = stored
        self.settle = settle
        self.sent = False  # on this connection
        self.not_before = 0.0

    @property
    def keys(self) -> list[str]:
        """What it changes."""
        return [intent["key"] for intent in self.stored.intents]


class OpQueue:
    """Open intents by id, oldest first."""

    def __init__(self) -> None:
        self._ops: dict[str, Op] = {}

    def __len__(self) -> int:
        return len(self._ops)

    def __iter__(self) -> Any:
        return iter(tuple(self._ops.values()))

    def add(self, op: Op) -> None:
        """The newest."""
        self._ops[op.stored.op_id] = op

    def get(self, op_id: str) -> Op | None:
        """An open one."""
        return self._ops.get(op_id)

    def take(self, op_id: str) -> Op | None:
        """It is answered."""
        return self._ops.pop(op_id, None)

    def disconnected(self) -> None:
        """Everything is to be sent again."""
        for op in self._ops.values():
            op.sent = False

    def sendable(self, ready: Callable[[str], bool], now: float) -> list[Op]:
        """What may be sent now, in order."""
        blocked: set[str] = set()
        found: list[Op] = []
        for op in self._ops.values():
            if op.sent:
                continue
            free = op.not_before <= now and all(ready(key) for key in op.keys)
            if free and blocked.isdisjoint(op.keys):
                found.append(op)
            else:
                blocked.update(op.keys)
        return found

    def next_at(self, now: float) -> float | None:
        """When the first of those that must wait may go."""
        times: Iterable[float] = [
            op.not_before for op in self._ops.values() if not op.sent and op.not_before > now
        ]
        return min(times, default=None)

    def groups_of(self, key: str) -> bool:
        """Whether an open group changes the key: its echoes wait for the group's answer."""
        return any(op.stored.group and key in op.keys for op in self._ops.values())

    def newest_value(self, key: str) -> tuple[bool, Any]:
        """(whether there is one, the value) that the newest open intent of the key sets."""
        for op in reversed(self._ops.values()):
            for intent in op.stored.intents:
                if intent["key"] == key and "value" in intent:
                    return True, intent["value"]
        return False, None
