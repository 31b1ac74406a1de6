"""One edge process: what clients meet, with the scopes behind links."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from actors import link_wire as w
from actors.attendance_links import RemoteAttendance, Running
from actors.peer import Find
from actors.pins import Pin
from actors.remote import RemotePort
from actors.transfer_links import RemoteTransfers
from actors.types import Address
from edge.application import Application
from edge.metrics import counts_of
from edge.processes.boot import Boot
from edge.processes.control import Control
from edge.processes.siblings import Siblings
from edge.server import Server, ServerInfo
from infra.errors import HoldfastError
from infra.link.connection import Answerer, Link
from infra.link.frames import LinkError
from infra.paths import ledger_path
from infra.tasks import TaskOwner


class Rings:
    """Runs the handlers of due alarms, of which actor processes tell; fits Service."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.control: Control | None = None
        self._tasks = TaskOwner()

    def begin(self) -> None:
        """Listen to the supervisor, where it has something to say."""
        if self.control is not None:
            self._tasks.spawn(self.control.run(), name="control")

    def wake(self, tenant: str) -> None:
        """An alarm of the tenant is due: its process must find an edge."""
        if self.server is not None and self.server.remote is not None:
            self.server.remote.tenant(tenant).wake()

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        if method == "sleep" and self.server is not None and self.server.remote is not None:
            asleep: bool = w.decode_bool(payload)
            link.done(stream, w.encode(self.server.remote.sleeps(link.peer, asleep=asleep)))
            return None
        if method != "ring" or self.server is None:
            link.fail(stream, LinkError(f"no method {method[:40]!r}"))
            return None
        self._tasks.spawn(self._ring(self.server, link, stream, payload), name="ring")
        return None

    def moved(self, pins: list[Pin]) -> None:
        """Scopes have other processes."""
        if self.server is not None and self.server.remote is not None:
            self.server.remote.moves.learn(pins, self._tasks)

    def lost(self, link: Link) -> None:
        """What rings goes on; whoever asked hears that the link was lost, and asks again."""

    async def _ring(self, server: Server, link: Link, stream: int, payload: msgspec.Raw) -> None:
        try:
            asked: w.AlarmAsk = w.decode_alarm(payload)
            address = Address(asked.tenant, asked.scope)
            await server.ring(address, asked.name, asked.due_at, asked.payload, asked.attempt)
        except Exception as error:  # the user's code: whatever it raises means "not done"
            told = error if isinstance(error, HoldfastError) else HoldfastError(str(error))
            link.fail(stream, told)
        else:
            link.done(stream)

    async def aclose(self) -> None:
        """End those under way: they come again."""
        await self._tasks.aclose()


def make_edge(
    boot: Boot, application: Application, *, kind: type[Server] = Server,
    find: Find | None = None, running: Running | None = None, **options: Any,
) -> tuple[Server, Rings]:  # fmt: skip
    """A server whose scopes are those of the boot's members."""
    rings = Rings()
    control: Control | None = None
    if find is None and boot.control:
        control = rings.control = Control(boot, rings.wake, rings.moved)
        if boot.config.placement == "tenant":
            find, running = control.find, control.running
    remote = RemotePort(
        boot.members, boot.key, boot.name, spool_dir=Path(boot.config.data_dir), service=rings,
        find=find,
    )  # fmt: skip
    remote.beside.wakes = find is not None and len(boot.edges) > 1
    if rings.control is not None:
        rings.control.awake = remote.beside.awake
    remote.placed.learn(boot.pins)
    data_dir = Path(boot.config.data_dir)

    def may_exist(address: Address) -> bool:
        return bool(boot.config.bucket) or ledger_path(data_dir, *address).exists()

    server = kind(boot.config, application, boot.mode, remote=remote, **options)
    server.attendance = RemoteAttendance(remote, running, may_exist)
    server.transfers = RemoteTransfers(remote, data_dir)
    if server.para is not None:
        leads = boot.name == next(iter(boot.edges), boot.name)
        server.para.leads = lambda _address: leads
    if control is not None and boot.config.placement == "hash":
        server.mover = control.move
    rings.server = server
    return server, rings


async def serve_clients(
    boot: Boot, application: Application, stop: asyncio.Event, ready: Callable[[ServerInfo], None],
    leaving: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Until `stop` is set; then it says that it accepts nobody any more."""
    listening = None if boot.listen_fd is None else socket.socket(fileno=boot.listen_fd)
    server, rings = make_edge(boot, application, listening=listening)
    siblings = Siblings(boot.name, boot.edges, boot.key, lambda: counts_of(server))
    rings.begin()
    try:
        async with server:
            assert server.info is not None
            if boot.edges:
                await siblings.listen()
                server.other_edges = siblings.others
            ready(server.info)
            await stop.wait()
            leaving()
    finally:
        await siblings.aclose()
        await rings.aclose()
