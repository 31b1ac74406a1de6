"""The only place that reads a clock, so that tests and simulation can put another in its stead."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Wall time in milliseconds since 1970; may jump."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds that never go back; only differences mean anything."""
    return time.monotonic()
