"""Reads LTX files of both page-frame forms and believes nothing: any bytes give pages or LtxError.

Memory stays at one read plus some 8 bytes of index for each page, whatever the file claims. The
index a file should have is made from its frames and compared as a whole: every entry is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from infra.crc64 import crc64
from infra.ltx.frames import CHECKSUM, FRAME, LEGACY_FRAME_BYTES, SIZED, Coverage
from infra.ltx.header import (
    CHECKSUM_MARK,
    HEADER_BYTES,
    NO_CHECKSUM,
    Header,
    LtxError,
    PageOrder,
    decode_header,
)
from infra.lz4block import block_bytes_max, decompress, decompress_frame, frame_bytes_max

_READ_BYTES = 262_144


class _Source:
    """A window on the file: `data` from `position` on is unread."""

    def __init__(self, data: bytes, read: Callable[[int], bytes]) -> None:
        self.data = data
        self.position = 0
        self._before = 0  # bytes of the file that came before `data`
        self._read = read
        self._ended = False

    @property
    def offset(self) -> int:
        """Where in the file `position` is."""
        return self._before + self.position

    def need(self, count: int) -> None:
        """Have `count` unread bytes at hand, or all there are."""
        have = len(self.data) - self.position
        if have >= count or self._ended:
            return
        pieces = [self.data[self.position :]]
        while have < count:
            piece = self._read(max(_READ_BYTES, count - have))
            if not piece:
                self._ended = True
                break
            pieces.append(piece)
            have += len(piece)
        self._before += self.position
        self.data = b"".join(pieces)
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next bytes; fewer than `count` at the end of the file."""
        self.need(count)
        taken = self.data[self.position : self.position + count]
        self.position += len(taken)
        return taken


def decode(data: bytes) -> tuple[Header, list[tuple[int, bytes]]]:
    """The header and all (page number, page) of a whole file, everything verified.

    Raises LtxError on anything that is not exactly one undamaged file.
    """
    source = _Source(data, lambda _count: b"")
    header, pages = _open(source)
    return header, list(pages)


def decode_stream(read: Callable[[int], bytes]) -> tuple[Header, Iterator[tuple[int, bytes]]]:
    """The header, and the pages as they come; `read(n)` gives up to n bytes, none at the end.

    Order, limits and each frame are checked on the way. The file is only known to be undamaged once
    the iterator has ended without LtxError: until then keep what was made of its pages apart.
    """
    return _open(_Source(b"", read))


def _open(source: _Source) -> tuple[Header, Iterator[tuple[int, bytes]]]:
    head = source.take(HEADER_BYTES)
    header = decode_header(head)
    return header, _pages(source, header, Coverage(head, header.page_size))


def _pages(source: _Source, header: Header, coverage: Coverage) -> Iterator[tuple[int, bytes]]:
    page_size = header.page_size
    order = PageOrder(header)
    frame_max = FRAME.size + frame_bytes_max(page_size)
    block_max = block_bytes_max(page_size)
    database = None if header.flags & NO_CHECKSUM else CHECKSUM_MARK
    while True:
        source.need(frame_max)
        data, start = source.data, source.position
        if len(data) < start + FRAME.size:  # even an empty file ends in more than that
            raise LtxError("file ends inside the page frames")
        pgno, flags, block_bytes = FRAME.unpack_from(data, start)
        if pgno == 0 and flags == 0:
            break
        order.take(pgno)
        try:
            if flags == SIZED:
                body = start + FRAME.size
                end = body + block_bytes
                if block_bytes > block_max or end > len(data):
                    raise ValueError(
                        f"block of {block_bytes} bytes: more than a page or the file has"
                    )
                page = decompress(data[body:end], page_size)
            elif flags == 0:
                body = start + LEGACY_FRAME_BYTES
                page, end = decompress_frame(data, page_size, body)
            else:
                raise ValueError(f"unknown flags {flags:#x}")
        except ValueError as error:
            raise LtxError(f"frame of page {pgno}: {error}") from None
        coverage.add(data[start:body], page, pgno, source.offset, end - start)
        source.position = end
        if database is not None:
            database ^= crc64(page, crc64(data[start : start + 4]))
        yield pgno, page
    order.finish()
    _check_end(source, header, coverage, database)


def _check_end(source: _Source, header: Header, coverage: Coverage, database: int | None) -> None:
    # What must stand here follows from the frames but for one number, the checksum after the file.
    end, _ = coverage.finish(0)
    if source.take(len(end)) != end:
        raise LtxError("the page index does not fit the page frames")
    trailer = source.take(2 * CHECKSUM.size)
    if len(trailer) < 2 * CHECKSUM.size:
        raise LtxError("file ends inside the trailer")
    (post,) = CHECKSUM.unpack_from(trailer)
    _check_database(header, post, database)
    _, expected = coverage.finish(post)
    if trailer != expected:
        raise LtxError("checksum of the file does not match: it is damaged")
    if source.take(1):
        raise LtxError(f"bytes after the end of the file, at {source.offset - 1}")


def _check_database(header: Header, post: int, database: int | None) -> None:
    if database is None:
        if post:
            raise LtxError("a checksum of the database where there should be none")
    elif not post & CHECKSUM_MARK:
        raise LtxError("the checksum of the database is missing")
    elif header.is_snapshot and post != database | CHECKSUM_MARK:
        raise LtxError("checksum of the database does not match")
