"""SQLite handles: their pragmas, and what SQLite's errors mean to us. Nothing here knows a scope.

One writer handle per file, the only one that checkpoints (two connections that write and
checkpoint at once can meet the WAL-reset race of SQLite before 3.51.3). Readers open read-only.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from infra.errors import FileRefused, StorageError

SQLITE_VERSION = sqlite3.sqlite_version
CACHE_KIB = 1024
BUSY_MS = 2_000
Handle = sqlite3.Connection
_CONFIG_PAGECACHE = 7  # SQLITE_CONFIG_PAGECACHE of sqlite3.h


def save_memory() -> bool:
    """Have SQLite take each cached page when it is needed instead of 20 at once for every file.

    Saves about 70 KiB for each open scope. For a process of our own only, before any handle is
    open: SQLite must be shut down for it. Does nothing, and says so, where its library is out of
    reach.
    """
    try:
        library = ctypes.CDLL(_sqlite3.__file__)
        done: bool = (
            library.sqlite3_shutdown() == 0
            and library.sqlite3_config(_CONFIG_PAGECACHE, ctypes.c_void_p(None), 0, 0) == 0
        )
        library.sqlite3_initialize()
    except (OSError, AttributeError, TypeError):
        return False
    return done


def open_writer(path: Path) -> Handle:
    """Open or create the file for its one writer.
    Commits do not wait for the disk (infra/barrier.py does).
    """
    try:
        db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=48, timeout=2
        )
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA wal_autocheckpoint=0")
            db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            db.execute("PRAGMA trusted_schema=OFF")
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise storage_error(error, path) from error
    return db


def open_reader(path: Path, *, immutable: bool = False) -> Handle:
    """Open read-only beside the writer.

    For long reads in a worker thread, closed within seconds.
    """
    try:
        uri = f"file:{quote(str(path))}?mode=ro" + ("&immutable=1" if immutable else "")
        db = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=2
        )
        db.execute("PRAGMA query_only=ON")
    except sqlite3.Error as error:
        raise storage_error(error, path) from error
    return db


@contextmanager
def transaction(db: Handle) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT; any exception rolls back and goes on."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def storage_error(error: sqlite3.Error, path: Path) -> StorageError:
    """The typed error for what SQLite reported; the message says what an operator can do."""
    name = getattr(error, "sqlite_errorname", "") or ""
    where = path.name
    if name.startswith("SQLITE_FULL"):
        return StorageError(f"{where}: the disk is full; free space and repeat", code="disk_full")
    if name.startswith("SQLITE_READONLY") or name.startswith("SQLITE_CANTOPEN"):
        return StorageError(
            f"{where}: cannot be written ({name}); check permissions and the mount",
            code="read_only",
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return FileRefused(f"{where}: damaged ({name}); restore it or move it aside")
    return StorageError(f"{where}: {name or type(error).__name__}: {error}")
