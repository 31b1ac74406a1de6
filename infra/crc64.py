"""CRC-64/ISO as Go computes it, the checksum of LTX files; by `fastcrc` where it is installed.

The polynomial P = x^64 + x^4 + x^3 + x + 1 (reflected, start and final XOR all ones) is sparse, so
big integers beat a table by far. Over GF(2), P^K = x^(64K) + x^(4K) + x^(3K) + x^K + 1 for every
K = 2^k, and P divides it, hence for any H

    H * x^(64K) = H * (x^(4K) + x^(3K) + x^K + 1) = H * (x^K + 1) * (x^(3K) + 1)   (mod P).

Each fold moves the high part of the data onto the low part so, in two shifts, until 64 bits are
left. Reflected means that in `int.from_bytes(data, "little")` bit 0 is the highest degree.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

fast_crc64: Callable[[bytes, int], int] | None
try:
    from fastcrc.crc64 import go_iso
except ImportError:
    fast_crc64 = None
else:
    fast_crc64 = go_iso

_ONES = (1 << 64) - 1
# Larger integers are slower: per 4 KiB it took 5 us in pieces of 16 or 32 KiB, 9 us in 64 KiB.
_PIECE_BYTES = 32_768


def pure_crc64(data: bytes | memoryview, state: int = 0) -> int:
    """The checksum of `data`, chained to `state`, that of the bytes before. Views are of bytes."""
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        value = int.from_bytes(piece, "little") ^ (state ^ _ONES)
        for low, mask, once, thrice, lift_folded, lift_kept in _folds(len(piece)):
            folded = value & mask
            folded ^= folded << once
            folded ^= folded << thrice
            value = ((value >> low) << lift_kept) ^ (folded << lift_folded)
        state = value ^ _ONES
    return state


@lru_cache(maxsize=16)  # files have one batch length; the masks of an entry take up to 32 KiB
def _folds(length: int) -> tuple[tuple[int, int, int, int, int, int], ...]:
    """The folds that take `length` bytes and the 64 zero bits behind them down to 64 bits.

    Each is (bits folded, their mask, K, 3K, and how far the folded and the kept part must move up
    so that both end at degree 0).
    """
    folds = []
    width = length * 8 + 64
    while width > 64:
        step = 1 << ((width - 1) // 64).bit_length() - 1  # the largest K with 64 K < width
        # Folding a short head costs a pass over everything: leave it to the next, smaller fold.
        if step > 2 and width - 64 * step <= 12 * step:
            step >>= 1
        high = width - 64 * step
        after = max(64 * step, high + 4 * step)
        folds.append(
            (high, (1 << high) - 1, step, 3 * step, after - high - 4 * step, after - 64 * step)
        )
        width = after
    return tuple(folds)


def crc64(data: bytes | memoryview, state: int = 0) -> int:
    """The same by the fastest means there is."""
    if fast_crc64 is None:
        return pure_crc64(data, state)
    return fast_crc64(bytes(data), state)  # fastcrc before 0.5 takes nothing but bytes
