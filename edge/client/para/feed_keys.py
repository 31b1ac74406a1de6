"""The keys a client follows on one objectfeed: who listens, what was applied and what is awaited.
Pure.

`ready` keys have what the server had at their `sub`; only then are open intents of the key sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.dialects.para.envelope import SyncEnvelope
from edge.client.para.handlers import Handler
from edge.client.para.pending import PendingKey, Verdict
from edge.client.para.transport import Follower, Source

BUFFER_MAX = 64  # echoes of an open group; beyond, the newest is taken as a baseline


class FollowedKey:
    """One key with its listeners."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.followers: dict[Follower, None] = {}
        self.handlers: dict[Handler, None] = {}
        self.epoch: str | None = None
        self.applied = -1
        self.ready = False
        self.verdict: Verdict = "pass"
        self.whole = False  # somebody new wants the current envelope, whatever others have
        self.pending = PendingKey()
        self.drained: dict[Callable[[], None], None] = {}  # told when no intent is open any more
        self._target = -1
        self._renewed = False
        self._buffer: list[dict[str, Any]] = []

    @property
    def used(self) -> bool:
        """Whether anybody listens."""
        return bool(self.followers or self.handlers)

    def sub(self) -> dict[str, Any]:
        """The frame that follows the key from what all listeners have."""
        positions = [follower.position for follower in self.followers]
        sequence = min((sequence for _, sequence in positions), default=-1)
        if self.handlers and not self.followers:
            sequence = self.applied
        frame: dict[str, Any] = {"type": "sub", "key": self.key}
        whole, self.whole = self.whole, False
        if sequence >= 0 and not whole:
            frame["sequence"] = sequence
            self.applied = max(self.applied, sequence)
            if self.epoch:
                frame["epoch"] = self.epoch
        version = next((version for version, _ in positions if version is not None), None)
        if version is not None:
            frame["schema_version"] = version
        return frame

    def subscribed(self, frame: dict[str, Any]) -> None:
        """The server's answer, or news of a new epoch."""
        epoch, self._target = frame["epoch"], frame["sequence"]
        self._renewed = bool(self.epoch) and self.epoch != epoch
        self.epoch = epoch
        positions = [sequence for _, sequence in (f.position for f in self.followers)]
        has = min(positions, default=self.applied)
        nothing = self._target <= 0 and has <= 0
        self.ready = nothing or (has == self._target and not self._renewed)

    def source(self, frame: dict[str, Any]) -> Source:
        """How the followers are to take the frame."""
        if not frame.get("baseline"):
            return "receipt"
        renewed, self._renewed = self._renewed, False
        return "hydration" if renewed or self.applied < 0 else "refetch"

    def hold(self, frame: dict[str, Any]) -> None:
        """Keep an echo until the group is answered."""
        self._buffer.append(frame)
        if len(self._buffer) > BUFFER_MAX:
            self._buffer = [{**frame, "baseline": True}]

    def release(self) -> list[dict[str, Any]]:
        """What was kept, in order."""
        held, self._buffer = self._buffer, []
        return held

    def deliver(self, frame: dict[str, Any]) -> list[Exception]:
        """Hand the envelope to everyone; what listeners raised."""
        shown = envelope_in(frame)
        source = self.source(frame)
        self.verdict = self.pending.echo(frame.get("opId"), frame.get("v"))
        failures: list[Exception] = []
        calls: list[Callable[[], None]] = [
            *[lambda f=f: f.ingest(shown, source) for f in self.followers],
            *[lambda h=h: h(shown) for h in self.handlers],
        ]
        for call in calls:
            try:
                call()
            except Exception as error:  # one listener's: the others are called all the same
                failures.append(error)
        self.verdict = "pass"
        self.applied = shown.sequence
        self.ready = True
        self.pending.applied(shown.sequence)
        self.settle()
        return failures

    def settle(self) -> None:
        """Where no intent is open any more, have the truth shown."""
        if not self.pending:
            for tell in tuple(self.drained):
                tell()

    def disconnected(self) -> None:
        """Nothing is known of the server any more."""
        self.ready = False


def envelope_in(frame: dict[str, Any]) -> SyncEnvelope:
    """The envelope of a frame."""
    members = frame["envelope"]
    return SyncEnvelope(
        members["value"], members["schema_version"], members["sequence"],
        deleted=frame.get("deleted") is True,
    )  # fmt: skip
