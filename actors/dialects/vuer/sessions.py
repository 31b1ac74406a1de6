"""What a room remembers of each session: how far it has counted, and what it said last. Pure.

Ids of messages are recognised for as long as the ledger's window holds them (actors/dedupe.py).
Beyond it a message is old if its session has counted past it already: `marks` hold (messages so
far, at, counter) at intervals, so memory stays small and the answer is at most one interval too
strict.
"""

from __future__ import annotations

from typing import Any, Final

from actors.dedupe import WINDOW_AGE_MS, WINDOW_MAX
from actors.dialects.vuer.message import Message, VuerRefusal
from actors.rows import Overlay, Row

SESSIONS: Final = "session"
_MARK_SEQS: Final = WINDOW_MAX // 4
_MARK_MS: Final = WINDOW_AGE_MS // 4


def check_order(rows: Overlay, message: Message, prev: str | None, seq: int, at: int) -> None:
    """Raise VuerRefusal (missing_prev, too_old) where the message is out of its session's order."""
    row = rows.get(SESSIONS, message.session_id)
    last = None if row is None else row.value["last"]
    if prev is not None and prev != last:
        raise VuerRefusal(
            "missing_prev", f"the last message of {message.session_id} here is {last}",
            detail={"expected": last},
        )  # fmt: skip
    if row is None:
        return
    counter = message.clock.get(message.session_id, 0)
    gone = [mark for mark in row.value["marks"] if _is_gone(mark, seq - rows.jump, at)]
    if gone and 0 < counter <= gone[-1][2]:
        raise VuerRefusal("too_old", f"counter {counter} of {message.session_id} was used long ago")


def note(rows: Overlay, message: Message, seq: int, at: int) -> None:
    """Remember an accepted message."""
    row = rows.get(SESSIONS, message.session_id)
    counter = message.clock.get(message.session_id, 0)
    held: dict[str, Any] = {"clock": 0, "marks": []} if row is None else row.value
    clock = max(held["clock"], counter)
    marks, count = held["marks"], seq - rows.jump
    if not marks or count - marks[-1][0] >= _MARK_SEQS or at - marks[-1][1] >= _MARK_MS:
        gone = sum(_is_gone(mark, count, at) for mark in marks)
        marks = [*marks[max(0, gone - 1) :], [count, at, clock]]
    value = {"clock": clock, "last": message.id, "marks": marks}
    rows.replace(
        SESSIONS, message.session_id, Row(value, 1 if row is None else row.rev + 1, seq, 0)
    )


def _is_gone(mark: list[int], count: int, at: int) -> bool:
    return mark[0] <= count - WINDOW_MAX or mark[1] <= at - WINDOW_AGE_MS
