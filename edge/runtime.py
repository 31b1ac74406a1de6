"""What every surface of a running server shares:
the port, the feeds, the two access hooks, the clock.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable

from actors.port import Port
from edge.access import Access
from edge.auth import Action, Allow, Credentials, Principal, PublishLimits, decide, recognise
from edge.dialects.asterql.connection import project
from edge.feed import Feeds
from edge.tenancy import Tenancy
from infra import clock, limits
from infra.errors import AuthError
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.auth")


class Runtime:
    """Fits edge.dialects.asterql.connection.Environment."""

    def __init__(
        self,
        port: Port,
        access: Access,
        publish_limits: PublishLimits,
        tenancy: Tenancy,
        *,
        page_entries: int = limits.PAGE_ENTRIES_MAX,
    ) -> None:
        self.port = port
        self.feeds = Feeds(port, project)
        self.tasks = TaskOwner()
        self.access = access
        self.publish_limits = publish_limits
        self.tenancy = tenancy
        self.page_entries = page_entries
        self.stopping = False

    def now_ms(self) -> int:
        return clock.now_ms()

    def monotonic(self) -> float:
        return clock.monotonic()

    def authorize(self, principal: Principal, scope: str, action: Action) -> bool | Awaitable[bool]:
        """Whether the principal may; at once where the hook is a plain function."""
        hook = self.access.authorize
        try:
            answer = hook(principal, scope, action, None)
        except Exception:  # user code: whatever is wrong with it must not open a door
            log.exception("authorize hook failed action=%s", action)
            return False
        if inspect.isawaitable(answer):
            return self._await_decision(answer)
        return answer is True or isinstance(answer, Allow)

    async def _await_decision(self, answer: Awaitable[object]) -> bool:
        try:
            async with asyncio.timeout(limits.AUTHORIZE_WAIT_S):
                decision = await answer
        except Exception:  # as above; a hook that takes too long denies as well
            log.exception("authorize hook failed")
            return False
        return decision is True or isinstance(decision, Allow)

    async def may(self, principal: Principal, scope: str, action: Action) -> bool:
        """`authorize`, awaited."""
        async with asyncio.timeout(limits.AUTHORIZE_WAIT_S):
            return isinstance(await decide(self.access.authorize, principal, scope, action), Allow)

    async def authenticate(self, token: str, tenant: str | None) -> Principal:
        """Who the token of an `auth` frame names, on a socket at an address of `tenant`."""
        return await self.recognise(Credentials(token=token, tenant=tenant))

    async def recognise(self, credentials: Credentials, *, anywhere: bool = False) -> Principal:
        """Who sends these credentials. Raises AuthError, never anything else.

        `anywhere`: edge.tenancy.Tenancy.admit.
        """
        try:
            async with asyncio.timeout(limits.AUTHORIZE_WAIT_S):
                principal = await recognise(self.access.authenticate, credentials)
            self.tenancy.admit(principal.tenant, credentials.tenant, anywhere=anywhere)
            return principal
        except AuthError:
            raise
        except Exception as error:  # user code or a slow identity provider
            log.exception("authenticate hook failed")
            raise AuthError("the authenticate hook failed") from error
