"""Who of several members owns a key, computed alone and alike by everybody: rendezvous hashing.

Each member draws a number from the key and its own name; the highest wins. So when a member comes,
only what it wins moves; when one goes, only what it had. A member of weight w draws w times, which
gives it w times the share of one that draws once, in whole numbers alone: nothing depends on the
floating point of a machine. The numbers are part of no stored format, but all members of a mesh
must agree on them, so tests/vectors/rendezvous.json holds them fast.

Highest random weight: Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import msgspec

from infra.errors import ConfigError

WEIGHT_MAX: Final = 64
KEYS_MAX: Final = 65_536
_DRAW_BYTES: Final = 8
_PERSON: Final = b"holdfast-place"  # apart from every other use of the hash; up to 16 bytes

Key = tuple[str, ...]  # an address (tenant, scope), or (tenant,) where tenants are placed whole


class Member(msgspec.Struct, frozen=True, order=True):
    """One that may own keys. `weight` is its share against the others', from 1 to WEIGHT_MAX."""

    name: str
    weight: int = 1

    def __post_init__(self) -> None:
        if not self.name or not 1 <= self.weight <= WEIGHT_MAX:
            raise ConfigError(
                f"member {self.name!r} of weight {self.weight}: a member has a name and a weight "
                f"from 1 to {WEIGHT_MAX}"
            )


def owner(key: Key, members: Iterable[Member]) -> str | None:
    """The name of the member that owns the key; None where there is no member.

    The order of the members does not matter; of equal names the highest draw counts.
    """
    state = _state(key)
    best = max(((_draw(state, member), member.name) for member in members), default=None)
    return None if best is None else best[1]


class Owners:
    """`owner` for members that stay, each key drawn once: a draw costs as much as all the rest of
    sending a small write on. Remembers the last KEYS_MAX keys.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self._members = tuple(members)
        self._known: dict[Key, str | None] = {}

    def of(self, key: Key) -> str | None:
        """The same as `owner`."""
        name = self._known.get(key)
        if name is None:
            if len(self._known) >= KEYS_MAX:
                self._known.clear()
            name = self._known[key] = owner(key, self._members)
        return name


def ranked(key: Key, members: Iterable[Member]) -> list[str]:
    """Every member's name, owner first, then whoever would own the key without those before."""
    state = _state(key)
    draws = sorted(((_draw(state, member), member.name) for member in members), reverse=True)
    return [name for _, name in draws]


def _state(key: Key) -> blake2b:
    state = blake2b(digest_size=_DRAW_BYTES, person=_PERSON)
    for part in key:
        _feed(state, part)
    return state


def _draw(state: blake2b, member: Member) -> bytes:
    """The highest of the member's draws; bytes of one length compare as the numbers do."""
    named = state.copy()
    _feed(named, member.name)
    best = b""
    for turn in range(member.weight):
        drawn = named.copy()
        drawn.update(turn.to_bytes(2, "big"))
        best = max(best, drawn.digest())
    return best


def _feed(state: blake2b, text: str) -> None:
    # With its length, so that no two lists of parts are the same bytes.
    data = text.encode("utf-8", "surrogatepass")
    state.update(len(data).to_bytes(4, "big"))
    state.update(data)
