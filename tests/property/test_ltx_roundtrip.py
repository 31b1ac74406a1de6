"""Any pages survive a file, with and without the C packages; any bytes give pages or LtxError."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.ltx import Header, LtxError, decode, decode_stream, encode
from infra.lz4block import decompress, pure_compress, pure_decompress
from tests.support.codecs import pure_python
from tests.support.vectors import VECTORS

Pages = list[tuple[int, bytes]]

PAGE_SIZES = (512, 1024, 4096)
VALID = [
    path.read_bytes()
    for path in sorted((VECTORS / "ltx").glob("*.ltx"))
    if path.stat().st_size < 3_000
]


@st.composite
def page(draw: st.DrawFn, size: int) -> bytes:
    """Literals, zeros and repeats in any order, as database pages have them."""
    data = b""
    while len(data) < size:
        piece = draw(st.binary(max_size=40))
        data += piece * draw(st.integers(1, 12)) + bytes(draw(st.integers(0, 300)))
        if not piece:
            data += bytes(draw(st.sampled_from((1, size))))
    return data[:size]


@st.composite
def files(draw: st.DrawFn) -> tuple[Header, Pages]:
    size = draw(st.sampled_from(PAGE_SIZES))
    txid = draw(st.sampled_from((1, 2, 1 << 40)))
    if txid == 1:
        commit = draw(st.integers(1, 6))
        numbers = list(range(1, commit + 1))
    else:
        commit = draw(st.sampled_from((6, 300, 20_000)))
        numbers = sorted(draw(st.sets(st.integers(1, commit), max_size=6)))
    header = Header(
        page_size=size,
        commit=commit,
        min_txid=txid,
        max_txid=txid + draw(st.integers(0, 3)),
        timestamp_ms=draw(st.integers(0, 1 << 42)),
        node_id=draw(st.integers(0, (1 << 64) - 1)),
    )
    return header, [(number, draw(page(size))) for number in numbers]


@given(files(), st.booleans(), st.booleans(), st.integers(1, 5_000))
@settings(max_examples=60, deadline=None)
def test_pages_survive(
    file: tuple[Header, Pages], pure_writer: bool, pure_reader: bool, step: int
) -> None:
    with pure_python() if pure_writer else nullcontext():
        data = encode(*file)
    with pure_python() if pure_reader else nullcontext():
        assert decode(data) == file
        source = io.BytesIO(data)
        header, pages = decode_stream(lambda _count: source.read(step))
        assert (header, list(pages)) == file


# The C package takes a copy from 0 bytes back, which means nothing; we cannot make it refuse that.
NO_DISTANCE = "copies from 0 bytes"


def outcome(data: bytes) -> tuple[Header, Pages] | str:
    try:
        return decode(data)
    except LtxError as error:
        return NO_DISTANCE if NO_DISTANCE in str(error) else "refused"


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file with some pieces replaced, taken out or put in."""
    data = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        piece = draw(st.binary(max_size=12) | st.sampled_from((b"\xff" * 4, bytes(6))))
        data = data[:start] + piece + data[start + draw(st.integers(0, 20)) :]
    return data


@given(damaged() | st.binary(max_size=300).map(lambda tail: VALID[0][:100] + tail) | st.binary())
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_pages_or_a_refusal(data: bytes) -> None:
    with pure_python():
        found = outcome(data)
    assert outcome(data) == found or found == NO_DISTANCE


@given(st.binary(max_size=60), st.integers(1, 120))
@settings(max_examples=300, deadline=None)
def test_both_readers_take_the_same_blocks(block: bytes, size: int) -> None:
    compare(block, size)


@given(page(512), st.data())
@settings(max_examples=300, deadline=None)
def test_both_readers_refuse_the_same_damage(whole: bytes, data: st.DataObject) -> None:
    block = bytearray(pure_compress(whole))
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    compare(bytes(block), 512)


def compare(block: bytes, size: int) -> None:
    found = attempt(pure_decompress, block, size)
    assert attempt(decompress, block, size) == found or found == NO_DISTANCE


def attempt(read: Callable[[bytes, int], bytes], block: bytes, size: int) -> bytes | str:
    try:
        return read(block, size)
    except ValueError as error:
        return NO_DISTANCE if NO_DISTANCE in str(error) else "refused"
