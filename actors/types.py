"""The values that pass between an edge, an actor and a ledger. Plain data, no behaviour.

A `Draft` asks for something to be written; an `Entry` is what was written. Positions are seqs:
from 1, no gaps, below 2**53. A cursor is the seq of the last entry a reader has applied (0: none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from infra.errors import ScopeError


class Refusal(ScopeError):
    """A draft is refused: nothing is stored and no seq consumed. `detail` goes to the client."""

    def __init__(self, message: str, *, code: str, detail: dict[str, Any] | None = None) -> None:
        super().__init__(message, code=code)
        self.detail = detail


class Address(NamedTuple):
    """Where a ledger is found: the tenant and the scope's name."""

    tenant: str
    scope: str


class Draft(msgspec.Struct, gc=False):
    """One wish to write.

    `cause` is the dedupe id inside its scope. `body` is the dialect's own text. `data` is the
    decoded body where the edge has it at hand; the actor decodes `body` again where it is None.
    A draft whose cause is "" is not recognised when it comes again. `outcome` is set by the
    dialect's plan: what this draft and its repeats are answered with. `written` too, where whoever
    asked wants to know what became of it.
    `expect`, if given, must equal the head. `make` is for callers in the same process: it runs
    inside the writer with (seq, at) and returns the draft to use; an exception of it reaches the
    caller.
    """

    cause: str
    kind: str
    body: str
    size: int
    data: Any = None
    origin: str | None = None
    expect: int | None = None
    make: Callable[[int, int], Draft] | None = None
    outcome: str | None = None
    written: Any = None


class Entry(msgspec.Struct, gc=False):
    """One accepted write. `body` is JSON text; `size` its length in bytes."""

    seq: int
    at: int
    kind: str
    cause: str | None
    body: str
    size: int
    data: Any = None
    origin: str | None = None
    ref: str | None = None
    grp: str | None = None
    stamp1: int | None = None
    stamp2: int | None = None
    flags: int = 0


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The draft became the entries first..last; none where last is below first."""

    first: int
    last: int
    outcome: str | None = None


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """The cause was used before: its first answer again. `body` is None once retention took it."""

    seq: int
    count: int = 1
    outcome: str | None = None
    body: str | None = None


class Rejected(msgspec.Struct, frozen=True):
    """Nothing was stored and no seq consumed."""

    code: str
    message: str
    detail: dict[str, Any] | None = None
    retry_after_ms: int | None = None
    error: BaseException | None = None


Outcome = Appended | Duplicate | Rejected


class Bounds(msgspec.Struct, frozen=True):
    """What a scope holds: entries floor+1..head. `durable` is the position that is as safe as the
    server makes it.

    `epoch` is "" for a scope that was never written. `floor_at` is the head at which the floor last
    moved: who has seen it knows all that could concern entries up to the floor. `jump` is by how
    much its numbers have been moved so far (I6): a dialect that shows revisions of rows adds it.
    """

    epoch: str
    head: int
    floor: int
    durable: int
    floor_at: int = 0
    jump: int = 0


class Page(msgspec.Struct, frozen=True):
    """Consecutive entries after a cursor, at most up to the released head; empty at the end."""

    first: int
    last: int
    bodies: list[str]
    joined: str  # the bodies joined by commas, when asked for so; then `bodies` is empty
    bounds: Bounds


class EntryPage(msgspec.Struct, frozen=True):
    """Whole entries after a cursor, those of hidden groups left out; nothing else up to `last` is
    to be seen.
    """

    last: int
    entries: list[Entry]
    bounds: Bounds


class Resync(msgspec.Struct, frozen=True):
    """The cursor cannot be served: `below_floor`, `ahead_of_head` or `epoch_changed`."""

    reason: str
    bounds: Bounds


class Batch:
    """Released entries first..last of one scope, on their way to everyone who follows it.

    `entries` is there where the dialect asks for whole ones. `frames` caches what an edge builds
    from it, once for each codec and visibility class.
    """

    __slots__ = ("bodies", "bounds", "entries", "first", "frames", "last")

    def __init__(
        self,
        first: int,
        last: int,
        bodies: list[str],
        bounds: Bounds,
        entries: Sequence[Entry] = (),
    ) -> None:
        self.first = first
        self.last = last
        self.bodies = bodies
        self.bounds = bounds
        self.entries = entries
        self.frames: dict[Any, Any] = {}


class Reply(Protocol):
    """Who asked for an append. Called on the loop thread, after release."""

    def settle(self, tag: Any, outcomes: list[Outcome], bounds: Bounds) -> None:
        """The answers to one request, in the order of its drafts."""

    def flush(self) -> None:
        """No more answers of this turn follow: send what was gathered."""


class Tap(Protocol):
    """Who follows a scope live. Called on the loop thread, after release; must not raise."""

    def deliver(self, batch: Batch) -> None:
        """Entries in ascending seq, each exactly once."""

    def durable(self, bounds: Bounds) -> None:
        """Only the durable position moved."""

    def moved(self, bounds: Bounds) -> None:
        """The head moved without a batch: what lies before it must be read."""

    def reset(self, bounds: Bounds) -> None:
        """The history was cut: a new epoch begins at `bounds`."""


class Retention(msgspec.Struct, frozen=True):
    """How much history is kept; 0 means no limit of that kind.
    The one that keeps fewest wins, never below one entry.
    """

    entries: int = 10_000
    seconds: int = 0
    bytes: int = 0


class ScopePolicy(msgspec.Struct, frozen=True):
    """What the configuration says of a scope."""

    retention: Retention = Retention()
    materialize: bool = True
    level: str = "local"
