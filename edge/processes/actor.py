"""One actor process: a host of its share of the scopes, served to edges over links."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from actors.attendance import HostAttendance, ProcessLife
from actors.attendance_links import attendance_methods
from actors.host import Host
from actors.moving import Moving
from actors.serving import Serving
from actors.transfer_links import transfer_methods
from actors.transfers import Transfers
from edge.application import Application
from edge.hosting import host_settings
from edge.processes.boot import Boot
from edge.processes.store import store_of
from infra import clock
from infra.link.sockets import Listener
from infra.paths import tenant_home
from infra.process import limit_process, raise_open_files_limit

DUE: Final = "due.json"


class Due(msgspec.Struct):
    """What a tenant's process leaves behind at its end: when it must be there again."""

    tenant: str
    due_at: int | None


async def serve_scopes(
    boot: Boot, application: Application, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Until `stop` is set: then edges are told first, and everything is saved."""
    config = boot.config
    if boot.tenant is not None:
        limit_process(config.tenant_memory_bytes, config.tenant_open_files)
    open_max = raise_open_files_limit(config.open_scopes_max)
    home = "*" if boot.tenant is None else tenant_home(boot.tenant)
    process = boot.name if boot.tenant is None else f"tenants/{home}"
    placed = boot.placed()
    has, accepts = placed.has, placed.accepts
    if boot.tenant is not None:
        has = accepts = lambda address: address.tenant == boot.tenant
    settings = host_settings(config, application, open_max, process=process, owns=has, home=home)
    serving: Serving | None = None

    async def ring(address, name, due_at, payload, attempt):  # type: ignore[no-untyped-def]
        assert serving is not None
        await serving.ring(address, name, due_at, payload, attempt)

    on_alarm = ring if application.alarm_handlers else None
    store = store_of(boot)
    async with Host(Path(config.data_dir), settings, on_alarm=on_alarm, store=store) as host:
        idle_s = None if boot.tenant is None else config.tenant_idle_s
        life = ProcessLife(boot.name, clock.now_ms(), tenant=boot.tenant, idle_s=idle_s)
        transfers, moving = Transfers(host), Moving(host, placed)
        more = {
            **moving.methods,
            **attendance_methods(HostAttendance(host, life)),
            **transfer_methods(lambda: transfers),
        }
        serving = Serving(host, accepts, more=more)
        listener = Listener(boot.name, boot.key, serving, serving.greeted)
        due = Path(config.data_dir) / process / DUE
        try:
            if boot.tenant is not None:
                due.unlink(missing_ok=True)
            await moving.settle()
            ready(await listener.listen(boot.place))
            if boot.tenant is None:
                await stop.wait()
            else:
                await _until_idle(serving, life, config.tenant_idle_s, stop)
        finally:
            await serving.aclose()
            await listener.aclose()
            transfers.close()
            next_due = host.index.next_due(set())
            empty = not host.index.page(boot.tenant or "", "", "", 1)
    if boot.tenant is None:
        return
    if empty:  # somebody has looked, and nobody has written yet
        _leave_nothing(due.parent)
    else:
        due.write_bytes(msgspec.json.encode(Due(boot.tenant, next_due)))


def _leave_nothing(home: Path) -> None:
    """Remove the folder of a tenant who has no scope, unless it holds what is not ours to know."""
    for name in ("index.db", "index.db-wal", "index.db-shm", "lock"):
        (home / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        home.rmdir()


async def _until_idle(
    serving: Serving, life: ProcessLife, idle_s: float, stop: asyncio.Event
) -> None:
    """Until told to stop, or nothing has been open for so long and no edge objects."""
    since = clock.monotonic()
    life.idle_since = clock.now_ms()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.05, min(5.0, idle_s / 4))):
                await stop.wait()
        if serving.host.open_scopes:
            since, life.idle_since = clock.monotonic(), clock.now_ms()
        elif clock.monotonic() - since >= idle_s and await serving.sleep():
            return
