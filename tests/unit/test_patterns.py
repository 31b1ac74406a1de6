"""Glob patterns against a model: the same pattern as a regular expression."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.patterns import check_pattern, matches
from infra.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "scope", "fits"),
    [
        ("run:r1", "run:r1", True),
        ("run:r1", "run:r10", False),
        ("run:r1", "Run:r1", False),
        ("run:*", "run:", True),
        ("run:*", "run:a:b", True),
        ("run:*", "runs:a", False),
        ("doc:*:public", "doc:a:b:public", True),
        ("doc:*:public", "doc:public", False),
        ("*", "", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*.*", "a+b", False),
    ],
)
def test_pattern(pattern: str, scope: str, fits: bool) -> None:
    assert matches(pattern, scope) is fits


@given(st.text(alphabet="ab:*", max_size=8), st.text(alphabet="ab:", max_size=12))
def test_pattern_equals_its_regular_expression(pattern: str, scope: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), scope) is not None
    assert matches(pattern, scope) is expected


@pytest.mark.parametrize("pattern", ["", "x" * 201, "ü" * 101])
def test_pattern_that_fits_no_scope_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError):
        check_pattern(pattern)
