"""One edge process: what clients meet, with the scopes behind links."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from actors import link_wire as w
from actors.peer import Find
from actors.remote import RemotePort
from actors.types import Address
from edge.application import Application
from edge.metrics import counts_of
from edge.processes.boot import Boot
from edge.processes.siblings import Siblings
from edge.server import Server, ServerInfo
from infra.errors import HoldfastError
from infra.link.connection import Answerer, Link
from infra.link.frames import LinkError
from infra.link.sockets import dial
from infra.tasks import TaskOwner

FIND_WAIT_S: Final = 30.0


class Rings:
    """Runs the handlers of due alarms, of which actor processes tell; fits Service."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self._tasks = TaskOwner()

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


class Control:
    """The supervisor, as an edge asks it where a tenant's process listens."""

    def __init__(self, boot: Boot) -> None:
        self._boot = boot

    async def find(self, tenant: str) -> str:
        """Raises HoldfastError where it cannot be started."""
        boot = self._boot
        link = await dial(boot.control, boot.name, boot.key)
        try:
            asked = w.encode(tenant)
            place: str = w.decode_text(await link.call("acquire", asked, within_s=FIND_WAIT_S))
            return place
        finally:
            link.close()


def make_edge(
    boot: Boot, application: Application, *, kind: type[Server] = Server,
    find: Find | None = None, **options: Any,
) -> tuple[Server, Rings]:  # fmt: skip
    """A server whose scopes are those of the boot's members."""
    rings = Rings()
    if find is None and boot.control:
        find = Control(boot).find
    remote = RemotePort(
        boot.members, boot.key, boot.name, spool_dir=Path(boot.config.data_dir), service=rings,
        find=find,
    )  # fmt: skip
    server = kind(boot.config, application, boot.mode, remote=remote, **options)
    rings.server = server
    return server, rings


async def serve_clients(
    boot: Boot, application: Application, stop: asyncio.Event, ready: Callable[[ServerInfo], None]
) -> None:
    """Until `stop` is set."""
    server, rings = make_edge(boot, application, shared_port=True)
    siblings = Siblings(boot.name, boot.edges, boot.key, lambda: counts_of(server))
    try:
        async with server:
            assert server.info is not None
            if boot.edges:
                await siblings.listen()
                server.other_edges = siblings.others
            ready(server.info)
            await stop.wait()
    finally:
        await siblings.aclose()
        await rings.aclose()
