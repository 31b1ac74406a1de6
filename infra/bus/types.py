"""A bus: publish and subscribe between processes, best effort, of small messages. Pure.

Messages of one publisher on one subject arrive in order. They may be lost while a process is away
or too slow, and then `on_loss` says so; a few may come twice after an outage. So what travels must
be a hint, or carry its own number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol

SUBJECT_BYTES_MAX: Final = 1024  # a NATS server closes the connection at a line of 4 KiB

OnMessage = Callable[[bytes], None]
OnLoss = Callable[[str | None], None]
"""(subject, or None for every subject): messages may have been lost, and flow again."""
Off = Callable[[], None]

_UNFIT: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f*>]")


class Bus(Protocol):
    """What a transport needs of a connection to a bus. All calls are made on the event loop."""

    def publish(self, subject: str, payload: bytes, /) -> None:
        """Queue a message; queued messages are sent in order. Raises Busy where too many wait."""

    def subscribe(self, subject: str, on_message: OnMessage, /) -> Off:
        """Have the handler called, on the loop, with each payload; returns what ends that."""


class LossAwareBus(Bus, Protocol):
    """A bus that knows when messages may have been lost, and which can be waited for."""

    def on_loss(self, handler: OnLoss, /) -> Off:
        """Have the handler called after each outage, and where a subject was too slow."""

    async def ready(self) -> None:
        """Return once everything asked for so far has reached the server."""


@lru_cache(maxsize=4096)
def check_subject(subject: str) -> None:
    """Raise ValueError for what is no subject, or a wildcard that would read others' messages."""
    if not subject or _UNFIT.search(subject) or "" in subject.split("."):
        raise ValueError(
            f"{subject!r} cannot name a subject: no white space, control characters, '*' or '>', "
            "and nothing empty between dots"
        )
    if len(subject.encode()) > SUBJECT_BYTES_MAX:
        raise ValueError(f"a subject has at most {SUBJECT_BYTES_MAX} bytes")
