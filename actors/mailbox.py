"""What waits for a scope's writer: bounded, in order, taken in batches. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from actors.types import Draft, Outcome, Reply
from infra import limits
from infra.errors import Busy

BUSY_RETRY_MS = 100


class Request(msgspec.Struct):
    """Drafts of one caller, or alarms to set or end. `outcomes` is filled when they are decided.

    `replicated`: the answer waits for the bucket, whatever the scope's level.
    """

    drafts: list[Draft]
    reply: Reply
    tag: Any
    alarms: list[tuple[str, int, str | None, int]] = []
    alarms_done: list[tuple[str, int]] = []
    outcomes: list[Outcome] = []
    replicated: bool = False


class Mailbox:
    """At most MAILBOX_DRAFTS_MAX drafts, and about MAILBOX_BYTES_MAX bytes of them."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._drafts = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def put(self, request: Request) -> None:
        """Raises Busy where there is no room; then nothing was taken."""
        drafts = request.drafts
        full = self._drafts + len(drafts) > limits.MAILBOX_DRAFTS_MAX
        if full or self._bytes > limits.MAILBOX_BYTES_MAX:
            message = f"{self._drafts} drafts wait in this scope"
            raise Busy(message, retry_after_ms=BUSY_RETRY_MS)
        self._requests.append(request)
        self._drafts += len(drafts)
        self._bytes += sum([draft.size for draft in drafts])

    def take(self) -> list[Request]:
        """The oldest requests, as many as one transaction should hold."""
        taken: list[Request] = []
        drafts = size = 0
        requests = self._requests
        while requests and drafts < limits.COMMIT_DRAFTS_MAX and size < limits.COMMIT_BYTES_MAX:
            request = requests.popleft()
            taken.append(request)
            drafts += len(request.drafts)
            size += sum([draft.size for draft in request.drafts])
        self._drafts -= drafts
        self._bytes -= size
        return taken

    def drain(self) -> list[Request]:
        """Everything."""
        requests = list(self._requests)
        self._requests.clear()
        self._drafts = self._bytes = 0
        return requests
