"""The parts of a spool that another process sends, gathered in a file."""

from __future__ import annotations

import asyncio
from typing import IO

import msgspec

from actors import link_wire as w
from infra.errors import HoldfastError
from infra.link.connection import Link


class At:
    """Fits actors.scan.Position."""

    def __init__(self, ended: w.Spooled) -> None:
        self.epoch = ended.epoch
        self.head = ended.seq
        self.floor = ended.floor


class Receiving:
    """The parts of a spool, into a file; fits Caller."""

    def __init__(self, link: Link, file: IO[bytes]) -> None:
        self.stream = 0
        self.future: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._link = link
        self._file = file

    def part(self, payload: msgspec.Raw) -> None:
        if not self.future.done():
            try:
                self._file.write(w.decode_bytes(payload))
            except (HoldfastError, OSError) as error:
                self.future.set_exception(error)
        self._link.taken(self.stream, payload)

    def done(self, payload: msgspec.Raw) -> None:
        if not self.future.done():
            self.future.set_result(payload)

    def failed(self, error: HoldfastError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
