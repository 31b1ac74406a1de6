"""`remote-update-available` over a WebSocket, so that nobody has to poll.

A notice is a hint: it says that an exchange will find something, and may name a few records. What
has gathered while a socket is slow goes out as one, so memory is bounded whatever the reader does.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import msgspec
from aiohttp import WSCloseCode, web

from actors.clocks import HLC, later
from actors.dialects.starkeep.channels import RECORDS, Channel, table_of
from actors.dialects.starkeep.fold import split_ref
from actors.types import Address, Batch, Bounds, Entry
from edge.auth import Principal
from edge.requests import server_of

IDS_MAX: Final = 100  # named in one notice
HEARTBEAT_S: Final = 30.0
SEND_WAIT_S: Final = 30.0
EXPIRED: Final = 4401
SOCKETS: web.AppKey[set[Any]] = web.AppKey("starkeep_sockets", set)


class Gatherer:
    """What has changed on a channel since the last notice; fits actors.types.Tap."""

    def __init__(self, channel: Channel) -> None:
        self.ready = asyncio.Event()
        self._channel = channel
        self._ids: dict[str, None] = {}
        self._stamp: HLC | None = None

    def deliver(self, batch: Batch) -> None:
        """Entries were released."""
        for entry in batch.entries:
            self._add(entry)

    def durable(self, bounds: Bounds) -> None:
        """Nothing to tell."""

    def moved(self, bounds: Bounds) -> None:
        """Something changed that came in no batch: whoever follows should look."""
        self.ready.set()

    def reset(self, bounds: Bounds) -> None:
        """A new history: whoever follows should look."""
        self.ready.set()

    def _add(self, entry: Entry) -> None:
        if entry.kind not in ("rec", "row", "del") or entry.ref is None:
            return
        coll, id = split_ref(entry.ref)
        if coll == RECORDS:
            if not self._channel.records:
                return
            if len(self._ids) < IDS_MAX:
                self._ids[id] = None
        elif not self._channel.takes(table_of(coll)[0]):
            return
        assert entry.origin is not None and entry.stamp1 is not None and entry.stamp2 is not None
        stamp = HLC(entry.stamp1, entry.stamp2, entry.origin)
        if self._stamp is None or later(stamp, self._stamp):
            self._stamp = stamp
        self.ready.set()

    def take(self) -> bytes:
        """The notice, and begin anew."""
        self.ready.clear()
        notice = {
            "eventType": "remote-update-available", "recordIds": list(self._ids),
            "timestamp": self._stamp or HLC(0, 0, ""),
        }  # fmt: skip
        self._ids, self._stamp = {}, None
        return msgspec.json.encode(notice)


async def serve_notices(
    request: web.Request, address: Address, channel: Channel, principal: Principal
) -> web.WebSocketResponse:
    """One socket, to its end."""
    server = server_of(request)
    server.admit()
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=1024, compress=False)
    await socket.prepare(request)
    request.app[SOCKETS].add(socket)
    gatherer = Gatherer(channel)
    await server.port.subscribe(address, gatherer)
    try:
        sender = server.runtime.tasks.spawn(_send(socket, gatherer), name="starkeep notices")
        try:
            async with asyncio.timeout(_seconds_left(principal, server.runtime.now_ms())):
                async for _ in socket:  # nothing is expected; reading notices the end
                    pass
        except TimeoutError:
            await socket.close(code=EXPIRED, message=b"the token expired")
        finally:
            sender.cancel()
    finally:
        server.port.unsubscribe(address, gatherer)
        request.app[SOCKETS].discard(socket)
    return socket


async def _send(socket: web.WebSocketResponse, gatherer: Gatherer) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):
        while True:
            await gatherer.ready.wait()
            try:
                async with asyncio.timeout(SEND_WAIT_S):
                    await socket.send_str(gatherer.take().decode())
            except TimeoutError:
                await socket.close(code=WSCloseCode.TRY_AGAIN_LATER)
                return


def _seconds_left(principal: Principal, now_ms: int) -> float | None:
    if principal.expires_at_ms is None:
        return None
    return max(0.0, (principal.expires_at_ms - now_ms) / 1000)


async def close_sockets(app: web.Application) -> None:
    """At the end of the server."""
    sockets: set[Any] = app[SOCKETS]
    for socket in list(sockets):
        await socket.close(code=WSCloseCode.GOING_AWAY, message=b"going away")
