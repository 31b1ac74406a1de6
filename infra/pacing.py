"""When a scope's next batch is shipped. Pure: times are milliseconds of one clock.

A batch is a request that costs money, and everything committed meanwhile rides along for nothing.
`replicated` writers wait for the bucket, so their batches go at once and then at most every
`interval_ms`. Nobody waits for those of `local` scopes: the first goes a second after the first
commit, and while the scope stays busy the pause doubles to `local_max_ms`.
"""

from __future__ import annotations

import msgspec

LOCAL_FIRST_MS = 1_000
LOCAL_MAX_MS = 5_000
LOCAL_EXTRA_MS = 3_000  # longer still after a snapshot: two requests in 8 s
QUIET_MS = 10_000  # without a batch for so long, a scope counts as quiet again
EARLY_BYTES = 1 << 20  # a quiet scope's first batch does not wait beyond so many changed bytes
BATCH_BYTES_MAX = 64 << 20  # and no batch grows beyond this


class Pace(msgspec.Struct):
    """One scope's rhythm. `last_put_at`: when its last request was sent (None: none yet)."""

    last_put_at: int | None = None
    pause_ms: int = LOCAL_FIRST_MS
    extra_ms: int = 0

    def due_at(
        self, *, urgent: bool, dirty_since: int, dirty_bytes: int, now: int, interval_ms: int
    ) -> int:
        """When the batch that began at `dirty_since` may be sent, at the earliest `now`.

        `urgent`: somebody waits for the bucket. `interval_ms`: the least time between two requests,
        which a budget may have widened.
        """
        last = self.last_put_at
        after_last = 0 if last is None else last + interval_ms
        if urgent:
            return max(now, after_last)
        if dirty_bytes >= BATCH_BYTES_MAX:
            return max(now, after_last)
        if last is None or dirty_since - last > QUIET_MS:
            self.pause_ms = LOCAL_FIRST_MS
            early = dirty_bytes >= EARLY_BYTES
            return max(now, after_last, dirty_since + (0 if early else LOCAL_FIRST_MS))
        return max(now, after_last, last + self.pause_ms + self.extra_ms)

    def sent(self, at: int, *, urgent: bool) -> None:
        """A request goes out now."""
        if not urgent and self.last_put_at is not None:
            self.pause_ms = min(LOCAL_MAX_MS, self.pause_ms * 2)
        self.last_put_at, self.extra_ms = at, 0

    def out_of_turn(self, at: int, interval_ms: int) -> None:
        """A request goes out now that waited for no turn: it takes the next one."""
        last = self.last_put_at
        self.last_put_at = at if last is None else max(at, last + interval_ms)
        self.extra_ms = LOCAL_EXTRA_MS
