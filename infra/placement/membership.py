"""Who is live, as one observer may believe. Pure: times are arguments, in seconds of a clock that
never goes back.

Every host renews a record with the engine (a bucket, NATS) each `ttl / 3`, and every host looks at
the records of all. No two clocks are compared: a host is live until this observer, while it could
see the records, has seen nothing new of it for `ttl`. Time during which the engine could not be
asked does not count, so when all of it stops the view stays as it was, and when it comes back with
every record expired nobody is taken for dead who has not had the time to renew.

What a host may do follows from its own renewals:

| own record | it may claim scopes | it serves what it has settled |
|---|---|---|
| renewed within `ttl` | yes | yes |
| not renewed for `ttl` (cut off, paused, engine down) | no | yes |
| draining | no | until they are handed off |
| taken by another life of its name | never again | until the other claims them |

Serving on is safe: whoever went past it has made its next batch impossible, and it learns that
before it answers. A host that renews again after such a time counts it in `lapses`: others may have
its scopes, so it settles each anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from infra.placement.hosts import HOSTS_MAX, HostInfo, HostState, View

RENEWALS_IN_TTL: Final = 3
GAP_RENEWALS: Final = 1.5
FORGET_TTLS: Final = 10  # the dead are kept so long, so that a stale record raises nobody


class Record(NamedTuple):
    """A host's record as an engine shows it; `mark` is another with every renewal."""

    host: HostInfo
    mark: int


@dataclass(slots=True)
class _Seen:
    host: HostInfo
    mark: int
    at: float  # on the clock of contact


class Membership:
    """What one host knows of itself and the others. `me` None: an edge that owns nothing."""

    def __init__(self, me: HostInfo | None, *, ttl_s: float) -> None:
        self.me = me
        self.ttl_s = ttl_s
        self.superseded = False
        self.lapses = 0  # how often we came back after others may have taken us for dead
        self._seen: dict[str, _Seen] = {}
        self._renewed_at: float | None = None
        self._mark = 0  # of our newest record
        self._contact_at: float | None = None
        self._clock = 0.0  # seconds in contact with the engine

    @property
    def renew_s(self) -> float:
        """How often to renew and to look."""
        return self.ttl_s / RENEWALS_IN_TTL

    # -- what happened -----------------------------------------------------------------------------

    def shown(self, now: float, records: Iterable[Record]) -> None:
        """The engine has shown all of its records, as they are at `now`.

        A gap counts as one and a half renewals at most: in a longer one nobody was looked at. A
        host that is not there may have expired while the engine was away, which says nothing; one
        that was draining has left.
        """
        if self._contact_at is not None:
            self._clock += min(max(0.0, now - self._contact_at), GAP_RENEWALS * self.renew_s)
        self._contact_at = now
        there = set()
        for record in records:
            there.add(record.host.name)
            self._heard(record)
        limit = self._clock - FORGET_TTLS * self.ttl_s
        for name, seen in list(self._seen.items()):
            gone = name not in there and seen.host.state is HostState.DRAINING
            if gone or seen.at < limit:
                del self._seen[name]

    def _heard(self, record: Record) -> None:
        host = record.host
        if self.me is not None and host.name == self.me.name and host.life != self.me.life:
            if self._renewed_at is not None and record.mark > self._mark:
                self.taken()
            elif not self.superseded:
                return  # of an earlier life of ours
        before = self._seen.get(host.name)
        if before is not None and before.mark == record.mark:
            return  # no sign of life
        if before is not None or len(self._seen) < HOSTS_MAX:
            self._seen[record.host.name] = _Seen(record.host, record.mark, self._clock)

    def renewed(self, sent_at: float, mark: int, now: float | None = None) -> None:
        """The engine has confirmed our record at `now`, asked for at `sent_at`.

        Between two records of ours the others saw nothing for at most as long as from the one
        request to the other's answer.
        """
        assert self.me is not None
        answered_at = sent_at if now is None else now
        if self._renewed_at is not None and answered_at - self._renewed_at > self.ttl_s:
            self.lapses += 1
        self._renewed_at, self._mark = sent_at, mark
        self._heard(Record(self.me, mark))

    def taken(self) -> None:
        """Another life of our name has a newer record: it goes on, we never claim again."""
        self.superseded = True

    def told(self, host: HostInfo) -> None:
        """A host says itself what its next record will: that it drains. What the engine showed of
        it last, and may show again, does not undo that.
        """
        seen = self._seen.get(host.name)
        if seen is not None and seen.host.life == host.life:
            seen.host = host

    def drain(self) -> HostInfo:
        """From now on nothing new is taken; the record to spread."""
        assert self.me is not None
        self.me = msgspec.structs.replace(self.me, state=HostState.DRAINING)
        if (mine := self._seen.get(self.me.name)) is not None:
            mine.host = self.me
        return self.me

    # -- what follows ------------------------------------------------------------------------------

    def may_claim(self, now: float) -> bool:
        """Whether scopes that are not settled here may be taken. Never while another life leads."""
        if self.me is None or self.superseded or self.me.state is not HostState.UP:
            return False
        return self._renewed_at is not None and now - self._renewed_at <= self.ttl_s

    def view(self, now: float) -> View:
        """The live hosts by name."""
        live = [
            seen.host for _, seen in sorted(self._seen.items())
            if self._clock - seen.at <= self.ttl_s
        ]  # fmt: skip
        return View(hosts=tuple(live), fresh=self.in_contact(now))

    def in_contact(self, now: float) -> bool:
        """Whether the engine was heard of within `ttl`."""
        return self._contact_at is not None and now - self._contact_at <= self.ttl_s
