"""Fork, export and import (actors/transfers.py) over links: a file crosses in parts, within the
stream's credit, whichever process and host the scopes belong to.

What an edge has to keep meanwhile lies in a file without a name in its spool directory, which goes
with the process. A request that is repeated because its link was lost finds what it made the first
time by the epoch that the edge has chosen for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import msgspec

from actors import link_wire as w
from actors.lines import BadImport
from actors.moment import At
from actors.receiving import Receiving
from actors.remote import RemotePort
from actors.scope import Scope
from actors.serving import PART_BYTES, Method, Serving, incoming, send_parts
from actors.transfers import UPLOAD_BYTES_MAX, Export, Format, Transfers
from actors.types import Address, Bounds
from infra import ids
from infra.errors import HoldfastError, StorageError
from infra.link.connection import Link

WAIT_S: Final = 3600.0
LOOK_S: Final = 0.5  # whether it was refused, while there is no credit


class ExportAsk(msgspec.Struct, array_like=True):
    """`export`."""

    tenant: str
    scope: str
    form: str


class StateAsk(msgspec.Struct, array_like=True):
    """`fork_state`: of the source; a SQLite file comes back."""

    tenant: str
    scope: str
    at: At | None


class MakeAsk(msgspec.Struct, array_like=True):
    """`fork_begin` and `import`: the file follows in parts. `epoch` is the new history's, "" where
    the file's own is kept.
    """

    tenant: str
    scope: str
    epoch: str


_export = w.Decoding(ExportAsk)
_state = w.Decoding(StateAsk)
_make = w.Decoding(MakeAsk)


def transfer_methods(find: Callable[[], Transfers]) -> dict[str, Method]:
    """What a process answers to edges."""

    async def export(
        serving: Serving, link: Link, stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        asked: ExportAsk = _export(payload)
        form: Format = "sqlite" if asked.form == "sqlite" else "ndjson"
        address = serving.address(asked.tenant, asked.scope)
        return await _sent(serving, link, stream, await find().export(address, form))

    async def fork_state(
        serving: Serving, link: Link, stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        asked: StateAsk = _state(payload)
        address = serving.address(asked.tenant, asked.scope)
        return await _sent(serving, link, stream, await find().state(address, asked.at))

    async def fork_begin(
        serving: Serving, link: Link, stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        asked: MakeAsk = _make(payload)
        address = serving.address(asked.tenant, asked.scope)
        made = await find().begin(address, _chunks(link, stream), asked.epoch)
        return w.encode(w.where(made.bounds))

    async def accept(
        serving: Serving, link: Link, stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        asked: MakeAsk = _make(payload)
        address = serving.address(asked.tenant, asked.scope)
        made: Scope = await find().accept(
            address, _chunks(link, stream), keep_epoch=not asked.epoch, new_epoch=asked.epoch
        )
        return w.encode(w.where(made.bounds))

    return {"export": export, "fork_state": fork_state, "fork_begin": fork_begin, "import": accept}


async def _chunks(link: Link, stream: int) -> AsyncIterator[bytes]:
    async for payload in incoming(link, stream):
        yield w.decode_bytes(payload)


async def _sent(serving: Serving, link: Link, stream: int, export: Export) -> msgspec.Raw:
    with contextlib.closing(export.file):

        async def read() -> bytes:
            data: bytes = await serving.host.run(lambda: export.file.read(PART_BYTES))
            return data

        await send_parts(link, stream, read)
    return w.encode(w.Spooled("", export.seq, 0, export.size, b""))


class MadeThere(NamedTuple):
    """Fits actors.transfers.Made."""

    bounds: Bounds


class RemoteTransfers:
    """Of scopes behind a port; fits actors.transfers.Transferring."""

    def __init__(self, port: RemotePort, spool_dir: Path) -> None:
        self._port = port
        self._spool_dir = spool_dir

    async def fork(self, source: Address, target: Address, at: At | None) -> MadeThere:
        """The state comes here, and goes on to whoever the new scope belongs to."""
        export = await self._fetched(source, "fork_state", StateAsk(*source, at))
        with contextlib.closing(export.file):
            return await self._make(target, "fork_begin", ids.new_id(), export.file)

    async def export(self, address: Address, form: Format) -> Export:
        """See Transfers."""
        return await self._fetched(address, "export", ExportAsk(*address, form))

    async def accept(
        self, address: Address, chunks: AsyncIterator[bytes], *, keep_epoch: bool
    ) -> MadeThere:
        """See Transfers. The whole file is here before it is sent: it may have to be sent again."""
        file = self._spool()
        with contextlib.closing(file):
            size = 0
            async for chunk in chunks:
                size += len(chunk)
                if size > UPLOAD_BYTES_MAX:
                    raise BadImport(f"more than {UPLOAD_BYTES_MAX} bytes")
                await self._disk(lambda data=chunk: file.write(data))  # type: ignore[misc]
            return await self._make(address, "import", "" if keep_epoch else ids.new_id(), file)

    def close(self) -> None:
        """Nothing is kept."""

    def _spool(self) -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(dir=self._spool_dir)
        except OSError as error:
            raise StorageError(f"no spool file: {error.strerror}") from error

    async def _disk(self, work: Callable[[], Any]) -> Any:
        try:
            return await self._port.run(work)
        except OSError as error:
            raise StorageError(f"the spool file: {error.strerror}") from error

    async def _fetched(self, address: Address, method: str, asked: Any) -> Export:
        payload = w.encode(asked)

        async def receive(link: Link) -> Export:
            file = self._spool()
            receiving = Receiving(link, file)
            receiving.stream = link.ask(method, payload, receiving, deadline_ms=int(WAIT_S * 1000))
            try:
                ended = w.decode_spooled(await receiving.future)
                assert ended is not None
                await self._disk(lambda: file.seek(0))
            except BaseException:
                link.cancel(receiving.stream)
                file.close()
                raise
            return Export(file, ended.size, ended.seq)

        return await self._port.with_link(lambda: self._port.peer_of(address), receive, WAIT_S)

    async def _make(self, address: Address, method: str, epoch: str, file: IO[bytes]) -> MadeThere:
        payload = w.encode(MakeAsk(*address, epoch))
        tried = False

        async def send(link: Link) -> MadeThere:
            nonlocal tried
            again, tried = tried, True
            answer = Receiving(link, file)  # it has no parts
            stream = answer.stream = link.ask(
                method, payload, answer, deadline_ms=int(WAIT_S * 1000)
            )
            try:
                await self._send_file(link, stream, file, answer.future)
                found: w.Where = w.decode_where(await answer.future)
                return MadeThere(found.bounds())
            except HoldfastError as error:
                if again and error.code == "conflict" and epoch:
                    bounds = await self._port.bounds(address)
                    if bounds.epoch == epoch:
                        return MadeThere(bounds)  # by the request whose answer was lost
                raise
            finally:
                link.cancel(stream)

        return await self._port.with_link(lambda: self._port.peer_of(address), send, WAIT_S)

    async def _send_file(
        self, link: Link, stream: int, file: IO[bytes], answer: asyncio.Future[msgspec.Raw]
    ) -> None:
        """Within the credit, until it is answered: a refusal need not wait for the rest."""
        await self._disk(lambda: file.seek(0))
        while data := await self._disk(lambda: file.read(PART_BYTES)):
            part = w.encode(data)
            while not answer.done() and not link.send(stream, part):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await link.credit(stream)
            if answer.done():
                return
        link.end(stream)
