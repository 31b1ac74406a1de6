"""Who a token names and which groups they may see: the application's two callbacks, and what their
failures mean to clients (stratasync.md section 2).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from edge.waiting import resolve_within
from infra import limits
from infra.errors import AuthError, HoldfastError

log = logging.getLogger("holdfast.stratasync")


@dataclass(frozen=True, slots=True)
class User:
    """Whom a token names. `expires_at_ms` (wall time) closes the user's open sockets; `tenant` is
    where the user's ledgers stand.
    """

    user_id: str
    email: str | None = None
    name: str | None = None
    expires_at_ms: int | None = None
    tenant: str = "default"


VerifyToken = Callable[[str, str], "Awaitable[User | None] | User | None"]
ResolveGroups = Callable[[str, str], "Awaitable[Sequence[str]] | Sequence[str]"]


class GroupsFailed(HoldfastError):
    """The resolver raised: nobody can say what the user may see."""

    code = "internal"


@dataclass(frozen=True, slots=True)
class StrataAuth:
    """See `auth`."""

    verify_token: VerifyToken
    resolve_groups: ResolveGroups

    async def user(self, token: str, name: str) -> User:
        """Whom the token names in the database called `name`. Raises AuthError, nothing else."""
        try:
            answer = self.verify_token(token, name)
            user = await resolve_within(answer, limits.AUTHORIZE_WAIT_S)
        except Exception as error:  # user code, or a slow identity provider
            word = "Token expired" if "expired" in str(error) else "Invalid token"
            raise AuthError(word) from error
        if user is None or not user.user_id:
            raise AuthError("Invalid token")
        return user

    async def groups(self, user_id: str, name: str) -> tuple[str, ...]:
        """What the resolver gives; stored memberships come on top. Raises GroupsFailed."""
        try:
            answer = self.resolve_groups(user_id, name)
            found = await resolve_within(answer, limits.AUTHORIZE_WAIT_S)
            return tuple(dict.fromkeys(str(group) for group in found))
        except Exception as error:
            log.exception("resolve_groups failed")
            raise GroupsFailed("Failed to resolve sync groups") from error


def _no_groups(user_id: str, name: str) -> Sequence[str]:
    return ()


def auth(verify_token: VerifyToken, resolve_groups: ResolveGroups = _no_groups) -> StrataAuth:
    """The application's callbacks, plain or async.

    `verify_token(token, name)` gives the User, or None; `name` is the database the client came for,
    which the callback must refuse where it is not the user's. `resolve_groups(user_id, name)` gives
    groups beside the stored memberships and the user's own.
    """
    return StrataAuth(verify_token, resolve_groups)


def bearer_of(header: str | None) -> str:
    """The token of an Authorization header. Raises AuthError with what is wrong."""
    if header is None or not header.strip():
        raise AuthError("Authorization header required")
    parts = header.split()
    if len(parts) != 2 or parts[0].lower() != "bearer":
        raise AuthError("Invalid authorization format")
    return parts[1]
