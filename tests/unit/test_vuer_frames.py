"""Frames of vuer-rtc: whatever comes in is a frame or BadFrame; what goes out can be read back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.dialects.vuer import frames as f
from edge.dialects.vuer import limits
from edge.wire import Message

FORMATS = [f.Format(codec, names) for codec in ("json", "msgpack") for names in ("long", "short")]
BODY = (
    '{"serverSeq":1,"id":"a:1","sessionId":"a","clock":{"a":1},"lamportTime":2,"timestamp":3,'
    '"ops":[{"otype":"number.set","key":"n","path":"x","value":1.5}]}'
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)
_kinds = st.sampled_from(["join", "crdt", "sync", "sync-check", "heartbeat", "presence", "leave"])
_members = st.sampled_from([
    "since", "epoch", "mode", "presence", "msg", "prev", "vectorClock", "requestId", "state",
    "confirmedSeq",
])  # fmt: skip


def read(message: Message) -> Any:
    return msgspec.json.decode(message) if isinstance(message, str) else (
        msgspec.msgpack.decode(message))  # fmt: skip


@given(st.binary() | st.text().map(str.encode), st.booleans())
def test_any_bytes_are_a_frame_or_a_bad_one(data: bytes, binary: bool) -> None:
    try:
        f.decode(data, binary=binary)
    except f.BadFrame as error:
        assert error.code in f.CODES


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(_kinds, st.dictionaries(_members, _values, max_size=3))
def test_any_members_are_a_frame_or_a_bad_one(kind: str, members: dict[str, Any]) -> None:
    try:
        data = msgspec.msgpack.encode({"mtype": kind, **members})
    except (ValueError, OverflowError):
        return  # beyond 64 bits: nothing a peer could send
    try:
        frame = f.decode(data, binary=True)
    except f.BadFrame as error:
        assert error.code in ("invalid_message", "bad_since", "too_large")
    else:
        msgspec.json.encode(msgspec.to_builtins(frame))


def test_each_kind() -> None:
    def of(text: str) -> f.Inbound:
        return f.decode(text, binary=False)

    assert of('{"mtype":"join","since":3,"epoch":"e","mode":"graph","presence":[1]}') == f.Join(
        3, "e", "graph", [1])  # fmt: skip
    assert of('{"mtype":"join","later":1}') == f.Join(None, None, "tail", None)
    assert of('{"mtype":"crdt","msg":{"id":"x"},"prev":"w"}') == f.Crdt({"id": "x"}, "w")
    assert of('{"mtype":"sync","since":0,"filter":"bloom"}') == f.Sync(0, None, None)
    assert of('{"mtype":"sync","vectorClock":{}}') == f.Sync(None, {}, None)
    assert of('{"mtype":"heartbeat","sessionId":"a"}') == f.Heartbeat(None, None)
    assert of('{"mtype":"presence","state":null}') == f.Presence(None)
    assert of('{"mtype":"leave"}') == f.Leave()


def test_nesting_is_bounded_where_it_is_allowed_to_begin() -> None:
    def nested(depth: int) -> bytes:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return msgspec.json.encode({"mtype": "crdt", "msg": {"ops": value}})

    f.decode(nested(limits.NESTING_MAX - 2), binary=False)
    with pytest.raises(f.BadFrame):
        f.decode(nested(limits.NESTING_MAX), binary=False)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_says_the_same(format: f.Format) -> None:
    one = read(f.broadcast(format, [BODY]))
    several = read(f.broadcast(format, [BODY, BODY]))
    assert one["mtype"] == "broadcast" and several["msgs"] == [one["msg"]] * 2
    expected = msgspec.json.decode(BODY)
    if format.names == "short":
        expected = {
            "serverSeq": 1, "id": "a:1", "client": "a", "clock": {"a": 1}, "lt": 2, "ts": 3,
            "ops": [{"ot": "number.set", "key": "n", "path": "x", "value": 1.5}],
        }  # fmt: skip
    assert one["msg"] == expected
    assert isinstance(f.broadcast(format, [BODY]), str if format.codec == "json" else bytes)


@given(st.lists(st.integers(1, 400_000), max_size=20))
def test_pages_fit_a_frame_and_lose_nothing(sizes: list[int]) -> None:
    bodies = ["x" * size for size in sizes]
    pages = list(f.pages_of(bodies))
    assert [body for page in pages for body in page] == bodies
    for page in pages:
        assert len(page) == 1 or sum(map(len, page)) <= limits.JOURNAL_BYTES_MAX
    many = list(f.pages_of(["x"] * 2500))
    assert list(map(len, many)) == [1000, 1000, 500]


def test_what_is_asked_for_in_the_address() -> None:
    assert f.format_of({}) == f.JSON
    assert f.format_of({"codec": "msgpack", "names": "short"}) == f.Format("msgpack", "short")
    for wrong in ({"codec": "cbor"}, {"names": ""}):
        with pytest.raises(f.BadFrame):
            f.format_of(wrong)


def test_only_three_codes_may_be_repeated() -> None:
    assert {code for code in f.CODES if f.error(code, "")["retryable"]} == {
        "rate_limited", "moved", "internal"}  # fmt: skip
    for code in ("busy", "fenced", "try_later", "closed", "storage", "unavailable"):
        assert f.wire_code(code) == "moved"
    assert f.wire_code("who knows") == "internal" and f.wire_code("too_old") == "too_old"
    frame = f.error("forbidden", "m", msg_id="x", retry_after_ms=5, expected=None)
    assert frame == {"mtype": "error", "error": "forbidden", "message": "m", "retryable": False,
                     "msgId": "x", "expected": None}  # fmt: skip
