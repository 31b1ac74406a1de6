"""Canonical JSON and hashes: the shared vectors, and a second writer straight from ECMA-262."""

from __future__ import annotations

import json
import math
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dialects.asterql.canonical import canonical, hash_record_version, snapshot_hash
from tests.support.vectors import vectors

HASHES = vectors("asterql/hashes")


@pytest.mark.parametrize("case", vectors("asterql/canonical"), ids=lambda case: str(case["name"]))
def test_vector(case: dict[str, Any]) -> None:
    assert canonical(json.loads(case["json"])) == case["canonical"]


@pytest.mark.parametrize(
    "case", [case for case in HASHES if "version" in case], ids=lambda case: str(case["name"])
)
def test_record_version(case: dict[str, Any]) -> None:
    assert hash_record_version(json.loads(case["json"])) == case["version"]


@pytest.mark.parametrize(
    "case", [case for case in HASHES if "snapshot" in case], ids=lambda case: str(case["name"])
)
def test_snapshot_hash(case: dict[str, Any]) -> None:
    assert snapshot_hash((key, version) for key, version in case["entities"]) == case["snapshot"]


def number_to_string(value: float) -> str:
    """ECMA-262 6.1.6.1.20, step by step, on the shortest digits: s, k and n as named there."""
    if value == 0:
        return "0"
    if value < 0:
        return "-" + number_to_string(-value)
    digits = Decimal(repr(value)).normalize().as_tuple()
    s = "".join(map(str, digits.digits))
    k, n = len(s), len(s) + int(digits.exponent)
    if k <= n <= 21:
        return s + "0" * (n - k)
    if 0 < n <= 21:
        return s[:n] + "." + s[n:]
    if -6 < n <= 0:
        return "0." + "0" * -n + s
    exponent = f"e{'+' if n - 1 > 0 else '-'}{abs(n - 1)}"
    return s + exponent if k == 1 else s[0] + "." + s[1:] + exponent


def quote(text: str) -> str:
    """ECMA-262 QuoteJSONString on a text of code points."""
    short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
    return (
        '"'
        + "".join(
            short.get(ord(c), f"\\u{ord(c):04x}" if ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 else c)
            for c in text
        )
        + '"'
    )


def plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, (int, float)):
        return number_to_string(float(value))
    if isinstance(value, list):
        return "[" + ",".join(map(plain, value)) + "]"
    names = sorted(value, key=lambda name: [ord(c) for c in name])
    return "{" + ",".join(quote(name) + ":" + plain(value[name]) for name in names) + "}"


texts = st.text(st.characters(), max_size=8)  # lone surrogates included
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_agrees_with_the_algorithm_of_the_standard(value: Any) -> None:
    text = canonical(value)
    assert text == plain(value)
    text.encode()  # lone surrogates have become escapes
    assert canonical(json.loads(text)) == text


def test_numbers_of_every_magnitude() -> None:
    draw = random.Random(20)
    for exponent in range(-330, 309):
        for mantissa in (
            1.0,
            9.999999999999999,
            -draw.uniform(1, 10),
            round(draw.uniform(1, 9), 3),
        ):
            value = mantissa * float(f"1e{exponent}")
            if math.isfinite(value):
                assert canonical(value) == number_to_string(value)
                assert canonical([value]) == f"[{number_to_string(value)}]"
                assert canonical({"k": value}) == f'{{"k":{number_to_string(value)}}}'


def test_what_no_json_holds_is_null_as_in_javascript() -> None:
    assert canonical([math.nan, math.inf, 10**400]) == "[null,null,null]"
    assert canonical(math.inf) == "null"
