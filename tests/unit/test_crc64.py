"""The big-integer checksum against a plain bit loop, known values, and the C package."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import shake_128

import pytest

from infra.crc64 import crc64, fast_crc64, pure_crc64

_ONES = (1 << 64) - 1


def bitwise(data: bytes, state: int = 0) -> int:
    """The definition, one bit at a time."""
    value = state ^ _ONES
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xD800_0000_0000_0000 if value & 1 else 0)
    return value ^ _ONES


def noise(length: int) -> bytes:
    return shake_128(b"crc64").digest(length)


@pytest.mark.parametrize("checksum", [pure_crc64, crc64])
def test_known_values(checksum: Callable[[bytes], int]) -> None:
    assert checksum(b"") == 0
    assert checksum(b"123456789") == 0xB90956C775A41001
    assert checksum(bytes(4096)) == 0x492FC33C906FFF90


def test_every_short_length_is_as_defined() -> None:
    data = noise(150)
    for length in range(len(data) + 1):
        assert pure_crc64(data[:length]) == bitwise(data[:length]), length


def test_leading_and_trailing_zeros_count() -> None:
    for data in (bytes(1), bytes(9), b"\0a", b"a\0", bytes(70) + b"a" + bytes(70)):
        assert pure_crc64(data) == bitwise(data)


def test_chained_pieces_give_the_checksum_of_the_whole() -> None:
    data = noise(100)
    for cut in range(len(data) + 1):
        assert pure_crc64(data[cut:], pure_crc64(data[:cut])) == bitwise(data)


@pytest.mark.parametrize("length", [4095, 4096, 4106, 32_767, 32_768, 32_769, 100_001])
def test_long_data_is_as_chained_from_short_pieces(length: int) -> None:
    data = noise(length)
    state = 0
    for start in range(0, length, 61):
        state = pure_crc64(data[start : start + 61], state)
    assert pure_crc64(data) == state
    assert pure_crc64(memoryview(data)) == state


def test_c_package_agrees() -> None:
    assert fast_crc64 is not None, "the development set has fastcrc"
    for length in (*range(40), 511, 512, 4096, 4106, 65_536, 100_001):
        data = noise(length)
        assert crc64(data) == fast_crc64(data, 0) == pure_crc64(data)
        assert crc64(data, 12_345) == pure_crc64(data, 12_345)
    assert crc64(memoryview(noise(99))[1:]) == pure_crc64(noise(99)[1:])
