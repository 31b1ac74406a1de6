"""Which dialect a scope has: its name decides, before there is a file. Pure.

`strata:acme` is StrataSync's, `run:r1` AsterQL's. A kind stays reserved where its dialect is not
built yet, so that no AsterQL scope ever stands in its way.
"""

from __future__ import annotations

from typing import Final

KINDS: Final = {
    "strata": "stratasync",
    "keep": "starkeep",
    "rtc": "vuer-rtc",
    "para": "para-sync",
}
DEFAULT: Final = "asterql"


def reserved_kind(scope: str) -> str | None:
    """The kind of a scope that is not AsterQL's, or None."""
    kind, colon, _ = scope.partition(":")
    return kind if colon and kind in KINDS else None


def dialect_name_of(scope: str) -> str:
    """The dialect that a scope of this name has, or would have."""
    kind = reserved_kind(scope)
    return DEFAULT if kind is None else KINDS[kind]
