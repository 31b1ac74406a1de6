"""Reads of any size at one seq of a scope, beside its writer: bootstraps, lookups by column.

A `Work` is a plain value that says what is to be read, so that it can be sent to where the file is
(actors/works.py has them all). It runs in a thread on a read-only handle, inside one read
transaction; what it spools goes to an unlinked file at disk speed and is served from there, however
slow the reader. So no client holds up a checkpoint. Rows that lag behind (docs/ledger.md) are not
brought up to the head here: a dialect that scans stores every row at once, or folds them itself.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from actors.dialects import Dialect
from actors.header import Header, read_header
from actors.types import Address
from infra.errors import Busy
from infra.sqlite import Handle, open_reader, storage_error

MEMORY_BYTES_MAX = 1 << 20  # a smaller spool never touches the disk
SPOOL_BYTES_MAX = 8 << 30
LIST_ROWS_MAX = 100_000
Params = Mapping[str, Any] | Sequence[Any]


class Position(Protocol):
    """Where in a scope's history; a Header fits."""

    @property
    def epoch(self) -> str: ...
    @property
    def head(self) -> int: ...
    @property
    def floor(self) -> int: ...


class Spool:
    """What a work has spooled, and where in the scope's history. `close` it."""

    def __init__(self, header: Position, spool: IO[bytes]) -> None:
        self.epoch = header.epoch
        self.seq = header.head
        self.floor = header.floor
        self.bytes = 0
        self.result: Any = None
        self._file = spool

    def write(self, data: bytes) -> None:
        """For the work only. Raises Busy where the spool has grown beyond SPOOL_BYTES_MAX."""
        self.bytes += len(data)
        if self.bytes > SPOOL_BYTES_MAX:
            raise Busy(f"a read of more than {SPOOL_BYTES_MAX} bytes", retry_after_ms=60_000)
        self._file.write(data)

    def rewind(self) -> None:
        """Before the first `read`."""
        self._file.seek(0)

    @property
    def in_memory(self) -> bool:
        """Whether `read` needs no thread."""
        return self.bytes <= MEMORY_BYTES_MAX

    def read(self, size: int) -> bytes:
        """The next bytes; empty at the end. Slow where not `in_memory`: for a thread."""
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


class Reader:
    """What a work reads from."""

    def __init__(self, db: Handle, header: Header, spool: Spool, dialect: Dialect) -> None:
        self.header = header
        self.spool = spool
        self.dialect = dialect  # as the host has it: with what an application configures
        self._db = db

    def rows(self, sql: str, params: Params = ()) -> list[tuple[Any, ...]]:
        """At most LIST_ROWS_MAX rows, in memory."""
        return self._db.execute(sql, params).fetchmany(LIST_ROWS_MAX)

    def write(self, data: bytes) -> None:
        """Spool the bytes."""
        self.spool.write(data)

    def copy(self, sql: str, params: Params = ()) -> int:
        """Spool the first column (text) of every row; how many there were.

        Each row costs a change of the interpreter lock: join many in SQL where they are many.
        """
        count = 0
        for row in self._db.execute(sql, params):
            self.spool.write(row[0].encode())
            count += 1
        return count


class Work(Protocol):
    """What is to be read: a tagged msgspec struct of actors/works.py."""

    def run(self, reader: Any) -> Any:
        """Read, spool what is long, and return the rest. Called in a thread."""


def take_scan(path: Path, address: Address, work: Work, spool_dir: Path, dialect: Dialect) -> Spool:
    """Run the work at the file's head; its result is `result` of the spool it has filled.

    Raises StorageError or FileRefused, and what the work raises.
    """
    db = open_reader(path)
    file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES_MAX, dir=str(spool_dir))  # noqa: SIM115
    try:
        db.execute("BEGIN")
        header = read_header(db, path, address)
        spool = Spool(header, file)
        spool.result = work.run(Reader(db, header, spool, dialect))
        spool.rewind()
        return spool
    except sqlite3.Error as error:
        file.close()
        raise storage_error(error, path) from error
    except BaseException:
        file.close()
        raise
    finally:
        db.close()
