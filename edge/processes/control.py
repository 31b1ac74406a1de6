"""The supervisor, as an edge knows it: asked where a tenant's process listens, and telling of those
it has started: for an alarm, whose handler runs at an edge, which would not dial otherwise; or for
another edge, with whose clients this one's may want to meet; asked to move a
scope, and telling of those that were moved.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from actors import link_wire as w
from actors.moving import decode_pins
from actors.pins import Pin
from actors.types import Address
from edge.processes.boot import Boot
from infra.errors import HoldfastError, TryLater
from infra.link.connection import Answerer, Link
from infra.link.frames import LinkError
from infra.link.sockets import dial

log = logging.getLogger("holdfast.control")

ANSWER_WAIT_S: Final = 30.0
MOVE_WAIT_S: Final = 60.0
AGAIN_S: Final = 0.1


class Control:
    """`run` keeps the link; fits infra.link.connection.Service. `wake` is called with a tenant,
    `moved` with all pins.
    """

    def __init__(
        self, boot: Boot, wake: Callable[[str], None], moved: Callable[[list[Pin]], None]
    ) -> None:
        self._boot = boot
        self._wake = wake
        self.awake: Callable[[str], None] = lambda _tenant: None  # a tenant's process was started
        self._moved = moved
        self._link: Link | None = None
        self._up = asyncio.Event()

    async def run(self) -> None:
        """For as long as the edge lives."""
        boot = self._boot
        while True:
            try:
                link = await dial(boot.control, boot.name, boot.key, self)
                self._link = link
                self._up.set()
                if boot.config.placement == "tenant":
                    for tenant in await self._ask("alarmed", None):  # while nobody was linked
                        self._wake(tenant)
                else:
                    self._moved(msgspec.convert(await self._ask("pins", None), list[Pin]))
                await link.wait_ended()
            except (HoldfastError, TimeoutError) as error:
                log.warning("no link to the supervisor error=%s", error)
            self._up.clear()
            await asyncio.sleep(AGAIN_S)

    async def find(self, tenant: str) -> str:
        """Where its process listens. Raises HoldfastError where it cannot be started."""
        place: str = await self._ask("acquire", tenant)
        return place

    async def running(self) -> list[str]:
        """The tenants that have a process now."""
        tenants: list[str] = await self._ask("running", None)
        return tenants

    async def move(self, address: Address, process: str) -> None:
        """Have the scope move. Raises HoldfastError."""
        await self._ask("move", Pin(*address, process), MOVE_WAIT_S)

    async def _ask(self, method: str, asked: Any, within_s: float = ANSWER_WAIT_S) -> Any:
        try:
            async with asyncio.timeout(ANSWER_WAIT_S):
                await self._up.wait()
        except TimeoutError as error:
            raise TryLater("the supervisor does not answer", retry_after_ms=1000) from error
        assert self._link is not None
        answer = await self._link.call(method, w.encode(asked), within_s=within_s)
        return w.decode_plain(answer)

    # -- infra.link.connection.Service -------------------------------------------------------------

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        tenant = {"alarmed": self._wake, "awake": self.awake}.get(method)
        if tenant is None and method != "pins":
            link.fail(stream, LinkError(f"no method {method[:40]!r}"))
            return None
        try:
            if tenant is not None:
                tenant(w.decode_text(payload))
            else:
                self._moved(decode_pins(payload))
            link.done(stream)
        except HoldfastError as error:
            link.fail(stream, error)
        return None

    def lost(self, link: Link) -> None:
        """Dialled again."""
