"""Who is asking, and may they: the words every surface shares, and two ready answers. Pure.

`authenticate(credentials)` says who it is, or raises AuthError. `authorize(principal, scope,
action, resource)` says whether they may. Both may be plain or async functions. Authorization fails
closed: a hook that raises, or answers with anything but Allow or True, denies.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from edge.patterns import matches
from infra.errors import AuthError

log = logging.getLogger("holdfast.auth")
T = TypeVar("T")


class Action(StrEnum):
    """What is asked of a scope. `admin` covers inspection and operation, and names no one scope."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class Grant(msgspec.Struct, frozen=True):
    """Access to scopes of the principal's tenant that fit `pattern`; `write` implies `read`."""

    pattern: str
    access: Literal["read", "write"] = "read"


class PublishLimits(msgspec.Struct, frozen=True):
    """What one principal may publish, per second; 0 is no limit."""

    envelopes_per_s: int = 0
    bytes_per_s: int = 0


UNLIMITED = PublishLimits()


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Someone who has been recognised.

    `expires_at_ms` is wall time in milliseconds (None: never); an open socket is closed when it
    passes. `publish` None means the limits of the configuration. `claims` is what the
    authenticator knows besides, for the user's own authorize hook.
    """

    id: str
    tenant: str = "default"
    claims: Mapping[str, Any] = msgspec.field(default_factory=dict)
    expires_at_ms: int | None = None
    grants: tuple[Grant, ...] = ()
    admin: bool = False
    publish: PublishLimits | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """What came with a request. Names in `headers` are lower case; `remote` is the peer's address.

    `token` is the bearer of the Authorization header, the `token` query parameter or the first
    frame, in this order. `tenant` is whom host name or path name (docs/auth.md), None where they
    name nobody; a principal of another tenant is refused. Nothing but `remote` and `tenant` shows
    in the repr, so that logs hold no secret.
    """

    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    remote: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Allow:
    """The action may go on."""


@dataclass(frozen=True, slots=True)
class Deny:
    """The action must not go on. `reason` reaches the client: say nothing secret in it."""

    reason: str = "not allowed"


Decision = Allow | Deny


class Authenticate(Protocol):
    """Recognise the sender. Raise AuthError, or return None, where that is not possible."""

    def __call__(
        self, credentials: Credentials, /
    ) -> Principal | Awaitable[Principal | None] | None: ...


class Authorize(Protocol):
    """Decide on one action. `resource` is the surface's own detail (a view id, say), or None."""

    def __call__(
        self, principal: Principal, scope: str, action: Action, resource: Any, /
    ) -> Decision | bool | Awaitable[Decision | bool]: ...


async def resolve(value: T | Awaitable[T]) -> T:
    """The value itself, or what it yields when awaited: hooks may be plain or async."""
    return await value if inspect.isawaitable(value) else value


async def recognise(hook: Authenticate, credentials: Credentials) -> Principal:
    """Run the authenticator; AuthError where it raises one or recognises nobody."""
    principal = await resolve(hook(credentials))
    if principal is None:
        raise AuthError("the credentials were not recognised")
    return principal


async def decide(
    hook: Authorize, principal: Principal, scope: str, action: Action, resource: Any = None
) -> Decision:
    """Run the authorizer and never raise for its mistakes: they deny, and are logged."""
    try:
        answer = await resolve(hook(principal, scope, action, resource))
    except Exception:  # user code: whatever is wrong with it must not open a door
        log.exception("authorize hook failed scope=%s action=%s", scope, action)
        return Deny("the authorize hook failed")
    if isinstance(answer, Allow | Deny):
        return answer
    return Allow() if answer is True else Deny()


def authorize_by_grants(
    principal: Principal, scope: str, action: Action, resource: Any = None, /
) -> Decision:
    """The built-in authorizer: the principal's own grants, and `admin` above them.

    An admin may do everything. Anyone else needs a matching grant: any for read, one with
    `write` for write. Grants reach no other tenant, because the surface resolves `scope` within
    `principal.tenant`.
    """
    if principal.admin:
        return Allow()
    if action is Action.ADMIN:
        return Deny("an admin token is needed")
    for grant in principal.grants:
        if (action is Action.READ or grant.access == "write") and matches(grant.pattern, scope):
            return Allow()
    return Deny(f"the token grants no {action.value} access to this scope")


DEV_PRINCIPAL = Principal(id="dev", admin=True, publish=UNLIMITED)


def allow_all(credentials: Credentials, /) -> Principal:
    """Everyone is the admin `dev`, of the tenant whose address it is: for `holdfast dev` and
    `serve --insecure` only.
    """
    if credentials.tenant is None:
        return DEV_PRINCIPAL
    return msgspec.structs.replace(DEV_PRINCIPAL, tenant=credentials.tenant)
