"""Who may read and write a key, and what of an object a reader is shown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import msgspec

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.values import check_json
from edge.auth import Action, Allow, Deny, Principal, resolve
from edge.dialects.para.kinds import SyncedKind
from infra import limits

log = logging.getLogger("holdfast.para")

Wish = Literal["read", "write", "presence"]
_ACTIONS: Final = {"read": Action.READ, "write": Action.WRITE, "presence": Action.READ}


@dataclass(frozen=True, slots=True)
class Allowed:
    """The action may go on; `project(value)` makes of an object what this user is shown of it."""

    project: Callable[[Any], Any] | None = None


Answer = Allowed | Allow | Deny | bool
KeyAuthorize = Callable[[Principal, str, Wish], "Awaitable[Answer] | Answer"]
"""`authorize(user, key, action)`; for `presence` the key is the channel."""


class ScopeAuthorize(Protocol):
    """The server's own hook; edge.runtime.Runtime fits."""

    async def may(self, principal: Principal, scope: str, action: Action) -> bool: ...


class Doorkeeper:
    """Asks the application where it decides by key, else the server by scope."""

    def __init__(self, hook: KeyAuthorize | None, fallback: ScopeAuthorize | None) -> None:
        self._hook = hook
        self._fallback = fallback

    async def ask(self, user: Principal, scope: str, key: str, wish: Wish) -> Allowed | None:
        """None where the user may not. Never raises: what goes wrong denies."""
        try:
            async with asyncio.timeout(limits.AUTHORIZE_WAIT_S):
                if self._hook is not None:
                    answer = await resolve(self._hook(user, key, wish))
                elif self._fallback is not None:
                    answer = await self._fallback.may(user, scope, _ACTIONS[wish])
                else:
                    answer = False
        except Exception:  # user code: whatever is wrong with it must not open a door
            log.exception("authorize hook failed action=%s", wish)
            return None
        if isinstance(answer, Allowed):
            return answer
        project = getattr(answer, "project", None)
        if callable(project):
            return Allowed(project)
        return Allowed() if answer is True or isinstance(answer, Allow) else None


class View:
    """What one user is shown of one key."""

    __slots__ = ("allowed", "key", "kind", "user")

    def __init__(self, kind: SyncedKind, user: Principal, key: str, allowed: Allowed) -> None:
        self.kind = kind
        self.user = user
        self.key = key
        self.allowed = allowed

    @property
    def whole(self) -> bool:
        """Whether everything is shown, as to everybody else of whom this is true."""
        return self.allowed.project is None and not self.kind.visible

    def show(self, envelope: SyncEnvelope) -> SyncEnvelope | None:
        """The envelope with what the user may see; None where that could not be made."""
        if envelope.deleted or self.whole:
            return envelope
        value = envelope.value
        try:
            value = self.kind.visible.strip(value, self.hidden(value))
            if self.allowed.project is not None:
                own = msgspec.json.decode(msgspec.json.encode(value))  # user code may change it
                value = msgspec.to_builtins(self.allowed.project(own))
                check_json(value)
        except Exception:  # user code: what cannot be projected is not shown
            log.exception("projection failed")
            return None
        return msgspec.structs.replace(envelope, value=value)

    def hidden(self, value: Any) -> tuple[str, ...]:
        """Paths of fields that are not shown."""
        return self.kind.visible.hidden(self.user, self.key, value)
