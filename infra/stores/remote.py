"""An object store in another process of this host, asked over a link; fits ObjectStore.

What it promises is what the store behind it promises. Where the link ends under a call, a write
may have been applied or not: StoreUnavailable, as for an answer of S3 that was lost, and the caller
finds out (infra/replica.py). A write is never sent twice; what changes nothing, or may safely
happen twice, is asked again of the next process.

Links live on a loop in a thread of their own, so calls may come from any thread, also from one that
has a loop.
"""

from __future__ import annotations

import asyncio
import io
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, BinaryIO, Final, TypeVar, cast

import msgspec

from infra import clock
from infra.errors import HoldfastError, StorageError
from infra.link.connection import Link
from infra.link.errors import LinkLost
from infra.link.sockets import dial
from infra.objects import (
    LIST_KEYS_MAX,
    Listing,
    StoreUnavailable,
    check_key,
    check_put,
    check_range,
    parse_url,
)
from infra.stores.asked import (
    METHODS,
    PIECE_BYTES,
    Ask,
    Delete,
    Get,
    List,
    Put,
    Read,
    decode_listing,
    decode_piece,
    encode,
)
from infra.tasks import TaskOwner

T = TypeVar("T")

DIAL_WAIT_S: Final = 10.0  # for a store process that is being started anew
AGAIN_S: Final = 0.05
TRIES_MAX: Final = 4  # of what may safely happen twice
CLOSE_WAIT_S: Final = 5.0


class RemoteStore:
    """The store of `url` as the process at `place` has it."""

    def __init__(self, url: str, place: str, name: str, key: bytes) -> None:
        """Connects to nothing yet. Raises ConfigError for a URL that is none."""
        self.url = parse_url(url).text
        self._place = place
        self._name = name
        self._key = key
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._stop: asyncio.Event
        self._link: Link | None = None
        self._dialling = asyncio.Lock()
        self._tasks = TaskOwner()

    # -- the store ---------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """See ObjectStore. StoreUnavailable where the other process went away under it."""
        check_put(key, body, if_absent=if_absent)
        whole = isinstance(body, bytes)
        file = io.BytesIO(body) if isinstance(body, bytes) else body
        size = _remaining(file)
        first = _read(file, min(size, PIECE_BYTES))
        pieces = _Pieces(file, size - len(first)) if size > len(first) else None
        ask = Put(key, first, pieces is not None, whole, if_absent, timestamp_ms)
        self._once(f"put {key}", lambda: self._asked(ask, _Gathered(), pieces))

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ObjectStore."""
        check_key(key)
        if not check_range(start, end):
            return b""
        gathered = self._repeated(f"get {key}", Get(key, start, end))
        return b"".join(gathered.pieces)

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore."""
        check_key(key)
        for tried in range(1, TRIES_MAX + 1):
            stream = self._once(f"get {key}", lambda: self._opened(Read(key)))
            try:
                stream.begin()
                break
            except StoreUnavailable as error:
                if tried == TRIES_MAX or not isinstance(error.__cause__, LinkLost):
                    raise
        return cast(BinaryIO, io.BufferedReader(stream, PIECE_BYTES))

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        """See ObjectStore."""
        gathered = self._repeated(f"list {prefix or 'everything'}", List(prefix, after, limit))
        return decode_listing(gathered.answer)

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        for key in keys:
            check_key(key)
        self._repeated(f"delete {len(keys)} keys", Delete(list(keys)))

    def close(self) -> None:
        """See ObjectStore. The store behind it stays open for others."""
        with self._starting:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(self._stop.set)
        thread.join(CLOSE_WAIT_S)

    # -- asking, from any thread -------------------------------------------------------------------

    def _repeated(self, what: str, ask: Ask) -> _Gathered:
        """The answer to what may be asked of one process after another."""
        for tried in range(1, TRIES_MAX + 1):
            try:
                gathered = _Gathered()
                self._once(what, lambda: self._asked(ask, gathered, None))  # noqa: B023
                return gathered
            except StoreUnavailable as error:
                if tried == TRIES_MAX or not isinstance(error.__cause__, LinkLost):
                    raise
        raise AssertionError

    def _once(self, what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it on the loop of links. Every error that is no store's becomes StoreUnavailable."""
        loop = self._started()
        try:
            return asyncio.run_coroutine_threadsafe(work(), loop).result()
        except StorageError:
            raise
        except HoldfastError as error:
            raise StoreUnavailable(f"{self.url}: {what}: {error}") from error
        except CancelledError as error:
            raise StoreUnavailable(f"{self.url}: {what}: the store was closed") from error

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._closed:
                raise StoreUnavailable(f"{self.url}: the store is closed")
            if self._loop is None:
                begun: Future[asyncio.AbstractEventLoop] = Future()
                self._thread = threading.Thread(
                    target=self._live, args=(begun,), name="holdfast-store", daemon=True
                )
                self._thread.start()
                self._loop = begun.result()
            return self._loop

    # -- on the loop of links ----------------------------------------------------------------------

    async def _asked(self, ask: Ask, gathered: _Gathered, pieces: _Pieces | None) -> None:
        link = await self._linked()
        gathered.ended = asyncio.get_running_loop().create_future()
        gathered.stream = link.ask(METHODS[type(ask)], encode(ask), gathered)
        gathered.link = link
        if pieces is not None:
            sending = self._tasks.spawn(pieces.send(link, gathered), name="store body")
            try:
                await gathered.ended
            finally:
                sending.cancel()
        else:
            await gathered.ended

    async def _opened(self, ask: Read) -> _Stream:
        link = await self._linked()
        stream = _Stream(self.url, asyncio.get_running_loop(), link)
        stream.number = link.ask(METHODS[Read], encode(ask), stream.parts)
        return stream

    async def _linked(self) -> Link:
        async with self._dialling:
            if self._link is None or not self._link.open:
                self._link = await self._dialled()
            return self._link

    async def _dialled(self) -> Link:
        end = clock.monotonic() + DIAL_WAIT_S
        while True:
            try:
                return await dial(self._place, self._name, self._key)
            except LinkLost as error:
                if clock.monotonic() > end:
                    raise StoreUnavailable(f"{self.url}: no store process: {error}") from error
            await asyncio.sleep(AGAIN_S)

    def _live(self, begun: Future[asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner() as runner:  # which ends what is under way, and whoever waits hears
            runner.run(self._until_closed(begun))

    async def _until_closed(self, begun: Future[asyncio.AbstractEventLoop]) -> None:
        self._stop = asyncio.Event()
        begun.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        if self._link is not None:
            self._link.close()


class _Gathered:
    """An answer and its parts, in memory; fits Caller."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.answer = msgspec.Raw()
        self.link: Link | None = None
        self.stream = 0
        self.ended: asyncio.Future[None]

    def part(self, payload: msgspec.Raw) -> None:
        self.pieces.append(decode_piece(payload))
        assert self.link is not None
        self.link.taken(self.stream, payload)

    def done(self, payload: msgspec.Raw) -> None:
        self.answer = payload.copy()
        if not self.ended.done():
            self.ended.set_result(None)

    def failed(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)


class _Pieces:
    """The rest of a body, `size` bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    async def send(self, link: Link, gathered: _Gathered) -> None:
        """All of it, as there is credit. Ended from outside once the answer is there."""
        try:
            while self._size:
                piece = _read(self._file, min(self._size, PIECE_BYTES))
                await link.credit(gathered.stream)
                link.send(gathered.stream, encode(piece))
                self._size -= len(piece)
            link.end(gathered.stream)
        except LinkLost:
            return  # whoever waits for the answer hears it too
        except Exception as error:  # of the caller's file; what came of it is dropped over there
            link.cancel(gathered.stream)
            gathered.failed(error)


def _remaining(file: BinaryIO) -> int:
    at = file.tell()
    size = file.seek(0, os.SEEK_END) - at
    file.seek(at)
    return size


def _read(file: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := file.read(size - len(data))):
            raise ValueError(f"the file shrank by {size - len(data)} bytes while it was uploaded")
        data += more
    return data


class _Parts:
    """Parts for a thread that reads them; fits Caller."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[msgspec.Raw | HoldfastError | None] = queue.SimpleQueue()

    def part(self, payload: msgspec.Raw) -> None:
        self.arrived.put(payload.copy())

    def done(self, payload: msgspec.Raw) -> None:
        self.arrived.put(None)

    def failed(self, error: HoldfastError) -> None:
        self.arrived.put(error)


class _Stream(io.RawIOBase):
    """An object as it comes. A part is acknowledged once it is read, so few wait in memory."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop, link: Link) -> None:
        self.parts = _Parts()
        self.number = 0
        self._url = url
        self._loop = loop
        self._link = link
        self._piece = memoryview(b"")
        self._whole = False

    def begin(self) -> None:
        """Wait until the object is known to be there. Raises ObjectMissing and others."""
        self._take()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of the buffer; 0 at the end. Raises StoreUnavailable."""
        while not self._piece and not self._whole:
            self._take()
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size

    def _take(self) -> None:
        found = self.parts.arrived.get()
        if found is None:
            self._whole = True
        elif isinstance(found, StorageError):
            raise found
        elif isinstance(found, HoldfastError):
            raise StoreUnavailable(f"{self._url}: the stream broke: {found}") from found
        else:
            self._piece = memoryview(decode_piece(found))
            self._tell(self._link.taken, self.number, found)

    def close(self) -> None:
        if not self.closed:
            self._tell(self._link.cancel, self.number)
        super().close()

    def _tell(self, call: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the store was closed, and its loop with it
            return
