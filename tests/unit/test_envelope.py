"""Envelopes at the door: every rule and limit, and the quick look that may only doubt too much."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dialects.asterql.envelope import (
    BadEnvelope,
    TooLarge,
    _doubtful,
    body_of,
    check_value,
    parse_envelope,
)  # fmt: skip
from infra import limits

SCOPE = "run:r1"
PATCH = {"op": "set", "path": "/a", "value": 1}


def entity(**members: Any) -> dict[str, Any]:
    return {"key": "m:1", **members}


def envelope(*entities: Any, **more: Any) -> dict[str, Any]:
    return {"eventId": "e1", "kind": "patch", "entities": list(entities), **more}


def parse(value: Any, **options: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return body_of(parse_envelope(raw, SCOPE, **options), 7, 99)


def holding(value: bytes, *, extra: bytes = b"") -> bytes:
    """A good envelope with `value` as a member of its record and `extra` behind its members."""
    text = b'{"eventId":"e1","kind":"patch","entities":[{"key":"m:1","value":{"a":%b}}]%b}'
    return text % (value, extra)


# -- what is accepted ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        envelope(entity(patches=[PATCH])),
        envelope(entity(patches=[])),
        envelope(entity(value={})),
        envelope(entity(deleted=True)),
        envelope(entity(patches=[PATCH], version="v" * 128)),
        envelope(),
        envelope(entity(value={"a": 1}), kind="snapshot"),
        envelope(kind="snapshot"),
        {"eventId": "e1", "kind": "invalidate", "classes": ["a"], "classVersions": {"a": 3}},
        envelope(scope=SCOPE, at=5, cause="c" * 128, other={"kept": [1, None, "é"]}),
        envelope(eventId="x" * 128),
        envelope(entity(value={"n": 2**53 - 1, "m": -(2**53) + 1, "f": 1e308, "z": -0.0})),
    ],
)
def test_good_ones_are_stored_as_they_came(value: dict[str, Any]) -> None:
    stored = json.loads(parse(value))
    assert stored == {"at": 99, **value, "seq": 7, "scope": SCOPE}


@pytest.mark.parametrize("at", [b"", b',"at":5', b',"\\u0061t":5', b', "a\\u0074" : 5'])
@pytest.mark.parametrize("value", [b"1", b'"at"', b'{"at":8}', b'"\\u0061t"'])
def test_a_draft_from_a_link_is_stored_as_the_one_it_was(at: bytes, value: bytes) -> None:
    draft = parse_envelope(holding(value, extra=at), SCOPE)
    sent = msgspec.structs.replace(draft, data=None)
    assert body_of(sent, 7, 99) == body_of(draft, 7, 99)
    assert json.loads(body_of(sent, 7, 99))["at"] == (5 if at else 99)


def test_a_stored_body_begins_with_its_seq_and_is_one_line() -> None:
    body = parse(b'\n {"eventId" : "e1",\r\n"kind":"patch" ,\n "entities":[]}\n')
    assert body.startswith('{"seq":7,"at":99,') and "\n" not in body and "\r" not in body
    assert json.loads(body)["eventId"] == "e1"


def test_a_factory_may_repeat_the_seq_it_was_handed() -> None:
    assert json.loads(parse(envelope(seq=7), seq=7))["seq"] == 7
    with pytest.raises(BadEnvelope, match="seq"):
        parse(envelope(seq=8), seq=7)


def test_a_draft_carries_the_dedupe_id() -> None:
    draft = parse_envelope(json.dumps(envelope()).encode(), SCOPE)
    assert (draft.cause, draft.kind) == ("e1", "patch")


# -- what is refused -----------------------------------------------------------------------

BAD: dict[str, Any] = {
    "no eventId": {"kind": "patch", "entities": []},
    "empty eventId": envelope(eventId=""),
    "long eventId": envelope(eventId="x" * 129),
    "number as eventId": envelope(eventId=5),
    "no kind": {"eventId": "e1", "entities": []},
    "unknown kind": envelope(kind="delete"),
    "patch without entities": {"eventId": "e1", "kind": "patch"},
    "snapshot without entities": {"eventId": "e1", "kind": "snapshot"},
    "entities no list": {"eventId": "e1", "kind": "patch", "entities": {}},
    "entity no object": envelope("m:1"),
    "entity without key": envelope({"value": {}}),
    "bad key": envelope({"key": "no colon", "value": {}}),
    "empty rest": envelope({"key": "m:", "value": {}}),
    "control character in key": envelope({"key": "m:\u0085", "value": {}}),
    "key twice": envelope(entity(value={}), entity(deleted=True)),
    "no form": envelope(entity()),
    "two forms": envelope(entity(value={}, patches=[])),
    "value and deleted": envelope(entity(value={}, deleted=True)),
    "patches and deleted": envelope(entity(patches=[], deleted=True)),
    "deleted false": envelope(entity(deleted=False)),
    "deleted number": envelope(entity(deleted=1)),
    "value no object": envelope(entity(value=[])),
    "value null": envelope(entity(value=None)),
    "value text": envelope(entity(value="{}")),
    "patches no list": envelope(entity(patches={})),
    "long version": envelope(entity(value={}, version="v" * 129)),
    "patches in a snapshot": envelope(entity(patches=[PATCH]), kind="snapshot"),
    "deleted in a snapshot": envelope(entity(deleted=True), kind="snapshot"),
    "no value in a snapshot": envelope(entity(), kind="snapshot"),
    "invalidate with entities": envelope(kind="invalidate", classes=[]),
    "invalidate without classes": {"eventId": "e1", "kind": "invalidate"},
    "classes no strings": {"eventId": "e1", "kind": "invalidate", "classes": [1]},
    "other scope": envelope(scope="run:r2"),
    "null scope": envelope(scope=None),
    "a seq": envelope(seq=7),
    "negative at": envelope(at=-1),
    "huge at": envelope(at=2**53),
    "at text": envelope(at="now"),
    "long cause": envelope(cause="c" * 129),
    "a list": [],
    "a number": 7,
    "null": None,
    "huge integer": envelope(entity(value={"n": 2**53})),
    "huge negative integer": envelope(entity(value={"n": -(2**53)})),
    "huge integer beside": envelope(other=[2**60]),
    "NaN": holding(b"NaN"),
    "Infinity": holding(b"-Infinity"),
    "overflow": holding(b"1e400"),
    "overflow by digits": holding(b"9" * 400),
    "lone surrogate": holding(b'"\\ud800"'),
    "lone surrogate as name": holding(b'{"\\udc00":1}'),
    "lone surrogate beside": holding(b"1", extra=b',"x":"\\udfff"'),
    "lone surrogate as eventId": b'{"eventId":"\\ud800","kind":"patch","entities":[]}',
    "surrogate bytes": holding(b'"\xed\xa0\x80"'),
    "surrogate bytes beside": holding(b"1", extra=b',"x":"\xed\xa0\x80"'),
    "no UTF-8": holding(b'"\xff"'),
    "overlong": holding(b'"\xc0\xaf"'),
    "control character": holding(b'"\x01"'),
    "raw line break": holding(b'"a\nb"'),
    "bad escape": holding(b'"\\x41"'),
    "leading zero": holding(b"01"),
    "plus": holding(b"+1"),
    "trailing comma": holding(b"[1,]"),
    "comment": holding(b"1/**/"),
    "single quotes": holding(b"'a'"),
    "open string": holding(b'"a'),
    "two documents": holding(b"1") + b"{}",
    "nothing": b"",
    "byte order mark": b"\xef\xbb\xbf" + holding(b"1"),
    "deep": holding(b"[" * 70 + b"]" * 70),
    "very deep": holding(b"[" * 100_000 + b"]" * 100_000),
    "open very deep": b'{"a":' * 40_000,
    "seq under another spelling": holding(b"1", extra=b',"s\\u0065q":5'),
    "seq twice": holding(b"1", extra=b',"seq":7,"seq":8'),
    "scope under another spelling": holding(b"1", extra=b',"sc\\u006fpe":"run:r2"'),
    "scope twice": holding(b"1", extra=b',"scope":"run:r1","scope":"run:r2"'),
    "kind twice": holding(b"1", extra=b',"kind":"x"'),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_ones_are_refused(name: str) -> None:
    with pytest.raises(BadEnvelope) as caught:
        parse(BAD[name])
    assert caught.value.code in ("bad_envelope", "too_large")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "value",
    [
        envelope(*({"key": f"m:{n}", "value": {}} for n in range(1001))),
        envelope(entity(patches=[PATCH] * 1001)),
        envelope(*({"key": f"m:{n}", "patches": [PATCH] * 501} for n in range(2))),
        envelope(pad="x" * limits.ENVELOPE_BYTES_MAX),
    ],
)
def test_limits_have_a_code_of_their_own(value: dict[str, Any]) -> None:
    with pytest.raises(TooLarge) as caught:
        parse(value)
    assert caught.value.code == "too_large"


def test_limits_are_met_exactly() -> None:
    parse(envelope(*({"key": f"m:{n}", "patches": [PATCH]} for n in range(1000))))
    deep: Any = 1
    for _ in range(limits.NESTING_MAX):
        deep = [deep]
    parse(envelope(entity(value={"a": deep[0]})))
    with pytest.raises(BadEnvelope, match="nesting"):
        parse(envelope(entity(value={"a": [deep]})))


# -- the quick look ------------------------------------------------------------------------

EDGE = ["9007199254740991", "9007199254740992", "9007199254740993", "1e400", "1E+309", "1e0400",
        "1e308", "1e-400", "0.1234567890123456789", "1234567890123456", "12345678901234567",
        "100000000000000000000", "8999999999999999", "9000000000000000", "1e15", "123e299", "0",
        "1.7976931348623159e308", "179769313486231590e291", "9.9e307", "5e-324"]  # fmt: skip
digits = st.text("0123456789", min_size=1, max_size=24).map(lambda text: text.lstrip("0") or "0")
exponents = st.one_of(
    st.just(""), st.builds("{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]),
    st.text("0123456789", min_size=1, max_size=5)),
)  # fmt: skip
fractions = st.one_of(st.just(""), st.text("0123456789", min_size=1, max_size=20).map(".{}".format))
numbers = st.builds(
    "{}{}{}{}".format, st.sampled_from(["", "-"]), digits, fractions, exponents
) | st.builds("{}{}".format, st.sampled_from(["", "-"]), st.sampled_from(EDGE))
escapes = st.sampled_from(
    [
        "\\ud800",
        "\\udc00x",
        "\\ud83d\\ude00",
        "\\u0041",
        "\\\\ud800",
        "\\\\\\ud800",
        '\\"',
        "e999",
        ":1",
    ]
)
strings = st.lists(
    st.one_of(escapes, st.text(" ,:[]{}eE+-.0123456789abcü\U0001f600", max_size=20)), max_size=4
).map(lambda parts: '"' + "".join(parts) + '"')
spaces = st.sampled_from(["", " ", "\n", "\t\r\n"])


def _join(parts: list[str], space: str) -> str:
    return f",{space}".join(parts)


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lists = st.builds(
        lambda parts, space: f"[{space}{_join(parts, space)}{space}]",
        st.lists(inner, max_size=4),
        spaces,
    )
    members = st.builds(
        lambda name, space, item: f"{name}{space}:{space}{item}", strings, spaces, inner
    )
    objects = st.builds(
        lambda parts, space: f"{{{space}{_join(parts, space)}{space}}}",
        st.lists(members, max_size=4), spaces,
    )  # fmt: skip
    nested = st.builds(
        lambda item, depth: "[" * depth + item + "]" * depth, inner, st.integers(0, 70)
    )
    return lists | objects | nested


values = st.recursive(
    numbers | strings | st.sampled_from(["true", "null"]), _containers, max_leaves=8
)


def full_check(raw: bytes) -> bool:
    """Whether a whole decode finds nothing wrong."""
    try:
        check_value(msgspec.json.decode(raw))
    except (BadEnvelope, msgspec.MsgspecError, RecursionError, UnicodeError):
        return False
    return True


@settings(max_examples=500, deadline=None)
@given(values, st.booleans(), spaces)
def test_the_quick_look_passes_nothing_the_full_check_refuses(
    value: str, beside: bool, space: str
) -> None:
    inner = f"{space}{value}{space}".encode()
    raw = holding(b"1", extra=b',"x":' + inner) if beside else holding(inner)
    if not _doubtful(raw):
        # The structure is msgspec's to judge in either case; what is left is the quick look's.
        assert full_check(raw), raw


@settings(max_examples=400, deadline=None)
@given(values)
def test_what_is_accepted_is_json_that_others_read_alike(value: str) -> None:
    raw = holding(value.encode())
    try:
        body = parse(raw)
    except BadEnvelope:
        assert not full_check(raw)
        return
    assert full_check(raw)

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    stored = json.loads(body, parse_constant=refuse)
    assert stored["entities"] == json.loads(raw)["entities"] and stored["seq"] == 7


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_accepted_or_refused(raw: bytes) -> None:
    for text in (raw, holding(raw), holding(b"1", extra=b"," + raw)):
        try:
            body = parse(text)
        except BadEnvelope:
            continue
        assert json.loads(body)["seq"] == 7
