"""Glob patterns over scope names, for tokens and configuration. Pure.

`*` stands for any run of characters, none and `:` included; every other character stands for
itself, case counts, and the whole name must match. So `*` is every scope, `run:*` every scope of
kind `run`, `doc:*:public` what it looks like, and a pattern without `*` is one exact name.
There is no escape: a scope whose name holds a `*` can only be granted by a wider pattern.
"""

from __future__ import annotations

from functools import lru_cache

from infra.errors import ConfigError
from infra.limits import SCOPE_BYTES_MAX


def check_pattern(pattern: str) -> None:
    """Raise ConfigError (`bad_pattern`) for a pattern that no scope could match."""
    if not pattern:
        raise ConfigError("a scope pattern must not be empty", code="bad_pattern")
    if len(pattern.encode("utf-8", "surrogatepass")) > SCOPE_BYTES_MAX:
        message = f"scope pattern {pattern[:32]!r}… is longer than {SCOPE_BYTES_MAX} bytes"
        raise ConfigError(message, code="bad_pattern")


def matches(pattern: str, scope: str) -> bool:
    """Whether `scope` as a whole fits `pattern`; linear in both, whatever the pattern."""
    parts = _split(pattern)
    if len(parts) == 1:
        return scope == pattern
    first, last = parts[0], parts[-1]
    # The length test keeps `a*a` from counting the one letter of "a" twice.
    if len(scope) < len(first) + len(last):
        return False
    if not (scope.startswith(first) and scope.endswith(last)):
        return False
    at, end = len(first), len(scope) - len(last)
    for part in parts[1:-1]:
        # The leftmost fit leaves most room for the rest, so no other place needs a try.
        found = scope.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


@lru_cache(maxsize=1024)
def _split(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.split("*"))
