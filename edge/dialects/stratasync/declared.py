"""What `app.stratasync(...)` collects: models, authentication, socket hooks. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.dialects.stratasync.models import Registry, SyncModel
from edge.dialects.stratasync.auth import StrataAuth


@dataclass(frozen=True, slots=True)
class SocketContext:
    """Who is on a socket. Before the first subscribe `user_id` is `anonymous-<conn_id>`."""

    conn_id: str
    user_id: str
    groups: tuple[str, ...] = ()


class StrataSocket(Protocol):
    """A client's socket, as hooks have it."""

    @property
    def context(self) -> SocketContext: ...

    def send(self, message: Any) -> None:
        """One frame: the value as JSON. Dropped where the socket does not drain."""

    def join(self, topic: str) -> None:
        """Be sent what is broadcast to the topic."""

    def leave(self, topic: str) -> None:
        """No longer."""

    def broadcast(self, topic: str, message: Any) -> int:
        """Send to everyone else in the topic; how many they were in this process. Raises
        ProtocolError for more than 1 MiB.
        """

    def close(self, code: int, reason: str) -> None:
        """End the socket."""


OnSubscribe = Callable[
    [StrataSocket, SocketContext, SocketContext | None], "Awaitable[None] | None"
]
OnMessage = Callable[[StrataSocket, Any, SocketContext], "Awaitable[None] | None"]
OnClose = Callable[[StrataSocket, SocketContext], "Awaitable[None] | None"]


@dataclass(frozen=True, slots=True)
class SocketHooks:
    """What the application does with a socket beside the log (live editing, presence), plain or
    async.

    `on_subscribe(socket, context, previous)` runs before replay; what it raises ends that
    subscribe. `on_message(socket, message, context)` gets every frame that is no subscribe, while
    subscribed. `on_close(socket, context)` runs once per socket.
    """

    on_subscribe: OnSubscribe | None = None
    on_message: OnMessage | None = None
    on_close: OnClose | None = None


@dataclass(frozen=True, slots=True)
class Declared:
    """One application's StrataSync side. `root` is the database that `/sync` stands for, too."""

    models: Iterable[SyncModel]
    auth: StrataAuth
    hooks: SocketHooks = SocketHooks()
    root: str | None = None
    registry: Registry = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "registry", Registry(self.models))
