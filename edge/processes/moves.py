"""Moves scopes between the actor processes of one server, as their supervisor: it alone decides,
and what it has decided is on the disk before anybody acts on it.

The old process closes the scope; the pin is written; the old process knows it; then the new one,
then the edges. Whoever dies in between is told, when it is back, before the next is: at no time do
two processes take a scope for theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Any, Final

import msgspec

from actors import link_wire as w
from actors.moving import GiveAsk
from actors.pins import PINS_MAX, Pin, Placed, pins_of
from actors.types import Address
from infra.errors import Busy, HoldfastError, StorageError, TryLater
from infra.link.connection import Answerer, Link
from infra.link.frames import LinkError
from infra.link.sockets import dial
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.moves")

FILE: Final = "pins.json"
ASK_WAIT_S: Final = 5.0
GIVE_WAIT_S: Final = 25.0
AGAIN_S: Final = 0.05

decode_move = w.Decoding(Pin)
_decode_file = msgspec.json.Decoder(list[Pin]).decode


class Moves:
    """Fits infra.link.connection.Service, for edges. `places` says where processes listen."""

    def __init__(
        self, directory: Path, places: dict[str, str], key: bytes, name: str = "supervisor"
    ) -> None:
        self._path = directory / FILE
        self._places = places
        self._key = key
        self._name = name
        self._links: set[Link] = set()
        self._tasks = TaskOwner()
        self._turn = asyncio.Lock()
        self._turns = 0
        self.placed = Placed("", places, self._stored())

    @property
    def pins(self) -> list[Pin]:
        """All there are."""
        return pins_of(self.placed.pins)

    def _stored(self) -> list[Pin]:
        """Those whose process still exists. A file that cannot be read stops the start."""
        try:
            found = _decode_file(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except msgspec.MsgspecError as error:
            raise StorageError(f"{self._path}: {error}") from error
        return [pin for pin in found if pin.process in self._places]

    # -- infra.link.connection.Service -------------------------------------------------------------

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        match method:
            case "pins":
                link.done(stream, w.encode(self.pins))
            case "alarmed":
                link.done(stream, w.encode([]))
            case "move":
                self._tasks.spawn(self._answer(link, stream, payload), name="move")
            case _:
                link.fail(stream, LinkError(f"no method {method[:40]!r}"))
        return None

    def greeted(self, link: Link) -> None:
        """An edge is there."""
        self._links.add(link)

    def lost(self, link: Link) -> None:
        """An edge asks for the pins when it is back."""
        self._links.discard(link)

    async def _answer(self, link: Link, stream: int, payload: msgspec.Raw) -> None:
        try:
            asked: Pin = decode_move(payload)
            await self.move(Address(asked.tenant, asked.scope), asked.process)
            link.done(stream, w.encode(True))
        except HoldfastError as error:
            link.fail(stream, error)
        except Exception as error:  # the top of a request: the supervisor goes on
            log.exception("not moved")
            link.fail(stream, error)

    # -- moving ------------------------------------------------------------------------------------

    async def move(self, address: Address, process: str) -> None:
        """Returns once the new process has the scope and edges know. Raises HoldfastError, and then
        the old one has it, or goes on to have it when it is back.
        """
        if process not in self._places:
            names = ", ".join(sorted(self._places))
            raise HoldfastError(f"no process {process!r}: there are {names}", code="bad_params")
        async with self._turn:
            old = self.placed.of(address)
            if old == process:
                return
            if len(self.placed.pins) >= PINS_MAX and address not in self.placed.pins:
                raise Busy(f"{PINS_MAX} scopes have been moved already")
            await self._ask(process, "pins", self.pins, ASK_WAIT_S)  # it must be there
            # Whoever asked may give up waiting; the move is finished, or taken back, all the same.
            await asyncio.shield(self._tasks.spawn(self._move(address, old, process), name="move"))

    async def _move(self, address: Address, old: str, new: str) -> None:
        table = {**self.placed.pins, address: new}
        self._turns += 1
        asked = GiveAsk(*address, self._turns)
        try:
            await self._ask(old, "give", asked, GIVE_WAIT_S)
            await asyncio.get_running_loop().run_in_executor(None, self._store, table)
        except HoldfastError:
            await self._until_told(old, "keep", asked)
            raise
        self.placed.pins = table  # it is so now
        log.info("moved scope=%s from=%s to=%s", address.scope, old, new)
        for name in (old, new, *(one for one in self._places if one not in (old, new))):
            await self._until_told(name, "pins", self.pins)
        for link in tuple(self._links):
            with contextlib.suppress(HoldfastError):
                await link.call("pins", w.encode(self.pins), within_s=ASK_WAIT_S)

    async def _until_told(self, name: str, method: str, asked: Any) -> None:
        """However long it takes: it may be about to be started again."""
        while True:
            try:
                await self._ask(name, method, asked, ASK_WAIT_S)
                return
            except HoldfastError as error:
                log.info("not told yet process=%s of=%s error=%s", name, method, error)
                await asyncio.sleep(AGAIN_S)

    async def _ask(self, name: str, method: str, asked: Any, within_s: float) -> None:
        try:
            link = await dial(self._places[name], self._name, self._key)
        except TimeoutError as error:
            raise TryLater(f"{name} does not answer", retry_after_ms=1000) from error
        try:
            await link.call(method, w.encode(asked), within_s=within_s)
        finally:
            link.close()

    def _store(self, table: dict[Address, str]) -> None:
        """Durable on return. Raises StorageError."""
        new = self._path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                file.write(msgspec.json.encode(pins_of(table)))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageError(f"{self._path.name}: {error.strerror}") from error

    async def aclose(self) -> None:
        """Move no more."""
        await self._tasks.aclose()
