"""The answers to one client's messages, each at its place in the room's order. Pure.

A message that was appended is answered where others get it as `broadcast`, so that what a client
receives ascends; refusals and repeats are answered with the turn. Always true: `waiting` counts
the messages that were submitted and are not decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from actors.types import Appended, Bounds, Duplicate, Entry, Outcome, Rejected
from edge.dialects.vuer import frames as f
from edge.wire import Message


class Answers:
    """Fits actors.types.Reply; the tag of a request is the message's id."""

    __slots__ = ("_at", "_direct", "_format", "_send", "waiting")

    def __init__(self, format: f.Format, send: Callable[[Sequence[Message]], None]) -> None:
        self.waiting = 0
        self._format = format
        self._send = send
        self._at: dict[
            int, tuple[str, str | None]
        ] = {}  # by seq: the id, and the text if rewritten
        self._direct: list[Message] = []

    def __bool__(self) -> bool:
        """Whether an appended message is still to be answered."""
        return bool(self._at)

    def settle(self, tag: Any, outcomes: list[Outcome], bounds: Bounds) -> None:
        """One message is decided."""
        self.waiting -= 1
        (outcome,) = outcomes
        match outcome:
            case Appended(last=seq, outcome=rewritten):
                self._at[seq] = (tag, rewritten)
            case Duplicate(seq=seq, outcome=rewritten):
                frame = self._ack(tag, seq, rewritten, bounds) | {"dup": True}
                self._direct.append(self._format.encode(frame))
            case Rejected(code=code, message=message, detail=detail, retry_after_ms=after_ms):
                expected = (detail or {}).get("expected", msgspec.UNSET)
                frame = f.error(
                    f.wire_code(code), message, msg_id=tag, retry_after_ms=after_ms or 1000,
                    expected=expected,
                )  # fmt: skip
                self._direct.append(self._format.encode(frame))

    def flush(self) -> None:
        """No more answers of this turn follow."""
        if self._direct:
            direct, self._direct = self._direct, []
            self._send(direct)

    def forget(self, upto: int) -> None:
        """Another history has begun above that seq: the client sends what it holds again."""
        self._at = {seq: held for seq, held in self._at.items() if seq > upto}

    def frames_of(self, entries: Sequence[Entry], bounds: Bounds) -> list[Message]:
        """Broadcasts, with an `ack` in the place of each own message that awaits one."""
        found: list[Message] = []
        others: list[str] = []
        for entry in entries:
            held = self._at.pop(entry.seq, None) if self._at else None
            if held is None:
                others.append(entry.body)
                continue
            found += self._broadcasts(others)
            others = []
            found.append(self._format.encode(self._ack(held[0], entry.seq, held[1], bounds)))
        return found + self._broadcasts(others)

    def upto(self, seq: int, bounds: Bounds) -> list[Message]:
        """`ack`s of those whose messages a `state` has brought already."""
        told = sorted(at for at in self._at if at <= seq)
        acks = [self._ack(self._at[at][0], at, self._at.pop(at)[1], bounds) for at in told]
        return [self._format.encode(ack) for ack in acks]

    def _broadcasts(self, bodies: list[str]) -> list[Message]:
        return [f.broadcast(self._format, run) for run in f.pages_of(bodies)]

    def _ack(self, msg_id: str, seq: int, rewritten: str | None, bounds: Bounds) -> dict[str, Any]:
        frame = {"mtype": "ack", "msgId": msg_id, "serverSeq": seq, "durableSeq": bounds.durable}
        if rewritten is not None:
            frame["msg"] = self._format.body(rewritten)
        return frame
