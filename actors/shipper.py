"""What a scope tells its replica and asks of it, so that it runs without a bucket in tests."""

from __future__ import annotations

from typing import Protocol


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
