"""`SyncHub`: AsterQL inside another application (asterql.md section 9), over any transport.

hub = SyncHub(ledger=InMemorySyncLedger(), authorize=lambda scope, user: True)
connection = hub.connect(send, user)      # send: callable(str), or an object with .send(str)
connection.handle_message(text)
await hub.publish("run:r1", lambda seq: {...})
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Self

from actors.dialects.asterql.keys import check_scope
from actors.port import Port
from actors.types import Address
from edge.auth import Action, Principal, PublishLimits
from edge.dialects.asterql.bus import InProcessBus, SyncBus
from edge.dialects.asterql.connection import Connection, project
from edge.dialects.asterql.ledger_port import LedgerPort
from edge.dialects.asterql.ledgers import (
    TENANT,
    ActorSyncLedger,
    InMemorySyncLedger,
    Make,
    Published,
    PublishError,
    ScopeView,
    SyncScopeLedger,
    publish_to_port,
)  # fmt: skip
from edge.dialects.asterql.views import ScopeRead, View, ViewContext, ViewResult
from edge.feed import Feeds
from edge.sending import CallableSink
from infra import clock, limits
from infra.errors import AuthError, ProtocolError
from infra.tasks import TaskOwner

__all__ = ["HubConnection", "PublishError", "Published", "SyncHub", "publish_to_port"]

log = logging.getLogger("holdfast.hub")
Authorize = Callable[[str, Any], "bool | Awaitable[bool]"]
Send = Callable[[str], Any]


class SyncHub:
    """Connections over a ledger. Its ledger is started at the first use, or by `async with`."""

    def __init__(
        self,
        ledger: SyncScopeLedger | None = None,
        authorize: Authorize | None = None,
        *,
        authorize_publish: Authorize | None = None,
        bus: SyncBus | None = None,
        materialize: bool = True,
        page_size: int = limits.PAGE_ENTRIES_MAX,
        max_queue_frames: int = limits.QUEUE_FRAMES_MAX,
        max_queue_bytes: int = limits.QUEUE_BYTES_MAX,
    ) -> None:
        self.ledger = ledger or InMemorySyncLedger(materialize=materialize)
        self.tenant: str = getattr(self.ledger, "tenant", TENANT)
        self.tasks = TaskOwner()
        self.publish_limits = PublishLimits()
        self.page_entries = page_size
        self.max_queue_frames = max_queue_frames
        self.max_queue_bytes = max_queue_bytes
        self.views: dict[str, View] = {}
        self._authorize = authorize
        self._authorize_publish = authorize_publish
        self._connections: set[HubConnection] = set()
        self._closed = False
        self._started = False
        self._starting = asyncio.Lock()
        self.port: Port
        if isinstance(self.ledger, ActorSyncLedger):
            self.port = self.ledger.host
        else:
            self.port = LedgerPort(self.ledger, bus or InProcessBus())
        self.feeds = Feeds(self.port, project)

    async def start(self) -> None:
        """Open the ledger, where it has something to open."""
        if self._started:
            return
        async with self._starting:  # whoever comes meanwhile waits for it
            start = getattr(self.ledger, "start", None)
            if start is not None and not self._started:
                await start()
            self._started = True

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def connect(self, send: Send | Any, user: Any = None) -> HubConnection:
        """A client.

        `send` takes one frame as text and may be async; what it raises ends the connection.
        """
        call: Send = send.send if hasattr(send, "send") else send
        connection = HubConnection(self, call, user)
        self._connections.add(connection)
        return connection

    def forget(self, connection: HubConnection) -> None:
        """The connection has ended."""
        self._connections.discard(connection)

    async def publish(self, scope: str, make: Make) -> Published:
        """Append what `make(seq)` returns; delivered to every subscriber. Raises PublishError."""
        if self._closed:
            raise PublishError("closed", "the hub is closed")
        try:
            check_scope(scope)
        except ProtocolError as error:
            raise PublishError("bad_envelope", str(error)) from error
        await self.start()
        return await publish_to_port(self.port, Address(self.tenant, scope), make)

    async def read_scope(self, scope: str) -> ScopeView:
        """The scope's entities at one seq, with their hash."""
        await self.start()
        return await self.ledger.snapshot(scope)

    async def clear(self, scope: str) -> None:
        """Begin a new history; subscribers are told to start again."""
        await self.start()
        await self.port.clear(Address(self.tenant, scope))

    def register_view(self, view: View) -> None:
        """Offer a view under its id."""
        self.views[view.id] = view

    async def read_view(self, id: str, params: dict[str, Any], user: Any = None) -> ViewResult:
        """Run a registered view; KeyError where there is none. `ctx.read` obeys `authorize`."""

        async def read(scope: str) -> ScopeRead:
            if not await self._allowed(self._authorize, scope, user):
                raise PublishError("forbidden", f"no read access to {scope!r}")
            found = await self.read_scope(scope)
            return ScopeRead(found.epoch, found.seq, found.entities)

        return await self.views[id].load(params, ViewContext(read))

    async def aclose(self) -> None:
        """Close every connection, then the ledger; later publishes raise PublishError `closed`."""
        if self._closed:
            return
        self._closed = True
        for connection in list(self._connections):
            connection.close()
        await self.tasks.aclose()
        if isinstance(self.port, LedgerPort):
            await self.port.aclose()
        await self.ledger.aclose()

    # -- what connections need (Environment) -------------------------------------------------------

    def now_ms(self) -> int:
        return clock.now_ms()

    def monotonic(self) -> float:
        return clock.monotonic()

    def authorize(self, principal: Principal, scope: str, action: Action) -> Awaitable[bool]:
        hook = self._authorize if action is Action.READ else self._authorize_publish
        if hook is None and action is Action.READ:
            hook = _everyone
        return self._allowed(hook, scope, principal.claims["user"])

    async def _allowed(self, hook: Authorize | None, scope: str, user: Any) -> bool:
        if hook is None:
            return False
        await self.start()
        try:
            async with asyncio.timeout(limits.AUTHORIZE_WAIT_S):
                answer = hook(scope, user)
                return (await answer if inspect.isawaitable(answer) else answer) is True
        except Exception:  # the application's code: whatever is wrong with it denies
            log.exception("authorize failed scope=%s", scope)
            return False

    async def authenticate(self, token: str, tenant: str | None) -> Principal:
        raise AuthError("this connection's user is given by its application")


def _everyone(_scope: str, _user: Any) -> bool:
    return True


class HubConnection:
    """One client of a hub, over a `send` callable."""

    def __init__(self, hub: SyncHub, send: Send, user: Any) -> None:
        self._hub = hub
        self._sink = CallableSink(
            send, hub.tasks, lambda _code, _reason: self._over(),
            frames_max=hub.max_queue_frames, bytes_max=hub.max_queue_bytes,
        )  # fmt: skip
        principal = Principal(id=str(user), tenant=hub.tenant, claims={"user": user})
        self._inner = Connection(hub, self._sink, principal)

    def handle_message(self, text: str | bytes) -> None:
        """One inbound frame. Never raises; frames are handled in order."""
        self._inner.handle(text)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End the connection; may be called twice."""
        self._sink.close(code, reason)

    async def wait_closed(self) -> None:
        """Returns once closed, by whichever side."""
        await self._sink.wait_closed()

    @property
    def closed(self) -> bool:
        return self._inner.closed

    def _over(self) -> None:
        self._inner.close()
        self._hub.forget(self)
