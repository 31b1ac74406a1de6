"""What a replica does with an envelope: a state machine without transport, task or clock. Pure.

The order of the checks is part of the protocol: schema version, then the parse gate, then the
sequence. An envelope that fails one of the first two must not move the sequence.

Always true: `sequence` is that of the value in the cell, -1 while nothing was applied; a receipt
never lowers it; only a seed or a refetch may, and with `refetch_policy="monotonic"` a refetch only
where the value it answers could not be read.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from actors.dialects.para.envelope import (
    BadEnvelope,
    SyncEnvelope,
    as_envelope,
    majors_differ,
)
from edge.client.para.cell import Cell
from edge.client.para.schema import SyncSchema
from edge.client.para.transport import Source

Status = Literal["ok", "stale", "skew", "refetching"]
GapPolicy = Literal["refetch", "commit"]
RefetchPolicy = Literal["accept", "monotonic"]


class ReplicaMeta(msgspec.Struct, frozen=True, gc=False):
    """Of the last commit: its schema version and sequence (None and -1 before any), and how things
    stand: `ok`; `stale`, newer exists or may exist; `skew`, newer exists and cannot be read;
    `refetching`.
    """

    schema_version: str | None
    sequence: int
    status: Status


class ReplicaStats(msgspec.Struct, gc=False):
    """Counters of one replica, from its creation."""

    applied: int = 0
    ignored_stale: int = 0
    gaps: int = 0
    parse_errors: int = 0
    refetches: int = 0
    schema_skews: int = 0


class _Refused(Exception):
    """The parse gate said Err; the argument is why."""


class Reconciler:
    """The state of one replica. `ingest` says whether a refetch is to be started."""

    __slots__ = (
        "_ahead",
        "_cell",
        "_commit_gaps",
        "_expected",
        "_monotonic",
        "_parse",
        "_recovers",
        "initialized",
        "last_error",
        "schema_version",
        "sequence",
        "skewed",
        "stats",
        "status",
    )

    def __init__(
        self,
        schema: SyncSchema[Any],
        cell: Cell,
        *,
        recovers: bool,
        schema_version: str | None = None,
        gap_policy: GapPolicy = "refetch",
        refetch_policy: RefetchPolicy = "accept",
    ) -> None:
        if gap_policy not in ("refetch", "commit"):
            raise ValueError(f"gap_policy is 'refetch' or 'commit', not {gap_policy!r}")
        if refetch_policy not in ("accept", "monotonic"):
            raise ValueError(f"refetch_policy is 'accept' or 'monotonic', not {refetch_policy!r}")
        self._parse = schema.parse
        self._cell = cell
        self._recovers = recovers
        self._expected = schema_version
        self._commit_gaps = gap_policy == "commit"
        self._monotonic = refetch_policy == "monotonic"
        self._ahead = -1  # the highest sequence heard of across a gap
        self.schema_version: str | None = None
        self.sequence = -1
        self.status: Status = "stale"
        self.initialized = False
        self.skewed = False  # what came last could not be read
        self.last_error: Any = None
        self.stats = ReplicaStats()

    @property
    def meta(self) -> ReplicaMeta:
        """How things stand."""
        return ReplicaMeta(self.schema_version, self.sequence, self.status)

    def ingest(self, given: object, source: Source, *, for_skew: int | None = None) -> bool:
        """Take an envelope; True where a refetch is to be started.

        `for_skew` is what `refetch_begins` said of the refetch that this answers.
        Raises what a listener of the cell raised; the commit is complete then.
        """
        try:
            envelope = given if type(given) is SyncEnvelope else as_envelope(given)
            version = envelope.schema_version
            if self._expected is not None and majors_differ(self._expected, version):
                return self._of_another_major(version, source)
            value = self._read(envelope)
        except Exception as error:  # a schema that fails has not said Ok
            return self._unreadable(error, source)
        sequence = envelope.sequence
        if type(sequence) is not int:
            return self._without_sequence(source)
        if source == "receipt":
            if self.initialized and sequence != self.sequence + 1:
                if sequence <= self.sequence:
                    self.stats.ignored_stale += 1
                    return False
                self.stats.gaps += 1
                if not self._commit_gaps:
                    self._ahead = max(self._ahead, sequence)
                    return self.recover()
        elif source == "refetch" and self._outruns(sequence, for_skew):
            return False
        self.sequence = sequence
        self.schema_version = version
        self.status = "ok"
        self.initialized = True
        self.skewed = False
        self.stats.applied += 1
        self._cell.set(value)
        return False

    def recover(self) -> bool:
        """True where a refetch is to be started; `stale` where there is none."""
        self.status = "refetching" if self._recovers else "stale"
        return self._recovers

    def refetch_begins(self) -> int | None:
        """Count it. How much was applied by now, where it is for something that could not be read;
        such an answer may be older than the value, but not where receipts came after all.
        """
        self.status = "refetching"
        self.stats.refetches += 1
        return self.stats.applied if self.skewed else None

    def refetch_failed(self, error: Any) -> None:
        """The refetch that was under way brought nothing."""
        self.status = "stale"
        self.last_error = error

    def _read(self, envelope: SyncEnvelope) -> Any:
        if envelope.deleted:
            return None  # there is no value, so nothing to ask the schema about
        parsed = self._parse(envelope.value)
        if parsed.tag != "Ok":
            raise _Refused(parsed.error)
        return parsed.value

    def _outruns(self, sequence: int, for_skew: int | None) -> bool:
        """Whether receipts overtook this answer, so that what they brought stays."""
        if not self._monotonic or sequence >= self.sequence or for_skew == self.stats.applied:
            return False
        self.stats.ignored_stale += 1
        if self.status == "refetching":
            self.status = "ok" if self.sequence >= self._ahead else "stale"
        return True

    def _of_another_major(self, version: str | None, source: Source) -> bool:
        self.stats.schema_skews += 1
        self._skew(f"the schema version is {version}, not {self._expected}")
        return source != "refetch" and self.recover()

    def _unreadable(self, error: Exception, source: Source) -> bool:
        self.stats.parse_errors += 1
        self._skew(error.args[0] if isinstance(error, _Refused) else error)
        return source != "refetch" and self.recover()

    def _without_sequence(self, source: Source) -> bool:
        # It stays `skew` where nothing can be refetched: who sends this speaks another protocol,
        # and nothing says that a newer value exists.
        self.stats.parse_errors += 1
        self._skew(BadEnvelope("an envelope has an integer sequence"))
        return self._recovers and source != "refetch" and self.recover()

    def _skew(self, error: Any) -> None:
        self.status, self.skewed, self.last_error = "skew", True, error
