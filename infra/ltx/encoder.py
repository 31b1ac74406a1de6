"""Writes LTX files: page frames of the sized form, which Litestream 0.5.16 and later read.

Memory stays at one batch of pages plus some 8 bytes of index for each page written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from infra.ltx.frames import FRAME, SIZED, Coverage
from infra.ltx.header import NO_CHECKSUM, Header, LtxError, PageOrder, encode_header
from infra.lz4block import compress

_WRITE_BYTES = 262_144


class Encoder:
    """One file, written piece by piece through `write`; whole once `finish` has returned."""

    def __init__(self, header: Header, write: Callable[[bytes], object]) -> None:
        """Raises LtxError where the header breaks a rule or asks for database checksums."""
        if header.flags != NO_CHECKSUM:
            raise LtxError("database checksums are read but not written: set flags to 2")
        head = encode_header(header)
        self._write = write
        self._page_size = header.page_size
        self._order = PageOrder(header)
        self._coverage = Coverage(head, header.page_size)
        self._waiting: list[bytes] = [head]
        self._waiting_bytes = self._offset = len(head)

    def page(self, pgno: int, data: bytes) -> None:
        """Add the page. Raises LtxError where it is out of order or of a wrong size."""
        if len(data) != self._page_size:
            raise LtxError(f"page {pgno} has {len(data)} bytes, not {self._page_size}")
        self._order.take(pgno)
        block = compress(data)
        head = FRAME.pack(pgno, SIZED, len(block))
        size = len(head) + len(block)
        self._coverage.add(head, data, pgno, self._offset, size)
        self._waiting += (head, block)
        self._offset += size
        self._waiting_bytes += size
        if self._waiting_bytes >= _WRITE_BYTES:
            self._flush()

    def finish(self) -> int:
        """Write what ends the file; its size. Raises LtxError if a snapshot misses pages."""
        self._order.finish()
        end, trailer = self._coverage.finish(0)
        self._waiting += (end, trailer)
        self._flush()
        return self._offset + len(end) + len(trailer)

    def _flush(self) -> None:
        self._write(b"".join(self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0


def encode(header: Header, pages: Iterable[tuple[int, bytes]]) -> bytes:
    """The whole file of (page number, page) in ascending order. Raises LtxError as Encoder does."""
    pieces: list[bytes] = []
    encoder = Encoder(header, pieces.append)
    for pgno, data in pages:
        encoder.page(pgno, data)
    encoder.finish()
    return b"".join(pieces)
