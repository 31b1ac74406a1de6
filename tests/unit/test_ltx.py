"""LTX files against the vectors of the format, those of two official writers, and damage."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from hashlib import sha256, shake_128

import msgspec
import pytest

from infra.crc64 import crc64
from infra.ltx import (
    Encoder,
    Header,
    LtxError,
    decode,
    decode_header,
    decode_stream,
    encode,
    encode_header,
    lock_page,
)
from infra.ltx.header import PageOrder
from tests.support.codecs import pure_python
from tests.support.vectors import VECTORS

Pages = list[tuple[int, bytes]]

MARK = 1 << 63
NOISE = shake_128(b"ltx").digest(512)
HEAD_PAGE = (
    b"SQLite format 3\0" + bytes.fromhex("0200") + bytes(82) + bytes.fromhex("0d00000000020000")
).ljust(512, b"\0")
CLAIM = Header(
    page_size=4096, commit=3, min_txid=6, max_txid=6, timestamp_ms=1_790_000_000_000, node_id=2
)
SMALL = Header(page_size=512, commit=4, min_txid=1, max_txid=3, timestamp_ms=1_790_000_000_000)
SMALL_PAGES: Pages = [(1, HEAD_PAGE), (2, NOISE), (3, bytes(512)), (4, b"ab" * 256)]
DELTA = msgspec.structs.replace(SMALL, min_txid=4, max_txid=4)
OFFICIAL = {  # file: SHA-256 of the database the official tool restores up to its transaction
    "legacy-1": "36328d644c1cee31d62b535bb1567d320b2096b134abfcb32e8af383afad4297",
    "legacy-2": "a43905169774a395d757f77d340ac01817a6dac23804b9d7e04b8fc546ba90ba",
    "legacy-3": "09514d66e6bc6b8d18f9fce2268221c8fc16c3556dee4bbb1e210e12129359ca",
    "sized-1": "e2cdf6052c20ae48a215cedb5d24b56156b478d60bf70846ac8824b3e9170535",
    "sized-2": "a43905169774a395d757f77d340ac01817a6dac23804b9d7e04b8fc546ba90ba",
    "sized-3": "66af3148c9c927fb2d69c904c0495c4c3a033cc9e21acca2b8d2b4263c471219",
}


@pytest.fixture(params=["pure", "fast"])
def codec(request: pytest.FixtureRequest) -> Iterator[None]:
    with pure_python() if request.param == "pure" else nullcontext():
        yield


def ltx_vector(name: str) -> bytes:
    return (VECTORS / "ltx" / name).read_bytes()


def seal(body: bytes, post: int = 0, covered: bytes | None = None) -> bytes:
    """`body` (header, frames, index) with a trailer that fits it; `covered` is what is summed."""
    tail = struct.pack(">Q", post)
    checksum = crc64((body if covered is None else covered) + tail) | MARK
    return body + tail + struct.pack(">Q", checksum)


def forge(
    header: Header | bytes, pages: Pages, *, index: bytes | None = None, post: int = 0
) -> bytes:
    """A file of literal blocks with right checksums that keeps no other rule."""
    body = covered = header if isinstance(header, bytes) else encode_header(header)
    entries = b""
    for pgno, page in pages:
        rest = len(page) - 15
        block = b"\xf0" + b"\xff" * (rest // 255) + bytes((rest % 255,)) + page
        head = struct.pack(">IHI", pgno, 1, len(block))
        entries += b"".join(map(varint, (pgno, len(body), len(head) + len(block))))
        body += head + block
        covered += head + page
    entries = (entries if index is None else index) + b"\0"
    end = bytes(6) + entries + struct.pack(">Q", len(entries))
    return seal(body + end, post, covered + end)


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes((low,)) if not rest else bytes((low | 128,)) + varint(rest)


def read_index(data: bytes) -> list[tuple[int, int, int]]:
    """The page index, found from the end of the file as the VFS finds it."""
    (length,) = struct.unpack(">Q", data[-24:-16])
    numbers, value, shift = [], 0, 0
    for byte in data[-24 - length : -24]:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    assert numbers.pop() == 0
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def applied(image: bytes, data: bytes) -> bytes:
    header, pages = decode(data)
    size = header.page_size
    made = bytearray(image[: header.commit * size].ljust(header.commit * size, b"\0"))
    for pgno, page in pages:
        made[(pgno - 1) * size : pgno * size] = page
    return bytes(made)


def test_empty_claim_file_is_as_documented(codec: None) -> None:
    data = bytes.fromhex(ltx_vector("empty.hex").decode())
    assert len(data) == 131
    assert encode(CLAIM, []) == data
    assert decode(data) == (CLAIM, [])
    assert decode_header(data) == CLAIM


def test_one_page_file_is_as_documented(codec: None) -> None:
    header = msgspec.structs.replace(SMALL, commit=1, max_txid=1)
    data = bytes.fromhex(ltx_vector("one-page.hex").decode())
    assert decode(data) == (header, [(1, HEAD_PAGE)])
    with pure_python():  # zero runs are how it was written
        assert encode(header, [(1, HEAD_PAGE)]) == data


@pytest.mark.parametrize("form", ["legacy", "sized"])
def test_official_files_give_the_official_database(form: str, codec: None) -> None:
    image = b""
    for txid in (1, 2, 3):
        name = f"{form}-{txid}"
        data = ltx_vector(f"{name}.ltx")
        header, _ = decode(data)
        assert (header.min_txid, header.max_txid, header.page_size) == (txid, txid, 1024)
        image = applied(image, data)
        assert sha256(image).hexdigest() == OFFICIAL[name]


def test_vectors_hold_both_page_frame_forms() -> None:
    assert ltx_vector("legacy-1.ltx")[104:110] == b"\0\0\x04\x22\x4d\x18"
    assert ltx_vector("sized-1.ltx")[104:106] == b"\0\1"


def test_written_file_is_read_back(codec: None) -> None:
    data = encode(SMALL, SMALL_PAGES)
    assert decode(data) == (SMALL, SMALL_PAGES)
    header, pages = decode_stream(io.BytesIO(data).read)
    assert (header, list(pages)) == (SMALL, SMALL_PAGES)


def test_stream_may_come_in_single_bytes() -> None:
    data = encode(SMALL, SMALL_PAGES)
    source = io.BytesIO(data)
    header, pages = decode_stream(lambda _count: source.read(1))
    assert (header, list(pages)) == (SMALL, SMALL_PAGES)


def test_index_leads_to_every_frame(codec: None) -> None:
    data = encode(DELTA, SMALL_PAGES[1:])
    index = read_index(data)
    assert [pgno for pgno, _, _ in index] == [2, 3, 4]
    position = 100
    for pgno, offset, size in index:
        assert offset == position
        assert struct.unpack_from(">IHI", data, offset) == (pgno, 1, size - 10)
        position += size
    assert data[position : position + 6] == bytes(6)


def test_streaming_encoder_writes_the_same_file() -> None:
    pieces: list[bytes] = []
    encoder = Encoder(SMALL, pieces.append)
    for pgno, page in SMALL_PAGES:
        encoder.page(pgno, page)
    assert encoder.finish() == len(b"".join(pieces))
    assert b"".join(pieces) == encode(SMALL, SMALL_PAGES)


def test_memory_stays_small_both_ways() -> None:
    count, size = 3_000, 4096
    header = Header(page_size=size, commit=count, min_txid=1, max_txid=1, timestamp_ms=0)
    page = shake_128(b"page").digest(size)
    file = io.BytesIO(bytes(count * (size + 64)))  # made before, so not counted
    tracemalloc.start()
    try:
        encoder = Encoder(header, file.write)
        for pgno in range(1, count + 1):
            encoder.page(pgno, page)
        end = encoder.finish()
        file.seek(0)
        left = [end]

        def read(length: int) -> bytes:
            taken = file.read(min(length, left[0]))
            left[0] -= len(taken)
            return taken

        _, pages = decode_stream(read)
        assert all(data == page for _, data in pages)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert end > count * size
    assert peak < 2_000_000


@pytest.mark.parametrize(
    "change",
    [
        {"page_size": 256},
        {"page_size": 1000},
        {"page_size": 131_072},
        {"commit": 0},
        {"commit": 1 << 32},
        {"min_txid": 0},
        {"min_txid": 7},
        {"max_txid": 1 << 64},
        {"wal_offset": -1},
        {"wal_size": -1},
        {"wal_offset": 0, "wal_size": 1},
        {"wal_offset": 0, "salt1": 1},
        {"wal_offset": 0, "salt2": 1},
        {"flags": 1},
        {"flags": 4},
        {"pre_checksum": MARK},
        {"flags": 0, "pre_checksum": 1},
        {"flags": 0, "pre_checksum": MARK, "min_txid": 1},
    ],
)
def test_header_rules(change: dict[str, int]) -> None:
    header = msgspec.structs.replace(CLAIM, **change)
    with pytest.raises(LtxError) as caught:
        encode_header(header)
    assert (caught.value.code, caught.value.retryable) == ("corrupt", False)
    try:
        written = struct.pack(
            ">4sIIIQQqQqqIIQ20x",
            b"LTX1",
            *(header.flags, header.page_size, header.commit, header.min_txid, header.max_txid),
            *(header.timestamp_ms, header.pre_checksum, header.wal_offset, header.wal_size),
            *(header.salt1, header.salt2, header.node_id),
        )
    except struct.error:
        return  # cannot be written at all
    with pytest.raises(LtxError):
        decode_header(written)


def test_header_keeps_every_field() -> None:
    header = Header(
        page_size=65_536,
        commit=(1 << 32) - 1,
        min_txid=(1 << 64) - 2,
        max_txid=(1 << 64) - 1,
        timestamp_ms=-1,
        node_id=(1 << 64) - 1,
        wal_offset=(1 << 63) - 1,
        wal_size=(1 << 63) - 1,
        salt1=(1 << 32) - 1,
        salt2=(1 << 32) - 2,
        flags=0,
        pre_checksum=MARK | 5,
    )
    assert decode_header(encode_header(header) + b"more") == header


def test_zero_wal_fields_are_legal_as_compaction_writes_them() -> None:
    header = msgspec.structs.replace(CLAIM, wal_offset=0)
    assert decode(encode(header, [])) == (header, [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:99],
        lambda data: b"LTX2" + data[4:],
        lambda data: data[:80] + b"\1" + data[81:],
        lambda data: data[:99] + b"\1" + data[100:],
    ],
)
def test_damaged_header_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(LtxError, match=r"header|not an LTX file"):
        decode_header(damage(encode(CLAIM, [])))


@pytest.mark.parametrize(
    ("header", "numbers"),
    [
        (SMALL, [1, 2, 3]),
        (SMALL, [2, 3, 4]),
        (SMALL, [1, 2, 4]),
        (SMALL, []),
        (SMALL, [1, 2, 3, 4, 5]),
        (SMALL, [1, 2, 2, 3, 4]),
        (DELTA, [3, 2]),
        (DELTA, [2, 2]),
        (DELTA, [5]),
        (DELTA, [0]),
        (msgspec.structs.replace(DELTA, commit=3_000_000), [lock_page(512)]),
    ],
)
def test_page_order_is_kept_on_write_and_read(header: Header, numbers: list[int]) -> None:
    pages = [(number, NOISE) for number in numbers]
    with pytest.raises(LtxError):
        encode(header, pages)
    with pytest.raises(LtxError, match=r"page|snapshot"):
        decode(forge(header, pages))


def test_forged_files_are_otherwise_right() -> None:
    # Else the tests that expect a refusal would prove nothing.
    assert decode(forge(SMALL, SMALL_PAGES)) == (SMALL, SMALL_PAGES)


def test_lock_page_is_left_out_of_a_snapshot() -> None:
    size = 65_536
    lock = lock_page(size)
    assert (lock, lock_page(4096), lock_page(512)) == (16_385, 262_145, 2_097_153)
    for commit in (lock - 1, lock, lock + 1, lock + 2):
        header = Header(page_size=size, commit=commit, min_txid=1, max_txid=1, timestamp_ms=0)
        order = PageOrder(header)
        for pgno in range(1, commit + 1):
            if pgno == commit > lock:
                with pytest.raises(LtxError, match="ends after"):
                    order.finish()
            if pgno != lock:
                order.take(pgno)
        order.finish()
    order = PageOrder(msgspec.structs.replace(header, commit=lock + 2))
    for pgno in range(1, lock):
        order.take(pgno)
    for wrong in (lock, lock + 2):
        with pytest.raises(LtxError):
            order.take(wrong)


def test_page_of_another_size_is_refused() -> None:
    with pytest.raises(LtxError, match="511 bytes"):
        encode(DELTA, [(2, NOISE[:511])])
    with pytest.raises(LtxError, match="page 2"):
        decode(forge(DELTA, [(2, NOISE[:511])]))
    with pytest.raises(LtxError, match="page 2"):
        decode(forge(DELTA, [(2, NOISE + b"x")]))


def test_every_truncation_is_refused() -> None:
    for data in (encode(SMALL, SMALL_PAGES), ltx_vector("legacy-2.ltx"), encode(CLAIM, [])):
        for length in range(len(data)):
            with pytest.raises(LtxError):
                decode(data[:length])


def test_bytes_behind_the_file_are_refused() -> None:
    data = encode(SMALL, SMALL_PAGES)
    for more in (b"\0", data):
        with pytest.raises(LtxError, match=f"at {len(data)}"):
            decode(data + more)


@pytest.mark.parametrize("name", ["legacy-2.ltx", "sized-2.ltx"])
def test_every_damaged_byte_is_noticed_or_harmless(name: str) -> None:
    # Compressed bytes are not covered by the checksum, what they expand to is.
    data = ltx_vector(name)
    whole = decode(data)
    blocks = [
        range(offset + (6 if name.startswith("legacy") else 10), offset + size)
        for _, offset, size in read_index(data)
    ]
    for position in range(len(data)):
        for flip in (0x01, 0x80):
            changed = bytearray(data)
            changed[position] ^= flip
            try:
                read = decode(bytes(changed))
            except LtxError:
                continue
            assert read == whole
            assert any(position in block for block in blocks)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"\1\2\3",
        b"".join(map(varint, (2, 101, 525))),
        b"".join(map(varint, (2, 100, 524))),
        b"".join(map(varint, (3, 100, 525))),
        b"".join(map(varint, (2, 100, 525))) * 2,
        b"\x82\0" + b"".join(map(varint, (100, 525))),
    ],
)
def test_index_must_fit_the_frames(index: bytes) -> None:
    right = b"".join(map(varint, (2, 100, 525)))
    assert decode(forge(DELTA, [(2, NOISE)], index=right)) == (DELTA, [(2, NOISE)])
    with pytest.raises(LtxError, match="index"):
        decode(forge(DELTA, [(2, NOISE)], index=index))


def test_file_checksum_needs_its_mark() -> None:
    data = bytearray(encode(CLAIM, []))
    data[-8] ^= 0x80
    with pytest.raises(LtxError, match="damaged"):
        decode(bytes(data))


@pytest.mark.parametrize("frame", ["00000002 0002 00000001", "00000002 8000 00000001"])
def test_unknown_frame_flags_are_refused(frame: str) -> None:
    with pytest.raises(LtxError, match="unknown flags"):
        decode(encode_header(DELTA) + bytes.fromhex(frame) + bytes(99))


class TestLies:
    """A small file may claim to be huge; nothing is taken on its word."""

    def test_sizes(self) -> None:
        header = Header(
            page_size=65_536, commit=(1 << 32) - 1, min_txid=2, max_txid=2, timestamp_ms=0
        )
        head = encode_header(header)
        frames = [
            struct.pack(">IHI", 1, 1, 0xFFFF_FFFF) + bytes(99),
            struct.pack(">IHI", 1, 1, 60_000) + b"\xff" * 60_000,
            struct.pack(">IHI", 1, 1, 60_000) + b"\x1fa\1\0" + b"\xff" * 59_996 + bytes(60_000),
            struct.pack(">IHI", 1, 1, 60_000) + b"\x1fa\1\0" + b"\xff" * 59_000 + bytes(60_000),
            struct.pack(">IH", 1, 0) + bytes.fromhex("04224d186470b9ffffff7f") + bytes(99),
            bytes(6) + b"\1" * 9 + b"\xff" * 24,
        ]
        tracemalloc.start()
        try:
            for frame in frames:
                with pytest.raises(LtxError):
                    decode(head + frame)
                with pure_python(), pytest.raises(LtxError):
                    decode(head + frame)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000

    @pytest.mark.parametrize("filler", [b"\0", b"\1", b"\xff"])
    def test_endless_source(self, filler: bytes) -> None:
        for start in (b"", encode(SMALL, SMALL_PAGES), encode(SMALL, SMALL_PAGES)[:-30]):
            given = 0
            waiting = start

            def read(length: int) -> bytes:
                nonlocal given, waiting
                taken = waiting[:length] or filler * length
                waiting = waiting[length:]
                given += len(taken)
                return taken

            with pytest.raises(LtxError):
                list(decode_stream(read)[1])
            assert given < 1_000_000


class TestDatabaseChecksum:
    """Files without flag 2, which carry checksums of the whole database."""

    SNAPSHOT = msgspec.structs.replace(SMALL, flags=0)
    DELTA = msgspec.structs.replace(DELTA, flags=0, pre_checksum=MARK | 9)

    @staticmethod
    def checksum(pages: Pages) -> int:
        value = MARK
        for pgno, page in pages:
            value ^= crc64(struct.pack(">I", pgno) + page)
        return value | MARK

    def test_snapshot_is_verified(self) -> None:
        post = self.checksum(SMALL_PAGES)
        data = forge(self.SNAPSHOT, SMALL_PAGES, post=post)
        assert decode(data) == (self.SNAPSHOT, SMALL_PAGES)
        for wrong in (0, post ^ 1, post ^ MARK):
            with pytest.raises(LtxError, match="database"):
                decode(forge(self.SNAPSHOT, SMALL_PAGES, post=wrong))

    def test_delta_needs_both_checksums(self) -> None:
        pages = SMALL_PAGES[1:2]
        assert decode(forge(self.DELTA, pages, post=MARK | 7)) == (self.DELTA, pages)
        with pytest.raises(LtxError, match="missing"):
            decode(forge(self.DELTA, pages, post=7))
        with pytest.raises(LtxError, match="missing"):
            encode_header(msgspec.structs.replace(self.DELTA, pre_checksum=0))

    def test_flag_2_allows_none(self) -> None:
        with pytest.raises(LtxError, match="should be none"):
            decode(forge(SMALL, SMALL_PAGES, post=self.checksum(SMALL_PAGES)))

    def test_they_are_not_written(self) -> None:
        with pytest.raises(LtxError, match="not written"):
            encode(self.SNAPSHOT, SMALL_PAGES)
