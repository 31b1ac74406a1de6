"""The running side of StrataSync on one edge: what sockets, routes and the application's own calls
share.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from actors.port import StatePort
from actors.types import Address, Batch
from edge.dialects.stratasync.auth import User
from edge.dialects.stratasync.database import StrataDatabase
from edge.dialects.stratasync.declared import Declared
from edge.dialects.stratasync.feed import StrataFeed
from edge.dialects.stratasync.topics import Topics
from edge.feed import Feeds
from edge.tenancy import Tenancy
from edge.wire import Frames
from infra import limits
from infra.errors import ProtocolError
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    from edge.dialects.stratasync.connection import StrataConnection

KIND: Final = "strata"
NAME_BYTES_MAX: Final = limits.SCOPE_BYTES_MAX - len(KIND) - 1


class StrataService:
    """Use `aclose` before the port goes."""

    def __init__(self, declared: Declared, port: StatePort, tenancy: Tenancy) -> None:
        self.declared = declared
        self.port = port
        self.tenancy = tenancy
        self.feeds = Feeds(port, _unused, StrataFeed)
        self.topics = Topics(port.ephemeral)
        self.connections: set[StrataConnection] = set()
        self.spools = 0  # reads that are being sent
        self._tasks = TaskOwner()

    async def user(self, token: str, name: str, tenant: str | None) -> User:
        """Whom the token names in a database at an address of `tenant`. Raises AuthError."""
        user = await self.declared.auth.user(token, name)
        self.tenancy.admit(user.tenant, tenant)
        return user

    def address(self, user: User, name: str) -> Address:
        """Where the database of this name stands for the user. Raises ProtocolError."""
        return Address(user.tenant, scope_of(name))

    def database(self, name: str, tenant: str = "default") -> StrataDatabase:
        """The application's own access to a database."""
        return StrataDatabase(self, Address(tenant, scope_of(name)), name)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run it until it ends or the service does."""
        try:
            self._tasks.spawn(work, name=f"strata-{name}")
        except RuntimeError:
            return  # closing: nobody is served any more

    async def aclose(self) -> None:
        """End what still runs."""
        await self._tasks.aclose()


def scope_of(name: str) -> str:
    """The scope of the database. Raises ProtocolError for what cannot name one."""
    fits = name.isprintable() and 0 < len(name.encode("utf-8", "replace")) <= NAME_BYTES_MAX
    if not fits:
        raise ProtocolError(f"a name has 1 to {NAME_BYTES_MAX} printable bytes", code="bad_scope")
    return f"{KIND}:{name}"


def _unused(scope: str, batch: Batch, batched: bool) -> Frames:
    raise AssertionError("StrataFeed builds its own frames")
