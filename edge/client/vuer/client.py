"""`RTCClient`: a room's store on an aiohttp socket that comes back by itself.

    async with await RTCClient.connect(url, "studio", "ann", token=token) as client:
        client.store.edit({"otype": "vector3.add", ...})
        client.store.commit()
        await client.settled()

Edits show at once in `client.store.graph`, are sent in order, sent again after a reconnect, and
brought back where a fail-over has lost them. Callbacks run on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

from actors.dialects.vuer.message import VuerRefusal
from edge.client.effects import SyncError
from edge.client.subscriptions import reconnect_delay
from edge.client.transport import Token, Transport
from edge.client.vuer.machine import FINAL_CODES, RtcMachine
from edge.client.vuer.store import GraphStore
from infra import clock, ids
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("holdfast.client")


class RTCClient:
    """Use `connect`. `closed` is why the server let this session go for good, if it did."""

    def __init__(
        self, url: str, room: str, store: GraphStore, token: Token = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.closed: SyncError | None = None
        self._machine = RtcMachine(store, clock.monotonic())
        self._transport = Transport(
            url, token, session, address=room_url(url, room, store.session_id)
        )
        self._tasks = TaskOwner()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._news: set[asyncio.Future[None]] = set()
        self._attempt = 0
        self._checks: dict[int, asyncio.Future[tuple[int, str]]] = {}
        self._machine.on_status = self._status

    @classmethod
    async def connect(
        cls, url: str, room: str, session_id: str, *, token: Token = None,
        store: GraphStore | None = None, session: aiohttp.ClientSession | None = None,
        on_error: Callable[[VuerRefusal], object] | None = None,
        on_members: Callable[[dict[str, Any]], object] | None = None,
    ) -> Self:  # fmt: skip
        """Return once the room is loaded. `url` is the server (`http://host:port`).

        `token`: text, or a callable asked before every connection, which may be async. `store`: one
        with unsent edits to go on with. `on_error` hears of messages the server refused. Raises
        SyncError where the server lets nobody in, ValueError for a session id that is none; how
        long to wait is the caller's to say, by `asyncio.timeout`.
        """
        if store is None:
            store = GraphStore(session_id, now_ms=clock.now_ms, nonce=ids.new_id()[:10])
        client = cls(url, room, store, token, session)
        client._bind(on_error, on_members)
        client._tasks.spawn(client._run(), name="rtc client")
        try:
            await client._until(lambda: client._machine.joined)
        except BaseException:
            await client.aclose()
            raise
        return client

    async def aclose(self) -> None:
        """Leave the room and close; what is pending stays in the store."""
        self._machine.leave()
        self._send()
        await asyncio.sleep(0)  # the writer takes it along
        await self._transport.drop()
        await self._tasks.aclose()
        if self._timer is not None:
            self._timer.cancel()
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # -- what callers use --------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether it is in the room now."""
        return self._machine.joined

    @property
    def members(self) -> dict[str, Any]:
        """The other sessions, with what each points at."""
        return dict(self._machine.members)

    def present(self, state: Any) -> None:
        """Tell the others what this session points at: any JSON up to 4 KiB; None takes it back."""
        self._machine.present(state)
        self._send()

    async def settled(self) -> None:
        """Wait until every committed message has its number. Raises SyncError once closed."""
        await self._until(lambda: not self.store.pending)

    async def reached(self, seq: int) -> None:
        """Wait until the room is known up to `seq`. Raises SyncError once closed."""
        await self._until(lambda: self.store.confirmed_seq >= seq)

    async def check(self) -> tuple[int, str]:
        """(serverSeq, state hash) of the room as the server has it; compare it with
        `store.confirmed.hash()` at that `store.confirmed_seq`. Raises SyncError once closed.
        """
        await self._until(lambda: self._machine.joined)
        number = len(self._checks) + 1
        answer = self._checks[number] = asyncio.get_running_loop().create_future()
        try:
            self._machine.check(number)
            self._send()
            await self._until(answer.done)
            seq, found = answer.result()
            return seq, found
        finally:
            del self._checks[number]

    # -- edge.client.transport.Peer ----------------------------------------------------------------

    def opened(self) -> None:
        """See Peer."""
        self._machine.opened(clock.monotonic())
        self._send()

    def received(self, text: str) -> None:
        """See Peer."""
        self._machine.received(text, clock.monotonic())
        if self._machine.joined:
            self._attempt = 0
        self._send()
        self._tell()

    def gone(self, refusal: SyncError | None, close_code: int | None) -> float | None:
        """See Peer."""
        self._machine.gone()
        if refusal is None and close_code in FINAL_CODES:
            said = self._machine.ended
            message = str(said) if said is not None else f"closed with {close_code}"
            refusal = SyncError(message, code=said.code if said is not None else "forbidden")
        if refusal is not None:
            self.closed = refusal
            self._tell()
            return None
        self._attempt += 1
        return reconnect_delay(self._attempt - 1, ids.random())

    # -- inside ------------------------------------------------------------------------------------

    def _bind(
        self, on_error: Callable[[VuerRefusal], object] | None,
        on_members: Callable[[dict[str, Any]], object] | None,
    ) -> None:  # fmt: skip
        def refused(refusal: VuerRefusal) -> None:
            if on_error is None:
                log.warning("refused code=%s error=%s", refusal.code, refusal)
            else:
                on_error(refusal)

        self._machine.on_error = refused
        if on_members is not None:
            self._machine.on_members = on_members
        self.store.bind(on_send=self._committed, on_sync=self._sync, on_error=refused)

    async def _run(self) -> None:
        self._arm()
        await self._transport.run(self)

    def _committed(self, message: Any) -> None:
        self._machine.flush(clock.monotonic())
        self._send()

    def _sync(self, since: int) -> None:
        self._machine.sync(since)
        self._send()

    def _send(self) -> None:
        from msgspec.json import encode

        outgoing, self._machine.outgoing = self._machine.outgoing, []
        for frame in outgoing:
            self._transport.send(encode(frame))
        self._arm()

    def _arm(self) -> None:
        due = self._machine.due()
        if self._timer is None or due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            delay_s = max(0.0, due - clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self._machine.tick(clock.monotonic()) and self.closed is None:
            self._tasks.spawn(self._transport.drop(), name="rtc drop")
        self._send()

    def _status(self, request_id: Any, seq: int, found: str) -> None:
        answer = self._checks.get(request_id)
        if answer is not None and not answer.done():
            answer.set_result((seq, found))

    def _tell(self) -> None:
        news, self._news = self._news, set()
        for future in news:
            if not future.done():
                future.set_result(None)

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self.closed is not None:
                raise self.closed
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._news.add(news)
            await news


def room_url(url: str, room: str, session_id: str) -> str:
    """The address of a room's socket on a server."""
    base = "ws" + url.rstrip("/").removeprefix("http")
    return f"{base}/rtc/{quote(room, safe='')}?{urlencode({'sessionId': session_id})}"
