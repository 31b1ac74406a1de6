"""Where the bytes of a key are: which contents it has been given, and which of them it shows. Pure.

A key shows the content that the live item referring to it names, if it was given that one, else its
latest. Bytes go before their item, so of two devices that change one file at once the later upload
need not belong to the item that wins: without this, the loser's bytes would stand under the
winner's hash, and the winner's be lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

VERSIONS_MAX: Final = 8  # earlier contents remembered of a key, until `settle`


class BlobChange(msgspec.Struct):
    """What happens to a key.

    `put`: it got bytes. `remove`: it has none now. `collect`: the same, if nothing refers to it and
    nobody has touched it since `before_ms`. `touch`: somebody relies on it. `settle`: what it does
    not show is forgotten, if nobody has touched it since `before_ms`.
    """

    key: str
    op: Literal["put", "remove", "collect", "touch", "settle"]
    hash: str = ""
    size: int = 0
    mime_type: str | None = None
    before_ms: int = 0


class Version(msgspec.Struct, frozen=True, array_like=True):
    """One content of a key."""

    hash: str
    size: int
    mime_type: str | None = None


def shown(value: Mapping[str, Any]) -> Version | None:
    """What a reader of the key gets; None where it has no bytes. `value` is its row's."""
    versions = versions_of(value)
    for version in versions:
        if version.hash == value.get("wanted"):
            return version
    return versions[0] if versions else None


def versions_of(value: Mapping[str, Any]) -> list[Version]:
    """Every content that is remembered of the key, the latest first."""
    if value.get("state") != "present":
        return []
    latest = Version(value["hash"], value["size"], value.get("mime"))
    return [latest, *(Version(*version) for version in value.get("was", ()))]


def changed(value: Mapping[str, Any] | None, change: BlobChange, at: int) -> dict[str, Any] | None:
    """The key's new state, without who refers to it; None where nothing changes."""
    if change.op == "put":
        new = Version(change.hash, change.size, change.mime_type)
        was = [version for version in versions_of(value or {}) if version.hash != new.hash]
        return _present(new, was[:VERSIONS_MAX], at)
    if value is None:
        return None
    if change.op == "remove":
        return {"state": "deleted", "at": at}
    held = versions_of(value)
    if not held:
        return None
    if change.op == "touch":
        return _present(held[0], held[1:], at)
    if value["at"] >= change.before_ms:
        return None
    if change.op == "collect":
        return None if value.get("refs", 0) else {"state": "deleted", "at": at}
    now = shown(value)
    assert now is not None
    return _present(now, [], value["at"]) if len(held) > 1 else None


def _present(latest: Version, was: list[Version], at: int) -> dict[str, Any]:
    return {
        "state": "present", "at": at, "hash": latest.hash, "size": latest.size,
        "mime": latest.mime_type, **({"was": was} if was else {}),
    }  # fmt: skip
