"""Making and opening a ledger's file, before there is a `Ledger` to speak of."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from actors.schema import template
from infra.errors import StorageError
from infra.sqlite import Handle, open_writer, storage_error
from infra.wal import WalTracker


@contextlib.contextmanager
def opening(path: Path, *, tracked: bool) -> Iterator[tuple[Handle, WalTracker | None]]:
    """A writer handle, closed again where opening does not succeed to the end.

    The tracker's descriptor is opened before SQLite's and closed after it (infra/wal.py).
    """
    tracker = WalTracker.open(path) if tracked else None
    try:
        db = open_writer(path)
        try:
            yield db, tracker
        except sqlite3.Error as error:
            db.close()
            raise storage_error(error, path) from error
        except BaseException:
            db.close()
            raise
    except BaseException:
        if tracker is not None:
            tracker.close()
        raise


def begin_tracking(db: Handle, path: Path, tracker: WalTracker | None) -> None:
    """Have the tracker begin at an empty WAL."""
    if tracker is not None:
        empty_wal(db, path)
        tracker.start()


def empty_wal(db: Handle, path: Path) -> None:
    """Move what a crash or a migration left in the WAL into the file. Raises StorageError."""
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > 0:
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StorageError(f"{path.name}: a reader holds the log; repeat", code="busy")


def write_template(path: Path, sync: bool) -> None:
    """The image of an empty ledger, unless the file has something in it. Raises StorageError."""
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > 0:
            return
        with fresh.open("wb") as file:  # closed before SQLite opens it, or its locks would go
            file.write(template())
            if sync:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)  # a disk that fills leaves no half of a file in its place
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        code = "disk_full" if error.errno == errno.ENOSPC else "read_only"
        raise StorageError(f"{path.name}: {error.strerror}", code=code) from error
