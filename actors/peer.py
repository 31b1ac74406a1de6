"""A process that has scopes, as an edge sees it: a link that is dialled again whenever it ends, and
the appends that wait for it, in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from infra import clock, ids
from infra.errors import Busy
from infra.link.channel import Refused
from infra.link.connection import Link, Service
from infra.link.errors import LinkLost
from infra.link.sockets import dial

if TYPE_CHECKING:
    from actors.remote import RemotePort, Sent

log = logging.getLogger("holdfast.peer")

DELAY_S_MIN: Final = 0.02
DELAY_S_MAX: Final = 1.0
WAITING_MAX: Final = 20_000  # requests
WAITING_BYTES_MAX: Final = 64 << 20
AGAIN_S: Final = 0.05


class Peer:
    """`link` is None while there is none. `up` is set while there is one."""

    def __init__(self, port: RemotePort, name: str, place: str, key: bytes, me: str) -> None:
        self.name = name
        self.link: Link | None = None
        self.up = asyncio.Event()
        self._port = port
        self._place = place
        self._key = key
        self._me = me
        self._waiting: deque[Sent] = deque()
        self._under_way = 0  # bytes of drafts that have no answer
        self._again: asyncio.TimerHandle | None = None

    async def run(self, service: Service | None) -> None:
        """Keep a link for as long as this task runs."""
        delay_s = DELAY_S_MIN
        while True:
            try:
                link = await dial(self._place, self._me, self._key, service)
            except (LinkLost, Refused) as error:
                log.debug("no link peer=%s error=%s", self.name, error)
                self._expire()
                await asyncio.sleep(delay_s * (0.5 + ids.random() / 2))
                delay_s = min(DELAY_S_MAX, delay_s * 2)
                continue
            delay_s = DELAY_S_MIN
            self.link = link
            self.up.set()
            self._port.connected(self)
            self.send_waiting()
            try:
                await link.wait_ended()
            finally:
                self.up.clear()
                self.link = None
                link.close()

    def put(self, request: Sent) -> None:
        """Send, or keep until it can be. Raises Busy, having taken nothing."""
        if self._under_way > WAITING_BYTES_MAX or len(self._waiting) >= WAITING_MAX:
            raise Busy(f"too much waits for {self.name}", retry_after_ms=100)
        self._under_way += request.size
        self._waiting.append(request)
        self.send_waiting()

    def answered(self, request: Sent) -> None:
        """It is over."""
        self._under_way -= request.size

    def repeat(self, request: Sent) -> None:
        """It was not answered: send it again, a little later."""
        self._waiting.append(request)
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

    def close(self) -> None:
        """No more of this."""
        if self._again is not None:
            self._again.cancel()
        if self.link is not None:
            self.link.close()
        while self._waiting:
            self._waiting.popleft().give_up()
