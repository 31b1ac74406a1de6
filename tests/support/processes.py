"""The scopes of a test's server in processes of their own, forked from the test: so an application
made of closures is there too, and what its hooks note at the edge is seen by the test.

`HOLDFAST_TEST_MODE=processes` has `tests.support.app.running` and `ServerProcess` do so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors.host import Host
from actors.layout_stamp import claim_layout
from edge.access import Mode
from edge.application import Application
from edge.config import Config
from edge.processes.actor import serve_scopes
from edge.processes.boot import Boot
from edge.processes.edge import make_edge
from edge.server import Server
from infra import ids

MODE = os.environ.get("HOLDFAST_TEST_MODE", "")
ACTORS = 2


class ForkedActor:
    """One actor process; `kill` it, and `start` it anew."""

    def __init__(self, boot: Boot, application: Application) -> None:
        self.boot = boot
        self._application = application
        self.pid = 0
        self._stop_fd = -1

    async def start(self) -> None:
        """Returns once it listens."""
        ready_read, ready_write = os.pipe()
        stop_read, self._stop_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(ready_write, stop_read)
        os.close(ready_write)
        os.close(stop_read)
        loop = asyncio.get_running_loop()
        said = await loop.run_in_executor(None, os.read, ready_read, 1)
        os.close(ready_read)
        assert said == b"1", "the actor process did not start"

    def _live(self, ready_fd: int, stop_fd: int) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            low, high = sorted((ready_fd, stop_fd))
            for first, last in ((3, low), (low + 1, high), (high + 1, 65_536)):
                os.closerange(first, last)  # a socket held here would never be closed
            with asyncio.Runner() as runner:
                runner.run(self._serve(ready_fd, stop_fd))
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(code)

    async def _serve(self, ready_fd: int, stop_fd: int) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def heard() -> None:
            loop.remove_reader(stop_fd)
            stop.set()

        loop.add_reader(stop_fd, heard)

        def ready(_place: str) -> None:
            os.write(ready_fd, b"1")

        await serve_scopes(self.boot, self._application, stop, ready)

    async def stop(self) -> None:
        """Let it end in order."""
        os.close(self._stop_fd)
        await self._wait()

    async def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)
        await self._wait()
        os.close(self._stop_fd)

    async def _wait(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, os.waitpid, self.pid, 0)


class ProcessesServer(Server):
    """An edge whose scopes a test cannot look into."""

    @property
    def host(self) -> Host:
        pytest.skip("the test looks into the process that has the scopes")

    actors: list[ForkedActor]


@asynccontextmanager
async def several(
    config: Config, application: Application, mode: Mode, *, by_tenant: bool = False
) -> AsyncIterator[ProcessesServer]:
    """A started edge in this process, over ACTORS actor processes or one for each tenant."""
    names = [f"actor-{number}" for number in range(ACTORS)]
    Path(config.data_dir).mkdir(parents=True, exist_ok=True)
    claim_layout(Path(config.data_dir), "tenant" if by_tenant else str(ACTORS))
    if by_tenant:
        async with _by_tenant(config, application, mode) as tenants:
            yield tenants
        return
    with tempfile.TemporaryDirectory(prefix="hf-") as place:
        members = {name: f"unix:{place}/{name}" for name in names}
        key = ids.random_bytes(32)
        boot = Boot("edge-0", config, mode, None, "", members, key)
        actors = [
            ForkedActor(Boot(name, config, mode, None, "", members, key), application)
            for name in names
        ]
        for actor in actors:
            await actor.start()
        server, rings = make_edge(boot, application, kind=ProcessesServer)
        assert isinstance(server, ProcessesServer)
        server.actors = actors
        try:
            async with server:
                yield server
        finally:
            await rings.aclose()
            for actor in actors:
                await actor.stop()


@asynccontextmanager
async def _by_tenant(
    config: Config, application: Application, mode: Mode
) -> AsyncIterator[ProcessesServer]:
    """Each tenant's process is forked when the edge asks for it."""
    with tempfile.TemporaryDirectory(prefix="hf-") as place:
        key = ids.random_bytes(32)
        held: dict[str, ForkedActor] = {}

        async def find(tenant: str) -> str:
            actor = held.get(tenant)
            if actor is None:
                at = {tenant: f"unix:{place}/{len(held)}"}
                boot = Boot(tenant, config, mode, None, "", at, key, "", tenant)
                actor = held[tenant] = ForkedActor(boot, application)
                await actor.start()
            return actor.boot.place

        boot = Boot("edge-0", config, mode, None, "", {}, key)

        async def running() -> list[str]:
            return list(held)

        server, rings = make_edge(
            boot, application, kind=ProcessesServer, find=find, running=running
        )
        assert isinstance(server, ProcessesServer)
        try:
            async with server:
                yield server
        finally:
            await rings.aclose()
            for actor in held.values():
                await actor.stop()
