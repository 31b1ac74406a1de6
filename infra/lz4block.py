"""LZ4 blocks of one page each, by `lz4` where it is installed; and LZ4 frames, read only.

A block is a run of sequences: token (literal count, match length - 4; 15 in either means that more
length bytes follow), literals, and a 16-bit little-endian distance to copy from. The last sequence
has no match. LZ4's end rules, kept on write and required on read: the last 5 bytes are literals,
and no match starts within the last 12.

Without the extension we only write what costs next to nothing: literals, and one match for each run
of zero bytes, which is what fresh SQLite pages are made of.
"""

from __future__ import annotations

try:
    from lz4.block import LZ4BlockError
    from lz4.block import compress as lz4_compress
    from lz4.block import decompress as lz4_decompress
except ImportError:
    LZ4BlockError = ValueError
    lz4_compress = lz4_decompress = None

FRAME_MAGIC = b"\x04\x22\x4d\x18"
_ZERO_RUN = bytes(20)  # shorter runs save too little to pay for finding them
_LAST_LITERALS = 5
_MATCH_LIMIT = 12
_TOKENS = tuple((token >> 4, (token & 15) + 4) for token in range(256))  # literals, match length


def block_bytes_max(size: int) -> int:
    """The longest block a compressor makes of `size` bytes; a longer one is refused unread."""
    return size + size // 255 + 16


def frame_bytes_max(size: int) -> int:
    """The same for a legacy frame with its headers and checksums."""
    return block_bytes_max(size) + 64


def literal_prefix(size: int) -> bytes:
    """What stands before `size` bytes stored as they are; the two together are a block."""
    if size < 15:
        return bytes((size << 4,))
    return b"\xf0" + _length_bytes(size - 15)


def pure_compress(page: bytes) -> bytes:
    """A block of literals and zero runs."""
    size = len(page)
    last_start = size - _MATCH_LIMIT
    zeros = page.find(_ZERO_RUN, 0, size - _LAST_LITERALS)
    if zeros < 0:
        return literal_prefix(size) + page
    out = []
    done = 0
    while 0 <= zeros < last_start:
        run_end = size - len(page[zeros:].lstrip(b"\0"))
        start = zeros + 1  # the match copies the zero before it
        length = min(run_end, size - _LAST_LITERALS) - start
        if start > last_start or length < 4:
            break
        out.append(_sequence(page[done:start], length - 4))
        done = start + length
        zeros = page.find(_ZERO_RUN, done, size - _LAST_LITERALS)
    out.append(literal_prefix(size - done))
    out.append(page[done:])
    return b"".join(out)


def _sequence(literals: bytes, extra: int) -> bytes:
    """Literals, then a match of `extra` + 4 bytes at distance 1."""
    count = len(literals)
    token = bytes(((min(count, 15) << 4) | min(extra, 15),))
    more = _length_bytes(count - 15) if count >= 15 else b""
    tail = _length_bytes(extra - 15) if extra >= 15 else b""
    return b"".join((token, more, literals, b"\x01\x00", tail))


def _length_bytes(rest: int) -> bytes:
    return b"\xff" * (rest // 255) + bytes((rest % 255,))


def pure_decompress(block: bytes, size: int) -> bytes:
    """Exactly `size` bytes out of a block. Raises ValueError on anything else."""
    prefix = literal_prefix(size)
    if len(block) == len(prefix) + size and block.startswith(prefix):
        return block[len(prefix) :]  # one run of literals: what we write ourselves
    try:
        return _expand(block, size)
    except IndexError:
        raise ValueError("block ends inside a sequence") from None


def _expand(block: bytes, size: int) -> bytes:
    """As pure_decompress; a block that ends too early may raise IndexError as well."""
    out = bytearray()
    position = 0
    match_start = -1
    while True:
        count, length = _TOKENS[block[position]]
        position += 1
        if count:
            if count == 15:
                count, position = _long_length(block, position, count)
            end = position + count
            out += block[position:end]
            position = end
            if position >= len(block):
                break
        distance = block[position] | block[position + 1] << 8
        position += 2
        if length == 19:
            length, position = _long_length(block, position, length)
            if len(out) + length > size:  # the only way to make much out of little
                raise ValueError(f"block expands to more than {size} bytes")
        match_start = len(out)
        source = match_start - distance
        if source < 0 or not distance:
            raise ValueError(f"a match copies from {distance} bytes before byte {match_start}")
        if distance >= length:
            out += out[source : source + length]
        else:  # the match overlaps itself, so what it copies repeats
            out += (out[source:] * (length // distance + 1))[:length]
    if len(out) != size or position != len(block):
        raise ValueError(f"block expands to {len(out)} bytes, not {size}")
    # The end rules hold for every match where they hold for the last one.
    if match_start >= 0 and (match_start > size - _MATCH_LIMIT or count < _LAST_LITERALS):
        raise ValueError("a match too near the end of the page")
    return bytes(out)


def _long_length(block: bytes, position: int, length: int) -> tuple[int, int]:
    """The length that goes on at `position`, and where it ends."""
    while (more := block[position]) == 255:
        length += 255
        position += 1
    return length + more, position + 1


def compress(page: bytes) -> bytes:
    """A block that `decompress` turns back into `page`."""
    if lz4_compress is None:
        return pure_compress(page)
    block: bytes = lz4_compress(page, mode="default", store_size=False)
    return block


def decompress(block: bytes, size: int) -> bytes:
    """Exactly `size` bytes out of a block. Raises ValueError on anything else."""
    if lz4_decompress is None:
        return pure_decompress(block, size)
    try:
        page: bytes = lz4_decompress(block, uncompressed_size=size)
    except LZ4BlockError as error:
        raise ValueError(str(error)) from None
    if len(page) != size:
        raise ValueError(f"block expands to {len(page)} bytes, not {size}")
    return page


def decompress_frame(data: bytes, size: int, start: int = 0) -> tuple[bytes, int]:
    """The `size` bytes of the LZ4 frame at `start`, and where the frame ends.

    Takes frames of one block, all a page needs: no frame can set a maximum below 64 KiB. Its own
    checksums are skipped, for the file's covers the data. Raises ValueError on anything else.
    """
    if data[start : start + 4] != FRAME_MAGIC:
        raise ValueError("no LZ4 frame")
    flags = _number(data, start + 4, 1)
    if flags >> 6 != 1:
        raise ValueError(f"LZ4 frame of version {flags >> 6}; only 1 is known")
    # Magic, flags, block maximum; 8 bytes of size and 4 of dictionary where flagged; header check.
    position = start + 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    word = _number(data, position, 4)
    length = word & 0x7FFF_FFFF
    if length > block_bytes_max(size):
        raise ValueError(f"block of {length} bytes is too long for a page of {size}")
    position += 4
    block = data[position : position + length]
    position += length + (4 if flags & 16 else 0)
    if _number(data, position, 4):
        raise ValueError("LZ4 frame has more than one block")
    position += 4 + (4 if flags & 4 else 0)
    if position > len(data):
        raise ValueError("LZ4 frame ends too early")
    page = block if word >> 31 else decompress(block, size)
    if len(page) != size:
        raise ValueError(f"LZ4 frame holds {len(page)} bytes, not {size}")
    return page, position


def _number(data: bytes, position: int, length: int) -> int:
    """The little-endian number of `length` bytes there. ValueError past the end."""
    taken = data[position : position + length]
    if len(taken) < length:
        raise ValueError("LZ4 frame ends too early")
    return int.from_bytes(taken, "little")
