"""What must hold in a ledger file, checked from outside, and a Scope that runs without a loop.

`check_file` reads a file as an operator with the sqlite shell would, and folds it anew with the
dialect's own `apply`. `FakeShell` stands in for the host: turns, barrier passes and file work
happen when a test says so.
"""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from actors.dialects import Dialect, dialect_named
from actors.dialects.asterql.envelope import parse_envelope
from actors.host_settings import Counts
from actors.ledger import Ledger
from actors.mailbox import Request
from actors.rows import Key, Overlay, Row, RowCache
from actors.scope import Scope
from actors.types import (
    Address,
    Batch,
    Bounds,
    Draft,
    Entry,
    Outcome,
    Reply,
    ScopePolicy,
    Tap,
)  # fmt: skip
from infra.errors import HoldfastError

ADDRESS = Address("default", "run:r1")
NOW = 1_795_200_000_000


@dataclass
class Checked:
    """A file that passed: its header, its bodies by seq, its causes, its rows at the head."""

    header: dict[str, Any]
    bodies: dict[int, dict[str, Any]]
    causes: dict[str, int]
    rows: dict[str, Any]


def check_file(path: Path) -> Checked:
    """Verify I1-I5 in a file nobody has open for writing. Raises AssertionError."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
        assert verdict == "ok", verdict
        cursor = db.execute("SELECT * FROM scope")
        header = dict(zip([name[0] for name in cursor.description], cursor.fetchone(), strict=True))
        entries = [
            Entry(seq, at, kind, cause, body, len(body.encode()))
            for seq, at, kind, cause, body in db.execute(
                "SELECT seq, at, kind, cause, body FROM entries ORDER BY seq"
            )
        ]
        bodies = _check_entries(header, entries)
        causes = _check_causes(db, header, entries)
        rows = _check_rows(db, header, entries)
        return Checked(header, bodies, causes, {key[1]: row.value for key, row in rows.items()})
    finally:
        db.close()


def _check_entries(header: dict[str, Any], entries: list[Entry]) -> dict[int, dict[str, Any]]:
    floor, head = header["floor"], header["head"]
    assert 0 <= floor <= head, (floor, head)
    assert [entry.seq for entry in entries] == list(range(floor + 1, head + 1)), "I1: a gap"
    assert header["bytes"] == sum(entry.size for entry in entries), "bytes is not the sum"
    assert header["body_max"] >= max((entry.size for entry in entries), default=0)
    assert all(a.at <= b.at for a, b in pairwise(entries)), "time ran back"
    bodies = {entry.seq: json.loads(entry.body) for entry in entries}
    for entry in entries:
        body = bodies[entry.seq]
        assert body["seq"] == entry.seq and body["scope"] == header["scope"]
        assert body["eventId"] == entry.cause and body["kind"] == entry.kind
    return bodies


def _check_causes(
    db: sqlite3.Connection, header: dict[str, Any], entries: list[Entry]
) -> dict[str, int]:
    causes = {entry.cause: entry.seq for entry in entries if entry.cause is not None}
    assert len(causes) == len(entries), "I3: a cause stands twice"
    for cause, seq in db.execute("SELECT id, seq FROM dedupe"):
        assert seq <= header["floor"], "a dedupe row for a kept entry"
        assert cause not in causes, "I3: a cause stands in entries and in dedupe"
        causes[cause] = seq
    return causes


def _check_rows(
    db: sqlite3.Connection, header: dict[str, Any], entries: list[Entry]
) -> dict[Key, Row]:
    stored = {
        (coll, id): Row(msgspec.json.decode(body), rev, seq, len(body), seq)
        for coll, id, rev, seq, body in db.execute("SELECT coll, id, rev, seq, body FROM rows")
    }
    behind = {(c, i): seq for c, i, seq in db.execute("SELECT coll, id, seq FROM unfolded")}
    assert all(key in stored and stored[key].seq == seq for key, seq in behind.items())
    assert all(seq >= header["floor"] for seq in behind.values()), "I5: a tail lost its entries"
    rows = stored
    if behind:
        tails = [entry for entry in entries if entry.seq > min(behind.values())]
        rows = fold(header["dialect"], tails, stored, behind)
    if header["floor"] == 0 and header["materialize"]:
        again = fold(header["dialect"], entries, {}, None)
        assert _essence(rows) == _essence(again), "I2: rows are not the fold of the entries"
    return rows


def _essence(rows: dict[Key, Row]) -> dict[Key, tuple[Any, int, int]]:
    return {key: (row.value, row.rev, row.seq) for key, row in rows.items()}


def _loader(rows: dict[Key, Row]) -> Callable[[str, str], Row | None]:
    return lambda coll, id: rows.get((coll, id))


def fold(
    dialect: str, entries: list[Entry], rows: dict[Key, Row], behind: dict[Key, int] | None
) -> dict[Key, Row]:
    """`rows` with the entries folded in; with `behind`, each of those keys from its own seq on."""
    base = dict(rows)
    for entry in entries:
        only = None
        if behind is not None:
            only = frozenset(key for key, seq in behind.items() if seq < entry.seq)
        overlay = Overlay(RowCache(_loader(base)), at=0)
        dialect_named(dialect).apply(overlay, entry, only)
        overlay.accept()
        for coll in overlay.cleared:
            base = {key: row for key, row in base.items() if key[0] != coll}
        for key, row in overlay.batch.items():
            if row is None:
                base.pop(key, None)
            else:
                base[key] = row
    return base


# -- drafts --------------------------------------------------------------------------------


def set_patch(path: str, value: Any) -> dict[str, Any]:
    return {"op": "set", "path": path, "value": value}


def envelope(
    event_id: str, *patches: dict[str, Any], key: str = "item:1", **more: Any
) -> dict[str, Any]:
    """A patch envelope; without patches it sets `/n` to the event id."""
    entity = {"key": key, "patches": list(patches) or [set_patch("/n", event_id)]}
    return {"eventId": event_id, "kind": "patch", "entities": [entity], **more}


def draft(value: dict[str, Any], scope: str = ADDRESS.scope) -> Draft:
    return parse_envelope(msgspec.json.encode(value), scope)


def drafts(*event_ids: str, **more: Any) -> list[Draft]:
    return [draft(envelope(event_id, **more)) for event_id in event_ids]


# -- a scope without a loop
# --------------------------------------------------------------------------


@dataclass(eq=False)
class FakeReply:
    """Every answer, in the order it came."""

    answers: list[tuple[Any, list[Outcome], Bounds]] = field(default_factory=list)
    flushed: int = 0

    def settle(self, tag: Any, outcomes: list[Outcome], bounds: Bounds) -> None:
        self.answers.append((tag, outcomes, bounds))

    def flush(self) -> None:
        self.flushed += 1

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for _, outcomes, _ in self.answers for outcome in outcomes]


@dataclass(eq=False)
class FakeTap:
    """Everything a follower was shown."""

    batches: list[Batch] = field(default_factory=list)
    resets: list[Bounds] = field(default_factory=list)
    moves: list[Bounds] = field(default_factory=list)

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)

    def durable(self, bounds: Bounds) -> None:
        """Not used without a replica."""

    def moved(self, bounds: Bounds) -> None:
        self.moves.append(bounds)

    def reset(self, bounds: Bounds) -> None:
        self.resets.append(bounds)

    @property
    def seqs(self) -> list[int]:
        return [seq for batch in self.batches for seq in range(batch.first, batch.last + 1)]


class FakeShell:
    """Fits actors.shell.Shell. Nothing happens before `turns`, `barrier` or `finish_lent`."""

    def __init__(self, now: int = NOW) -> None:
        self.counts = Counts()
        self.now = now
        self.calls: deque[Callable[[], None]] = deque()
        self.marked: dict[Scope, None] = {}
        self.lent: deque[tuple[Scope, Callable[[], None]]] = deque()
        self.failures: list[HoldfastError] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.calls.append(callback)

    def now_ms(self) -> int:
        return self.now

    def mark(self, scope: Scope) -> None:
        self.marked[scope] = None

    def lend(self, scope: Scope, work: Callable[[], None]) -> None:
        self.lent.append((scope, work))

    def failed(self, scope: Scope, error: HoldfastError) -> None:
        self.failures.append(error)
        for reply in scope.fail(error):
            reply.flush()

    def turns(self, count: int = 1000) -> None:
        """Run what is scheduled, at most `count` callbacks."""
        while self.calls and count:
            count -= 1
            self.calls.popleft()()

    def begin_pass(self) -> list[tuple[Scope, int]]:
        """What a barrier pass that starts now will make durable."""
        noted = [(scope, scope.position) for scope in self.marked]
        self.marked.clear()
        return noted

    def end_pass(self, noted: list[tuple[Scope, int]]) -> None:
        touched: dict[Reply, None] = {}
        for scope, position in noted:
            touched.update(dict.fromkeys(scope.release(position)))
        for reply in touched:
            reply.flush()

    def barrier(self) -> None:
        self.end_pass(self.begin_pass())

    def finish_lent(self) -> None:
        scope, work = self.lent.popleft()
        work()
        scope.returned()

    def settle(self) -> None:
        """Turns, file work and passes until nothing is left to do."""
        while self.calls or self.lent or self.marked:
            self.turns()
            while self.lent:
                self.finish_lent()
            self.barrier()


class Bench:
    """One scope over a real file; `crash` forgets everything that is not in the file."""

    def __init__(
        self, path: Path, policy: ScopePolicy | None = None, *, address: Address = ADDRESS,
        dialect: str = "asterql", made: Dialect | None = None,
    ) -> None:  # fmt: skip
        self.made = made  # a dialect with settings of its own
        self.path = path
        self.address = address
        self.policy = policy or ScopePolicy()
        self.shell = FakeShell()
        ledger = Ledger.create(
            path, address, dialect=dialect, epoch="e1", at=NOW,
            materialize=self.policy.materialize,
        )  # fmt: skip
        self.scope = Scope(address, ledger, self.policy, self.shell, [], made)

    def append(
        self, wanted: list[Draft], tag: Any = None, reply: FakeReply | None = None
    ) -> FakeReply:
        reply = reply or FakeReply()
        self.scope.append(Request(wanted, reply, tag))
        return reply

    def publish(self, *event_ids: str, **more: Any) -> list[Outcome]:
        """Append and wait for the answers."""
        reply = self.append(drafts(*event_ids, **more))
        self.shell.settle()
        return reply.outcomes

    def crash(self, taps: list[Tap] | None = None) -> None:
        """Another process opens the file as it is; the old one's memory is gone."""
        # Closing a handle would checkpoint; a crash does not, so the old one is only let go of.
        _abandoned.append(self.scope.ledger)
        now = self.shell.now
        self.shell = FakeShell(now)
        ledger = Ledger.open(self.path, self.address)
        self.scope = Scope(self.address, ledger, self.policy, self.shell, taps or [], self.made)

    def check(self) -> Checked:
        return check_file(self.path)

    def rows(self) -> dict[str, Any]:
        return self.check().rows

    def close(self) -> None:
        self.scope.ledger.close()
        while _abandoned:
            _abandoned.pop().close()


_abandoned: list[Ledger] = []
