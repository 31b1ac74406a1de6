"""The line format of `holdfast export`: one JSON object a line, exact enough to be a ledger again.

The first line is the scope row, the last one counts what stood between and has the SHA-256 of all
lines before it. Between them, in this order and each in the order of its key: rows, unfolded tails,
entries, dedupe answers, alarms. A body stands there as the JSON it is, in `body`; where it is no
JSON, or would break the line, as text in `text`. NULLs are left out. What a replica needs (owner,
nonce, TXID) is not the history's and stays behind. Pure: the values of each kind of line.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from infra.errors import ScopeError
from infra.limits import INTEGER_MAX

FORMAT: Final = "holdfast-scope"
VERSION: Final = 1
LINE_BYTES_MAX: Final = 16 << 20  # above every body there can be

Seq = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Flag = Annotated[int, Meta(ge=0, le=1)]
Body = msgspec.Raw | UnsetType


class BadImport(ScopeError):
    """What was to become a scope is not whole or not right. Nothing was made."""

    code = "bad_import"


class Head(msgspec.Struct, tag_field="format", tag=FORMAT, forbid_unknown_fields=True,
           omit_defaults=True, kw_only=True):  # fmt: skip
    """The first line: the `scope` row."""

    version: int
    tenant: str
    scope: str
    dialect: str
    dialect_version: int
    epoch: str
    head: Seq
    floor: Seq
    floor_at: Seq
    jump: Seq
    bytes: Seq
    body_max: Seq
    materialize: Flag
    clock: str | None = None
    retain: Seq | None = None
    retain_seconds: Seq | None = None
    retain_bytes: Seq | None = None
    created_at: int
    updated_at: int


class _Line(msgspec.Struct, tag_field="line", forbid_unknown_fields=True, omit_defaults=True):
    pass


class RowLine(_Line, tag="row"):
    """A row of `rows`."""

    coll: str
    id: str
    rev: int
    seq: Seq
    origin: str | None = None
    stamp1: int | None = None
    stamp2: int | None = None
    grp: str | None = None
    deleted: Flag = 0
    body: Body = UNSET
    text: str | None = None


class UnfoldedLine(_Line, tag="unfolded"):
    """A row of `unfolded`."""

    coll: str
    id: str
    seq: Seq


class EntryLine(_Line, tag="entry"):
    """A row of `entries`."""

    seq: Seq
    at: int
    kind: str
    origin: str | None = None
    ref: str | None = None
    grp: str | None = None
    stamp1: int | None = None
    stamp2: int | None = None
    cause: str | None = None
    flags: int = 0
    body: Body = UNSET
    text: str | None = None


class DedupeLine(_Line, tag="dedupe"):
    """A row of `dedupe`."""

    id: str
    seq: Seq
    count: int
    at: int
    outcome: str | None = None


class AlarmLine(_Line, tag="alarm"):
    """A row of `alarms`."""

    name: str
    due_at: int
    attempts: int
    set_at: int
    payload: str | None = None


class EndLine(_Line, tag="end"):
    """The last line. `sha256` is in hex."""

    rows: Seq
    unfolded: Seq
    entries: Seq
    dedupe: Seq
    alarms: Seq
    sha256: str


Line = RowLine | UnfoldedLine | EntryLine | DedupeLine | AlarmLine | EndLine
decode_head = msgspec.json.Decoder(Head).decode
decode_line = msgspec.json.Decoder(Line).decode
encode = msgspec.json.Encoder().encode

# (table, columns, key) in the order of the lines; columns are those of the structs but for the body
TABLES: Final = (
    ("rows", "coll, id, rev, seq, origin, stamp1, stamp2, grp, deleted, body", "coll, id"),
    ("unfolded", "coll, id, seq", "coll, id"),
    (
        "entries",
        "seq, at, kind, origin, ref, grp, stamp1, stamp2, cause, flags, body",
        "seq",
    ),
    ("dedupe", "id, seq, count, outcome, at", "id"),
    ("alarms", "name, due_at, payload, attempts, set_at", "name"),
)
SCOPE_COLUMNS: Final = (
    "tenant, scope, dialect, dialect_version, epoch, head, floor, floor_at, jump, bytes, body_max,"
    " materialize, clock, retain, retain_seconds, retain_bytes, created_at, updated_at"
)
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode


def as_body(text: str | None) -> tuple[Body, str | None]:
    """(`body`, `text`) of a line for a stored body: the same characters come back."""
    if text is None:
        return UNSET, None
    if "\n" in text or "\r" in text or text.strip() != text:
        return UNSET, text
    try:
        return _decode_raw(text), None
    except msgspec.DecodeError:
        return UNSET, text


def of_body(body: Body, text: str | None) -> str | None:
    """The stored body that a line stands for."""
    return text if body is UNSET else bytes(body).decode()
