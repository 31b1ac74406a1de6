"""Blocks written by either compressor come back through either decompressor; damage is refused."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import shake_128

import pytest
from lz4 import frame

from infra.lz4block import (
    block_bytes_max,
    compress,
    decompress,
    decompress_frame,
    frame_bytes_max,
    literal_prefix,
    pure_compress,
    pure_decompress,
)
from tests.support.codecs import pure_python

Compress = Callable[[bytes], bytes]
Decompress = Callable[[bytes, int], bytes]

NOISE = shake_128(b"lz4").digest(65_536)
HEAD_PAGE = (
    b"SQLite format 3\0" + bytes.fromhex("0200") + bytes(82) + bytes.fromhex("0d00000000020000")
).ljust(512, b"\0")
PAGES = {
    "zeros": bytes(4096),
    "noise": NOISE[:4096],
    "large noise": NOISE,
    "large zeros": bytes(65_536),
    "text": (b'{"op":"set","path":["a",1],"value":"text"},' * 100)[:4096],
    "head": HEAD_PAGE,
    "zeros inside": NOISE[:100] + bytes(3000) + NOISE[:996],
    "zeros first": bytes(500) + NOISE[:12],
    "zeros last": NOISE[:12] + bytes(500),
    "runs of every length": b"".join(NOISE[n : n + 3] + bytes(n) for n in range(15, 80)),
    "runs to the end": b"".join(bytes(20) + b"x" for _ in range(30)) + bytes(17),
    "one repeated": b"x" * 512,
    "overlaps": (b"abc" * 200)[:512],
}
BOTH = pytest.mark.parametrize("read", [pure_decompress, decompress])


@BOTH
@pytest.mark.parametrize("write", [pure_compress, compress])
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_round_trip(page: bytes, write: Compress, read: Decompress) -> None:
    block = write(page)
    assert len(block) <= block_bytes_max(len(page))
    assert read(block, len(page)) == page


@BOTH
@pytest.mark.parametrize("fill", [b"\0", b"x"])
def test_every_length_around_the_end_rules(fill: bytes, read: Decompress) -> None:
    for zeros in range(60):
        for after in range(16):
            page = fill * 3 + bytes(zeros) + fill * after
            assert read(pure_compress(page), len(page)) == page


def test_the_c_package_writes_where_it_is_installed() -> None:
    text = PAGES["text"]
    assert len(compress(text)) < 100
    with pure_python():
        assert compress(text) == pure_compress(text) == literal_prefix(4096) + text


def test_zero_runs_become_matches() -> None:
    assert len(pure_compress(bytes(4096))) == 26
    assert pure_compress(HEAD_PAGE).hex() == (
        "ff0353514c69746520666f726d6174203300020001003f7f0d0000000002000100ff7e500000000000"
    )


@BOTH
@pytest.mark.parametrize(
    ("block", "size", "page"),
    [
        ("f0" + "ff" * 16 + "01" + "61" * 4096, 4096, b"a" * 4096),
        ("50" + "61" * 5, 5, b"aaaaa"),
        ("10610100" + "c0" + "62" * 12, 17, b"aaaaa" + b"b" * 12),
        ("306162630300" + "c0" + "62" * 12, 19, b"abcabca" + b"b" * 12),
        ("306162630200" + "c0" + "62" * 12, 19, b"abcbcbc" + b"b" * 12),
        ("1f61010000" + "c0" + "62" * 12, 32, b"a" * 20 + b"b" * 12),
        ("1f610100ff00" + "50" + "62" * 5, 280, b"a" * 275 + b"b" * 5),
    ],
)
def test_blocks_by_hand(block: str, size: int, page: bytes, read: Decompress) -> None:
    assert read(bytes.fromhex(block), size) == page


@BOTH
@pytest.mark.parametrize(
    ("block", "size"),
    [
        ("", 17),
        ("50", 5),
        ("5061", 5),
        ("50" + "61" * 5, 4),
        ("50" + "61" * 5, 6),
        ("50" + "61" * 6, 5),
        ("f0", 20),
        ("f0ff", 300),
        ("f0ffff", 300),
        ("1061", 17),
        ("106101", 17),
        ("10610100", 17),
        ("1f610100", 32),
        ("1f610100ff", 400),
        ("10610200" + "c0" + "62" * 12, 17),  # copies from before the start
        ("10610001" + "c0" + "62" * 12, 17),
        ("f005" + "61" * 20 + "1e00" + "c0" + "62" * 12, 36),
        ("60" + "61" * 5, 5),  # right but for the bytes it says are missing
        ("00010050" + "62" * 5, 9),
        ("10610100" + "c0" + "62" * 12, 16),
        ("10610100" + "c0" + "62" * 12, 18),
        ("10610100" + "60" + "62" * 6, 11),  # a match that starts within the last 12
        ("10610200" + "10610100" + "c0" + "62" * 12, 22),
        ("1f610100ff00" + "40" + "62" * 4, 279),  # a match that ends within the last 5
        ("1f610100ff00" + "00", 275),
    ],
)
def test_damage_is_refused(block: str, size: int, read: Decompress) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(bytes.fromhex(block), size)


def test_distance_zero_is_refused_by_us() -> None:
    with pytest.raises(ValueError, match="0 bytes before"):
        pure_decompress(bytes.fromhex("10610000" + "c0" + "62" * 12), 17)


FRAMES = {
    "plain": frame.compress(PAGES["text"], store_size=False),
    "noise": frame.compress(NOISE[:4096]),
    "size": frame.compress(PAGES["text"], store_size=True),
    "checksums": frame.compress(PAGES["text"], content_checksum=True, block_checksum=True),
    "linked": frame.compress(PAGES["text"], block_linked=True, store_size=False),
}


@pytest.mark.parametrize("stored", FRAMES.values(), ids=FRAMES.keys())
def test_frames_are_read_in_place(stored: bytes) -> None:
    page = frame.decompress(stored)
    for _ in range(2):
        assert decompress_frame(b"before" + stored + b"after", 4096, 6) == (page, 6 + len(stored))
        with pure_python():
            assert decompress_frame(stored, 4096) == (page, len(stored))
    assert len(stored) <= frame_bytes_max(4096)


def test_whole_large_pages_fit_one_block() -> None:
    stored = frame.compress(NOISE, block_size=frame.BLOCKSIZE_MAX64KB)
    assert decompress_frame(stored, 65_536) == (NOISE, len(stored))


@pytest.mark.parametrize("stored", FRAMES.values(), ids=FRAMES.keys())
def test_short_frames_are_refused(stored: bytes) -> None:
    for length in range(len(stored)):
        with pytest.raises(ValueError, match="LZ4"):
            decompress_frame(stored[:length], 4096)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (b"", "no LZ4 frame"),
        (b"\0\0\0\0" + FRAMES["plain"][4:], "no LZ4 frame"),
        (FRAMES["plain"][:4] + b"\x24" + FRAMES["plain"][5:], "version 0"),
        (frame.compress(NOISE + b"x", block_size=frame.BLOCKSIZE_MAX64KB), "more than one block"),
        (frame.compress(b"short"), "4096"),
        (frame.compress(NOISE[:5000]), "too long"),
        (FRAMES["plain"][:7] + b"\xff\xff\xff\x7f" + bytes(40), "too long"),
    ],
    ids=["nothing", "magic", "version", "two blocks", "short", "long", "lie"],
)
def test_other_frames_are_refused(stored: bytes, says: str) -> None:
    size = 65_536 if len(stored) > 65_536 else 4096
    with pytest.raises(ValueError, match=says):
        decompress_frame(stored, size)
