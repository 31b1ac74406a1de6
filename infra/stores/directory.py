"""A directory as an object store: one file for each key, the same layout as in a bucket.

A file is written under a temporary name, made durable, and only then linked (`if_absent`) or
renamed to its own, so nobody sees a part of it and of many creators exactly one wins, across
processes too. Temporary files live in one folder below the root that no key can name and no listing
shows; those a crash left behind are removed a day later.

The root is made by the first write if its parent exists. Once it was there, its absence is a lost
disk and not an empty bucket, and every call says so.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

from infra import clock, ids
from infra.objects import (
    LIST_KEYS_MAX,
    Listing,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
    check_key,
    check_put,
    check_range,
)

TEMPORARY_FOLDER = ".holdfast-tmp"
LEFTOVER_AGE_MS = 86_400_000  # a temporary file this old has no writer any more
LEFTOVERS_MAX = 10_000  # looked at, at most, when the store is first written to
COPY_BYTES = 1 << 20  # memory of one streamed put
SYNCED_FOLDERS_MAX = 16_384  # remembered; forgetting them costs a few syncs

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class DirectoryStore:
    """Files below `root`; fits infra.objects.ObjectStore. Several processes may share a root."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(root)
        self.url = f"file:{self._root}"
        self._temporary = os.path.join(self._root, TEMPORARY_FOLDER)
        self._lock = threading.Lock()
        self._ready = False  # the root was seen: from then on it must be there
        # Folders whose own entry is known to be on disk, so that a put syncs only the last one.
        self._synced: set[str] = set()

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """See ObjectStore; `timestamp_ms` becomes the file's modification time."""
        check_put(key, body, if_absent=if_absent)
        path = self._path(key)
        with self._mapped(key):
            self._prepare()
            folder = os.path.dirname(path)
            self._make_folder(folder)
            temporary = os.path.join(self._temporary, ids.new_id())
            try:
                _write(temporary, body, timestamp_ms)
                if if_absent:
                    self._link(temporary, path, key)
                else:
                    os.replace(temporary, path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            _sync(folder)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ObjectStore."""
        if not check_range(start, end):
            return b""
        with self.open(key) as file, self._mapped(key):
            file.seek(start)
            return file.read() if end is None else file.read(end - start)

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore."""
        path = self._path(key)
        with self._mapped(key):
            try:
                return open(path, "rb")
            except _ABSENT:
                self._check_root()
                raise ObjectMissing(f"{self.url} has no object {key}") from None

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        """See ObjectStore. Reads only the folders that can hold such keys."""
        limit = min(limit, LIST_KEYS_MAX)
        folder, slash, name = prefix.rpartition("/")
        top = self._path(folder) if slash else self._root
        found: list[ObjectInfo] = []
        with self._mapped(prefix):
            self._check_root()
            base = f"{folder}/" if folder else ""
            for info in _walk(top, base, name, after.encode("utf-8", "surrogatepass")):
                if len(found) == limit:
                    return Listing(found, truncated=True)
                found.append(info)
        return Listing(found, truncated=False)

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectStore. Folders stay. A deletion may come back after a power cut."""
        for path, key in [(self._path(key), key) for key in keys]:
            with self._mapped(key), suppress(*_ABSENT):
                os.unlink(path)
        with self._mapped(""):
            self._check_root()

    def close(self) -> None:
        """See ObjectStore; nothing is held."""

    def _path(self, key: str) -> str:
        check_key(key)
        if key.partition("/")[0] == TEMPORARY_FOLDER:
            raise StoreRefused(f"{key!r} is no key: {TEMPORARY_FOLDER} is the store's own")
        return os.path.join(self._root, *key.split("/"))

    def _check_root(self) -> None:
        if os.path.isdir(self._root):
            self._ready = True
            return
        raise StoreRefused(
            f"{self.url}: the directory does not exist: mount its disk, or make it with mkdir"
        )

    def _prepare(self) -> None:
        """Before a write: the root, made only if this store has never seen it."""
        with self._lock:
            if self._ready:
                self._check_root()
            elif not os.path.isdir(self._root):
                try:
                    os.mkdir(self._root)
                except FileNotFoundError:
                    raise StoreRefused(
                        f"{self.url}: neither the directory nor its parent exists; make the "
                        "parent, or mount its disk"
                    ) from None
                except FileExistsError:
                    if not os.path.isdir(self._root):
                        raise StoreRefused(f"{self.url} is a file, not a directory") from None
                _sync(os.path.dirname(self._root))
            if self._temporary not in self._synced or not os.path.isdir(self._temporary):
                os.makedirs(self._temporary, exist_ok=True)
                self._remove_leftovers()
                self._synced.add(self._temporary)
            self._ready = True

    def _remove_leftovers(self) -> None:
        # By ctime: the modification time of such a file may be set to any moment already.
        oldest_ns = (clock.now_ms() - LEFTOVER_AGE_MS) * 1_000_000
        with os.scandir(self._temporary) as entries:
            for _, entry in zip(range(LEFTOVERS_MAX), entries, strict=False):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_ctime_ns < oldest_ns:
                        os.unlink(entry.path)

    def _make_folder(self, folder: str) -> None:
        """Make it and what is above it, and make their entries durable.

        A folder that is there may have been made a moment ago by a process that has not synced it
        yet: only what this store has synced itself counts.
        """
        if folder in self._synced and os.path.isdir(folder):
            return
        os.makedirs(folder, exist_ok=True)
        while folder != self._root:
            _sync(os.path.dirname(folder))
            with self._lock:
                if len(self._synced) >= SYNCED_FOLDERS_MAX:
                    self._synced = {self._temporary}
                self._synced.add(folder)
            folder = os.path.dirname(folder)

    def _link(self, temporary: str, path: str, key: str) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
            raise ObjectExists(f"{self.url} already has {key}") from None
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise StoreRefused(
                    f"{self.url}: this file system has no hard links ({error.strerror}), without "
                    "which two writers could overwrite each other; use another one, such as ext4"
                ) from error
            raise

    @contextmanager
    def _mapped(self, key: str) -> Iterator[None]:
        """Errors of the system as those of a store."""
        try:
            yield
        except OSError as error:
            what = f"{self.url}: {key}: {error.strerror or error}"
            if error.errno in _FULL:
                message = f"{what}; free space and repeat"
                raise StoreUnavailable(message, code="disk_full") from error
            if error.errno in _REFUSED:
                raise StoreRefused(f"{what}; check permissions and the mount") from error
            if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
                raise StoreRefused(
                    f"{what}; one key cannot be another one's folder in a directory"
                ) from error
            raise StoreUnavailable(what) from error


def _write(path: str, body: bytes | BinaryIO, timestamp_ms: int | None) -> None:
    """A new file with these contents, durable on return (its name is not)."""
    with open(path, "xb", buffering=0) as file:
        if isinstance(body, bytes):
            _write_all(file, body)
        else:
            while chunk := body.read(COPY_BYTES):
                _write_all(file, chunk)
        if timestamp_ms is not None:
            os.utime(file.fileno(), ns=(timestamp_ms * 1_000_000,) * 2)
        os.fsync(file.fileno())


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write may take less, above all on a disk that is nearly full
        view = view[file.write(view) :]


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _walk(folder: str, base: str, name: str, after: bytes) -> Iterator[ObjectInfo]:
    """Files below `folder`, whose keys start with `base`, in the order of their keys' bytes.

    Only entries that start with `name` count, and only keys above `after`.
    """
    for key, entry in _entries(folder, base, name):
        if key.endswith(b"/"):
            # Everything inside starts with `key`: skip it if `after` lies behind all of that.
            if after.startswith(key) or after < key:
                yield from _walk(entry.path, key.decode(), "", after)
        elif key > after:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since the folder was read
            yield ObjectInfo(key.decode(), status.st_size, status.st_mtime_ns // 1_000_000)


def _entries(folder: str, base: str, name: str) -> list[tuple[bytes, os.DirEntry[str]]]:
    """Files and folders (with a slash at the end, as their keys go on) in key order."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(name) or (not base and entry.name == TEMPORARY_FOLDER):
                    continue
                try:
                    key = (base + entry.name).encode()
                except UnicodeEncodeError:
                    continue  # not a name of ours: keys are Unicode text
                if entry.is_dir(follow_symlinks=False):
                    found.append((key + b"/", entry))
                elif entry.is_file(follow_symlinks=False):
                    found.append((key, entry))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda item: item[0])
