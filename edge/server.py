"""A running server: the host of the scopes, the surfaces in front, and the order of start and stop.

Stop is start reversed: refuse new work, close sockets, let commits reach the disk, close the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from socket import socket as OsSocket
from typing import Any, Self

import msgspec
from aiohttp import web

from actors.alarms import Alarms
from actors.attendance import Attendance, HostAttendance, ProcessLife
from actors.dialects.asterql.keys import check_scope
from actors.dialects.asterql.plan import COLL
from actors.host import Host
from actors.hosts_port import HostsPort
from actors.inspection import Inspection, Inspector
from actors.port import StatePort
from actors.remote import RemoteAlarms, RemotePort
from actors.transfers import Transferring, Transfers
from actors.types import Address
from edge.access import Mode, choose_access
from edge.app import build_app
from edge.application import Alarm, Application
from edge.auth import Principal, PublishLimits
from edge.budget import Budget
from edge.config import Config, tenancy_of
from edge.dialects.asterql.hub import Published, publish_to_port
from edge.dialects.asterql.views import HeldViews, ScopeRead
from edge.dialects.para.authority import SyncedAuthority
from edge.dialects.para.service import ParaService
from edge.dialects.starkeep.opening import open_keep
from edge.dialects.stratasync.database import StrataDatabase
from edge.dialects.stratasync.service import StrataService
from edge.dialects.vuer.opening import HostedRooms
from edge.hosting import host_settings
from edge.metrics import EdgeCounts
from edge.problems import Problem
from edge.requests import PeerFaults
from edge.runtime import Runtime
from edge.websocket import SocketSettings
from infra import clock, ids
from infra.errors import ConfigError
from infra.process import raise_open_files_limit
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.server")

TICK_S = 1.0
BACKLOG = 4096
SPENDERS_MAX = 10_000
CLOSE_WAIT_S = 1.0
GOING_AWAY = 1001
EXPIRED = 4401
_PEER_FAULTS = PeerFaults()


async def _none() -> list[EdgeCounts]:
    """The other edges, where there is one."""
    return []


class ServerInfo(msgspec.Struct, frozen=True):
    """Where a started server listens."""

    url: str
    host: str
    port: int


class Server:
    """One process with everything in it. Use as `async with`."""

    def __init__(
        self, config: Config, application: Application, mode: Mode = "serve",
        *, remote: RemotePort | None = None, listening: OsSocket | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.application = application
        self.mode = mode
        self.open_max = raise_open_files_limit(config.open_scopes_max)
        self.spool_dir = Path(config.data_dir)
        self.views: dict[str, Any] = dict(application.views)
        self.remote = remote  # the port into other processes, where scopes are not here
        self.other_edges: Callable[[], Awaitable[list[EdgeCounts]]] = _none
        self._listening = listening  # None: it makes its own
        self._host: Host | None = None
        self.port: StatePort
        self.inspector: Inspector
        self.attendance: Attendance  # whoever gives `remote` sets it
        self.mover: Callable[[Address, str], Awaitable[None]] | None = None
        if remote is None:
            on_alarm = self.ring if application.alarm_handlers else None
            settings = host_settings(config, application, self.open_max)
            self._host = Host(Path(config.data_dir), settings, on_alarm=on_alarm)
            self.port, self.inspector = self._host, Inspection(self._host)
            self.attendance = HostAttendance(self._host, ProcessLife("server", clock.now_ms()))
        else:
            self.port, self.inspector = remote, remote
        self.runtime = Runtime(
            self.port,
            choose_access(config, application, mode, clock.now_ms),
            PublishLimits(config.publish_envelopes_per_s, config.publish_bytes_per_s),
            tenancy_of(config),
        )
        self.sockets = SocketSettings(
            frame_bytes_max=config.frame_bytes_max, compression=config.compression,
            monotonic=clock.monotonic,
        )  # fmt: skip
        self.strata = (
            None
            if application.declared_strata is None
            else StrataService(application.declared_strata, self.port, self.runtime.tenancy)
        )
        self.para = (
            None
            if application.declared_para is None
            else ParaService(application.declared_para, self.runtime, config.frame_bytes_max)
        )
        self.rooms = HostedRooms(self.port, self.runtime)
        # Connection, StrataConnection, ParaConnection, RtcConnection
        self.connections: set[Any] = set()
        self.keep = open_keep(config, self.port, clock.now_ms)
        self.held_views = HeldViews(clock.monotonic)
        self.transfers: Transferring | None = None  # once the host has started
        self.started_at = clock.monotonic()
        self._budgets: dict[tuple[str, str, PublishLimits], tuple[Budget, Budget]] = {}
        self._tasks = TaskOwner()
        self._reauthorizing: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        self._http_log = logging.getLogger("holdfast.http.protocol")
        self._http_log.addFilter(_PEER_FAULTS)
        self._waiting_requests: dict[Any, float] = {}
        self.info: ServerInfo | None = None

    @property
    def host(self) -> Host:
        """The scopes, where this process has them."""
        assert self._host is not None, "the scopes of this server are in other processes"
        return self._host

    @property
    def hosts(self) -> HostsPort | None:
        """The other hosts, where there are several."""
        return self.remote if isinstance(self.remote, HostsPort) else None

    @property
    def alarms(self) -> Alarms | RemoteAlarms:
        """Of all scopes."""
        return self.host.alarms if self.remote is None else self.remote.alarms

    # -- start and stop --------------------------------------------------------------------------

    async def start(self) -> ServerInfo:
        """Open the directory and listen. Raises ConfigError with what to change."""
        await self._start_port()
        try:
            if self._host is not None:
                self.transfers = Transfers(self._host)
            await self._start_application()
            self._runner = web.AppRunner(
                build_app(self), access_log=None, handle_signals=False, shutdown_timeout=2.0,
                keepalive_timeout=75.0, logger=self._http_log,
            )  # fmt: skip
            await self._runner.setup()
            await self._site(self._runner).start()
        except OSError as error:
            await self.stop()
            where = f"{self.config.host}:{self.config.port}"
            raise ConfigError(f"cannot listen on {where}: {error.strerror}") from error
        except BaseException:
            await self.stop()
            raise
        host, port = self._runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        self.info = ServerInfo(f"http://{shown}:{port}", host, port)
        self._tasks.spawn(self._tick_forever(), name="server-tick")
        return self.info

    def _site(self, runner: web.AppRunner) -> web.BaseSite:
        if self._listening is not None:
            return web.SockSite(runner, self._listening, backlog=BACKLOG)
        return web.TCPSite(
            runner,
            self.config.host,
            self.config.port,
            backlog=BACKLOG,
            reuse_address=True,
            reuse_port=self.config.reuse_port or None,
        )

    async def _start_application(self) -> None:
        self.application.bind(_Bound(self))
        await self.application.start()
        if self.para is not None:
            self.para.start()

    async def open(self) -> None:
        """Everything but listening: for an aiohttp application that has its own."""
        await self._start_port()
        try:
            await self._start_application()
        except BaseException:
            await self.stop()
            raise
        self._tasks.spawn(self._tick_forever(), name="server-tick")

    async def stop(self) -> None:
        """Within drain_timeout_s: answers out, sockets closed with 1001, files closed."""
        if self.runtime.stopping:
            return
        self.runtime.stopping = True
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()
        await self._drain()
        for connection in list(self.connections):
            retry_ms = 100 + int(ids.random() * 2000)  # not all of them at the same moment
            connection.end(GOING_AWAY, f"going away, retry_after_ms={retry_ms}")
        await self._sockets_end()
        await self._tasks.aclose()
        await self.runtime.tasks.aclose()
        await self.rooms.aclose()
        for service in (self.strata, self.para):
            if service is not None:
                await service.aclose()
        with contextlib.suppress(ExceptionGroup):
            await self.application.stop()
        self.application.bind(None)
        if self._runner is not None:
            await self._runner.cleanup()
        for socket in list(self.sockets.sockets):
            socket.abort()
        self.held_views.close()
        if self.transfers is not None:
            self.transfers.close()
        if self.remote is not None:
            await self.remote.aclose()
        if self._host is not None:
            await self._host.aclose()

    async def _start_port(self) -> None:
        if self.remote is not None:
            await self.remote.start()
        if self._host is not None:
            await self._host.start()

    async def _drain(self) -> None:
        """Wait until no connection waits for an answer, within the time that is left for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_timeout_s):
                # Polled: an event would have to be kept by every connection for this one wait.
                while any(not connection.idle for connection in self.connections):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async def _sockets_end(self) -> None:
        """Give every peer a moment to answer the close frame."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WAIT_S):
                while self.sockets.sockets:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # -- what handlers ask -------------------------------------------------------------------------

    def admit(self) -> None:
        """Raise Problem where no further connection is taken."""
        if self.runtime.stopping:
            raise Problem("closed", "the server is going away", retry_after_ms=1000)
        if len(self.connections) >= self.config.connections_max:
            self.connections = {held for held in self.connections if not held.closed}
        if len(self.connections) >= self.config.connections_max:
            raise Problem(
                "too_many_connections", f"{len(self.connections)} connections are open",
                retry_after_ms=5000,
            )  # fmt: skip

    def spend(self, principal: Principal, size: int) -> None:
        """Count one HTTP publish against the principal's limits. Raises Problem rate_limited."""
        allowed = principal.publish or self.runtime.publish_limits
        now = clock.monotonic()
        key = (principal.tenant, principal.id, allowed)
        held = self._budgets.get(key)
        if held is None:
            if len(self._budgets) >= SPENDERS_MAX:
                self._budgets.clear()
            rates = (allowed.envelopes_per_s, allowed.bytes_per_s)
            held = (Budget(rates[0], 2 * rates[0], now), Budget(rates[1], 2 * rates[1], now))
            self._budgets[key] = held
        wait_ms = held[0].take(1, now)
        if not wait_ms:
            wait_ms = held[1].take(size, now)
            if wait_ms:
                held[0].give_back(1)
        if wait_ms:
            raise Problem("rate_limited", "the publish limit", retry_after_ms=wait_ms)

    async def read_scope(self, tenant: str, scope: str) -> ScopeRead:
        """The scope's entities at one released seq."""
        check_scope(scope)
        snapshot = await self.port.snapshot(Address(tenant, scope), COLL)
        if snapshot is None:
            return ScopeRead("", 0, {})
        with contextlib.closing(snapshot):
            entities = {key: msgspec.json.decode(body) for key, body in snapshot}
        return ScopeRead(snapshot.epoch, snapshot.seq, entities)

    async def ring(
        self, address: Address, name: str, due_at: int, payload: str | None, attempt: int
    ) -> None:
        """Run the application's handler of a due alarm."""
        value = None if payload is None else msgspec.json.decode(payload)
        alarm = Alarm(
            scope=address.scope,
            name=name,
            at_ms=due_at,
            payload=value,
            tenant=address.tenant,
            attempt=attempt,
        )
        await self.application.ring(alarm)

    # -- time
    # ----------------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(TICK_S)
            count += 1
            self._tick()
            every = self.config.reauthorize_s
            due = every and count % max(1, int(every / TICK_S)) == 0
            if due and (self._reauthorizing is None or self._reauthorizing.done()):
                # Apart from the tick: a slow hook must not hold up expiry and heartbeats.
                work = self._reauthorize_all()
                self._reauthorizing = self._tasks.spawn(work, name="server-reauthorize")

    async def _reauthorize_all(self) -> None:
        for connection in list(self.connections):
            await connection.reauthorize()

    def _tick(self) -> None:
        now, now_ms = clock.monotonic(), clock.now_ms()
        silence_s, stall_s = self.config.silence_s, self.config.stall_s
        for socket in list(self.sockets.sockets):
            socket.tick(now, silence_s=silence_s, stall_s=stall_s)
        gone = []
        for connection in self.connections:
            principal = connection.principal
            if connection.closed:
                gone.append(connection)
            elif principal is None:
                if connection.unauthenticated_since(now):
                    gone.append(connection)
            elif principal.expires_at_ms is not None and principal.expires_at_ms <= now_ms:
                gone.append(connection)
        for connection in gone:
            self.connections.discard(connection)
            if not connection.closed:
                why = "no auth frame came" if connection.principal is None else "the token expired"
                connection.end(EXPIRED, why)
        self.held_views.expire()
        if self.para is not None:
            self.para.tick(now_ms)
        self._close_silent_requests(now)

    def _close_silent_requests(self, now: float) -> None:
        """A client that opens a connection and never finishes a request does not keep it."""
        server = self._runner.server if self._runner is not None else None
        if server is None:
            return
        known, self._waiting_requests = self._waiting_requests, {}
        for handler in server.connections:
            if getattr(handler, "_current_request", None) is not None:
                continue
            since = known.get(handler, now)
            self._waiting_requests[handler] = since
            if now - since > self.config.silence_s:
                handler.force_close()


class _Bound:
    """What the user's Application may ask of this server (edge.application.Runtime)."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def set_alarm(self, tenant: str, scope: str, name: str, at_ms: int, payload: Any) -> None:
        check_scope(scope)
        text = None if payload is None else msgspec.json.encode(payload).decode()
        await self._server.alarms.set(Address(tenant, scope), name, at_ms, text)

    async def cancel_alarm(self, tenant: str, scope: str, name: str) -> bool:
        return await self._server.alarms.cancel(Address(tenant, scope), name)

    def strata(self, name: str, tenant: str) -> StrataDatabase:
        service = self._server.strata
        assert service is not None  # the application knows whether it has declared one
        return service.database(name, tenant)

    def para(self, name: str, tenant: str) -> SyncedAuthority:
        service = self._server.para
        assert service is not None  # as above
        return service.authority(name, tenant)

    async def publish(self, tenant: str, scope: str, envelope: Any) -> Published:
        make = envelope if callable(envelope) else lambda _seq: envelope
        return await publish_to_port(self._server.port, Address(tenant, scope), make)
