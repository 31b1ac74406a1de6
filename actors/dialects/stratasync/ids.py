"""Names of rows that a server and its clients must make alike. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

COMPOSITE_NAMESPACE: Final = "92a73695-d772-4b43-9fb4-d79f5fbef300"


def create_composite_sync_id(
    model: str, parts: Sequence[Any], namespace: str = COMPOSITE_NAMESPACE
) -> str:
    """The id of the row of `model` that the parts identify: a UUID of version 5 (RFC 9562).

    The same text as the client's helper: the model, a colon, and the parts as compact JSON.
    Raises ValueError for a namespace that is no UUID.
    """
    space = bytes.fromhex(namespace.replace("-", ""))
    if len(space) != 16:
        raise ValueError(f"{namespace!r} is no UUID")
    text = f"{model}:{json.dumps(list(parts), separators=(',', ':'), ensure_ascii=False)}"
    digest = bytearray(hashlib.sha1(space + text.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    found = digest.hex()
    return "-".join((found[:8], found[8:12], found[12:16], found[16:20], found[20:]))
