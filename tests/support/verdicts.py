"""What clients were told, held against what the bucket has. Pure: records in, findings out.

Four things are judged, each scope by itself:
- lost: an acknowledged write that history does not hold at the seq that was acknowledged;
- a follower's gap, repeat, or entry that is not the one history has there;
- one write acknowledged at two seqs;
- owners: the files of the bucket, in the order of their TXIDs, come from owners whose numbers
  only grow, and every number belongs to one writer alone (the nonce that each of its files has).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple


class Acked(NamedTuple):
    """One acknowledgement. `sent_at` and `at` in seconds of one clock: first sending, answer."""

    event_id: str
    seq: int
    epoch: str
    edge: str
    sent_at: float
    at: float


class Shown(NamedTuple):
    """An entry as a follower got it."""

    seq: int
    event_id: str
    epoch: str


class Batch(NamedTuple):
    """A level-0 file of the bucket."""

    txid: int
    owner: int
    nonce: int


class Verdict(NamedTuple):
    """Findings as readable lines; all empty where everything was kept."""

    lost: list[str]
    strayed: list[str]  # of followers
    doubled: list[str]
    owners: list[str]

    @property
    def clean(self) -> bool:
        """True where nothing was found."""
        return not any(self)


def judge(
    acked: Sequence[Acked],
    followers: Mapping[str, Sequence[Shown]],
    history: Mapping[str, int],
    batches: Iterable[Batch],
) -> Verdict:
    """Of one scope. `history`: event id to seq, as restored from the bucket. Followers began at
    cursor 0 and have had the time to reach the head.
    """
    return Verdict(
        lost=[
            f"{a.event_id} acknowledged as {a.seq} by {a.edge}, history has "
            f"{history.get(a.event_id)}"
            for a in acked
            if history.get(a.event_id) != a.seq
        ],
        strayed=[
            f"{name}: {trouble}"
            for name, shown in sorted(followers.items())
            for trouble in _strayed(shown, history)
        ],
        doubled=_doubled(acked),
        owners=_owners(sorted(batches)),
    )


def _strayed(shown: Sequence[Shown], history: Mapping[str, int]) -> list[str]:
    found = []
    cursor = 0
    for entry in shown:
        if entry.seq <= cursor:
            found.append(f"seq {entry.seq} again after {cursor}")
        elif entry.seq != cursor + 1:
            found.append(f"seq {entry.seq} after {cursor}: a gap")
        if history.get(entry.event_id) != entry.seq:
            there = history.get(entry.event_id)
            found.append(f"seq {entry.seq} was {entry.event_id}, which history has at {there}")
        cursor = max(cursor, entry.seq)
    head = max(history.values(), default=0)
    if cursor < head:
        found.append(f"ends at {cursor} of {head}: a gap")
    found += [
        f"epoch {one.epoch} became {other.epoch} at seq {other.seq}"
        for one, other in pairwise(shown)
        if one.epoch != other.epoch
    ]
    return found


def _doubled(acked: Sequence[Acked]) -> list[str]:
    seqs: dict[str, int] = {}
    events: dict[int, str] = {}
    found = []
    for ack in acked:
        if seqs.setdefault(ack.event_id, ack.seq) != ack.seq:
            found.append(f"{ack.event_id} acknowledged as {seqs[ack.event_id]} and as {ack.seq}")
        if events.setdefault(ack.seq, ack.event_id) != ack.event_id:
            found.append(f"seq {ack.seq} acknowledged to {events[ack.seq]} and to {ack.event_id}")
    return found


def _owners(batches: Sequence[Batch]) -> list[str]:
    found = []
    writers: dict[int, int] = {}
    for batch in batches:
        if writers.setdefault(batch.owner, batch.nonce) != batch.nonce:
            found.append(f"txid {batch.txid}: a second writer as owner {batch.owner}")
    for one, other in pairwise(batches):
        if other.txid != one.txid + 1:
            found.append(f"txid {other.txid} after {one.txid}")
        if other.owner < one.owner:
            found.append(f"txid {other.txid}: owner {other.owner} after {one.owner}")
    return found


def percentile(values: Iterable[float], share: float) -> float:
    """The least value that `share` (0 to 1) of all do not exceed; 0 where there are none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
