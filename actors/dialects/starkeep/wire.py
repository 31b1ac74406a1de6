"""The bodies of an exchange, both versions: decoded, checked and built. Pure.

A record is kept as the whole JSON text it came as, so members of other versions pass through; only
the few that matter here are looked at. What is wrong raises BadExchange and nothing is applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from actors.clocks import HLC, BadClock, check_hlc
from actors.dialects.starkeep.naming import ID_CHARS
from actors.dialects.starkeep.watermarks import Watermarks, check_watermarks
from actors.json_text import mended
from infra.errors import ProtocolError

LIMIT_DEFAULT: Final = 1000
LIMIT_MAX: Final = 5000
ITEMS_MAX: Final = 10_000  # in one request
NODES_MAX: Final = 100_000  # in one map: a client sends back every author a space ever had

Op = Literal["insert", "update", "delete"]


class BadExchange(ProtocolError):
    """The request cannot be taken: nothing of it is applied."""

    code = "bad_exchange"


class ClockDrift(ProtocolError):
    """A stamp lies further in the future than the drift limit: nothing is applied.

    Not skipped silently: an old client would count the item as delivered.
    """

    code = "clock_drift"


class Record(msgspec.Struct, gc=False):
    """A record as it came: its text, and what an exchange needs to know of it."""

    text: bytes
    id: str
    stamp: HLC
    deleted: bool
    key: str = ""
    hash: str = ""
    size: int = 0
    mime_type: str | None = None


class RowEntry(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """One change of an app's row. `row` are columns, `where` column = value pairs."""

    timestamp: HLC
    app_id: str
    table: str
    op: Op
    row: dict[str, Any] | None = None
    where: dict[str, Any] | None = None


class Exchange(msgspec.Struct):
    """A request, checked. `limit` is what the caller asked for, within ours."""

    watermarks: Watermarks
    records: list[Record]
    rows: list[RowEntry]
    limit: int

    def __len__(self) -> int:
        return len(self.records) + len(self.rows)


class Answer(msgspec.Struct):
    """A response, decoded. `responder_watermarks` is None where the peer is of version 0.1.0."""

    records: list[Record]
    rows: list[RowEntry]
    responder_watermarks: Watermarks | None
    has_more: bool


class _Request(msgspec.Struct, rename="camel"):
    watermarks: Watermarks | None = None
    records: list[Raw] | None = None
    app_syncable_rows: list[RowEntry] | None = None
    limit: int | None = None


class _Response(msgspec.Struct, rename="camel"):
    records: list[Raw] = []
    app_syncable_rows: list[RowEntry] = []
    responder_watermarks: Watermarks | UnsetType | None = UNSET
    has_more: bool = False


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_any = msgspec.json.Decoder().decode
_encoder = msgspec.json.Encoder()
encode = _encoder.encode


def decode_exchange(body: bytes | str) -> Exchange:
    """The request a body holds. Raises BadExchange."""
    try:
        # A Raw part is not checked for UTF-8, and is stored as text.
        text = body if isinstance(body, str) else body.decode()
        try:
            found, records = _request_in(text)
        except msgspec.DecodeError:
            found, records = _request_in(mended(text))
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadExchange(f"the body is no exchange: {error}") from error
    rows = found.app_syncable_rows or []
    watermarks = found.watermarks or {}
    _check_counts(len(records) + len(rows), len(watermarks))
    for row in rows:
        check_row(row)
    if (wrong := check_watermarks(watermarks)) is not None:
        raise BadExchange(wrong)
    limit = LIMIT_DEFAULT if found.limit is None else found.limit
    if limit < 0:
        raise BadExchange("limit is not negative")
    return Exchange(watermarks, records, rows, min(limit, LIMIT_MAX))


def _request_in(text: str) -> tuple[_Request, list[Record]]:
    found = _decode_request(text)
    return found, [decode_record(bytes(raw)) for raw in found.records or ()]


def decode_answer(body: bytes) -> Answer:
    """The response a body holds.

    Raises msgspec.MsgspecError where it is none, BadExchange where an item in it is none.
    """
    try:
        found, records = _response_in(body)
    except msgspec.DecodeError:
        found, records = _response_in(mended(body.decode(errors="replace")).encode())
    for row in found.app_syncable_rows:
        check_row(row)
    theirs = found.responder_watermarks
    known = None if theirs is UNSET or theirs is None else theirs
    return Answer(records, found.app_syncable_rows, known, found.has_more)


def _response_in(body: bytes) -> tuple[_Response, list[Record]]:
    found = _decode_response(body)
    return found, [decode_record(bytes(raw)) for raw in found.records]


def decode_record(text: bytes) -> Record:
    """The record a JSON object is. Raises BadExchange, or MsgspecError for what is no JSON."""
    value = _decode_any(text)  # all of it: what is stored must be readable to the last member
    if type(value) is not dict:
        raise BadExchange("a record is an object")
    id = value.get("id")
    if type(id) is not str or len(id) != ID_CHARS:
        raise BadExchange(f"a record's id is a string of {ID_CHARS} characters")
    stamp = _stamp_of(value.get("updatedAt"))
    key = value.get("objectStorageKey")
    digest, size = value.get("contentHash"), value.get("sizeBytes")
    mime_type = value.get("mimeType")
    return Record(
        text, id, stamp, value.get("deletedAt") is not None,
        key if type(key) is str else "",
        digest if type(digest) is str else "",
        size if type(size) is int else 0,
        mime_type if type(mime_type) is str else None,
    )  # fmt: skip


def _stamp_of(value: Any) -> HLC:
    try:
        stamp = HLC(value["wallTime"], value["counter"], value["nodeId"])
    except (TypeError, KeyError):
        raise BadExchange("updatedAt is {wallTime, counter, nodeId}") from None
    if type(stamp.wall_ms) is not int or type(stamp.counter) is not int:
        raise BadExchange("updatedAt: wallTime and counter are whole numbers")
    if type(stamp.node_id) is not str:
        raise BadExchange("updatedAt: nodeId is text")
    _check_stamp(stamp, "updatedAt")
    return stamp


def record_of(value: Mapping[str, Any]) -> Record:
    """The record a Python mapping is. Raises BadExchange."""
    try:
        return decode_record(encode(value))
    except (msgspec.MsgspecError, TypeError) as error:
        raise BadExchange(f"no record: {error}") from error


def check_row(row: RowEntry) -> None:
    """Raise BadExchange for an entry that no peer can mean."""
    _check_stamp(row.timestamp, "timestamp")
    if not row.app_id or not row.table:
        raise BadExchange("appId and table are not empty")
    if row.op != "delete" and row.row is None:
        raise BadExchange(f"an {row.op} has a row")


def check_drift(exchange: Exchange, now_ms: int, drift_ms: int) -> None:
    """Raise ClockDrift where a stamp lies more than `drift_ms` ahead of `now_ms`."""
    limit = now_ms + drift_ms
    stamps = [record.stamp for record in exchange.records]
    stamps += [row.timestamp for row in exchange.rows]
    for stamp in stamps:
        if stamp.wall_ms > limit:
            raise ClockDrift(
                f"node {stamp.node_id[:80]!r} stamps {stamp.wall_ms - now_ms} ms ahead of this"
                f" server; at most {drift_ms}. Set that device's clock, and stamp the items again"
            )


def _check_counts(items: int, nodes: int) -> None:
    if items > ITEMS_MAX:
        raise BadExchange(f"{items} items; at most {ITEMS_MAX} in one exchange")
    if nodes > NODES_MAX:
        raise BadExchange(f"{nodes} watermarks; at most {NODES_MAX}")


def _check_stamp(stamp: HLC, name: str) -> None:
    try:
        check_hlc(stamp)
    except BadClock as error:
        raise BadExchange(f"{name}: {error}") from error


# -- building --------------------------------------------------------------------------------------


def encode_request(
    watermarks: Watermarks, records: Sequence[Record], rows: Sequence[RowEntry], limit: int | None
) -> bytes:
    """The body a requester sends: empty lists are left out, as real clients do."""
    parts = [b'{"watermarks":' + encode(watermarks)]
    if records:
        parts.append(b'"records":[' + b",".join([record.text for record in records]) + b"]")
    if rows:
        parts.append(b'"appSyncableRows":' + encode(rows))
    parts.append(b'"limit":' + (b"null" if limit is None else str(limit).encode()))
    return b",".join(parts) + b"}"


def encode_answer(
    records: Iterable[bytes], rows: Iterable[bytes], watermarks: Watermarks, *, has_more: bool
) -> bytes:
    """The body a responder sends, of JSON texts; all members always."""
    return b"".join(
        (
            b'{"records":[', b",".join(records), b'],"appSyncableRows":[', b",".join(rows),
            b'],"responderWatermarks":', encode(watermarks), b',"hasMore":',
            b"true}" if has_more else b"false}",
        )
    )  # fmt: skip


def row_text(stamp: HLC, app_id: str, table: str, columns: bytes, *, deleted: bool) -> bytes:
    """The wire form of a stored row; `columns` is a JSON object, for a tombstone its key alone.

    A tombstone says `where` as well: appliers that get none would delete the whole table.
    """
    text = encode(str(stamp))
    head = b'{"timestamp":%b,"appId":%b,"table":%b,"op":' % (
        encode(stamp), encode(app_id), encode(table),
    )  # fmt: skip
    body = columns[:-1] + b"," if len(columns) > 2 else b"{"
    if deleted:
        row = body + b'"updated_at":%b,"deleted_at":%b}' % (text, text)
        return head + b'"delete","where":%b,"row":%b}' % (columns, row)
    row = body + b'"updated_at":%b,"deleted_at":null}' % text
    return head + b'"insert","row":%b}' % row
