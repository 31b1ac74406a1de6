"""The vuer-rtc dialect of an actor: one message is one draft, one entry, one seq. Pure.

Entry: kind `msg` or `meta`, origin the session, stamp1 the lamport time, flag 1 while undone, body
the message as sequenced, ref the mark of the user whose the session becomes with it (sessions.py).
`clock` of the scope row is the room's lamport time. Rows: rooms.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from actors.dialects.vuer.message import Message, VuerRefusal, encode_message
from actors.dialects.vuer.rewrite import rewritten
from actors.dialects.vuer.rooms import META, NODES, Change, Planned, Room, message_of, rebased
from actors.dialects.vuer.sessions import check_order, check_user, forget, note
from actors.dialects.vuer.validate import LAMPORT_LEAD_MAX, check_message
from actors.rows import Key, Overlay
from actors.types import Draft, Entry

SNAPSHOT_EVERY: Final = 1000  # messages, then the floor moves
KEEP_TAIL: Final = 100  # messages that stay undoable when it does
TAIL_BYTES_MAX: Final = 4 << 20  # of big messages fewer are kept: an undo folds them all anew


class RoomLimits(msgspec.Struct, frozen=True):
    """How far a room may grow: weights (weight.py) of one node without its list of children and of
    all nodes, how many were ever inserted, and how many children one has.
    """

    node_bytes_max: int = 1 << 20
    room_bytes_max: int = 256 << 20
    nodes_max: int = 100_000
    children_max: int = 100_000


class Asked(msgspec.Struct):
    """What a draft asks. `prev` is the id of the session's message before, where it says so;
    `undo_any`: it may undo what others did; `user` is the mark of who asks (sessions.user_mark),
    None for the server's own code, which may speak as anybody.
    """

    message: Message
    prev: str | None = None
    undo_any: bool = False
    user: str | None = None


def message_draft(
    message: Message, *, prev: str | None = None, undo_any: bool = False, user: str | None = None
) -> Draft:
    """The draft of a checked message (validate.check_message)."""
    asked = Asked(message, prev, undo_any, user)
    body = msgspec.json.encode(asked).decode()
    return Draft(message.id, "msg", body, len(body), asked, message.session_id)


def compact_draft() -> Draft:
    """A draft that moves the floor as far as it may go, and becomes no entry."""
    return Draft("", "compact", "", 0)


DEFAULT_LIMITS: Final = RoomLimits()


class VuerDialect:
    """See actors/dialects/__init__.py for the contract, KeepsBases included."""

    name = "vuer-rtc"
    whole_entries = True
    needs_rows = True
    schema = None

    def __init__(
        self, *, snapshot_every: int = SNAPSHOT_EVERY, keep_tail: int = KEEP_TAIL,
        limits: RoomLimits = DEFAULT_LIMITS,
    ) -> None:  # fmt: skip
        if not 0 < keep_tail <= snapshot_every:
            raise ValueError("keep_tail is above 0 and not above snapshot_every")
        self._every = snapshot_every
        self._keep = keep_tail
        self._limits = limits

    # -- plan --------------------------------------------------------------------------------------

    def plan(self, draft: Draft, seq: int, at: int, rows: Overlay) -> Sequence[Entry]:
        """The entry of the message, none for a compaction. Raises VuerRefusal."""
        if draft.kind == "compact":
            self._trim(rows, seq - 1, 0)
            return []
        asked = draft.data if isinstance(draft.data, Asked) else _decoded(draft)
        message, room = asked.message, Room(rows)
        user = check_user(rows, message.session_id, asked.user)
        known = int(rows.clock or 0)
        if message.lamport > known + LAMPORT_LEAD_MAX:
            raise VuerRefusal(
                "clock_skew", f"lamportTime {message.lamport} is far above the room's {known}"
            )
        check_order(rows, message, asked.prev, seq, at)
        if message.is_meta:
            _check_targets(rows, message, seq, asked.undo_any)
        else:
            kept = rewritten(message, room.scene())
            if kept is not message:
                kept.server_seq = seq
                draft.outcome = encode_message(kept)
                message = kept
        change = room.change(message, seq)
        _check_room(room, change, self._limits)
        entry = _entry(message, seq, at, change)
        entry.ref = user
        self._trim(rows, seq, self._every)
        return [entry]

    def _trim(self, rows: Overlay, head: int, every: int) -> None:
        kept = head - rows.floor
        big = rows.bytes_kept > TAIL_BYTES_MAX and kept >= 2 * self._keep
        if big or kept >= max(every, self._keep + 1):
            rows.trim_to = head - self._keep

    # -- apply -------------------------------------------------------------------------------------

    def apply(self, overlay: Overlay, entry: Entry, only: frozenset[Key] | None = None) -> None:
        """Fold the message in. `only` is never asked: these rows do not lag behind."""
        message, room = message_of(entry), Room(overlay)
        if isinstance(entry.data, Planned):
            change, entry.data = entry.data.change, message
        else:
            change = room.change(message, entry.seq)
        room.store(change, entry.seq)
        overlay.settle |= entry.kind == META  # what it left out shows in all rows
        note(overlay, message, entry.seq, entry.at, entry.ref)
        overlay.clock = str(max(int(overlay.clock or 0), message.lamport))

    def rebase(self, overlay: Overlay, floor: int) -> None:
        """See KeepsBases."""
        rebased(overlay, floor, overlay.history(1 << 62))
        forget(overlay, floor)
        overlay.settle = True  # rows that lag are made of the base, which has moved

    def refold(self, overlay: Overlay, head: int, keys: Iterable[Key]) -> None:
        """See KeepsBases."""
        Room(overlay).refold([id for coll, id in keys if coll == NODES], head)

    def renumber(self, body: str, seq: int) -> str:
        """The message with its new serverSeq."""
        message: dict[str, Any] = msgspec.json.decode(body)
        message["serverSeq"] = seq
        return msgspec.json.encode(message).decode()


def _decoded(draft: Draft) -> Asked:
    raw = msgspec.json.decode(draft.body)
    message = check_message(raw["message"])
    return Asked(message, raw.get("prev"), raw.get("undo_any", False), raw.get("user"))


def _entry(message: Message, seq: int, at: int, change: Change) -> Entry:
    stored = msgspec.structs.replace(message, server_seq=seq)
    body = encode_message(stored)
    size = len(body) if body.isascii() else len(body.encode())
    return Entry(
        seq, at, META if message.is_meta else "msg", message.id, body, size,
        Planned(stored, change), message.session_id, stamp1=message.lamport,
    )  # fmt: skip


def _check_room(room: Room, change: Change, limits: RoomLimits) -> None:
    """Refuse what grows beyond a limit; what shrinks is welcome wherever it stands."""
    if room.node_count < change.count > limits.nodes_max:
        raise _too_large(
            f"a room holds at most {limits.nodes_max} nodes, removed ones included: insert under"
            " the key of a removed one, or go on in another room"
        )
    for key, (node, weight) in change.nodes.items():
        if weight > limits.node_bytes_max and weight > room.weight(key):
            raise _too_large(
                f"node {key!r} would have {weight} bytes, at most {limits.node_bytes_max}: set"
                " shorter values, or spread them over several nodes"
            )
        children = len(node.children)
        if children > limits.children_max and children > len(room.children(key)):
            raise _too_large(f"node {key!r} has at most {limits.children_max} children")
    if room.bytes < change.bytes > limits.room_bytes_max:
        raise _too_large(
            f"the room would have {change.bytes} bytes, at most {limits.room_bytes_max}: set"
            " shorter values, or go on in another room"
        )


def _too_large(message: str) -> VuerRefusal:
    return VuerRefusal("too_large", message)


def _check_targets(rows: Overlay, message: Message, seq: int, undo_any: bool) -> None:
    kept = {entry.cause: entry for entry in rows.history(seq)}
    for target, _ in message.targets:
        entry = kept.get(target)
        if entry is None:
            raise VuerRefusal("undo_expired", f"message {target} is not kept, or never was")
        if entry.kind == META:
            raise VuerRefusal("invalid_target", f"message {target} is an undo or redo itself")
        if entry.origin != message.session_id and not undo_any:
            raise VuerRefusal("forbidden", f"message {target} is of another session")
