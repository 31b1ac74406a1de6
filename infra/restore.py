"""A database out of a replica: list, plan, fetch, verify, write, and only then put in place.

Fails closed: a state that cannot be rebuilt exactly is an error, and the target stays as it was.
Reads replicas of ours and of the official `litestream` 0.5 alike, with one listing for a small one.
Everything here blocks; memory stays within AHEAD_BYTES_MAX and one streamed file.

When a file was made. A state "at T" is that of the last batch made strictly before T. When it was
made stands in its LTX header, and (official writers and ours agree) in the object's metadata, which
only a request for each object would tell. A listing tells when the store received an object. That
can be long after, where the store was out of reach or the bucket was copied, but not much before:
S3 refuses requests whose clock is CLOCK_SLACK_MS off. So what was received longer than that before
T counts as older, unread; of every other file that a plan by time rests on the header is read, and
decides.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec

from infra.errors import StorageError
from infra.layout import (
    LEVELS_IN_BUCKET,
    LEVELS_IN_DIRECTORY,
    ReplicaFile,
    ReplicaGap,
    folder,
    parse_key,
    plan_restore,
    snapshots,
)
from infra.ltx import Header, LtxError, decode_header, decode_stream, lock_page
from infra.ltx.header import HEADER_BYTES
from infra.objects import LIST_KEYS_MAX, ObjectInfo, ObjectMissing, ObjectStore
from infra.pagefile import PageFile

LIST_PAGES_MAX: Final = 2_000  # of LIST_KEYS_MAX objects; a replica that large is not looked after
CLOCK_SLACK_MS: Final = 15 * 60_000
HEADERS_AHEAD: Final = 16  # header reads at a time, for a restore to a time
WHOLE_BYTES_MAX: Final = 4 << 20  # larger files are streamed
AHEAD_FILES_MAX: Final = 16  # fetched before their turn
AHEAD_BYTES_MAX: Final = 16 << 20
FETCH_THREADS: Final = 8  # where the caller has no pool
ATTEMPTS: Final = 2

Progress = Callable[[int, int], None]
T = TypeVar("T")


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was put in place. `timestamp_ms`, `node_id` and the salts are those of the last file.

    `listed` is what `list_replica` found, or the `files` given; `commit` is in pages.
    """

    txid: int
    timestamp_ms: int
    node_id: int
    salt1: int
    salt2: int
    page_size: int
    commit: int
    bytes_read: int
    files_read: int
    listed: list[ReplicaFile]


def list_replica(
    store: ObjectStore,
    scope_prefix: str,
    *,
    txid: int | None = None,
    timestamp_ms: int | None = None,
) -> list[ReplicaFile]:
    """The files of a replica: all of them, with one call, where it has up to 1000 objects.

    Of a larger one all above level 0, and those of level 0 that lead on from the snapshot a restore
    to the target begins with (beside the first thousand objects, whatever they are). Raises the
    store's errors, and StorageError where there is no end.
    """
    return _list(store, scope_prefix, _Times(store, timestamp_ms), txid=txid)


def restore_to(
    store: ObjectStore,
    scope_prefix: str,
    target: Path,
    *,
    txid: int | None = None,
    timestamp_ms: int | None = None,
    pool: Executor | None = None,
    progress: Progress | None = None,
    files: list[ReplicaFile] | None = None,
) -> Restored:
    """Make `target` the database as of the latest TXID, of exactly `txid`, or from before a time.

    `scope_prefix` is where the replica lies in the store, of ours or any other. `files` saves the
    listing. `pool` fetches ahead; the calling thread helps, so it may belong to the same pool.
    `progress(bytes_done, bytes_total)` is called in the calling thread, at least once a MiB.

    Durable on return; an old target is replaced whole, its -wal, -shm and -journal removed, so
    nobody may have it open, and only one caller may restore to it at a time. After an error the
    target is untouched: NoBackup, ReplicaGap, LtxError (with the object's key), the store's errors,
    or StorageError of the disk.
    """
    if txid is not None and timestamp_ms is not None:
        raise ValueError("restore to a TXID or to a time, not to both")
    for attempt in range(ATTEMPTS):
        times = _Times(store, timestamp_ms)
        listed = _list(store, scope_prefix, times, txid=txid) if files is None else files
        plan = times.plan(listed, pool) if txid is None else plan_restore(listed, txid=txid)
        try:
            return _build(store, plan, target, listed=listed, pool=pool, progress=progress)
        except ObjectMissing as error:
            # Retention of an official writer may take a file of a slow restore: plan once more.
            if files is not None or attempt == ATTEMPTS - 1:
                raise ReplicaGap(
                    f"{store.url}: a listed file is gone: {error}; repeat, or restore to a time"
                    " or TXID before it"
                ) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


class _Times:
    """When files were made, as far as a restore to before `target_ms` must know it."""

    def __init__(self, store: ObjectStore, target_ms: int | None) -> None:
        self._store = store
        self._target_ms = target_ms
        self._made_ms: dict[str, int] = {}  # by key, from headers

    def plan(self, files: Sequence[ReplicaFile], pool: Executor | None) -> list[ReplicaFile]:
        """The plan by the times of the headers; for no target that of the latest state.

        What is not known counts as early enough until a plan rests on it; then its header is read,
        and the next plan takes it or does without.
        """
        if self._target_ms is None:
            return plan_restore(files)
        _, late = self.split(snapshots(files))
        self._made_ms |= {file.key: self._target_ms for file in late}
        for _ in range(len(files) + 1):
            dated = [msgspec.structs.replace(file, created_ms=self._guess(file)) for file in files]
            plan = plan_restore(dated, timestamp_ms=self._target_ms)
            unknown = [file for file in plan if not self._is_known(file)][:HEADERS_AHEAD]
            if not unknown:
                return plan
            for file, head in _ahead(unknown, self._read_head, pool):
                self._learn(file, head)
        raise AssertionError("unreachable: each turn but the last reads a header")

    def split(self, snapshots: list[ReplicaFile]) -> tuple[list[ReplicaFile], list[ReplicaFile]]:
        """Those from before the target, and the rest. Reads few headers, for they are in order."""
        if self._target_ms is None:
            return snapshots, []
        index = bisect_left(snapshots, self._target_ms, key=self._of)
        return snapshots[:index], snapshots[index:]

    def _of(self, file: ReplicaFile) -> int:
        if not self._is_known(file):
            self._learn(file, self._read_head(file))
        return self._guess(file)

    def _guess(self, file: ReplicaFile) -> int:
        assert self._target_ms is not None
        return self._made_ms.get(file.key, min(file.created_ms, self._target_ms - 1))

    def _is_known(self, file: ReplicaFile) -> bool:
        assert self._target_ms is not None
        received_early = file.created_ms < self._target_ms - CLOCK_SLACK_MS
        return received_early or file.key in self._made_ms

    def _read_head(self, file: ReplicaFile) -> bytes:
        return self._store.get(file.key, start=0, end=HEADER_BYTES)

    def _learn(self, file: ReplicaFile, head: bytes) -> None:
        try:
            self._made_ms[file.key] = decode_header(head).timestamp_ms
        except LtxError as error:
            raise _damaged(self._store, file, error) from error


def _list(store: ObjectStore, prefix: str, times: _Times, *, txid: int | None) -> list[ReplicaFile]:
    base = folder(prefix)
    first = store.list(base, limit=LIST_KEYS_MAX)
    if not first.truncated:
        return _parse(prefix, first.objects)
    top = base + LEVELS_IN_BUCKET
    if not store.list(top, limit=1).objects:
        top = base + LEVELS_IN_DIRECTORY
    # "~" is above every hex digit: from here on the keys are those of levels 1 to 9.
    higher = [file for page in _pages(store, top, f"{top}0/~") for file in _parse(prefix, page)]
    before, after = times.split(snapshots(higher))
    if txid is not None:
        before = [file for file in before if file.max_txid <= txid]
    start = before[-1].max_txid + 1 if before else 0
    end = txid if txid is not None else after[0].max_txid if after else None
    found = _parse(prefix, first.objects) + higher
    # Strictly above these 16 digits: what begins at that TXID has more to its name.
    for page in _pages(store, f"{top}0/", f"{top}0/{start:016x}"):
        changes = _parse(prefix, page)
        found += changes
        if end is not None and changes and changes[-1].min_txid > end:
            break
    return list({file.key: file for file in found}.values())


def _pages(store: ObjectStore, prefix: str, after: str) -> Iterator[list[ObjectInfo]]:
    for _ in range(LIST_PAGES_MAX):
        listing = store.list(prefix, after=after, limit=LIST_KEYS_MAX)
        yield listing.objects
        if not listing.truncated:
            return
        after = listing.objects[-1].key
    raise StorageError(f"{store.url}: more than {LIST_PAGES_MAX} listings below {prefix}")


def _parse(prefix: str, objects: list[ObjectInfo]) -> list[ReplicaFile]:
    parsed = (parse_key(prefix, info.key, info.size, info.modified_ms) for info in objects)
    return [file for file in parsed if file is not None]


def _build(
    store: ObjectStore,
    plan: list[ReplicaFile],
    target: Path,
    *,
    listed: list[ReplicaFile],
    pool: Executor | None,
    progress: Progress | None,
) -> Restored:
    """Apply the planned files, oldest first, and put the result in place."""
    meter = _Meter(sum(file.size for file in plan), progress)
    with ExitStack() as stack:
        contents = stack.enter_context(closing(_contents(store, plan, pool, meter)))
        output: PageFile | None = None
        page_size = 0
        for file, read in contents:
            try:
                header, pages = decode_stream(read)
                _check(header, file, page_size)
                if output is None:
                    page_size = header.page_size
                    hole = lock_page(page_size)
                    output = PageFile(target, page_size=page_size, hole=hole)
                    stack.enter_context(output)
                output.apply(pages, commit=header.commit)
            except LtxError as error:
                raise _damaged(store, file, error) from error
        assert output is not None, "a plan has at least one file"
        try:
            output.finish(header.commit)
        except ValueError as error:
            raise LtxError(f"{store.url}: {plan[-1].key}: {error}") from error
    return Restored(
        txid=header.max_txid,
        timestamp_ms=header.timestamp_ms,
        node_id=header.node_id,
        salt1=header.salt1,
        salt2=header.salt2,
        page_size=page_size,
        commit=header.commit,
        bytes_read=meter.done,
        files_read=len(plan),
        listed=listed,
    )


def _check(header: Header, file: ReplicaFile, page_size: int) -> None:
    if (header.min_txid, header.max_txid) != (file.min_txid, file.max_txid):
        raise LtxError(
            f"it holds TXIDs {header.min_txid} to {header.max_txid}: another file's bytes"
        )
    if page_size not in (0, header.page_size):
        raise LtxError(f"pages of {header.page_size} bytes after pages of {page_size}")


def _damaged(store: ObjectStore, file: ReplicaFile, error: LtxError) -> LtxError:
    return LtxError(f"{store.url}: {file.key}: {error}")


class _Meter:
    """Counts bytes as they are used and tells who asked."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done = 0
        self._total = total
        self._progress = progress

    def reading(self, stream: BinaryIO) -> Callable[[int], bytes]:
        """`stream.read`, counted."""

        def read(count: int) -> bytes:
            piece = stream.read(count)
            if piece:
                self.done += len(piece)
                if self._progress is not None:
                    self._progress(self.done, max(self.done, self._total))
            return piece

        return read


def _contents(
    store: ObjectStore, plan: list[ReplicaFile], pool: Executor | None, meter: _Meter
) -> Generator[tuple[ReplicaFile, Callable[[int], bytes]], None, None]:
    """Each file with a function that reads it; good until the next one is asked for."""

    def fetch(file: ReplicaFile) -> bytes | None:
        return store.get(file.key) if file.size <= WHOLE_BYTES_MAX else None

    with closing(_ahead(plan, fetch, pool)) as fetched:
        for file, data in fetched:
            if data is not None:
                yield file, meter.reading(io.BytesIO(data))
                continue
            with closing(store.open(file.key)) as stream:
                yield file, meter.reading(stream)


def _ahead(
    files: Sequence[ReplicaFile], fetch: Callable[[ReplicaFile], T], pool: Executor | None
) -> Generator[tuple[ReplicaFile, T], None, None]:
    """Each file with what `fetch` made of it, in order; the next ones are fetched meanwhile."""
    with ExitStack() as stack:
        if pool is None and len(files) > 1:
            pool = stack.enter_context(ThreadPoolExecutor(FETCH_THREADS))
        todo = deque(files)
        waiting: deque[tuple[ReplicaFile, Future[T] | None]] = deque()
        # Before the pool ends, which waits: on an error nothing more is begun.
        stack.callback(lambda: [future.cancel() for _, future in waiting if future is not None])
        held = 0
        while todo or waiting:
            while todo and len(waiting) < AHEAD_FILES_MAX:
                if waiting and held + _held_bytes(todo[0]) > AHEAD_BYTES_MAX:
                    break
                file = todo.popleft()
                held += _held_bytes(file)
                waiting.append((file, None if pool is None else pool.submit(fetch, file)))
            file, future = waiting.popleft()
            # One that no thread has begun is fetched here: in a pool that is full of restores
            # each would otherwise wait for a thread that none gives back.
            begun = future is not None and not future.cancel()
            yield file, future.result() if future is not None and begun else fetch(file)
            held -= _held_bytes(file)


def _held_bytes(file: ReplicaFile) -> int:
    return file.size if file.size <= WHOLE_BYTES_MAX else 0
