"""A scope as its replica sees it: the one place where the two meet (infra.shipped.Source)."""

from __future__ import annotations

from collections.abc import Callable

from actors.scope import Scope
from infra.errors import HoldfastError
from infra.shipped import Point
from infra.wal import WalTracker


class ScopeSource:
    """`give_up` takes the scope out of service; `proven` hears that the bucket has something."""

    def __init__(
        self,
        scope: Scope,
        give_up: Callable[[Scope, HoldfastError], None],
        proven: Callable[[Scope], None],
    ) -> None:
        self._scope = scope
        self._give_up = give_up
        self._proven = proven
        self._firsts: list[tuple[int, int]] | None = None

    def urgent(self) -> bool:
        return self._scope.gate.urgent

    def waiting_since(self) -> int | None:
        return self._scope.gate.oldest_unshipped_at()

    def point(self) -> Point:
        scope = self._scope
        ledger = scope.ledger
        return Point(scope.position, scope.head, ledger.commits, ledger.owner)

    def passed(self) -> int:
        return self._scope.gate.passed

    def lent(self) -> bool:
        return self._scope.lent

    def pages(self, commits: int) -> WalTracker:
        tracker = self._scope.ledger.follow(commits)
        assert tracker is not None, "a scope with a replica has a tracked ledger"
        return tracker

    def firsts(self) -> list[tuple[int, int]]:
        if self._firsts is None:
            self._firsts = [(owner.txid, owner.at) for owner in self._scope.ledger.owners()]
        return self._firsts

    def claim(self, txid: int) -> None:
        self._scope.claim(txid)
        self._firsts = None

    def shipped(self, position: int, head: int) -> None:
        self._proven(self._scope)
        self._scope.shipped(position, head)

    def stall(self, error: HoldfastError) -> None:
        self._scope.stall(error)

    def fenced(self, error: HoldfastError) -> None:
        self._give_up(self._scope, error)

    def repair(self) -> None:
        self._scope.track_anew()
