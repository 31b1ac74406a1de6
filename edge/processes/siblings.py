"""What the other edges of this server count, for a scrape that met one of them: they share a port,
so whoever asks reaches any one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from actors import link_wire as w
from edge.metrics import EdgeCounts
from infra.errors import HoldfastError
from infra.link.connection import Answerer, Link
from infra.link.frames import LinkError
from infra.link.sockets import Listener, dial

COUNT_WAIT_S: Final = 2.0  # for each, so that one that hangs keeps no scrape for long


class Siblings:
    """Fits infra.link.connection.Service. `places` are where the edges listen, by name."""

    def __init__(
        self, name: str, places: Mapping[str, str], key: bytes, counts: Callable[[], EdgeCounts]
    ) -> None:
        self._name = name
        self._places = places
        self._key = key
        self._counts = counts
        self._listener = Listener(name, key, self)

    async def listen(self) -> None:
        """Begin to answer the others."""
        await self._listener.listen(self._places[self._name])

    async def others(self) -> list[EdgeCounts]:
        """Of every edge that answers; one that is just being started again has nothing yet."""
        found = []
        for name in self._places:
            if name == self._name:
                continue
            with contextlib.suppress(HoldfastError, TimeoutError):
                async with asyncio.timeout(COUNT_WAIT_S):
                    found.append(await self._of(name))
        return found

    async def _of(self, name: str) -> EdgeCounts:
        link = await dial(self._places[name], self._name, self._key)
        try:
            answer = await link.call("counts", w.encode(None), within_s=COUNT_WAIT_S)
            return msgspec.msgpack.decode(answer, type=EdgeCounts)
        finally:
            link.close()

    # -- infra.link.connection.Service -----------------------------------------------------------

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        if method == "counts":
            link.done(stream, w.encode(self._counts()))
        else:
            link.fail(stream, LinkError(f"no method {method[:40]!r}"))
        return None

    def lost(self, link: Link) -> None:
        """It asked what it wanted."""

    async def aclose(self) -> None:
        """Answer nobody any more."""
        await self._listener.aclose()
