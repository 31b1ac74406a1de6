"""Where a link is listened for and dialled: `unix:PATH`, `tcp:HOST:PORT`, `tls:HOST:PORT`."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from infra import ids
from infra.errors import ConfigError
from infra.link.channel import Channel
from infra.link.connection import Link, Service
from infra.link.errors import LinkLost
from infra.link.frames import NONCE_BYTES

CONNECT_WAIT_S: Final = 5.0
LINKS_MAX: Final = 4096  # that one listener holds at once
_UNIX_PATH_BYTES_MAX: Final = 107


class Place(NamedTuple):
    """A parsed address; `path` of a Unix socket, else `host` and `port`."""

    scheme: str
    path: str = ""
    host: str = ""
    port: int = 0


def parse_place(text: str) -> Place:
    """Raises ConfigError with the forms there are."""
    scheme, colon, rest = text.partition(":")
    if scheme == "unix" and rest:
        if len(os.fsencode(rest)) > _UNIX_PATH_BYTES_MAX:
            raise ConfigError(f"{rest}: the path of a Unix socket has at most 107 bytes")
        return Place("unix", path=rest)
    host, _, port = rest.rpartition(":")
    if scheme in ("tcp", "tls") and colon and host and port.isdigit() and int(port) < 65_536:
        return Place(scheme, host=host.strip("[]"), port=int(port))
    raise ConfigError(f"{text!r} is no address of a link: unix:PATH, tcp:HOST:PORT, tls:HOST:PORT")


class Listener:
    """Takes links until closed; `links` are those that are open."""

    def __init__(
        self, name: str, key: bytes, service: Service,
        greeted: Callable[[Link], None] | None = None,
    ) -> None:  # fmt: skip
        self._greeted = greeted
        self.links: set[Link] = set()
        self.place = ""
        self._name = name
        self._key = key
        self._service = service
        self._server: asyncio.Server | None = None

    async def listen(self, place: str, tls: ssl.SSLContext | None = None) -> str:
        """Begin; the address to dial (with the port the system chose, where it was 0)."""
        parsed = parse_place(place)
        loop = asyncio.get_running_loop()
        if parsed.scheme == "unix":
            _forget(parsed.path)
            before = os.umask(0o177)  # nobody else may connect
            try:
                self._server = await loop.create_unix_server(self._make, parsed.path)
            finally:
                os.umask(before)
            self.place = place
            return place
        if parsed.scheme == "tls" and tls is None:
            raise ConfigError("tls: needs a certificate and its key")
        self._server = await loop.create_server(
            self._make, parsed.host, parsed.port, ssl=tls if parsed.scheme == "tls" else None,
            reuse_address=True,
        )  # fmt: skip
        port = self._server.sockets[0].getsockname()[1]
        self.place = f"{parsed.scheme}:{parsed.host}:{port}"
        return self.place

    def _make(self) -> Link:
        channel = Channel(self._name, self._key, ids.random_bytes(NONCE_BYTES), dialled=False)
        link = Link(channel, _Counted(self._service, self.links))
        link.on_ready = self._greeted
        if len(self.links) >= LINKS_MAX:
            link.close()
        self.links.add(link)
        return link

    async def aclose(self) -> None:
        """Take no more, and end those there are."""
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.close()
        if self._server is not None:
            await self._server.wait_closed()


class _Counted:
    """A service that forgets a lost link in the listener's set as well."""

    def __init__(self, inner: Service, links: set[Link]) -> None:
        self._links = links
        self._inner = inner
        self.opened = inner.opened

    def lost(self, link: Link) -> None:
        self._links.discard(link)
        self._inner.lost(link)


def _forget(path: str) -> None:
    """A killed listener leaves its name behind."""
    Path(path).unlink(missing_ok=True)


async def dial(
    place: str, name: str, key: bytes, service: Service | None = None,
    tls: ssl.SSLContext | None = None, *, prepare: Callable[[Link], None] | None = None,
) -> Link:  # fmt: skip
    """A greeted link. Raises LinkLost where nobody answers, Refused where the key is another."""
    parsed = parse_place(place)
    loop = asyncio.get_running_loop()

    def make() -> Link:
        channel = Channel(name, key, ids.random_bytes(NONCE_BYTES), dialled=True)
        link = Link(channel, service)
        if prepare is not None:
            prepare(link)
        return link

    try:
        async with asyncio.timeout(CONNECT_WAIT_S):
            if parsed.scheme == "unix":
                _, link = await loop.create_unix_connection(make, parsed.path)
            else:
                transport, link = await loop.create_connection(
                    make, parsed.host, parsed.port, ssl=tls if parsed.scheme == "tls" else None
                )
                raw = transport.get_extra_info("socket")
                if raw is not None:
                    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await asyncio.shield(link.ready)
            except BaseException:
                link.close()
                raise
    except (OSError, TimeoutError) as error:
        raise LinkLost(f"nobody answers at {place}: {error or 'in time'}") from error
    return link
