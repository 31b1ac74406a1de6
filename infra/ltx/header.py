"""The 100-byte header of an LTX file and the rules its fields and page numbers keep.

Checked the same on write and on read, so nothing leaves that could not come back. What an official
reader would accept but nobody could restore (commit 0) is refused too.
"""

from __future__ import annotations

import struct

import msgspec

from infra.errors import StorageError

HEADER_BYTES = 100
NO_CHECKSUM = 2  # flag: the file carries no checksums of the whole database
CHECKSUM_MARK = 1 << 63  # set in every checksum that is present
PAGE_SIZES = frozenset(1 << bits for bits in range(9, 17))

_MAGIC = b"LTX1"
_RESERVED = bytes(20)
_LAYOUT = struct.Struct(">4sIIIQQqQqqIIQ20s")
_LOCK_BYTE = 0x4000_0000


class LtxError(StorageError):
    """These bytes are not a whole and undamaged LTX file, or would not make one. Restore from
    another file or copy.
    """

    code = "corrupt"
    retryable = False


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself. Sizes are in bytes; `commit` is that of the database, in pages.

    `min_txid` 1 makes it a snapshot, which holds every page. `node_id`, the WAL fields and the
    checksum are not used by readers; WAL offset + size must exceed 0 where an official writer may
    take the replica over.
    """

    page_size: int
    commit: int
    min_txid: int
    max_txid: int
    timestamp_ms: int
    node_id: int = 0
    wal_offset: int = 32
    wal_size: int = 0
    salt1: int = 0
    salt2: int = 0
    flags: int = NO_CHECKSUM
    pre_checksum: int = 0

    @property
    def is_snapshot(self) -> bool:
        """True where the file alone makes a database."""
        return self.min_txid == 1


def lock_page(page_size: int) -> int:
    """The page number SQLite keeps for its locks: never stored, a hole of zeros in the database."""
    return _LOCK_BYTE // page_size + 1


def encode_header(header: Header) -> bytes:
    """The 100 bytes. Raises LtxError where a field breaks a rule of the format."""
    _check(header)
    try:
        return _LAYOUT.pack(
            _MAGIC,
            header.flags,
            header.page_size,
            header.commit,
            header.min_txid,
            header.max_txid,
            header.timestamp_ms,
            header.pre_checksum,
            header.wal_offset,
            header.wal_size,
            header.salt1,
            header.salt2,
            header.node_id,
            _RESERVED,
        )
    except struct.error as error:
        raise LtxError(f"header field out of range: {error}") from None


def decode_header(data: bytes) -> Header:
    """The header at the start of `data`. Raises LtxError where it is short or breaks a rule."""
    if len(data) < HEADER_BYTES:
        raise LtxError(f"file ends inside the header, after {len(data)} bytes")
    fields = _LAYOUT.unpack(data[:HEADER_BYTES])
    magic, flags, page_size, commit, min_txid, max_txid, timestamp_ms, pre_checksum = fields[:8]
    wal_offset, wal_size, salt1, salt2, node_id, reserved = fields[8:]
    if magic != _MAGIC:
        raise LtxError(f"not an LTX file: it starts with {magic!r}")
    if reserved != _RESERVED:
        raise LtxError("reserved bytes of the header are in use: written by a newer version?")
    header = Header(
        page_size=page_size,
        commit=commit,
        min_txid=min_txid,
        max_txid=max_txid,
        timestamp_ms=timestamp_ms,
        node_id=node_id,
        wal_offset=wal_offset,
        wal_size=wal_size,
        salt1=salt1,
        salt2=salt2,
        flags=flags,
        pre_checksum=pre_checksum,
    )
    _check(header)
    return header


def _check(header: Header) -> None:
    if header.flags & ~NO_CHECKSUM:
        raise LtxError(f"header flags {header.flags:#x}; only {NO_CHECKSUM:#x} is known")
    if header.page_size not in PAGE_SIZES:
        raise LtxError(f"page size {header.page_size}")
    if header.commit < 1:
        raise LtxError("commit 0: a database without pages cannot be restored")
    if not 1 <= header.min_txid <= header.max_txid:
        raise LtxError(f"transaction ids {header.min_txid} to {header.max_txid}")
    if header.wal_offset < 0 or header.wal_size < 0:
        raise LtxError(f"WAL offset {header.wal_offset}, size {header.wal_size}")
    if header.wal_offset == 0 and (header.wal_size or header.salt1 or header.salt2):
        raise LtxError("WAL size or salts without a WAL offset")
    if header.flags & NO_CHECKSUM or header.is_snapshot:
        if header.pre_checksum:
            raise LtxError("a checksum before the file where there is none")
    elif not header.pre_checksum & CHECKSUM_MARK:
        raise LtxError("the checksum before the file is missing")


class PageOrder:
    """Watches the page numbers of one file: ascending, in the database, a snapshot without gaps."""

    def __init__(self, header: Header) -> None:
        self._commit = header.commit
        self._lock = lock_page(header.page_size)
        self._complete = header.is_snapshot
        self._last = 0

    def take(self, pgno: int) -> None:
        """Raises LtxError where page `pgno` may not follow those before it."""
        last = self._last
        if pgno == last + 1 != self._lock and pgno <= self._commit:
            self._last = pgno
            return
        if pgno <= last:
            raise LtxError(f"page {pgno} after page {last}")
        if pgno > self._commit:
            raise LtxError(f"page {pgno} of a database of {self._commit}")
        if pgno == self._lock:
            raise LtxError(f"page {pgno} is the lock page, which is never stored")
        if self._complete and not (pgno == last + 2 and last + 1 == self._lock):
            raise LtxError(f"snapshot misses page {last + 1}")
        self._last = pgno

    def finish(self) -> None:
        """Raises LtxError where a snapshot ended early."""
        last = self._last
        if last + 1 == self._lock:
            last += 1
        if self._complete and last < self._commit:
            raise LtxError(f"snapshot of {self._commit} pages ends after page {self._last}")
