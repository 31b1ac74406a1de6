"""What a room remembers of each session: whose it is, how far it has counted, and what it said
last. Pure.

A session is its first user's for as long as it is remembered; another user's messages are refused
whatever became of the first one's sockets and of this process. Users are known by a mark of fixed
length. Of sessions beyond SESSIONS_MAX those are forgotten that have been silent for longest, if
the journal holds nothing of theirs.

Ids of messages are recognised for as long as the ledger's window holds them (actors/dedupe.py).
Beyond it a message is old if its session has counted past it already: `marks` hold (messages so
far, at, counter) at intervals, so memory stays small and the answer is at most one interval too
strict.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

from actors.dedupe import WINDOW_AGE_MS, WINDOW_MAX
from actors.dialects.vuer.message import Message, VuerRefusal
from actors.rows import Overlay, Row

SESSIONS: Final = "session"
SESSIONS_MAX: Final = 10_000
SESSIONS_KEPT: Final = 7500  # of too many, so that they are looked through rarely
_MARK_SEQS: Final = WINDOW_MAX // 4
_MARK_MS: Final = WINDOW_AGE_MS // 4


def user_mark(user_id: str) -> str:
    """What a room knows a user by: 32 hex digits."""
    return sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def check_user(rows: Overlay, session_id: str, user: str | None) -> str | None:
    """The mark if the session becomes that user's now, None if it is already or nobody asks.

    Raises VuerRefusal (session_taken) where it is another user's.
    """
    row = rows.get(SESSIONS, session_id)
    held = None if row is None else row.value.get("user")
    if user is None or held == user:
        return None
    if held is not None:
        raise VuerRefusal("session_taken", "this session is another user's: join under a new id")
    return user


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


def note(rows: Overlay, message: Message, seq: int, at: int, user: str | None) -> None:
    """Remember an accepted message, and whose the session becomes with it."""
    row = rows.get(SESSIONS, message.session_id)
    counter = message.clock.get(message.session_id, 0)
    held: dict[str, Any] = {"clock": 0, "marks": []} if row is None else row.value
    clock = max(held["clock"], counter)
    marks, count = held["marks"], seq - rows.jump
    if not marks or count - marks[-1][0] >= _MARK_SEQS or at - marks[-1][1] >= _MARK_MS:
        gone = sum(_is_gone(mark, count, at) for mark in marks)
        marks = [*marks[max(0, gone - 1) :], [count, at, clock]]
    value = {"clock": clock, "last": message.id, "marks": marks}
    if user is not None or "user" in held:
        value["user"] = held.get("user", user)
    rows.replace(
        SESSIONS, message.session_id, Row(value, 1 if row is None else row.rev + 1, seq, 0)
    )


def forget(rows: Overlay, floor: int) -> None:
    """Where there are too many sessions, drop the oldest that ended at or below the floor."""
    ids = rows.ids(SESSIONS)
    if len(ids) <= SESSIONS_MAX:
        return
    last = {id: 0 if (row := rows.get(SESSIONS, id)) is None else row.seq for id in ids}
    silent = sorted((seq, id) for id, seq in last.items() if seq <= floor)
    for _, id in silent[: len(ids) - SESSIONS_KEPT]:
        rows.remove(SESSIONS, id)


def _is_gone(mark: list[int], count: int, at: int) -> bool:
    return mark[0] <= count - WINDOW_MAX or mark[1] <= at - WINDOW_AGE_MS
