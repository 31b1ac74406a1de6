"""Seeds in a page that the server renders, safe to stand inside HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.dialects.para.frames import JSON

_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def seed_script(seeds: Mapping[str, Any], *, id: str = "para-seeds", nonce: str = "") -> str:
    """A `<script type="application/json">` with the envelopes by key (`SyncedAuthority.seeds`).

    Values cannot end the element: what HTML could read is escaped as JSON allows.
    """
    for name in (id, nonce):
        if not all(char.isalnum() or char in "-_+/=" for char in name):
            raise ValueError(f"{name!r} does not fit into an attribute")
    attribute = f' nonce="{nonce}"' if nonce else ""
    text = JSON.encode(dict(seeds)).translate(_ESCAPES)
    return f'<script type="application/json" id="{id}"{attribute}>{text}</script>'
