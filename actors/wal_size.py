"""How long a scope's WAL is, by estimate, and when it should be checkpointed. Pure."""

from __future__ import annotations

from actors.write import Write

# Estimated bytes of WAL between checkpoints. A WAL that is written over again syncs evenly (p90
# 0.24 ms), a growing one does not (0.88 ms), so it is short; a busy scope has a longer one, because
# its writes wait for each checkpoint.
CHECKPOINT_BYTES = 4 << 20
CHECKPOINT_BYTES_MAX = 32 << 20
CHECKPOINT_EVERY_MS = 2000  # more often than this is busy
PAGE_BYTES = 4096


class WalSize:
    """Bytes since the last checkpoint, and the length that calls for the next one."""

    def __init__(self) -> None:
        self.limit = CHECKPOINT_BYTES
        self._size = 0
        self._checkpointed_at = 0

    @property
    def too_long(self) -> bool:
        return self._size > self.limit

    def grow(self, write: Write, stored: int) -> int:
        """A commit stored so many bytes more; how much the WAL grew by it."""
        grown = (
            PAGE_BYTES * (3 + 2 * len(write.rows)) + stored
            if write.floor is None
            else PAGE_BYTES * 8 + sum(entry.size for entry in write.entries)
        )
        self._size += grown
        return grown

    def begin_anew(self, now_ms: int) -> None:
        """A checkpoint runs: the busier the scope, the longer until the next."""
        busy = now_ms - self._checkpointed_at < CHECKPOINT_EVERY_MS
        wanted = self.limit * 2 if busy else self.limit // 2
        self.limit = min(CHECKPOINT_BYTES_MAX, max(CHECKPOINT_BYTES, wanted))
        self._checkpointed_at = now_ms
        self._size = 0
