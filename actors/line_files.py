"""A ledger file to lines (actors/lines.py) and back. Blocking; on files that nobody serves."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from actors.header import read_header
from actors.identity import address_of
from actors.ledger_file import write_template
from actors.lines import (
    FORMAT,
    LINE_BYTES_MAX,
    SCOPE_COLUMNS,
    TABLES,
    VERSION,
    AlarmLine,
    BadImport,
    DedupeLine,
    EndLine,
    EntryLine,
    Head,
    Line,
    RowLine,
    UnfoldedLine,
    as_body,
    decode_head,
    decode_line,
    encode,
    of_body,
)
from actors.schema import migrate
from actors.types import Address
from infra.errors import FileRefused, ScopeError, StorageError
from infra.sqlite import Handle, open_reader, open_writer, storage_error, transaction

Progress = Callable[[int, int], None]

_KNOWN = {"scope", "owners", *(table for table, _, _ in TABLES)}
_BATCH_ROWS = 500
_BATCH_BYTES = 4 << 20
_PROGRESS_BYTES = 1 << 20
_LINES: tuple[type[Any], ...] = (RowLine, UnfoldedLine, EntryLine, DedupeLine, AlarmLine)
_INSERT = {
    kind: f"INSERT INTO {table}({columns}) VALUES ({','.join('?' * len(columns.split(',')))})"
    for kind, (table, columns, _) in zip(_LINES, TABLES, strict=True)
}
_NAMES = {
    kind: tuple(columns.split(", ")) for kind, (_, columns, _) in zip(_LINES, TABLES, strict=True)
}


# -- writing ---------------------------------------------------------------------------------------


def write_lines(path: Path, out: BinaryIO) -> int:
    """The ledger as lines; the number of bytes written.

    Raises ScopeError where a dialect keeps more in the file than lines can hold, FileRefused for
    what is no ledger.
    """
    with contextlib.closing(open_reader(path, immutable=True)) as db:
        address = address_of(db, path)
        _check_tables(db, address)
        digest = hashlib.sha256()
        size = 0
        counts = dict.fromkeys((table for table, _, _ in TABLES), 0)

        def put(value: Head | Line) -> None:
            nonlocal size
            text = encode(value) + b"\n"
            digest.update(text)
            size += out.write(text)

        try:
            values = db.execute(f"SELECT {SCOPE_COLUMNS} FROM scope").fetchone()
            names = SCOPE_COLUMNS.split(", ")
            put(Head(version=VERSION, **dict(zip(names, values, strict=True))))
            for kind, (table, columns, key) in zip(_LINES, TABLES, strict=True):
                for row in db.execute(f"SELECT {columns} FROM {table} ORDER BY {key}"):
                    put(_line(kind, row))
                    counts[table] += 1
        except sqlite3.Error as error:
            raise storage_error(error, path) from error
        put(EndLine(sha256=digest.hexdigest(), **counts))
        return size


def _line(kind: type[Any], row: tuple[Any, ...]) -> Line:
    values = dict(zip(_NAMES[kind], row, strict=True))
    if "body" in values:
        values["body"], values["text"] = as_body(values["body"])
    line: Line = kind(**values)
    return line


def _check_tables(db: Handle, address: Address) -> None:
    found = db.execute(
        "SELECT name FROM sqlite_schema WHERE type='table' AND name NOT LIKE 'sqlite_%'"
    )
    more = sorted({name for (name,) in found} - _KNOWN)
    if more:
        raise ScopeError(
            f"{address.scope}: lines have no place for the tables {', '.join(more)}: export it with"
            " --format sqlite",
            code="bad_params",
        )


# -- reading ---------------------------------------------------------------------------------------


def read_lines(source: BinaryIO, target: Path, *, progress: Progress | None = None) -> Address:
    """Make `target` the ledger that the lines describe; the address they name.

    Raises BadImport with the number of the line, and StorageError; then there is no target.
    `progress(done, 0)` counts bytes.
    """
    try:
        write_template(target, sync=False)
        db = open_writer(target)
        try:
            migrate(db)
            with transaction(db):
                address = _Reader(db, source, progress).run()
            read_header(db, target, address)
        except sqlite3.Error as error:
            raise storage_error(error, target) from error
        finally:
            db.close()
    except BaseException as error:
        for suffix in ("", "-wal", "-shm"):
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        if isinstance(error, FileRefused):
            raise BadImport(str(error)) from error
        raise
    return address


class _Reader:
    def __init__(self, db: Handle, source: BinaryIO, progress: Progress | None) -> None:
        self._db = db
        self._source = source
        self._progress = progress
        self._digest = hashlib.sha256()
        self._number = 0
        self._counts: dict[str, int] = {table: 0 for table, _, _ in TABLES}
        self._kind = 0  # the kind of line that is being read; they come in order

    def run(self) -> Address:
        lines = self._lines()
        head = self._head(next(lines, b""))
        waiting: list[tuple[Any, ...]] = []
        size = 0
        for text in lines:
            line = self._decode(text)
            if isinstance(line, EndLine):
                self._insert(waiting)
                self._check_end(line)
                if next(lines, None) is not None:
                    raise self._bad("there is more after the last line")
                return Address(head.tenant, head.scope)
            kind = _LINES.index(type(line))
            if kind < self._kind:
                raise self._bad(f"a line of {TABLES[kind][0]} after those of {self._table}")
            if kind > self._kind or len(waiting) >= _BATCH_ROWS or size > _BATCH_BYTES:
                self._insert(waiting)
                waiting, size, self._kind = [], 0, kind
            waiting.append(self._values(line))
            size += len(text)
        raise self._bad("the last line is missing: the file is not whole")

    @property
    def _table(self) -> str:
        return TABLES[self._kind][0]

    def _lines(self) -> Iterator[bytes]:
        done = told = 0
        while text := self._source.readline(LINE_BYTES_MAX + 1):
            self._number += 1
            done += len(text)
            if len(text) > LINE_BYTES_MAX:
                raise self._bad(f"more than {LINE_BYTES_MAX} bytes")
            if self._progress is not None and done - told >= _PROGRESS_BYTES:
                told = done
                self._progress(done, 0)
            yield text
            self._digest.update(text)  # only now: the last line tells the digest of those before

    def _head(self, text: bytes) -> Head:
        try:
            head = decode_head(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadImport(f"line 1: not the head of an export ({FORMAT}): {error}") from error
        if head.version != VERSION:
            raise BadImport(f"line 1: version {head.version}, this Holdfast reads {VERSION}")
        columns = SCOPE_COLUMNS.split(", ")
        try:
            self._db.execute(
                f"INSERT INTO scope(one, owner, nonce, txid, level, {SCOPE_COLUMNS})"
                f" VALUES (1, 0, 0, 0, 'local', {','.join('?' * len(columns))})",
                [getattr(head, name) for name in columns],
            )
        except (sqlite3.IntegrityError, OverflowError) as error:
            raise BadImport(f"line 1: {error}") from error
        return head

    def _decode(self, text: bytes) -> Line:
        try:
            line: Line = decode_line(text)
            return line
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._bad(str(error)) from error

    def _values(self, line: Any) -> tuple[Any, ...]:
        names = _NAMES[type(line)]
        values = [getattr(line, name) for name in names]
        if names[-1] == "body":
            try:
                values[-1] = of_body(line.body, line.text)
            except UnicodeDecodeError as error:
                raise self._bad(str(error)) from error
        return tuple(values)

    def _insert(self, waiting: list[tuple[Any, ...]]) -> None:
        if not waiting:
            return
        kind = _LINES[self._kind]
        try:
            self._db.executemany(_INSERT[kind], waiting)
        except (sqlite3.IntegrityError, OverflowError) as error:
            first = self._number - len(waiting)
            raise self._bad(f"{self._table}: {error}", since=first) from error
        self._counts[self._table] += len(waiting)

    def _check_end(self, end: EndLine) -> None:
        for table, count in self._counts.items():
            if getattr(end, table) != count:
                raise self._bad(f"it counts {getattr(end, table)} {table}, there are {count}")
        if end.sha256 != self._digest.hexdigest():
            raise self._bad("the checksum is not that of the lines before: something was changed")

    def _bad(self, why: str, *, since: int | None = None) -> BadImport:
        where = f"line {self._number}" if since is None else f"lines {since} to {self._number}"
        return BadImport(f"{where}: {why}")


def is_sqlite(start: bytes) -> bool:
    """Whether a file that begins so is an SQLite database."""
    return start.startswith(b"SQLite format 3\0")


def read_database(source: Path, target: Path) -> Address:
    """Make `target` a copy of a ledger file, one that was restored or exported; whose it is.

    Raises BadImport for any other file; then there is no target.
    """
    try:
        with contextlib.closing(open_reader(source, immutable=True)) as db:
            address = address_of(db, source)
            read_header(db, source, address)
            _check_schema(db, source)
            with contextlib.closing(sqlite3.connect(target)) as copy:
                db.backup(copy)
    except (FileRefused, sqlite3.DatabaseError) as error:
        target.unlink(missing_ok=True)
        if isinstance(error, sqlite3.OperationalError):  # of the disk, not of the file
            raise storage_error(error, target) from error
        raise BadImport(str(error)) from error
    except StorageError:
        target.unlink(missing_ok=True)
        raise
    return address


def _check_schema(db: Handle, path: Path) -> None:
    """The tables are those of a ledger, and nothing in the file acts by itself."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE type='trigger'").fetchone():
        raise FileRefused(f"{path.name}: it has triggers, a ledger has none")
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        migrate(model)
        for table in sorted(_KNOWN - {"owners"}):
            info = f"PRAGMA table_info({table})"
            if db.execute(info).fetchall() != model.execute(info).fetchall():
                raise FileRefused(f"{path.name}: its table {table} is not that of a ledger")
