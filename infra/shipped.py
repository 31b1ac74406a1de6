"""What is shipped, as the replica sees it: a file with one writer, and commit boundaries in it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from infra.errors import HoldfastError
from infra.wal import WalTracker


class Point(NamedTuple):
    """A commit boundary: all commits so far, the head they reach, the owner they carry."""

    position: int
    head: int
    commits: int
    owner: int


class Source(Protocol):
    """The scope behind a replica. Called on the loop thread, but for `pages`."""

    def urgent(self) -> bool:
        """Whether somebody waits for the bucket."""

    def waiting_since(self) -> int | None:
        """When the oldest commit was made that somebody waits for."""

    def point(self) -> Point:
        """All commits so far."""

    def passed(self) -> int:
        """The position that this host's disk has."""

    def lent(self) -> bool:
        """Whether a thread has the file's handle."""

    def pages(self, commits: int) -> WalTracker:
        """The tracker, advanced to that many commits. In a thread, one at a time."""

    def firsts(self) -> list[tuple[int, int]]:
        """(TXID, when) of each owner's first batch."""

    def claim(self, txid: int) -> None:
        """Make sure that the file names `txid` as this owner's first batch; may commit."""

    def shipped(self, position: int, head: int) -> None:
        """The bucket has the commits up to `position`."""

    def stall(self, error: HoldfastError) -> None:
        """Whoever waits for the bucket has waited long enough."""

    def fenced(self, error: HoldfastError) -> None:
        """Another writer owns the history."""

    def repair(self) -> None:
        """The tracker lost its place: have it begin anew, while `lent`."""
