"""The durability barrier: one thread makes many files' commits durable, one pass after another.

Commits run with `synchronous=NORMAL` on the loop thread and do not wait for the disk. `mark` hands
a file over; the thread notes its position, syncs, and reports the position as durable. Commits made
during a pass belong to the next one. Few files: `fdatasync` of each WAL. Many, or new ones (whose
directories must be durable too): one `syncfs` of the file system (Linux >= 5.8, where it reports
errors). Measured here: 50 files 10.2 ms one by one, 1.8 ms with syncfs; 1 file 0.26 ms.

One file on a quick disk is synced on the caller's thread (`sync_now`): waking another thread and
being woken costs more than the 0.26 ms it would save (docs/adr/0002). A disk that was slow of late
is left to the thread.

A file whose sync failed must not be used again: the page cache may hold what the disk never got.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from infra.clock import monotonic
from infra.errors import StorageError

SYNCFS_FILES_MIN = 2
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
QUICK_S = 0.001  # mean duration of a sync up to which the loop may wait for one itself
SLOW_PASSES = 16  # passes a slow sync is remembered for

Released = tuple["Durable", int, OSError | None]


class Durable(Protocol):
    """A file behind the barrier.

    `position` is read before the sync: what it says is in the WAL by then.
    """

    wal_path: Path
    position: int
    new: bool


class Barrier:
    """`report` is called in the barrier's thread with everything one pass has made durable."""

    def __init__(self, directory: Path, report: Callable[[list[Released]], None]) -> None:
        self._directory = directory
        self._report = report
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._marked: dict[Durable, None] = {}
        self._fds: dict[Durable, int] = {}
        self._dropped: list[Durable] = []
        self._failed: dict[Durable, OSError] = {}  # a second sync would report success
        self._root = -1
        self._mean_s = QUICK_S  # of single syncs, lately; the first passes decide
        self._slow = 0
        self._syncing = False
        self._syncfs = _syncfs()
        self._thread = threading.Thread(target=self._run, name="holdfast-barrier", daemon=True)

    def start(self) -> None:
        self._root = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        self._thread.start()

    @property
    def whole_filesystem(self) -> bool:
        """Whether a pass can cover new files at once; else they are created with full syncs."""
        return self._syncfs is not None

    def quick(self, item: Durable) -> bool:
        """Whether `sync_now` is the better way: an old file, a quick disk, no pass under way."""
        return not (item.new or self._slow or self._syncing or self._marked)

    def sync_now(self, item: Durable) -> list[Released]:
        """One pass over one file on the caller's thread."""
        return [(item, item.position, self._sync(item))]

    def mark(self, item: Durable) -> None:
        """Have the commits so far made durable. Loop thread only."""
        if not self._marked:
            self._marked[item] = None
            self._wake.put(True)
        else:
            self._marked[item] = None

    def sync_all(self) -> None:
        """Make the whole file system durable, whoever wrote it. Slow; raises StorageError."""
        if self._syncfs is None:
            os.sync()
        elif (error := self._syncfs(self._root)) is not None:
            raise StorageError(f"{self._directory}: the disk did not take it: {error}") from error

    def forget(self, item: Durable) -> None:
        """The file is about to be closed: drop its descriptor after the next pass."""
        self._dropped.append(item)
        self._wake.put(True)

    def stop(self) -> None:
        """One last pass over what is marked, then end the thread."""
        self._wake.put(False)
        self._thread.join()
        for fd in self._fds.values():
            os.close(fd)
        os.close(self._root)

    def _run(self) -> None:
        going = True
        while going:
            going = self._wake.get()
            self._syncing = True
            marked, self._marked = self._marked, {}
            dropped, self._dropped = self._dropped, []
            if marked:
                self._report(self._pass([(item, item.position) for item in marked]))
            for item in dropped:
                fd = self._fds.pop(item, None)
                self._failed.pop(item, None)
                if fd is not None:
                    os.close(fd)
            self._syncing = False

    def _pass(self, items: list[tuple[Durable, int]]) -> list[Released]:
        many = len(items) >= SYNCFS_FILES_MIN or any(item.new for item, _ in items)
        if many and self._syncfs is not None:
            error = self._syncfs(self._root)
            for item, _ in items:
                item.new = False
                if error is not None:
                    self._failed[item] = error
            return [(item, position, self._failed.get(item)) for item, position in items]
        return [(item, position, self._sync(item)) for item, position in items]

    def _sync(self, item: Durable) -> OSError | None:
        if item in self._failed:
            return self._failed[item]
        try:
            fd = self._fds.get(item)
            if fd is None:
                # Safe beside SQLite: it takes no locks on the WAL, unlike on the database file.
                try:
                    fd = self._fds[item] = os.open(item.wal_path, os.O_RDWR)
                except OSError as error:
                    if error.errno not in _NO_DESCRIPTOR or self._syncfs is None:
                        raise
                    return self._sync_all_for(item)
            began = monotonic()
            os.fdatasync(fd)
            self._learn(monotonic() - began)
            if item.new:
                self._sync_directories(item.wal_path)
                item.new = False
        except OSError as error:
            self._failed[item] = error
            return error
        return None

    def _sync_all_for(self, item: Durable) -> OSError | None:
        """The process is out of descriptors, which is no fault of the file's."""
        assert self._syncfs is not None
        error = self._syncfs(self._root)
        if error is not None:
            self._failed[item] = error
        return error

    def _learn(self, took_s: float) -> None:
        self._mean_s += (took_s - self._mean_s) / 8
        if self._mean_s > QUICK_S:
            self._slow = SLOW_PASSES
        elif self._slow:
            self._slow -= 1

    def _sync_directories(self, path: Path) -> None:
        for directory in path.parents:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            if directory == self._directory:
                return


def _syncfs() -> Callable[[int], OSError | None] | None:
    release = platform.release().split(".")
    if platform.system() != "Linux" or not release[0].isdigit():
        return None
    minor = "".join(c for c in release[1][:3] if c.isdigit()) if len(release) > 1 else ""
    if (int(release[0]), int(minor or 0)) < (5, 8):
        return None
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if call is None:
        return None

    def syncfs(fd: int) -> OSError | None:
        if call(fd) == 0:
            return None
        number = ctypes.get_errno()
        return OSError(number, os.strerror(number))

    return syncfs
