"""What a scope needs of its host and of its replica, so that it runs without either in tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from infra.errors import HoldfastError

if TYPE_CHECKING:
    from actors.scope import Scope


class Tally(Protocol):
    """Totals a scope adds to."""

    commits: int
    entries: int
    refused: int
    duplicates: int
    release_wait_s: float


class Shell(Protocol):
    """What a scope needs of its host, so that it runs without a loop in tests."""

    @property
    def counts(self) -> Tally: ...

    def call_soon(self, callback: Callable[[], None]) -> None: ...
    def now_ms(self) -> int: ...
    def mark(self, scope: Scope) -> None: ...
    def lend(self, scope: Scope, work: Callable[[], None]) -> None: ...
    def failed(self, scope: Scope, error: HoldfastError) -> None: ...


class Shipper(Protocol):
    """What a scope tells its replica (infra/replica.py), and asks of it."""

    @property
    def next_txid(self) -> int:
        """The batch that the next commit can ship in, at the earliest."""

    @property
    def claim_txid(self) -> int:
        """The batch this owner begins with."""

    @property
    def pending(self) -> bool:
        """Whether commits wait to be shipped and there is hope that they will be."""

    @property
    def reading(self) -> bool:
        """Whether pages are being read: the WAL must stay as it is."""

    def committed(self, size: int = 0) -> None:
        """There is something to ship, of about `size` bytes."""

    def urge(self) -> None:
        """Somebody waits for what there is to ship."""

    def synced(self) -> None:
        """The disk has more of it."""
