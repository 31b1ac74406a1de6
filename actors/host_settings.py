"""What a host is told at its start, and what it counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from actors.dialects import Dialect
from actors.replication import BucketSettings
from actors.types import Address, ScopePolicy


class Counts:
    """Totals since start, for metrics."""

    __slots__ = (
        "commits", "duplicates", "entries", "fenced", "opens", "passes", "refused",
        "release_wait_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.commits = self.entries = self.refused = self.duplicates = 0
        self.opens = self.passes = self.fenced = 0
        self.release_wait_s = 0.0


class HostSettings:
    """Times in seconds. `open_max` is lowered to what the process may have open.

    `dialects` are those an application has configured, by name; the registry has the others.
    `process` names one of several processes on one directory: its lock and its index are its own,
    of the ledgers it has those that it `owns`, all of which lie in the folder `home`.
    `claim` is awaited before a scope of a shared bucket is opened, with whether the host was just
    fenced there; it raises where the scope is not this host's to take.
    """

    def __init__(
        self,
        *,
        policy: Callable[[Address], ScopePolicy] = lambda _address: ScopePolicy(),
        idle_s: float = 60.0,
        open_max: int = 1024,
        bucket: BucketSettings | None = None,
        drain_s: float = 30.0,
        dialects: Mapping[str, Dialect] | None = None,
        process: str = "",
        home: str = "*",
        owns: Callable[[Address], bool] = lambda _address: True,
        claim: Callable[[Address, bool], Awaitable[None]] | None = None,
    ) -> None:
        self.claim = claim
        self.process = process
        self.home = home
        self.owns = owns
        self.dialects = dialects or {}
        self.policy = policy
        self.idle_s = idle_s
        self.open_max = open_max
        self.bucket = bucket
        self.drain_s = drain_s
