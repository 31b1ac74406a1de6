"""A work made of a function, for tests within one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Doing:
    """Fits actors.scan.Work; cannot be sent anywhere."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.run = function
