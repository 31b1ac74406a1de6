"""Rate limits as token buckets: how much may come at once, and how fast it refills. Pure."""

from __future__ import annotations


class Budget:
    """`rate` per second, at most `burst` at once. A rate of 0 is no limit."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def is_full(self, now: float) -> bool:
        """Whether the whole burst may come again: like one that was never used."""
        return self._left + (now - self._at) * self._rate >= self._burst

    def give_back(self, amount: float) -> None:
        """Undo a `take` whose work was refused for another reason."""
        self._left = min(self._burst, self._left + amount)

    def take(self, amount: float, now: float) -> int:
        """0 if `amount` may pass, else the milliseconds until it may; then nothing was taken."""
        if not self._rate:
            return 0
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        # More than a whole burst passes when the bucket is full, and puts it into debt: it could
        # never pass otherwise.
        if self._left >= min(amount, self._burst):
            self._left -= amount
            return 0
        return int((min(amount, self._burst) - self._left) / self._rate * 1000) + 1
