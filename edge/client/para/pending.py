"""What of a client's intents on one key is still open, and what an echo means to it. Pure.

Each intent, and each repetition of one, has a version `v` that grows per key. The echo of an intent
that is not the newest is suppressed: showing it would flicker between two of the user's own
changes. That of the newest ends the run. Everything else passes. An intent that was confirmed stays
open until the change it made has been seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "suppress", "dedupe"]


@dataclass(slots=True)
class _Open:
    v: int
    sequence: int | None = None  # of the change, once confirmed


class PendingKey:
    """The open intents of one key, oldest first."""

    __slots__ = ("_open", "v")

    def __init__(self) -> None:
        self.v = 0
        self._open: dict[str, _Open] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, op_id: str) -> int:
        """A new intent, or one that is sent again: its version, higher than every other."""
        self.v += 1
        self._open[op_id] = _Open(self.v)
        return self.v

    def again(self, op_id: str) -> int:
        """A fresh version for an open intent, in its place; 0 where it is not open."""
        held = self._open.get(op_id)
        if held is None:
            return 0
        self.v += 1
        held.v = self.v
        return self.v

    def echo(self, op_id: str | None, v: int | None) -> Verdict:
        """What to do with a change that names this intent, which is open no longer."""
        if op_id is None or self._open.pop(op_id, None) is None:
            return "pass"
        newest = not self._open and (v is None or v >= self.v)
        return "dedupe" if newest else "suppress"

    def confirmed(self, op_id: str, sequence: int, applied: int) -> None:
        """The server has taken it, as that sequence; `applied` is what the client has."""
        held = self._open.get(op_id)
        if held is not None:
            held.sequence = sequence
            self.applied(applied)

    def applied(self, sequence: int) -> None:
        """The client has everything up to the sequence."""
        done = [op for op, held in self._open.items()
                if held.sequence is not None and held.sequence <= sequence]  # fmt: skip
        for op_id in done:
            del self._open[op_id]

    def rejected(self, op_id: str) -> None:
        """The server has not taken it."""
        self._open.pop(op_id, None)
