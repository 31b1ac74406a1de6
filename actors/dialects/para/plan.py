"""The plan and apply of para-sync: a draft sets or deletes whole objects, all of them or none.
Pure.

An object is a row `(obj, key)`. Its sequence, as everybody outside knows it, is the row's `rev`
plus the ledger's `jump` (`Bounds.jump`): `rev` grows by one with each real change, across deletions
too, and whatever may have been issued before a restore lies below the jump. What equals the stored
value changes nothing. One entry is one change; `ref` is the key, `stamp1.stamp2` the version of the
schema, `origin` who wrote (`user/client`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from actors.dialects.para.keys import check_key, version_of
from actors.dialects.para.values import same
from actors.rows import Key, Overlay, Row
from actors.types import Draft, Entry, Refusal

OBJECTS: Final = "obj"
CHANGES_MAX: Final = 1000  # in one draft
_encode = msgspec.json.encode


class Op(msgspec.Struct, frozen=True):
    """Which intent of a client a change comes from; `v` is the client's version of it for the key.

    `user` is as the server knows it, None for its own code: no client can answer for another's
    intents.
    """

    user: str | None
    client: str
    op: str
    v: int | None = None

    @property
    def origin(self) -> str:
        """Who wrote, in one word."""
        user = "~" if self.user is None else escape(self.user)  # no user's is a lone tilde
        return f"{user}/{escape(self.client)}"

    @property
    def cause(self) -> str:
        """The dedupe id."""
        return f"{self.origin}/{escape(self.op)}"


class Change(msgspec.Struct):
    """One object as it is to be: `text` is the value as JSON; a deletion has neither.

    `rev`, if given, must be the row's, 0 where there is none. `v` goes with the draft's Op.
    """

    key: str
    version: str
    value: Any = None
    text: str = "null"
    deleted: bool = False
    rev: int | None = None
    v: int | None = None


class Changes(msgspec.Struct, tag="para.set"):
    """What a draft of kind `set` asks."""

    changes: list[Change]
    op: Op | None = None


DRAFTS: Final = (Changes,)


class Answer(msgspec.Struct, omit_defaults=True):
    """What a draft and its repeats are answered with: the rev of each key, or why not."""

    revs: dict[str, int] = {}
    changed: list[str] = []
    code: str | None = None
    message: str = ""


class Stored(msgspec.Struct, omit_defaults=True):
    """The body of an entry."""

    rev: int
    schema_version: str
    value: Any = None
    opId: str | None = None
    v: int | None = None


_decode = msgspec.json.Decoder(Stored).decode
_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_changes = msgspec.json.Decoder(Changes).decode


def escape(part: str) -> str:
    """Reversible, and without a slash."""
    return part.replace("~", "~0").replace("/", "~1")


def set_draft(changes: list[Change], op: Op | None = None, *, expect: int | None = None) -> Draft:
    """The draft that sets the objects."""
    size = sum(len(change.text) + len(change.key) for change in changes)
    data = Changes(changes, op)
    return Draft("" if op is None else op.cause, "set", "", size, data, expect=expect)


def probe_draft(op: Op) -> Draft:
    """Asks what the intent was answered: Duplicate, or refused with `unknown`."""
    return Draft(op.cause, "probe", "", len(op.cause))


def refusal_draft(op: Op, code: str, message: str) -> Draft:
    """Has repeats of the intent refused alike."""
    answer = Answer(code=code, message=message)
    return Draft(op.cause, "refuse", _encode(answer).decode(), len(message) + 64)


def answer_of(outcome: str | None) -> Answer:
    """What a plan has answered."""
    return Answer() if outcome is None else _decode_answer(outcome)


def stored_of(entry: Entry) -> Stored:
    """The body of an entry, decoded."""
    return entry.data if isinstance(entry.data, Stored) else _decode(entry.body)


def version_text(row: Row) -> str:
    """The version of the schema that the row's value is of."""
    return f"{row.stamp1 or 0}.{row.stamp2 or 0}"


class ParaDialect:
    """See actors/dialects/__init__.py for the contract."""

    name = "para-sync"
    whole_entries = True
    needs_rows = True
    schema = None

    def plan(self, draft: Draft, seq: int, at: int, rows: Overlay) -> Sequence[Entry]:
        """One entry for each real change. Raises Refusal."""
        if draft.kind == "probe":
            raise Refusal("not written before", code="unknown")
        if draft.kind == "refuse":
            draft.outcome = draft.body
            return []
        if draft.kind != "set":
            raise Refusal(f"a para scope takes no {draft.kind!r}", code="bad_frame")
        asked: Changes = _decode_changes(draft.body) if draft.data is None else draft.data
        keys = {change.key for change in asked.changes}
        if len(keys) != len(asked.changes) or not 0 < len(keys) <= CHANGES_MAX:
            raise Refusal(f"1 to {CHANGES_MAX} objects at once, each once", code="bad_frame")
        answer = Answer()
        entries: list[Entry] = []
        for change in asked.changes:
            row = rows.get(OBJECTS, check_key(change.key))
            held = 0 if row is None else row.rev
            if change.rev is not None and change.rev != held:
                raise Refusal(
                    f"{change.key!r} is at {held}, not at {change.rev}", code="stale",
                    detail={"key": change.key},
                )  # fmt: skip
            if _changes(row, change):
                held += 1
                entries.append(_entry(asked.op, change, held, seq + len(entries), at))
                answer.changed.append(change.key)
            answer.revs[change.key] = held
        if entries and asked.op is not None:
            entries[0].cause = draft.cause
        draft.outcome = _encode(answer).decode()
        return entries

    def renumber(self, body: str, seq: int) -> str:
        """Bodies of this dialect hold no seq; revs are below the jump."""
        return body

    def apply(self, overlay: Overlay, entry: Entry, only: frozenset[Key] | None = None) -> None:
        """Set the row to what the entry says: it holds the whole object."""
        assert entry.ref is not None
        if only is not None and (OBJECTS, entry.ref) not in only:
            return
        stored = stored_of(entry)
        # `stored` 0: written at once, because scans read the file and fold no tails.
        row = Row(
            stored.value, stored.rev, entry.seq, entry.size,
            stamp1=entry.stamp1, stamp2=entry.stamp2, deleted=entry.kind == "del",
        )  # fmt: skip
        overlay.replace(OBJECTS, entry.ref, row)


def _changes(row: Row | None, change: Change) -> bool:
    if row is None or row.deleted:
        return not change.deleted
    return (
        change.deleted
        or version_of(change.version) != (row.stamp1, row.stamp2)
        or not same(row.value, change.value)
    )


def _entry(op: Op | None, change: Change, rev: int, seq: int, at: int) -> Entry:
    major, minor = version_of(change.version)
    op_id = None if op is None else op.op
    body = f'{{"rev":{rev},"schema_version":"{change.version}","value":{change.text}'
    if op is not None:
        body += f',"opId":{_encode(op.op).decode()}'
        if change.v is not None:
            body += f',"v":{change.v}'
    body += "}"
    return Entry(
        seq, at, "del" if change.deleted else "put", None, body,
        len(body) if body.isascii() else len(body.encode()),
        Stored(rev, change.version, change.value, op_id, change.v),
        None if op is None else op.origin, change.key, None, major, minor,
    )  # fmt: skip
