"""What an edge and an actor process say to each other, as msgpack of a link's payloads. Pure.

Arrays with a fixed order, made and read in one place each. Drafts, entries and rows travel as
lists, because the structs of actors/types.py also hold what never leaves a process (decoded bodies,
factories, errors).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from actors import works
from actors.rows import Row
from actors.types import (
    Appended,
    Batch,
    Bounds,
    Draft,
    Duplicate,
    Entry,
    EntryPage,
    Outcome,
    Page,
    Rejected,
    Resync,
)  # fmt: skip
from infra.link.errors import Told, tell, told
from infra.link.frames import LinkError

Raw = msgspec.Raw
_encode: Final = msgspec.msgpack.Encoder().encode
_FAULTS: Final = (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, TypeError)


class Limits(msgspec.Struct, array_like=True):
    """Of a page."""

    entries_max: int
    bytes_max: int
    joined: bool = False


# cause, kind, body, size, data, origin, expect
WireDraft = tuple[str, str, str, int, bytes | None, str | None, int | None]


class Append(msgspec.Struct, array_like=True):
    """`append`."""

    tenant: str
    scope: str
    replicated: bool
    drafts: list[WireDraft]


class Ask(msgspec.Struct, array_like=True):
    """What names a scope and no more: bounds, clear."""

    tenant: str
    scope: str


class Read(msgspec.Struct, array_like=True):
    """`read`, and with `groups` `visible`."""

    tenant: str
    scope: str
    after: int
    limits: Limits
    groups: str | None = None


class Get(msgspec.Struct, array_like=True):
    """`get`."""

    tenant: str
    scope: str
    keys: list[tuple[str, str]]


class Scan(msgspec.Struct, array_like=True):
    """`scan`, and with `coll` `snapshot`."""

    tenant: str
    scope: str
    work: bytes = b""
    coll: str | None = None


class AlarmAsk(msgspec.Struct, array_like=True):
    """An alarm to set or cancel, or those there are; and one that rings."""

    tenant: str
    scope: str
    what: str
    name: str = ""
    due_at: int = 0
    payload: str | None = None
    attempt: int = 0


class ScopesAsk(msgspec.Struct, array_like=True):
    """Scopes in order of name."""

    tenant: str
    prefix: str
    after: str
    limit: int


class Where(msgspec.Struct, array_like=True, gc=False):
    """Bounds."""

    epoch: str
    head: int
    floor: int
    durable: int
    floor_at: int = 0
    jump: int = 0

    def bounds(self) -> Bounds:
        """As everybody else has them."""
        return Bounds(
            self.epoch, self.head, self.floor, self.durable,
            floor_at=self.floor_at, jump=self.jump,
        )  # fmt: skip


def where(bounds: Bounds) -> Where:
    """For the wire."""
    return Where(
        bounds.epoch, bounds.head, bounds.floor, bounds.durable, bounds.floor_at, bounds.jump
    )


class WireAppended(msgspec.Struct, array_like=True, tag=0):
    """An outcome; `written` as JSON."""

    first: int
    last: int
    outcome: str | None = None
    written: bytes | None = None


class WireDuplicate(msgspec.Struct, array_like=True, tag=1):
    """An outcome."""

    seq: int
    count: int
    outcome: str | None
    body: str | None


class WireRejected(msgspec.Struct, array_like=True, tag=2):
    """An outcome; `detail` as JSON."""

    code: str
    message: str
    detail: bytes | None
    retry_after_ms: int | None
    error: Told | None


class Settled(msgspec.Struct, array_like=True, tag=0):
    """The answer to an append."""

    outcomes: list[WireAppended | WireDuplicate | WireRejected]
    where: Where


class Written(msgspec.Struct, array_like=True, gc=False, tag=1):
    """Nearly every answer to an append: each draft became one entry, the first `first`, the next
    the one after it, and there is no more to say.
    """

    first: int
    count: int
    where: Where


WireEntry = tuple[
    int, int, str, str | None, str, str | None, str | None, str | None, int | None, int | None, int
]


class Delivered(msgspec.Struct, array_like=True, tag=0):
    """A released batch: bodies, or whole entries where the dialect's followers need them."""

    first: int
    last: int
    bodies: list[str]
    entries: list[WireEntry]
    where: Where


class DurableMoved(msgspec.Struct, array_like=True, tag=1):
    """Tap.durable."""

    where: Where


class HeadMoved(msgspec.Struct, array_like=True, tag=2):
    """Tap.moved: also where batches were left out because the edge did not keep up."""

    where: Where


class WasReset(msgspec.Struct, array_like=True, tag=3):
    """Tap.reset."""

    where: Where


class Following(msgspec.Struct, array_like=True, tag=4):
    """The first part of a subscription: what it begins from."""

    where: Where


Notice = Delivered | DurableMoved | HeadMoved | WasReset | Following


class WirePage(msgspec.Struct, array_like=True, tag=0):
    """A page of bodies."""

    first: int
    last: int
    bodies: list[str]
    joined: str
    where: Where


class WireEntryPage(msgspec.Struct, array_like=True, tag=1):
    """A page of entries."""

    last: int
    entries: list[WireEntry]
    where: Where


class WireResync(msgspec.Struct, array_like=True, tag=2):
    """Neither."""

    reason: str
    where: Where


class Spooled(msgspec.Struct, array_like=True):
    """The end of a spool's parts: where in the history it stands, and the work's result."""

    epoch: str
    seq: int
    floor: int
    size: int
    result: bytes
    count: int = 0


WireRow = tuple[bytes, int, int, int, str | None, int | None, int | None, str | None, bool]


def encode(value: Any) -> Raw:
    """Any of the above. Raises LinkError for text that is no Unicode."""
    try:
        return Raw(_encode(value))
    except _FAULTS as error:
        raise LinkError(f"{type(value).__name__} cannot be sent: {error}") from error


class Decoding:
    """A decoder of one type. Raises LinkError."""

    def __init__(self, type: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(type).decode

    def __call__(self, payload: Raw | bytes) -> Any:
        try:
            return self._decode(payload)
        except _FAULTS as error:
            raise LinkError(f"a payload that cannot be read: {error}") from error


decode_append = Decoding(Append)
decode_ask = Decoding(Ask)
decode_read = Decoding(Read)
decode_get = Decoding(Get)
decode_scan = Decoding(Scan)
decode_where = Decoding(Where)
decode_settled = Decoding(Settled | Written)
decode_notice = Decoding(Notice)
decode_page = Decoding(WirePage | WireEntryPage | WireResync)
decode_spooled = Decoding(Spooled | None)
decode_rows = Decoding(list[WireRow | None])
decode_bytes = Decoding(bytes)
decode_alarm = Decoding(AlarmAsk)
decode_alarms = Decoding(list[tuple[str, int, str | None, int]])
decode_bool = Decoding(bool)
decode_text = Decoding(str)
decode_scopes = Decoding(ScopesAsk)
decode_plain = Decoding(Any)


# -- drafts and outcomes -------------------------------------------------------------------------


def wire_draft(draft: Draft, cause: str) -> WireDraft:
    """Raises works.Unknown for data that cannot be sent."""
    data = works.encode_data(draft.data) if not draft.body and draft.data is not None else None
    return cause, draft.kind, draft.body, draft.size, data, draft.origin, draft.expect


def drafts_of(sent: list[WireDraft]) -> list[Draft]:
    """See wire_draft. Raises works.Unknown."""
    decode = works.decode_data
    return [
        Draft(cause, kind, body, size, None if data is None else decode(data), origin, expect)
        for cause, kind, body, size, data, origin, expect in sent
    ]


def wire_outcome(outcome: Outcome, draft: Draft) -> WireAppended | WireDuplicate | WireRejected:
    """With what the plan has noted in the draft."""
    match outcome:
        case Appended(first=first, last=last, outcome=text):
            written = None if draft.written is None else msgspec.json.encode(draft.written)
            return WireAppended(first, last, text, written)
        case Duplicate(seq=seq, count=count, outcome=text, body=body):
            return WireDuplicate(seq, count, text, body)
        case Rejected():
            detail = None if outcome.detail is None else msgspec.json.encode(outcome.detail)
            error = None if outcome.error is None else tell(outcome.error)
            return WireRejected(
                outcome.code, outcome.message, detail, outcome.retry_after_ms, error
            )


def outcome_of(sent: WireAppended | WireDuplicate | WireRejected, draft: Draft | None) -> Outcome:
    """The outcome; what the plan noted goes into the draft."""
    match sent:
        case WireAppended(first=first, last=last, outcome=text, written=written):
            if written is not None and draft is not None:
                draft.written = msgspec.json.decode(written)
            return Appended(first, last, text)
        case WireDuplicate(seq=seq, count=count, outcome=text, body=body):
            return Duplicate(seq, count, text, body)
        case WireRejected():
            detail = None if sent.detail is None else msgspec.json.decode(sent.detail)
            error = None if sent.error is None else told(sent.error)
            return Rejected(sent.code, sent.message, detail, sent.retry_after_ms, error)


def encode_settled(outcomes: list[Outcome], drafts: list[Draft], bounds: Bounds) -> Raw:
    """The answer to an append. Raises LinkError."""
    if first := _run(outcomes, drafts):
        return encode(Written(first, len(outcomes), where(bounds)))
    if len(outcomes) != len(drafts):  # a refusal of a request without drafts
        drafts = [Draft("", "", "", 0)] * len(outcomes)
    told = [wire_outcome(one, draft) for one, draft in zip(outcomes, drafts, strict=True)]
    return encode(Settled(told, where(bounds)))


def _run(outcomes: list[Outcome], drafts: list[Draft]) -> int:
    """The first seq where `Written` says it all, else 0."""
    if not outcomes or len(outcomes) != len(drafts) or type(outcomes[0]) is not Appended:
        return 0
    first = seq = outcomes[0].first
    for at, outcome in enumerate(outcomes):
        if type(outcome) is not Appended or outcome.first != seq or outcome.last != seq:
            return 0
        if outcome.outcome is not None or drafts[at].written is not None:
            return 0
        seq += 1
    return first


def outcomes_of(sent: Settled | Written, drafts: list[Draft]) -> list[Outcome]:
    """See encode_settled. Raises ValueError where they are not as many as the drafts."""
    if isinstance(sent, Settled):
        pairs = zip(sent.outcomes, drafts, strict=True)
        return [outcome_of(one, draft) for one, draft in pairs]
    if sent.count != len(drafts):
        raise ValueError(f"{sent.count} answers to {len(drafts)} drafts")
    return [Appended(seq, seq) for seq in range(sent.first, sent.first + sent.count)]


# -- entries, pages, rows --------------------------------------------------------------------------


def wire_entry(entry: Entry) -> WireEntry:
    """Without its decoded body."""
    return (
        entry.seq, entry.at, entry.kind, entry.cause, entry.body, entry.origin, entry.ref,
        entry.grp, entry.stamp1, entry.stamp2, entry.flags,
    )  # fmt: skip


def entry_of(sent: WireEntry) -> Entry:
    """See wire_entry."""
    seq, at, kind, cause, body, origin, ref, grp, stamp1, stamp2, flags = sent
    size = len(body) if body.isascii() else len(body.encode())
    return Entry(seq, at, kind, cause, body, size, None, origin, ref, grp, stamp1, stamp2, flags)


def encode_batch(batch: Batch) -> Raw:
    """Once for all links it goes to."""
    made = batch.frames.get("link")
    if made is None:
        entries = [wire_entry(entry) for entry in batch.entries]
        bodies = [] if entries else batch.bodies
        delivered = Delivered(batch.first, batch.last, bodies, entries, where(batch.bounds))
        made = batch.frames["link"] = encode(delivered)
    return made


def batch_of(sent: Delivered) -> Batch:
    """See encode_batch."""
    entries = [entry_of(entry) for entry in sent.entries]
    bodies = [entry.body for entry in entries] if entries else sent.bodies
    return Batch(sent.first, sent.last, bodies, sent.where.bounds(), entries)


def wire_page(page: Page | EntryPage | Resync) -> WirePage | WireEntryPage | WireResync:
    """Of `read` and `visible`."""
    match page:
        case Page():
            return WirePage(page.first, page.last, page.bodies, page.joined, where(page.bounds))
        case EntryPage():
            entries = [wire_entry(entry) for entry in page.entries]
            return WireEntryPage(page.last, entries, where(page.bounds))
        case Resync():
            return WireResync(page.reason, where(page.bounds))


def page_of(sent: WirePage | WireEntryPage | WireResync) -> Page | EntryPage | Resync:
    """See wire_page."""
    match sent:
        case WirePage():
            return Page(sent.first, sent.last, sent.bodies, sent.joined, sent.where.bounds())
        case WireEntryPage():
            entries = [entry_of(entry) for entry in sent.entries]
            return EntryPage(sent.last, entries, sent.where.bounds())
        case WireResync():
            return Resync(sent.reason, sent.where.bounds())


def wire_rows(rows: Sequence[Row | None]) -> list[WireRow | None]:
    """Values as JSON. What a dialect keeps decoded in a row must be JSON, as it is in the file."""
    return [
        None
        if row is None
        else (
            msgspec.json.encode(row.value), row.rev, row.seq, row.size, row.origin, row.stamp1,
            row.stamp2, row.grp, row.deleted,
        )
        for row in rows
    ]  # fmt: skip


def rows_of(sent: list[WireRow | None]) -> list[Row | None]:
    """See wire_rows."""
    found: list[Row | None] = []
    for one in sent:
        if one is None:
            found.append(None)
            continue
        value, rev, seq, size, origin, stamp1, stamp2, grp, deleted = one
        decoded = msgspec.json.decode(value)
        found.append(
            Row(
                decoded, rev, seq, size, seq, 0, origin=origin, stamp1=stamp1, stamp2=stamp2,
                grp=grp, deleted=deleted,
            )
        )  # fmt: skip
    return found
