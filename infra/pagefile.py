"""A database file put together from pages under a temporary name, and moved into place whole.

Whatever goes wrong before `finish`, the target is as it was and nothing else is left behind. Only
one caller at a time may build a target: the temporary name is the same for all, so that what a
crash leaves is overwritten by the next try.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from infra.errors import StorageError

SUFFIX: Final = ".restoring"
# What belongs to the file that is replaced. SQLite would play each of them into the new one.
COMPANIONS: Final = ("-wal", "-shm", "-journal")
RUN_BYTES_MAX: Final = 256 << 10  # neighbouring pages go out in one write

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class PageFile:
    """The file to be. Use as a context manager: leaving it without `finish` removes everything.

    Pages 1 to `_complete` are there; `_beyond` holds the numbers of those above it.
    """

    def __init__(self, target: Path, *, page_size: int, hole: int) -> None:
        """`hole` is the page SQLite never uses (its lock byte); it is there without being put."""
        self._target = target
        self._path = target.with_name(target.name + SUFFIX)
        self._page_size = page_size
        self._hole = hole
        self._complete = 0
        self._beyond: set[int] = set()
        with _disk_errors(target):
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._fd = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            self._close()
            with suppress(OSError):
                os.unlink(self._path)

    def apply(self, pages: Iterable[tuple[int, bytes]], *, commit: int) -> None:
        """Put pages over what is there, then cut the file to `commit` pages.

        Raises StorageError (code `disk_full` where that is why), and what `pages` raises.
        """
        run_pages_max = max(1, RUN_BYTES_MAX // self._page_size)
        run: list[bytes] = []
        start = 0
        for number, page in pages:
            if number != start + len(run) or len(run) == run_pages_max:
                self._write(start, run)
                start, run = number, []
            run.append(page)
        self._write(start, run)
        self._cut(commit)

    def finish(self, commit: int) -> None:
        """Make the file durable and put it in the place of the target, without its companions.

        Raises ValueError, and leaves the target alone, unless all pages 1..commit were put.
        """
        missing = self._complete + 1
        if missing <= commit:
            raise ValueError(f"page {missing} of {commit} is in no file")
        with _disk_errors(self._path):
            os.ftruncate(self._fd, commit * self._page_size)
            os.fsync(self._fd)
        with _disk_errors(self._target):
            self._replace()

    def _write(self, start: int, run: list[bytes]) -> None:
        if not run:
            return
        data = memoryview(run[0] if len(run) == 1 else b"".join(run))
        offset = (start - 1) * self._page_size
        with _disk_errors(self._path):
            while data:  # a nearly full disk may take a part
                written = os.pwrite(self._fd, data, offset)
                data = data[written:]
                offset += written
        self._note(start, start + len(run))

    def _note(self, start: int, end: int) -> None:
        """Pages start..end-1 are there."""
        if start > self._complete + 1:
            self._beyond.update(range(start, end))
        self._complete = max(self._complete, end - 1 if start <= self._complete + 1 else 0)
        while self._complete + 1 == self._hole or self._complete + 1 in self._beyond:
            self._complete += 1
            self._beyond.discard(self._complete)

    def _cut(self, commit: int) -> None:
        # Pages cut off are gone: a later file that grows again must bring them anew.
        if commit < self._complete or self._beyond:
            self._complete = min(self._complete, commit)
            self._beyond = {number for number in self._beyond if number <= commit}
            with _disk_errors(self._path):
                size = min(os.fstat(self._fd).st_size, commit * self._page_size)
                os.ftruncate(self._fd, size)

    def _replace(self) -> None:
        companions = [Path(f"{self._target}{end}") for end in COMPANIONS]
        stale = [path for path in companions if path.exists()]
        for path in stale:
            path.unlink()
        if stale:
            # On disk first: after a power cut no new file may stand beside an old journal.
            _sync_folder(self._target.parent)
        os.replace(self._path, self._target)
        self._close()
        _sync_folder(self._target.parent)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{path}: the disk is full; free space and repeat", code="disk_full"
            ) from error
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
