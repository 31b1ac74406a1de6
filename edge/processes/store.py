"""The one process of a server that speaks to its bucket, where several have scopes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from edge.config import Config
from edge.processes.boot import Boot
from infra.link.sockets import Listener
from infra.objects import ObjectStore, open_store, parse_url
from infra.stores.remote import RemoteStore
from infra.stores.serving import StoreService


def shares_store(config: Config) -> bool:
    """Whether the SDK is worth a process of its own; a directory needs none."""
    several = config.placement == "tenant" or config.actors > 1
    return several and bool(config.bucket) and parse_url(config.bucket).kind == "s3"


def store_of(boot: Boot) -> ObjectStore | None:
    """The bucket as an actor process has it; None where it opens it by itself."""
    if not boot.store:
        return None
    return RemoteStore(boot.config.bucket, boot.store, boot.name, boot.key)


async def serve_store(boot: Boot, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Until `stop` is set."""
    service = StoreService(open_store(boot.config.bucket), Path(boot.config.data_dir))
    listener = Listener(boot.name, boot.key, service)
    try:
        ready(await listener.listen(boot.store))
        await stop.wait()
    finally:
        await listener.aclose()
        await service.aclose()
