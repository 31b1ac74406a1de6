"""The names of AsterQL: scope keys and entity keys, their grammar and nothing else. Pure.

A scope key is 1..200 bytes of UTF-8 without control characters; by custom it reads `kind:rest`
(`run:r1`), but the ledger does not insist. An entity key is always `kind:rest` (`message:m1`), its
kind a short ASCII word, its rest 1..900 bytes without control characters. Control characters are
C0, DEL and C1; a lone surrogate is no text and is refused too. Some scope kinds belong to other
dialects.
"""

from __future__ import annotations

import re
from functools import lru_cache

from actors.dialects.kinds import reserved_kind
from infra.errors import ProtocolError
from infra.limits import ENTITY_REST_BYTES_MAX, SCOPE_BYTES_MAX

_UNFIT = "\x00-\x1f\x7f-\x9f\ud800-\udfff"  # control characters and lone surrogates
_UNFIT_IN_SCOPE = re.compile(f"[{_UNFIT}]")
_ENTITY_KEY = re.compile(
    f"([A-Za-z][A-Za-z0-9_-]{{0,31}}):([^{_UNFIT}]{{1,{ENTITY_REST_BYTES_MAX}}})"
)


class BadScope(ProtocolError):
    """The scope key is outside the grammar, or of a kind that another dialect owns."""

    code = "bad_scope"


class BadEntityKey(ProtocolError):
    """The entity key is outside the grammar; an envelope that holds it is refused."""

    code = "bad_envelope"


def check_scope(scope: object) -> None:
    """Return when `scope` is a scope key that AsterQL may write; raise BadScope otherwise."""
    if not isinstance(scope, str):
        raise BadScope("a scope key is a string")
    if scope.isascii():
        # isprintable() is exactly "no control character" within ASCII, and is one C call.
        fits = 0 < len(scope) <= SCOPE_BYTES_MAX and scope.isprintable()
    else:
        fits = _UNFIT_IN_SCOPE.search(scope) is None and len(scope.encode()) <= SCOPE_BYTES_MAX
    if not fits:
        raise BadScope(f"a scope key has 1 to {SCOPE_BYTES_MAX} bytes and no control characters")
    if (kind := reserved_kind(scope)) is not None:
        raise BadScope(f"scopes of kind {kind!r} belong to another dialect")


def parse_scope_key(scope: str) -> tuple[str, str]:
    """Split at the first colon into (kind, rest); kind is "" where there is no colon.

    Raises BadScope outside the grammar.
    """
    check_scope(scope)
    kind, colon, rest = scope.partition(":")
    return (kind, rest) if colon else ("", scope)


def create_scope_key(kind: str, rest: str) -> str:
    """Join `kind:rest`; raises BadScope when the result would not parse back to the same parts."""
    if not kind or ":" in kind:
        raise BadScope("the kind of a scope key is not empty and has no colon")
    scope = f"{kind}:{rest}"
    check_scope(scope)
    return scope


def parse_entity_key(key: object) -> tuple[str, str]:
    """Split an entity key into (kind, rest); raises BadEntityKey outside the grammar."""
    if not isinstance(key, str):
        raise BadEntityKey("an entity key is a string")
    return _split_entity_key(key)


def create_entity_key(kind: str, rest: str) -> str:
    """Join `kind:rest`; raises BadEntityKey when that is no entity key."""
    key = f"{kind}:{rest}"
    if parse_entity_key(key) != (kind, rest):
        raise BadEntityKey("the kind of an entity key has no colon")
    return key


# Writers touch the same entities again and again; a hit is five times cheaper than the match.
@lru_cache(maxsize=4096)
def _split_entity_key(key: str) -> tuple[str, str]:
    match = _ENTITY_KEY.fullmatch(key)
    if match is None or not (
        key.isascii() or len(match.group(2).encode()) <= ENTITY_REST_BYTES_MAX
    ):
        raise BadEntityKey(
            "an entity key is kind:rest, kind one ASCII letter and up to 31 of A-Z a-z 0-9 _ -, "
            f"rest 1 to {ENTITY_REST_BYTES_MAX} bytes without control characters"
        )
    return match.group(1), match.group(2)
