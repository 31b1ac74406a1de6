"""What writing and reading page frames share: layouts, the running checksum, the page index."""

from __future__ import annotations

import struct

from infra.crc64 import crc64
from infra.ltx.header import CHECKSUM_MARK

SIZED = 1  # frame flag: a 4-byte size and an LZ4 block follow; without it a legacy LZ4 frame
FRAME = struct.Struct(">IHI")  # page number, flags, block size
LEGACY_FRAME_BYTES = 6
END = bytes(6)  # in place of a frame header, without a size
CHECKSUM = struct.Struct(">Q")

# Frames covered by one call to the checksum: about 32 KiB, the size it is fastest at.
_BATCH_BYTES = 32_000


class Coverage:
    """The file checksum and the page index, fed frame by frame in batches."""

    def __init__(self, header: bytes, page_size: int) -> None:
        self._state = crc64(header)
        self._batch_frames = max(1, _BATCH_BYTES // page_size)
        self._index = bytearray()
        self._covered: list[bytes] = []
        self._entries: list[int] = []

    def add(self, head: bytes, page: bytes, pgno: int, offset: int, size: int) -> None:
        """One frame: its header as stored, the page, and where it lies (whole frame, in bytes)."""
        self._covered += (head, page)
        self._entries += (pgno, offset, size)
        if len(self._covered) >= 2 * self._batch_frames:
            self._settle()

    def finish(self, post_checksum: int) -> tuple[bytes, bytes]:
        """What ends the file: (end mark and page index, trailer with both checksums)."""
        self._settle()
        length = len(self._index) + 1
        end = b"".join((END, self._index, b"\0", CHECKSUM.pack(length)))
        post = CHECKSUM.pack(post_checksum)
        return end, post + CHECKSUM.pack(crc64(end + post, self._state) | CHECKSUM_MARK)

    def _settle(self) -> None:
        self._state = crc64(b"".join(self._covered), self._state)
        self._covered.clear()
        append = self._index.append
        for number in self._entries:
            rest = number
            while rest > 127:
                append(rest & 127 | 128)
                rest >>= 7
            append(rest)
        self._entries.clear()
