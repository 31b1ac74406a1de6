"""Bytes by their SHA-256 in an object store: written as a stream, read in ranges, stored once.

Memory per transfer is bounded by a few pieces, whatever the size. What is written is complete and
durable before its hash is told; a transfer that breaks off leaves nothing behind but a temporary
file that goes with its handle.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Protocol, cast

import msgspec

from infra.errors import HoldfastError, StorageError
from infra.objects import ObjectStore, join_key

PIECE_BYTES: Final = 1 << 20
SMALL_BYTES: Final = 1 << 20  # up to here a body never touches the spool

HASH_CHARS: Final = 64


class TooLarge(HoldfastError):
    """The body is longer than the limit; nothing was stored."""

    code = "too_large"


class Content(msgspec.Struct, frozen=True):
    """Stored bytes: SHA-256 in hexadecimal, and how many."""

    hash: str
    size: int


class Run(Protocol):
    """How blocking work is run: in a thread of a bounded pool."""

    def __call__(self, work: Callable[[], Any], /) -> Awaitable[Any]: ...


class ContentStore:
    """Contents below `prefix` of a store. `spool_dir` takes bodies while they arrive."""

    def __init__(self, store: ObjectStore, prefix: str, *, spool_dir: Path, run: Run) -> None:
        self._store = store
        self._prefix = prefix
        self._spool_dir = spool_dir
        self._run = run

    def key(self, digest: str) -> str:
        """Where the content lies."""
        return join_key(self._prefix, "blobs", digest[:2], digest)

    async def put(self, chunks: AsyncIterable[bytes], *, size_max: int | None = None) -> Content:
        """Store what the chunks are. Raises TooLarge, StorageError, and what the chunks raise."""
        async with self.receive(chunks, size_max=size_max) as received:
            return await self.keep(received)

    @asynccontextmanager
    async def receive(
        self, chunks: AsyncIterable[bytes], *, size_max: int | None = None
    ) -> AsyncIterator[Received]:
        """Take a body in, for `keep`. Raises TooLarge, StorageError, what the chunks raise."""
        received = Received(self._spool_dir)
        try:
            async for chunk in chunks:
                received.rest += chunk
                if size_max is not None and received.size + len(received.rest) > size_max:
                    raise TooLarge(f"the body is longer than {size_max} bytes")
                if len(received.rest) >= PIECE_BYTES:
                    await self._run(received.spool)
            yield received
        finally:
            received.close()

    async def keep(self, received: Received) -> Content:
        """Store a body that was taken in; durable on return."""
        return cast("Content", await self._run(lambda: self._keep(received)))

    def _keep(self, received: Received) -> Content:
        if received.size == 0 and len(received.rest) <= SMALL_BYTES:
            body = bytes(received.rest)
            content = Content(hashlib.sha256(body).hexdigest(), len(body))
            if not self._holds(content):
                self._store.put(self.key(content.hash), body)
            return content
        received.spool()
        content = Content(received.hash.hexdigest(), received.size)
        if not self._holds(content):
            self._store.put(self.key(content.hash), received.rewound())
        return content

    def _holds(self, content: Content) -> bool:
        key = self.key(content.hash)
        found = self._store.list(key, limit=1).objects
        return bool(found) and found[0].key == key and found[0].size == content.size

    async def has(self, digest: str) -> bool:
        """Whether the content is stored."""
        key = self.key(digest)
        found = await self._run(lambda: self._store.list(key, limit=1).objects)
        return bool(found) and found[0].key == key

    async def read(
        self, digest: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes from `start` up to but without `end`, in pieces. Raises ObjectMissing."""
        stream = cast("BinaryIO", await self._run(lambda: self._store.open(self.key(digest))))
        try:
            if start:
                await self._run(lambda: _skip(stream, start))
            left = None if end is None else max(0, end - start)
            while left is None or left > 0:
                wanted = PIECE_BYTES if left is None else min(PIECE_BYTES, left)
                piece = await self._run(lambda wanted=wanted: stream.read(wanted))  # type: ignore[misc]
                if not piece:
                    return
                if left is not None:
                    left -= len(piece)
                yield piece
        finally:
            await self._run(stream.close)

    async def delete(self, digests: list[str]) -> None:
        """Remove contents; missing ones are no error."""
        keys = [self.key(digest) for digest in digests]
        await self._run(lambda: self._store.delete(keys))

    async def older(self, before_ms: int) -> AsyncIterator[tuple[str, int]]:
        """(hash, size) of contents stored before that wall time, for collecting them."""
        after = ""
        prefix = join_key(self._prefix, "blobs") + "/"
        while True:
            listing = await self._run(lambda after=after: self._store.list(prefix, after=after))  # type: ignore[misc]
            for info in listing.objects:
                after = info.key
                if info.modified_ms < before_ms:
                    yield info.key.rpartition("/")[2], info.size
            if not listing.truncated:
                return


class Received:
    """A body on its way: hashed as it comes, on the disk where it is not small.

    `size` bytes are in the spool, `rest` is not yet.
    """

    def __init__(self, directory: Path) -> None:
        self.size = 0
        self.rest = bytearray()
        self.hash = hashlib.sha256()
        self._directory = directory
        self._file: IO[bytes] | None = None

    def spool(self) -> None:
        """Move the rest to the disk. Blocks; raises StorageError."""
        data, self.rest = self.rest, bytearray()
        try:
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
            self._file.write(data)
        except OSError as error:
            code = "disk_full" if error.errno == errno.ENOSPC else "storage"
            raise StorageError(
                f"the body cannot be spooled: {error.strerror}", code=code
            ) from error
        self.hash.update(data)
        self.size += len(data)

    def rewound(self) -> BinaryIO:
        """The spool, at its beginning."""
        assert self._file is not None
        self._file.seek(0)
        return cast("BinaryIO", self._file)

    def close(self) -> None:
        """Let go of the spool."""
        if self._file is not None:
            self._file.close()


def _skip(stream: BinaryIO, count: int) -> None:
    """Move on by `count` bytes, by seeking where the stream can."""
    try:
        if stream.seekable():
            stream.seek(count)
            return
    except (AttributeError, OSError):
        pass
    while count > 0:
        piece = stream.read(min(PIECE_BYTES, count))
        if not piece:
            return
        count -= len(piece)


def is_content_hash(text: str) -> bool:
    """Whether the text can be a SHA-256: only then may hashes be compared."""
    return len(text) == HASH_CHARS and all(c in "0123456789abcdef" for c in text)
