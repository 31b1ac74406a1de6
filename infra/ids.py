"""The only place that draws random numbers, so that tests and simulation can put another in its
stead.
"""

from __future__ import annotations

import random as _random
import secrets

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case


def new_id() -> str:
    """26 characters, 130 random bits: epochs, event ids, request ids."""
    bits = secrets.randbits(130)
    return "".join(_ALPHABET[(bits >> shift) & 31] for shift in range(125, -1, -5))


def new_nonce() -> int:
    """A number from 1 to 2**63 - 1 that no other process life draws."""
    return secrets.randbits(63) or 1


def random() -> float:
    """A number in [0, 1) for jitter; not for secrets."""
    return _random.random()


def random_bits(count: int) -> int:
    """That many random bits, as a number."""
    return secrets.randbits(count)


def random_bytes(count: int) -> bytes:
    """That many random bytes; good for secrets."""
    return secrets.token_bytes(count)
