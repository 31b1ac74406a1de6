"""A process that has scopes, as an edge sees it: a link that is dialled again whenever it ends, and
the appends that wait for it, in order.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from infra import clock, ids
from infra.errors import Busy, HoldfastError
from infra.link.connection import Link, Service
from infra.link.errors import LinkLost
from infra.link.sockets import dial

if TYPE_CHECKING:
    from actors.remote import RemotePort
    from actors.sent import Sent
    from actors.types import Address

log = logging.getLogger("holdfast.peer")

DELAY_S_MIN: Final = 0.02
DELAY_S_MAX: Final = 1.0
WAITING_MAX: Final = 20_000  # requests
WAITING_BYTES_MAX: Final = 64 << 20
AGAIN_S: Final = 0.05

Find = Callable[[str], Awaitable[str]]  # a member's name to where it listens


class Peer:
    """`link` is None while there is none. `up` is set while there is one."""

    def __init__(
        self, port: RemotePort, name: str, find: Find, key: bytes, me: str, *, lazy: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._tls = tls
        self.asleep = False  # it said that it is about to end, and to be found again when wanted
        self.wanted = asyncio.Event()
        if not lazy:
            self.wanted.set()
        self.link: Link | None = None
        self.up = asyncio.Event()
        self._port = port
        self._find = find
        self._lazy = lazy
        self._key = key
        self._me = me
        self._waiting: deque[Sent] = deque()
        self._requests = 0
        self._under_way = 0  # bytes of drafts that have no answer
        self._again: asyncio.TimerHandle | None = None

    async def run(self, service: Service | None) -> None:
        """Keep a link for as long as this task runs."""
        delay_s = DELAY_S_MIN
        while True:
            await self.wanted.wait()
            try:
                place = await self._find(self.name)
                link = await dial(place, self._me, self._key, service, self._tls)
            except (HoldfastError, TimeoutError) as error:
                log.debug("no link peer=%s error=%s", self.name, error)
                self._expire()
                await asyncio.sleep(delay_s * (0.5 + ids.random() / 2))
                delay_s = min(DELAY_S_MAX, delay_s * 2)
                continue
            delay_s = DELAY_S_MIN
            self.link = link
            self.asleep = False
            if self._lazy:
                self.wanted.clear()
            self.up.set()
            self._port.connected(self)
            self.send_waiting()
            try:
                await link.wait_ended()
            finally:
                self.up.clear()
                self.link = None
                link.close()
                if not self.asleep or self._waiting:
                    self.wanted.set()

    def put(self, request: Sent) -> None:
        """Send, or keep until it can be. Raises Busy, having taken nothing."""
        if self._under_way > WAITING_BYTES_MAX or len(self._waiting) >= WAITING_MAX:
            raise Busy(f"too much waits for {self.name}", retry_after_ms=100)
        self._under_way += request.size
        self._requests += 1
        self._waiting.append(request)
        self.wake()
        self.send_waiting()

    @property
    def idle(self) -> bool:
        """Whether nobody waits for an answer to an append."""
        return not self._requests

    def wake(self) -> None:
        """Somebody wants something of it."""
        if self.link is None or not self.link.open:
            self.wanted.set()

    def answered(self, request: Sent) -> None:
        """It is over."""
        self._under_way -= request.size
        self._requests -= 1

    def adopt(self, request: Sent) -> None:
        """It went to another process first; `repeat` follows."""
        self._under_way += request.size
        self._requests += 1

    def take(self, address: Address) -> list[Sent]:
        """What waits for a scope that is another's now, in order."""
        taken = [request for request in self._waiting if request.address == address]
        if taken:
            self._waiting = deque(one for one in self._waiting if one.address != address)
        return taken

    def repeat(self, request: Sent) -> None:
        """It was not answered: send it again, a little later."""
        self._waiting.append(request)
        self.wake()
        if self._again is None:
            loop = asyncio.get_running_loop()
            self._again = loop.call_later(AGAIN_S, self._send_again)

    def _send_again(self) -> None:
        self._again = None
        self._expire()
        self.send_waiting()

    def send_waiting(self) -> None:
        """Everything that waits, in order."""
        while self._waiting and self.link is not None and self.link.open and self._again is None:
            request = self._waiting.popleft()
            try:
                self.link.ask("append", request.payload, request)
            except (LinkLost, Busy):
                self._waiting.appendleft(request)
                return

    def _expire(self) -> None:
        now = clock.monotonic()
        while self._waiting and self._waiting[0].until <= now:
            self._waiting.popleft().give_up()

    def dismiss(self) -> list[Sent]:
        """It has gone for good: what waits for it, for others to take. Whoever waits for a link
        looks again who has the scope.
        """
        if self._again is not None:
            self._again.cancel()
        waiting = list(self._waiting)
        self._waiting.clear()
        if self.link is not None:
            self.link.close()
            self.link = None
        self.up.set()
        return waiting

    def close(self) -> None:
        """No more of this."""
        for request in self.dismiss():
            request.give_up()
        self.up.clear()
