"""The client's one way to the network: an aiohttp session, its socket, its requests.

Knows nothing of the protocol: text frames go up to a `Peer`, bytes come down to `send`. aiohttp is
imported with the first connection, so that importing the client costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from edge.client.effects import SyncError
from edge.client.views import socket_url
from infra.errors import ProtocolError
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("holdfast.client")

Token = str | Callable[[], str | Awaitable[str | None] | None] | None

FRAME_BYTES_IN_MAX: Final = 64 << 20  # an `events` frame holds one envelope more than its limit
CONNECT_WAIT_S: Final = 20.0
HTTP_WAIT_S: Final = 60.0
CLOSE_WAIT_S: Final = 2.0
_REFUSED_STATUS = (401, 403)
_CLOSE_UNAUTHENTICATED = 4401


class Peer(Protocol):
    """Who hears what happens on the socket; all calls are on the event loop, in order."""

    def opened(self) -> None:
        """A socket is open."""

    def received(self, text: str) -> None:
        """A text frame came. Raises ProtocolError to have the socket closed."""

    def gone(self, refusal: SyncError | None, close_code: int | None) -> float | None:
        """The socket is closed, or never opened: seconds until the next attempt, None to end.

        `refusal` is given where the server did not accept the token and another is not to be had.
        """


class Transport:
    """Sockets one after the other, and GET requests, with the same token."""

    def __init__(
        self, base: str, token: Token, session: aiohttp.ClientSession | None, *,
        address: str | None = None,
    ) -> None:  # fmt: skip
        """`address` is the socket's where it is not AsterQL's below `base`."""
        self._base = base
        self._address = address or socket_url(base)
        self._token = token
        self._session = session
        self._own_session = session is None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._outgoing: deque[bytes] = deque()
        self._outgoing_ready = asyncio.Event()

    def send(self, frame: bytes) -> None:
        """Queue a text frame for the socket; lost where that one ends first."""
        self._outgoing.append(frame)
        self._outgoing_ready.set()

    async def drop(self) -> None:
        """Close the socket, in a bounded time; `run` goes on with the next."""
        if self._socket is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WAIT_S):
                    await self._socket.close()

    async def run(self, peer: Peer) -> None:
        """Connect, read until it breaks, wait, again, until the peer says no."""
        while True:
            refusal, close_code = await self._connect_and_read(peer)
            self._outgoing.clear()
            # A callable may have a better token next time; the same text would be refused again.
            delay_s = peer.gone(None if callable(self._token) else refusal, close_code)
            if delay_s is None:
                return
            await asyncio.sleep(delay_s)

    async def get_json(self, url: str) -> tuple[int, Any]:
        """Status and decoded body. Raises SyncError, retryable, where no answer came."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=HTTP_WAIT_S)
        try:
            headers = await self._headers()
            async with self._http().get(url, headers=headers, timeout=timeout) as response:
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = SyncError(f"GET {url}: {error}", code="unavailable")
            failure.retryable = True
            raise failure from error

    async def aclose(self) -> None:
        """Close the session where it is ours."""
        if self._own_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def _connect_and_read(self, peer: Peer) -> tuple[SyncError | None, int | None]:
        """One socket from start to end: the refusal if it ended for want of rights, close code."""
        import aiohttp

        try:
            async with asyncio.timeout(CONNECT_WAIT_S):
                socket = await self._connect()
        except aiohttp.WSServerHandshakeError as error:
            log.info("connect refused url=%s status=%d", self._base, error.status)
            if error.status in _REFUSED_STATUS:
                text = f"the server refused the token ({error.status})"
                return SyncError(text, code="forbidden"), None
            return None, None
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            log.info("connect failed url=%s error=%s", self._base, error)
            return None, None
        async with socket, TaskOwner() as tasks:
            self._socket = socket
            tasks.spawn(self._write(socket), name="client writer")
            try:
                await self._read(socket, peer)
            finally:
                self._socket = None
        refusal = None
        if socket.close_code == _CLOSE_UNAUTHENTICATED:
            refusal = SyncError("the server does not accept the token", code="unauthenticated")
        return refusal, socket.close_code

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        import aiohttp

        return await self._http().ws_connect(
            self._address,
            headers=await self._headers(),
            max_msg_size=FRAME_BYTES_IN_MAX,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_WAIT_S),
            autoping=True,
            heartbeat=None,  # the protocol has its own ping
            compress=0,
        )

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, peer: Peer) -> None:
        import aiohttp

        peer.opened()
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                try:
                    peer.received(message.data)
                except ProtocolError as error:
                    log.warning("bad frame url=%s error=%s", self._base, error)
                    return

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """The one sender of a socket; awaiting the drain is the back-pressure."""
        import aiohttp

        while True:
            while self._outgoing:
                try:
                    await socket.send_frame(self._outgoing.popleft(), aiohttp.WSMsgType.TEXT)
                except (ConnectionError, RuntimeError):
                    return  # the reader notices too, and the next socket follows
            self._outgoing_ready.clear()
            await self._outgoing_ready.wait()

    def _http(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    async def _headers(self) -> dict[str, str]:
        try:
            token = self._token() if callable(self._token) else self._token
            if inspect.isawaitable(token):
                token = await token
        except Exception as error:  # the caller's code: it is asked again at the next attempt
            log.exception("token callable failed")
            raise OSError("the token callable failed") from error
        return {} if token is None else {"Authorization": f"Bearer {token}"}
