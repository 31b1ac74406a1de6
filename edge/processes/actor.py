"""One actor process: a host of its share of the scopes, served to edges over links."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from actors.host import Host
from actors.serving import Serving
from edge.application import Application
from edge.hosting import host_settings
from edge.processes.boot import Boot
from infra.link.sockets import Listener
from infra.process import raise_open_files_limit


async def serve_scopes(
    boot: Boot, application: Application, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Until `stop` is set: then edges are told first, and everything is saved."""
    config = boot.config
    open_max = raise_open_files_limit(config.open_scopes_max)
    settings = host_settings(config, application, open_max, process=boot.name, owns=boot.owns)
    serving: Serving | None = None

    async def ring(address, name, due_at, payload, attempt):  # type: ignore[no-untyped-def]
        assert serving is not None
        await serving.ring(address, name, due_at, payload, attempt)

    on_alarm = ring if application.alarm_handlers else None
    async with Host(Path(config.data_dir), settings, on_alarm=on_alarm) as host:
        serving = Serving(host, boot.owns)
        listener = Listener(boot.name, boot.key, serving, serving.greeted)
        try:
            ready(await listener.listen(boot.members[boot.name]))
            await stop.wait()
        finally:
            await serving.aclose()
            await listener.aclose()
