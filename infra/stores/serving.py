"""An object store for other processes of this host, over links (infra/stores/remote.py asks).

One process so has the SDK and its connections, and those that own scopes do without. Calls block
in a bounded pool of threads, each as if its sender had made it: nothing is repeated here, so a
conditional write is made once or not at all, and an error goes back as it is.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, TypeVar, assert_never, cast

import msgspec

from infra.errors import HoldfastError
from infra.link.connection import Answerer, Link
from infra.link.frames import NOTHING, LinkError
from infra.objects import ObjectStore, StoreUnavailable
from infra.stores.asked import (
    PIECE_BYTES,
    Delete,
    Get,
    List,
    Put,
    Read,
    decode_ask,
    decode_piece,
    encode,
)
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.store")
T = TypeVar("T")

THREADS_MAX: Final = 64  # as many calls at once; more wait
SPOOL_BYTES: Final = 1 << 20  # of a body in memory while it comes; above, it lies in a file


class StoreService:
    """Fits infra.link.connection.Service. `spool_dir` holds large bodies while they come."""

    def __init__(self, store: ObjectStore, spool_dir: Path) -> None:
        self._store = store
        self._spool_dir = spool_dir
        self._pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="holdfast-store")
        self._tasks = TaskOwner()

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        try:
            ask = decode_ask(method, payload)
        except (KeyError, msgspec.MsgspecError) as error:
            link.fail(stream, LinkError(f"no store is asked so: {method[:40]!r} {error}"))
            return None
        match ask:
            case Put(rest=True):
                return _Body(self, link, stream, ask, self._spool())
            case Put():
                self.answer(link, stream, partial(self._put, ask, None))
            case Get():
                return _Sending(self._tasks.spawn(self._get(link, stream, ask), name="get"))
            case Read():
                return _Sending(self._tasks.spawn(self._read(link, stream, ask), name="read"))
            case List(prefix=prefix, after=after, limit=limit):
                self.answer(
                    link, stream, lambda: self._store.list(prefix, after=after, limit=limit)
                )
            case Delete(keys=keys):
                self.answer(link, stream, partial(self._store.delete, keys))
            case _:
                assert_never(ask)
        return None

    def _spool(self) -> IO[bytes]:
        file = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(self._spool_dir))  # noqa: SIM115
        return cast("IO[bytes]", file)

    def lost(self, link: Link) -> None:
        """What was begun goes on: its sender takes the outcome for unknown."""

    def answer(self, link: Link, stream: int, call: Callable[[], Any]) -> None:
        """Make the call in a thread and answer with what it returns or raises."""
        self._tasks.spawn(self._answer(link, stream, call), name="call")

    def put(self, link: Link, stream: int, ask: Put, spool: IO[bytes]) -> None:
        """The whole body has come."""
        self.answer(link, stream, partial(self._put, ask, spool))

    async def aclose(self) -> None:
        """End what waits; what a thread does is done to its end."""
        await self._tasks.aclose()
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)
        self._store.close()

    def _put(self, ask: Put, spool: IO[bytes] | None) -> None:
        body: bytes | BinaryIO = ask.body
        if spool is not None:
            spool.seek(0)
            body = spool.read() if ask.whole else cast(BinaryIO, spool)
        try:
            self._store.put(ask.key, body, if_absent=ask.if_absent, timestamp_ms=ask.timestamp_ms)
        finally:
            if spool is not None:
                spool.close()

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _answer(self, link: Link, stream: int, call: Callable[[], Any]) -> None:
        try:
            found = await self._run(call)
            link.done(stream, NOTHING if found is None else encode(found))
        except HoldfastError as error:
            link.fail(stream, error)
        except Exception as error:  # the top of a request: the process lives on
            log.exception("store call failed")
            link.fail(stream, StoreUnavailable(f"{self._store.url}: {type(error).__name__}"))

    async def _get(self, link: Link, stream: int, ask: Get) -> None:
        data = b""

        def get() -> None:
            nonlocal data
            data = self._store.get(ask.key, start=ask.start, end=ask.end)

        async def send() -> None:
            await self._run(get)
            for at in range(0, len(data), PIECE_BYTES):
                await link.credit(stream)
                link.send(stream, encode(memoryview(data)[at : at + PIECE_BYTES]))

        await self._sent(link, stream, send)

    async def _read(self, link: Link, stream: int, ask: Read) -> None:
        file: BinaryIO | None = None

        def open_it() -> None:
            nonlocal file
            file = self._store.open(ask.key)

        def piece() -> bytes:
            assert file is not None
            return file.read(PIECE_BYTES)

        async def send() -> None:
            await self._run(open_it)
            link.send(stream, encode(b""))  # it is there, whatever becomes of reading it
            while data := await self._run(piece):
                await link.credit(stream)
                link.send(stream, encode(data))

        try:
            await self._sent(link, stream, send)
        finally:
            if file is not None:
                self._pool.submit(file.close)

    async def _sent(self, link: Link, stream: int, send: Callable[[], Any]) -> None:
        try:
            await send()
            link.done(stream)
        except HoldfastError as error:  # also where the link has gone
            link.fail(stream, error)
        except Exception as error:  # as above
            log.exception("store call failed")
            link.fail(stream, StoreUnavailable(f"{self._store.url}: {type(error).__name__}"))


class _Body:
    """The body of a put, while it comes; fits Answerer."""

    def __init__(
        self, service: StoreService, link: Link, stream: int, ask: Put, spool: IO[bytes]
    ) -> None:
        self._service = service
        self._link = link
        self._stream = stream
        self._ask = ask
        self._spool = spool
        self._begun = False
        spool.write(ask.body)

    def part(self, payload: msgspec.Raw) -> None:
        try:
            self._spool.write(decode_piece(payload))
        except (OSError, msgspec.MsgspecError) as error:
            self._begun = True
            self._spool.close()
            self._link.fail(self._stream, StoreUnavailable(f"the body was not taken: {error}"))
            return
        self._link.taken(self._stream, payload)

    def finished(self) -> None:
        if not self._begun:
            self._begun = True
            self._service.put(self._link, self._stream, self._ask, self._spool)

    def credited(self) -> None:
        """We send nothing."""

    def gone(self) -> None:
        """A body that did not come whole is nobody's; one that did is being put."""
        if not self._begun:
            self._spool.close()


class _Sending:
    """Parts on their way to somebody; fits Answerer."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def part(self, payload: msgspec.Raw) -> None:
        """Nothing is sent to us."""

    def finished(self) -> None:
        """As above."""

    def credited(self) -> None:
        """Link.credit tells the task."""

    def gone(self) -> None:
        self._task.cancel()
