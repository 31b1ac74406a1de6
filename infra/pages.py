"""From the pages of a ledger file to LTX files. For a thread: encoding takes ms for each MiB."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import NamedTuple

from infra.cut import Cut
from infra.errors import StorageError
from infra.ltx import Encoder, Header, encode
from infra.objects import ObjectStore
from infra.wal import WalTracker

SPOOL_BYTES_MAX = 8 << 20  # a larger snapshot goes through a file on disk


class Image(NamedTuple):
    """A whole state, still in its file: readable until a checkpoint moves pages."""

    tracker: WalTracker
    cut: Cut
    txid: int
    owner: int
    nonce: int
    timestamp_ms: int


class Batch(NamedTuple):
    """A level 0 file, and the image of the same state where a snapshot is wanted."""

    body: bytes
    timestamp_ms: int
    image: Image | None


def write_batch(
    tracker: WalTracker,
    *,
    txid: int,
    owner: int,
    nonce: int,
    now_ms: int,
    whole: bool,
    snapshot: bool,
) -> Batch:
    """The pages changed since the last cut, or all, as the file of batch `txid`.

    A shrunken database gets a snapshot: other readers take its size from their highest page.
    """
    cut = tracker.cut(whole=whole)
    image = None
    if snapshot or cut.shrunk:
        image = Image(tracker, tracker.cut(whole=True), txid, owner, nonce, now_ms)
    header = _header(tracker, txid, txid, owner, nonce, now_ms)
    return Batch(encode(header, tracker.read(cut)), now_ms, image)


def write_claim(tracker: WalTracker, *, txid: int, owner: int, nonce: int, now_ms: int) -> Batch:
    """A file without pages, which only takes its place."""
    return Batch(encode(_header(tracker, txid, txid, owner, nonce, now_ms), ()), now_ms, None)


def write_image(store: ObjectStore, key: str, image: Image, spool: Path) -> int:
    """Put the snapshot; its size in bytes. Raises StorageError, also for the disk it spools to."""
    header = _header(
        image.tracker, 1, image.txid, image.owner, image.nonce, image.timestamp_ms, image.cut.commit
    )
    try:
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES_MAX, dir=str(spool)) as file:
            encoder = Encoder(header, file.write)
            for pgno, page in image.tracker.read(image.cut):
                encoder.page(pgno, page)
            size = encoder.finish()
            file.seek(0)
            store.put(key, file, timestamp_ms=image.timestamp_ms)  # type: ignore[arg-type]
    except OSError as error:
        code = "disk_full" if error.errno == errno.ENOSPC else "storage"
        raise StorageError(
            f"{spool}: no room to write {key}: {error.strerror}", code=code
        ) from error
    return size


def _header(
    tracker: WalTracker,
    first: int,
    last: int,
    owner: int,
    nonce: int,
    now_ms: int,
    commit: int | None = None,
) -> Header:
    return Header(
        page_size=tracker.page_size,
        commit=tracker.commit if commit is None else commit,
        min_txid=first,
        max_txid=last,
        timestamp_ms=now_ms,
        node_id=owner,
        salt1=nonce >> 32,
        salt2=nonce & 0xFFFF_FFFF,
    )
