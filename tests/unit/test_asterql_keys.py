"""The grammar of scope and entity keys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.dialects.asterql.keys import (
    BadEntityKey,
    BadScope,
    check_scope,
    create_entity_key,
    create_scope_key,
    parse_entity_key,
    parse_scope_key,
)
from tests.support.vectors import vectors


@pytest.mark.parametrize("case", vectors("asterql/keys"), ids=lambda case: repr(case["key"])[:40])
def test_vector(case: dict[str, Any]) -> None:
    parse: Any = parse_scope_key if case["type"] == "scope" else parse_entity_key
    if "error" in case:
        with pytest.raises((BadScope, BadEntityKey)) as caught:
            parse(case["key"])
        assert caught.value.code == case["error"]
    else:
        assert parse(case["key"]) == tuple(case["parts"])


@pytest.mark.parametrize("parts", [("", "r1"), ("a:b", "c"), ("run", "\n"), ("keep", "x")])
def test_create_scope_key_refuses_what_would_not_parse_back(parts: tuple[str, str]) -> None:
    with pytest.raises(BadScope):
        create_scope_key(*parts)


@pytest.mark.parametrize("parts", [("", "r1"), ("a:b", "c"), ("run", ""), ("1a", "x")])
def test_create_entity_key_refuses_what_would_not_parse_back(parts: tuple[str, str]) -> None:
    with pytest.raises(BadEntityKey):
        create_entity_key(*parts)


def unfit(text: str) -> bool:
    return any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in text)


@given(st.text(st.characters(), max_size=210))
def test_scope_grammar_is_length_and_no_control_characters(scope: str) -> None:
    good = bool(scope) and not unfit(scope) and len(scope.encode("utf-8", "replace")) <= 200
    try:
        check_scope(scope)
    except BadScope:
        assert not good
    else:
        assert good


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,31}", fullmatch=True), st.text(min_size=1))
def test_entity_keys_come_back_in_their_parts(kind: str, rest: str) -> None:
    if not unfit(rest) and len(rest.encode()) <= 900:
        assert parse_entity_key(create_entity_key(kind, rest)) == (kind, rest)
