"""Which pages the commits of one SQLite file changed, and where their newest bytes lie.

For the process that holds the file's only writer. It knows how many commits it made, so it need not
guess where its write-ahead log (WAL) ends: `advance` follows exactly that many, by their frame
headers. `cut` names what has changed since the last cut, `read` fetches it.

Always true after `advance`: the newest bytes of a page are in the WAL where `in_wal` says so, else
in the database file. A WAL begins again at offset 32, with new salts, only when a checkpoint has
moved all of it into the database file; until the first commit after that, both copies are good.

What a WAL holds beside committed frames, and what tells it apart: frames of transactions rolled
back after their pages had spilled (no commit mark before the next transaction overwrites them) and
frames of earlier generations behind the end (other salts). Format: sqlite.org/fileformat2.html,
section 4. Checksums are not computed: they protect against a crash, after which a WAL is recovered
and emptied by SQLite before `start`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.cut import FILE, FRAME_HEADER_BYTES, ZERO, Cut, Places, Run, groups
from infra.errors import StorageError
from infra.ltx import lock_page

SCAN_BYTES = 64 << 10  # one read of `advance`; more is slower, being fresh memory each time
SCAN_FRAMES_FIRST = 4  # most batches change a few pages
READ_BYTES = 256 << 10  # one list of pages held by `read`

_WAL_HEADER = struct.Struct(">IIII8sII")  # magic, version, page size, sequence, salts, checksums
_WAL_MAGIC = (0x377F0682, 0x377F0683)
_WAL_VERSION = 3007000
_DB_MAGIC = b"SQLite format 3\0"
_PAGE_BYTES_MIN, _PAGE_BYTES_MAX = 512, 65536


class WalBroken(StorageError):
    """The WAL does not hold what it should; which pages changed is not known any more.

    The tracker refuses all work until `PRAGMA wal_checkpoint(TRUNCATE)` was run and `start` called;
    its next cut must then be whole.
    """


class WalTracker:
    """Follows one database file and its WAL. Blocking; for one thread at a time.

    `read` alone may run in another thread beside `advance` and `cut`.

    Promised by the caller: it is the file's only writer; each COMMIT that wrote is counted once (an
    UPDATE that sets what is there already writes no frame, so give each transaction something that
    differs); all of them are advanced through before a checkpoint begins (call `advance(0)` where
    there are none: it sees that an earlier checkpoint has emptied the WAL); no checkpoint runs from
    a `cut` until its `read` has ended. Commits may be made at any time.

    Public for reading: `commit` (pages of the database after the last advanced commit), `page_size`
    (bytes), `changed` (pages since the last cut), `in_wal` (page -> offset of its newest bytes in
    the WAL) and `whole_due` (the next cut must be whole).
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.page_size = self.commit = 0
        self.changed: set[int] = set()
        self.in_wal: dict[int, int] = {}
        self.whole_due = False
        self._path = path
        self._wal_path = path.with_name(path.name + "-wal")
        self._db = descriptor
        self._wal = -1
        self._wal_inode = (0, 0)
        self._trouble: str | None = "not started"
        self._frame = struct.Struct("")  # pgno, commit, salts of one frame; skips the rest
        self._salts: bytes | None = None  # of the current generation; None: the next is the first
        self._counter = 0  # of the generation last looked at, which may have no commit yet
        self._next = _WAL_HEADER.size  # offset behind the last advanced commit
        self._commit_cut = 0  # `commit` at the last cut
        self._commit_min = 0  # the smallest since: pages above it may be new

    @classmethod
    def open(cls, path: Path) -> WalTracker:
        """A tracker that is not started yet. Raises StorageError.

        Open it BEFORE SQLite opens the file and close it AFTER every SQLite handle of this process
        to the file is closed, readers too. POSIX drops all locks a process has on a file as soon as
        it closes any descriptor of it; another process would then delete the live WAL on exit, and
        later commits with it. (SQLite locks nothing on the WAL: that is opened at need.)
        """
        try:
            return cls(path, os.open(path, os.O_RDONLY))
        except OSError as error:
            raise StorageError(f"{path.name}: cannot be read: {error.strerror}") from error

    def start(self) -> None:
        """Begin here: the next commit frame is the first of a generation not seen before.

        Call it when SQLite has opened the file and `PRAGMA wal_checkpoint(TRUNCATE)` has left the
        WAL empty or absent, and before the first commit; again whenever SQLite has opened the file
        anew, and after WalBroken. Nothing counts as changed: whether the file equals what was last
        shipped is for the caller to know. Raises WalBroken where the WAL holds anything.
        """
        self._trouble = "not started"
        try:
            self._check_files()
            page_size, commit = self._read_size()
            if self._wal >= 0:
                os.close(self._wal)
        except OSError as error:
            raise self._storage_error(error) from error
        if self.changed:
            self.whole_due = True  # they were never cut, and are about to be forgotten
        if not self.page_size:
            self._commit_cut = commit
        self.page_size, self.commit = page_size, commit
        self._commit_min = min(commit, self._commit_cut)
        self._frame = struct.Struct(f">II8s{FRAME_HEADER_BYTES - 16 + page_size}x")
        self._wal = -1
        self.changed = set()
        self._forget_wal()
        self._trouble = None

    def advance(self, commits: int) -> None:
        """Take in exactly this many further commits; with 0, only see whether the WAL was emptied.

        Raises WalBroken where the WAL holds fewer, or anything unexpected, and StorageError where
        it cannot be read just now; after that one the call may be repeated.
        """
        self._check_usable()
        if commits < 0:
            raise self._broken(f"told to go back by {-commits} commits")
        try:
            size = self._look_at_wal()
            if not size:
                self._forget_wal()
            if size or commits > 0:
                at, salts = self._resume()
                if commits > 0:
                    self._follow(at, salts, commits)
        except OSError as error:
            raise self._storage_error(error) from error

    def cut(self, *, whole: bool = False) -> Cut:
        """What changed since the last cut, or with `whole` everything; then nothing counts as
        changed.

        Only what was advanced through is in it. Raises WalBroken where `whole` is due and not
        asked for, StorageError where the file's size cannot be read; nothing has changed then.
        """
        self._check_usable()
        if self.whole_due and not whole:
            raise WalBroken(f"{self._path.name}: changes were lost; the next cut must be whole")
        try:
            stored = os.fstat(self._db).st_size // self.page_size
        except OSError as error:
            raise self._storage_error(error) from error
        places = Places(self.page_size, self.in_wal, stored)
        # All pages above the smallest size, even if it has grown back: whoever applies the cut may
        # have others there.
        unwritten = set(range(self._commit_min + 1, self.commit + 1)) - self.changed
        unwritten.discard(lock_page(self.page_size))
        changed = sorted(p for p in self.changed | unwritten if p <= self.commit)
        cut = Cut(
            page_size=self.page_size,
            commit=self.commit,
            runs=places.of_all(self.commit) if whole else places.of(changed),
            salts=self._salts or b"",
            whole=whole,
            shrunk=self.commit < self._commit_cut,
            filled=0 if whole else len(unwritten),
        )
        self.changed = set()
        self._commit_cut = self._commit_min = self.commit
        self.whole_due = False
        return cut

    def read(self, cut: Cut) -> Iterator[tuple[int, bytes]]:
        """The pages of the cut, ascending, as they were when it was made.

        Valid until the next checkpoint begins. Raises StorageError, or WalBroken where a checkpoint
        has moved them; what was yielded before is good, and the next cut must be whole.
        """
        for runs in groups(cut, max(1, READ_BYTES // cut.page_size)):
            try:
                pages = self._load(cut, runs)
            except OSError as error:
                self.whole_due = True  # what was cut counts as changed no more
                raise self._storage_error(error) from error
            yield from pages

    @property
    def bytes_pending(self) -> int:
        """Size of the changed pages; less once the database has shrunk below some of them."""
        return len(self.changed) * self.page_size

    @property
    def wal_bytes(self) -> int:
        """How far the WAL is filled with advanced commits: what a checkpoint would work through."""
        return self._next if self._salts is not None else 0

    def close(self) -> None:
        """Close the descriptors: AFTER every SQLite handle of the file, see `open`."""
        for descriptor in (self._wal, self._db):
            if descriptor >= 0:
                os.close(descriptor)
        self._wal = self._db = -1
        self._trouble = "closed"

    # -- following the WAL -------------------------------------------------------------------

    def _look_at_wal(self) -> int:
        """The size of the WAL, 0 where there is none. Opens it."""
        try:
            found = os.stat(self._wal_path)
        except FileNotFoundError:
            if self._wal < 0:
                return 0
            raise self._broken("its WAL was deleted") from None
        if self._wal < 0:
            self._wal = os.open(self._wal_path, os.O_RDONLY)
            found = os.fstat(self._wal)
            self._wal_inode = found.st_dev, found.st_ino
        elif (found.st_dev, found.st_ino) != self._wal_inode:
            # Only closing the last handle deletes a WAL. If that was not ours, our commits go to a
            # file without a name, and this one is somebody else's.
            raise self._broken("its WAL was replaced")
        return found.st_size

    def _resume(self) -> tuple[int, bytes]:
        """Where the next frame lies, and its salts."""
        header = os.pread(self._wal, _WAL_HEADER.size, 0) if self._wal >= 0 else b""
        if len(header) < _WAL_HEADER.size:
            raise self._broken("commits are missing: its WAL is empty")
        magic, version, page_size, _, salts, *_ = _WAL_HEADER.unpack(header)
        if magic not in _WAL_MAGIC or version != _WAL_VERSION or page_size != self.page_size:
            raise self._broken("the header of its WAL is damaged or of another database")
        if salts == self._salts:
            return self._next, salts
        counter = int.from_bytes(salts[:4], "big")  # salt-1 grows by one with each generation
        if self._salts is not None and (counter - self._counter) % (1 << 32) > 1:
            raise self._broken("its WAL began again more than once since it was last looked at")
        self._counter = counter
        return _WAL_HEADER.size, salts

    def _follow(self, at: int, salts: bytes, commits: int) -> None:
        found: dict[int, int] = {}
        step = FRAME_HEADER_BYTES + self.page_size
        commit_min = self._commit_min
        left, frames = commits, SCAN_FRAMES_FIRST
        while True:
            chunk = os.pread(self._wal, frames * step, at)
            count = len(chunk) // step
            for pgno, commit, frame_salts in self._frame.iter_unpack(
                memoryview(chunk)[: count * step]
            ):
                if frame_salts != salts or not pgno:
                    raise self._broken(f"{left} of {commits} commits are missing in its WAL")
                found[pgno] = at + FRAME_HEADER_BYTES
                at += step
                if commit:
                    commit_min = min(commit_min, commit)
                    left -= 1
                    if not left:
                        self._take(found, salts, at, commit, commit_min)
                        return
            if count < frames:
                raise self._broken(f"{left} of {commits} commits are missing in its WAL")
            frames = max(1, SCAN_BYTES // step)

    def _take(
        self, found: dict[int, int], salts: bytes, at: int, commit: int, commit_min: int
    ) -> None:
        if salts == self._salts:
            self.in_wal.update(found)
        else:  # a new generation: everything older is in the database file
            self.in_wal = found
            self._salts = salts
        self.changed.update(found)
        self._next, self.commit, self._commit_min = at, commit, commit_min

    def _forget_wal(self) -> None:
        self.in_wal = {}
        self._salts = None
        self._next = _WAL_HEADER.size

    # -- reading ----------------------------------------------------------------------------

    def _load(self, cut: Cut, runs: Sequence[Run]) -> list[tuple[int, bytes]]:
        pages = self._load_runs(cut.page_size, runs)
        in_wal = any(run.offset >= 0 for run in runs)
        # A commit after the cut may have begun the WAL again, and overwritten what was read. SQLite
        # writes the header first, so with the old salts still there all reads before were good.
        if in_wal and os.pread(self._wal, 8, 16) != cut.salts:
            moved = [Run(r.first, r.pages, FILE) if r.offset >= 0 else r for r in runs]
            pages = self._load_runs(cut.page_size, moved)
        if any(len(page) != cut.page_size for _, page in pages):
            raise self._broken("pages of a cut are gone: a checkpoint ran before they were read")
        return pages

    def _load_runs(self, page_size: int, runs: Sequence[Run]) -> list[tuple[int, bytes]]:
        """Pages cut off by the end of a file come out short."""
        pages: list[tuple[int, bytes]] = []
        for run in runs:
            if run.offset == ZERO:
                pages.extend((run.first + i, bytes(page_size)) for i in range(run.pages))
                continue
            if run.offset == FILE:
                descriptor, at, step = self._db, (run.first - 1) * page_size, page_size
            else:
                descriptor, at, step = self._wal, run.offset, page_size + FRAME_HEADER_BYTES
            data = os.pread(descriptor, (run.pages - 1) * step + page_size, at)
            if run.pages == 1:
                pages.append((run.first, data))
                continue
            starts = range(0, run.pages * step, step)
            pages.extend((run.first + i, data[s : s + page_size]) for i, s in enumerate(starts))
        return pages

    # -- the files, and what is wrong with them ----------------------------------------------

    def _check_files(self) -> None:
        name = self._path.name
        if self._db < 0:
            raise WalBroken(f"{name}: the tracker is closed")
        ours, there = os.fstat(self._db), os.stat(self._path)
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise WalBroken(f"{name}: the file was replaced; open a new tracker before SQLite")
        try:
            size = os.stat(self._wal_path).st_size
        except FileNotFoundError:
            return
        if size:
            raise WalBroken(f"{name}: its WAL holds {size} bytes; checkpoint with TRUNCATE first")

    def _read_size(self) -> tuple[int, int]:
        """(page size, pages) of the database file, as SQLite reads them."""
        header = os.pread(self._db, 100, 0)
        if len(header) < 100 or not header.startswith(_DB_MAGIC):
            raise WalBroken(f"{self._path.name}: not a database file")
        (page_size,) = struct.unpack_from(">H", header, 16)
        page_size = _PAGE_BYTES_MAX if page_size == 1 else page_size
        if page_size < _PAGE_BYTES_MIN or page_size & (page_size - 1):
            raise WalBroken(f"{self._path.name}: page size {page_size}")
        changes, pages = struct.unpack_from(">II", header, 24)
        (valid_for,) = struct.unpack_from(">I", header, 92)
        stored = os.fstat(self._db).st_size // page_size
        if not pages or changes != valid_for:  # written by a SQLite that did not keep the number
            pages = stored
        if not 0 < pages <= stored:
            raise WalBroken(f"{self._path.name}: {stored} of {pages} pages are in the file")
        return page_size, pages

    def _check_usable(self) -> None:
        if self._trouble is not None:
            raise WalBroken(f"{self._path.name}: {self._trouble}; checkpoint and start again")

    def _broken(self, trouble: str) -> WalBroken:
        self._trouble = trouble
        self.whole_due = True
        return WalBroken(f"{self._path.name}: {trouble}")

    def _storage_error(self, error: OSError) -> StorageError:
        return StorageError(f"{self._path.name}: cannot be read: {error.strerror}")
