"""What to ship of a database file: its pages, and where the bytes of each lie at one moment.

Pages come as few runs of neighbours, because a run is one read. No file is touched here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from infra.ltx import lock_page

FILE: Final = -1  # Run.offset: the database file has the pages
ZERO: Final = -2  # Run.offset: nobody has; they read as zeros
FRAME_HEADER_BYTES: Final = 24  # before each page in a WAL

_Span = tuple[int, int, int]  # as Run


class Run(msgspec.Struct, frozen=True, gc=False):
    """`pages` neighbours from `first` on, as neighbours in one place.

    `offset` is that of the first page's bytes in the WAL, or FILE, or ZERO.
    """

    first: int
    pages: int
    offset: int


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """What to ship: pages in ascending order, none above `commit`, never the lock page."""

    page_size: int
    commit: int  # size of the database in pages
    runs: tuple[Run, ...]
    salts: bytes  # of the WAL the offsets are about; empty where there is none
    whole: bool  # every page is there, changed or not
    shrunk: bool  # the database is smaller than at the last cut
    filled: int  # pages the database grew by without a commit writing them; SQLite leaves none

    @property
    def pgnos(self) -> list[int]:
        return [pgno for run in self.runs for pgno in range(run.first, run.first + run.pages)]

    @property
    def pages(self) -> int:
        return sum(run.pages for run in self.runs)


class Places:
    """Where pages lie: in the WAL as `in_wal` says, else in the file, which has `stored` pages."""

    def __init__(self, page_size: int, in_wal: dict[int, int], stored: int) -> None:
        self._in_wal = in_wal
        self._stored = stored
        self._lock = lock_page(page_size)
        self._wal_step = page_size + FRAME_HEADER_BYTES

    def of(self, pgnos: Iterable[int]) -> tuple[Run, ...]:
        """The runs of these pages, given in ascending order."""
        return tuple(self._merged(self._spans(pgnos)))

    def of_all(self, commit: int) -> tuple[Run, ...]:
        """The runs of a whole database of so many pages."""
        return tuple(self._merged(self._all_spans(commit)))

    def _spans(self, pgnos: Iterable[int]) -> Iterator[_Span]:
        for pgno in pgnos:
            offset = self._in_wal.get(pgno)
            if offset is None:
                yield from self._file_spans(pgno, pgno + 1)
            else:
                yield pgno, 1, offset

    def _all_spans(self, commit: int) -> Iterator[_Span]:
        first = 1
        for pgno in sorted(pgno for pgno in self._in_wal if pgno <= commit):
            yield from self._file_spans(first, pgno)
            yield pgno, 1, self._in_wal[pgno]
            first = pgno + 1
        yield from self._file_spans(first, commit + 1)

    def _file_spans(self, first: int, stop: int) -> Iterator[_Span]:
        """Pages first to stop - 1 from the file, without the lock page."""
        for start, end in ((first, min(stop, self._lock)), (max(first, self._lock + 1), stop)):
            middle = min(max(start, self._stored + 1), end)
            if start < middle:
                yield start, middle - start, FILE
            if middle < end:
                yield middle, end - middle, ZERO

    def _merged(self, spans: Iterable[_Span]) -> Iterator[Run]:
        first = pages = offset = 0
        for span_first, span_pages, span_offset in spans:
            follows = offset if offset < 0 else offset + pages * self._wal_step
            if pages and span_first == first + pages and span_offset == follows:
                pages += span_pages
                continue
            if pages:
                yield Run(first, pages, offset)
            first, pages, offset = span_first, span_pages, span_offset
        if pages:
            yield Run(first, pages, offset)


def groups(cut: Cut, pages_max: int) -> Iterator[list[Run]]:
    """The runs, split where needed, in lists of at most so many pages."""
    wal_step = cut.page_size + FRAME_HEADER_BYTES
    group: list[Run] = []
    room = pages_max
    for run in cut.runs:
        first, pages, offset = run.first, run.pages, run.offset
        while pages:
            taken = min(pages, room)
            group.append(Run(first, taken, offset))
            first, pages, room = first + taken, pages - taken, room - taken
            if offset >= 0:
                offset += taken * wal_step
            if not room:
                yield group
                group, room = [], pages_max
    if group:
        yield group
