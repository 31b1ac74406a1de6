"""What may name an object: its key, and the version of its schema. Pure."""

from __future__ import annotations

import re
from typing import Final

from infra import limits
from infra.errors import ProtocolError

KEY_BYTES_MAX: Final = 200
NAME_BYTES_MAX: Final = limits.SCOPE_BYTES_MAX - len("para:")
# Spaces of every script, control characters (C0, DEL, C1) and lone surrogates.
_UNFIT = re.compile("[\\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")


class BadKey(ProtocolError):
    """The key is outside the grammar."""

    code = "bad_key"


def check_key(key: object) -> str:
    """The key itself, where it is one: 1 to 200 bytes without white space. Raises BadKey."""
    if not isinstance(key, str):
        raise BadKey("a key is a string")
    if not key or _UNFIT.search(key) is not None or len(key.encode()) > KEY_BYTES_MAX:
        raise BadKey(f"a key has 1 to {KEY_BYTES_MAX} bytes, no white space or control characters")
    return key


def kind_of(key: str) -> str:
    """What stands before the first colon; the whole key where there is none."""
    return key.partition(":")[0]


def version_of(text: str) -> tuple[int, int]:
    """(major, minor) of a schema version as the server writes it. Raises ProtocolError."""
    found = _VERSION.fullmatch(text)
    if found is None:
        raise ProtocolError(f"a schema version reads major.minor, not {text[:32]!r}")
    return int(found[1]), int(found[2])
