"""Starts the edges and actor processes of one server, keeps them running, and stops them in order:
edges first, so that clients are told, then actors, which save everything.

A process that dies is started again after a delay that grows while it keeps dying. The lock of the
data directory is handed to every process: as long as one of them lives, no other server starts.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from actors.layout_stamp import claim_layout
from edge.access import Mode
from edge.config import Config
from edge.processes.boot import Boot, encode_boot
from edge.processes.children import ForkServer, Process, Spawned, spawn
from edge.processes.listeners import Listeners
from edge.processes.moves import Moves
from edge.processes.store import shares_store
from edge.processes.tenants import Tenants
from edge.server import ServerInfo
from edge.serving import told_until
from infra import clock, ids
from infra.errors import ConfigError, HoldfastError, Unavailable
from infra.link.sockets import Listener
from infra.paths import tenant_home
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.supervisor")

DELAY_S_MIN: Final = 0.05
DELAY_S_MAX: Final = 10.0
STEADY_S: Final = 2.0  # a process that lived so long begins with the shortest delay again
READY_WAIT_S: Final = 60.0
LOCK_WAIT_S: Final = 5.0
LOCK_LOOK_S: Final = 0.05
STOP_GRACE_S: Final = 5.0  # beyond drain_timeout_s, then SIGKILL


class _Child:
    """One process and whoever takes its place."""

    def __init__(self, role: str, name: str) -> None:
        self.role = role
        self.tenant: str | None = None
        self.name = name
        self.process: Process | None = None
        self.ready: asyncio.Future[dict[str, object]] | None = None
        self.restarts = 0


class Supervisor:
    """Use as `async with`; `info` says where clients connect."""

    def __init__(self, config: Config, target: str | None, mode: Mode) -> None:
        self.info: ServerInfo | None = None
        self.restarts = 0
        self._config = config
        self._target = target
        self._mode = mode
        self._key = ids.random_bytes(32)
        self._children: list[_Child] = []
        self._tasks = TaskOwner()
        self._stopping = False
        self._lock_fd = -1
        self._run_dir = ""
        self._members: dict[str, str] = {}
        self._edges: dict[str, str] = {}
        self._listeners: Listeners | None = None
        self._tenants: Tenants | None = None
        self._moves: Moves | None = None
        self._control: Listener | None = None
        self._forks: ForkServer | None = None
        self._store = ""

    async def __aenter__(self) -> Supervisor:
        config = self._config
        directory = Path(config.data_dir)
        await self._take(directory)
        try:
            by_tenant = config.placement == "tenant"
            claim_layout(directory, "tenant" if by_tenant else f"{config.actors}")
            self._run_dir = tempfile.mkdtemp(
                prefix="holdfast-"
            )  # short: a socket's path is bounded
            names = [f"actor-{number}" for number in range(config.actors)]
            self._members = {name: f"unix:{self._run_dir}/{name}" for name in names}
            actors = [_Child("actor", name) for name in names]
            if by_tenant:
                self._tenants = Tenants(directory, self._start_tenant)
                self._control = Listener(
                    "supervisor", self._key, self._tenants, self._tenants.greeted
                )
                await self._control.listen(f"unix:{self._run_dir}/control")
                self._tenants.begin()
                boot = Boot(
                    "forkserver", config, self._mode, self._target, str(Path.cwd()), {}, b""
                )
                self._forks = ForkServer(encode_boot(boot), (self._lock_fd,))
                self._tasks.spawn(self._forks.keep(), name="fork server")
            else:
                self._moves = Moves(directory, self._members, self._key)
                self._control = Listener("supervisor", self._key, self._moves, self._moves.greeted)
                await self._control.listen(f"unix:{self._run_dir}/control")
            if shares_store(config):
                self._store = f"unix:{self._run_dir}/store"
                await self._begin([_Child("store", "store")])
            await self._begin(actors)
            edges = [_Child("edge", f"edge-{number}") for number in range(config.edges)]
            self._listeners = self._listen([edge.name for edge in edges])
            self._config = msgspec.structs.replace(config, port=self._listeners.port)
            if len(edges) > 1:
                self._edges = {edge.name: f"unix:{self._run_dir}/{edge.name}" for edge in edges}
            await self._begin(edges)
            told = await self._ready(edges[0])
            self.info = msgspec.convert(told["info"], ServerInfo)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    async def _take(self, directory: Path) -> None:
        """Take the lock; processes of a supervisor that was killed are given time to end."""
        try:
            self._lock_fd = _open_lock(directory)
            async with asyncio.timeout(LOCK_WAIT_S):
                while not _lock(self._lock_fd):  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(LOCK_LOOK_S)
        except TimeoutError as error:
            os.close(self._lock_fd)
            raise ConfigError(f"{directory}: another Holdfast process uses it") from error
        except OSError as error:
            raise ConfigError(f"{directory}: {error.strerror}; choose another data_dir") from error

    def _listen(self, names: list[str]) -> Listeners:
        """The port, which stays ours while edges restart."""
        config = self._config
        try:
            return Listeners(config.host, config.port, names)
        except OSError as error:
            where = f"{config.host}:{config.port}"
            raise ConfigError(f"cannot listen on {where}: {error.strerror}") from error

    async def _start_tenant(self, tenant: str) -> tuple[str, asyncio.Task[int]]:
        child = _Child("actor", f"{tenant_home(tenant)}")
        child.tenant = tenant
        child.ready = asyncio.get_running_loop().create_future()
        self._children.append(child)
        ended = self._tasks.spawn(self._run(child), name="tenant")
        ended.add_done_callback(lambda _: self._children.remove(child))
        either: list[asyncio.Future[Any]] = [ended, child.ready]
        await asyncio.wait(either, timeout=READY_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        if not child.ready.done():
            if child.process is not None and not ended.done():
                child.process.kill()
            raise Unavailable("the tenant's process did not start", retry_after_ms=1000)
        return str(child.ready.result()["place"]), ended

    async def _begin(self, children: list[_Child]) -> None:
        for child in children:
            self._children.append(child)
            child.ready = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._keep(child), name=f"keep {child.name}")
        for child in children:
            await self._ready(child)

    async def _ready(self, child: _Child) -> dict[str, object]:
        assert child.ready is not None
        async with asyncio.timeout(READY_WAIT_S):
            return await asyncio.shield(child.ready)

    async def _keep(self, child: _Child) -> None:
        """Run it, again and again until the end."""
        delay_s = DELAY_S_MIN
        while True:
            began = clock.monotonic()
            code = await self._run(child)
            assert child.ready is not None
            if self._stopping:
                return
            if not child.ready.done():  # it never was there: what is wrong stands in its log
                child.ready.set_exception(
                    HoldfastError(f"{child.name} ended with {code} before it was ready")
                )
                return
            if clock.monotonic() - began > STEADY_S:
                delay_s = DELAY_S_MIN
            log.warning("process died name=%s code=%s again_in_s=%g", child.name, code, delay_s)
            self.restarts += 1
            await asyncio.sleep(delay_s)
            delay_s = min(DELAY_S_MAX, delay_s * 2)

    async def _run(self, child: _Child) -> int:
        if self._stopping:
            return 0
        listeners = self._listeners if child.role == "edge" else None
        process: Process | None = None
        edge: Spawned | None = None
        if child.tenant is not None and self._forks is not None:
            process = await self._forks.fork()
        # An edge writes to no ledger, and its clients may keep it for as long as it drains.
        held = self._lock_fd if listeners is None else listeners.fileno(child.name)
        if process is None:
            process = edge = await spawn(child.role, (held,))
        child.process = process
        members, control = self._members, ""
        if child.tenant is not None:
            members = {child.name: f"unix:{self._run_dir}/{child.name[-12:]}"}
        if self._control is not None:
            control = self._control.place
        boot = Boot(
            child.name if child.tenant is None else child.tenant, self._config, self._mode,
            self._target, str(Path.cwd()), members, self._key, control, child.tenant,
            self._edges, listen_fd=None if listeners is None else held, store=self._store,
            pins=[] if self._moves is None else self._moves.pins,
        )  # fmt: skip
        try:
            line = await process.greet(encode_boot(boot))
            if line and child.ready is not None and not child.ready.done():
                child.ready.set_result(msgspec.json.decode(line))
            if line and listeners is not None and edge is not None:
                listeners.here(child.name)
                await edge.hear()  # it stops, or has died
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("process said nothing name=%s error=%s", child.name, error)
        finally:
            if listeners is not None:
                listeners.away(child.name)
        return await process.wait()

    async def _stop(self) -> None:
        self._stopping = True
        if self._listeners is not None:
            self._listeners.close()
        for asked in (self._tenants, self._moves):
            if asked is not None:
                await asked.aclose()
        for role in ("edge", "actor", "store"):
            await self._end([child for child in self._children if child.role == role])
        await self._tasks.aclose()
        if self._control is not None:
            await self._control.aclose()
        if self._run_dir:
            shutil.rmtree(self._run_dir, ignore_errors=True)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)

    async def _end(self, children: list[_Child]) -> None:
        living = [c.process for c in children if c.process and c.process.returncode is None]
        for process in living:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._config.drain_timeout_s + STOP_GRACE_S):
                for process in living:
                    await process.wait()
        except TimeoutError:
            for process in living:
                if process.returncode is None:
                    log.error("process killed pid=%d", process.pid)
                    process.kill()


def _open_lock(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    return os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def supervise(
    config: Config, target: str | None, mode: Mode, announce: Callable[[ServerInfo], None]
) -> None:
    """Until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with Supervisor(config, target, mode) as supervisor:
        assert supervisor.info is not None
        announce(supervisor.info)
        await told_until(ended, supervisor.info.url, config.drain_timeout_s)
