"""Starkeep's decoders take whatever there is: a value or their documented error, nothing else; and
what they give can be encoded and decoded again.
"""

from __future__ import annotations

import json

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.clocks import HLC, BadClock, parse_hlc
from actors.dialects.starkeep.naming import BadName, check_object_key
from actors.dialects.starkeep.wire import (
    BadExchange,
    decode_answer,
    decode_exchange,
    encode_request,
    row_text,
)
from edge.dialects.starkeep.handler import key_of, parse_range
from tests.support.starkeep import record_json

MANY = settings(max_examples=300, deadline=None)
GOOD = json.dumps(
    {
        "watermarks": {"a": {"wallTime": 1, "counter": 0, "nodeId": "a"}},
        "records": [record_json(5, "a", label="é")],
        "appSyncableRows": [
            {"timestamp": {"wallTime": 7, "counter": 1, "nodeId": "b"}, "appId": "notes",
             "table": "note", "op": "delete", "row": {"id": 1}, "where": {"id": 1}}
        ],
        "limit": 10,
    }
).encode()  # fmt: skip
SPICE = [b"\\u0000", b"\\ud800", b"\xff", b"9" * 400, b"1e999", b"[" * 200, b"{" * 200, b"null",
         b"NaN", b"-", b'"', b"\\", b"\x00", b"\xed\xa0\x80", b"true", b"1.5"]  # fmt: skip


whole = st.integers(-(2**63), 2**63 - 1)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good request after a few accidents."""
    data = bytearray(GOOD)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        end = at + draw(st.integers(0, 6))
        data[at:end] = draw(st.sampled_from(SPICE) | st.binary(max_size=3))
    return bytes(data)


@MANY
@given(st.binary(max_size=200) | damaged())
@example(GOOD)
def test_requests(data: bytes) -> None:
    try:
        found = decode_exchange(data)
    except BadExchange:
        return
    again = encode_request(found.watermarks, found.records, found.rows, found.limit)
    assert decode_exchange(again) == found
    for item in found.records:
        assert isinstance(json.loads(item.text), dict)
        assert item.text.decode() == item.text.decode("utf-8")


@MANY
@given(st.binary(max_size=200) | damaged())
def test_answers(data: bytes) -> None:
    try:
        decode_answer(data)
    except (BadExchange, msgspec.MsgspecError, RecursionError, UnicodeError):
        return


@MANY
@given(st.text(max_size=40) | st.from_regex(r"[0-9a-f]{0,14}:[0-9a-f]{0,6}:.{0,3}", fullmatch=True))
def test_stamps_as_text(text: str) -> None:
    try:
        found = parse_hlc(text)
    except BadClock:
        return
    assert parse_hlc(str(found)) == found


@MANY
@given(st.text(max_size=60) | st.from_regex(r"(%[0-9A-Fa-f]{2}|\.|/|%|a){0,20}", fullmatch=True))
def test_keys_in_paths(text: str) -> None:
    try:
        key = key_of("/files/" + text)
    except BadName:
        return
    assert check_object_key(key) == key
    assert not key.startswith("/")
    assert ".." not in key.split("/")


@MANY
@given(
    st.text(max_size=30) | st.from_regex(r"bytes=\d{0,6}-\d{0,6}", fullmatch=True),
    st.integers(0, 99),
)
def test_ranges(text: str, size: int) -> None:
    found = parse_range(text, size)
    if found:
        start, end = found
        assert 0 <= start < end <= size


@MANY
@given(
    st.dictionaries(st.text(max_size=5), whole | st.text(max_size=5), max_size=3),
    st.integers(0, 2**48 - 1),
    st.integers(0, 2**53 - 1),
    st.booleans(),
)
def test_rows_are_valid_json(
    columns: dict[str, int | str], wall_ms: int, counter: int, deleted: bool
) -> None:
    stamp = HLC(wall_ms, counter, "n")
    text = row_text(stamp, "a", "t", msgspec.json.encode(columns), deleted=deleted)
    found = json.loads(text)
    assert found["row"]["updated_at"] == str(stamp)
    assert found["op"] == ("delete" if deleted else "insert")
    assert ("where" in found) == deleted
