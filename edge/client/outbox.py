"""Publishes on their way: split into frames, sent, repeated until answered. Pure.

Always true: every envelope put in gets exactly one result, in its place; a frame is repeated with
the same `eventId`s only (after a new connection, or when refused as busy), so a repeat cannot store
anything twice. At most `WINDOW_FRAMES` frames and `WINDOW_BYTES` bytes are unanswered at a time.

Frames leave in the order given, and a frame waits while an earlier one of its scope waits to be
repeated. Only what is already under way can overtake a frame that is refused as busy: with a window
of one frame the order is strict. `retries` counts repeats.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from infra.limits import FRAME_BYTES_MAX, PUBLISH_ENVELOPES_MAX

WINDOW_FRAMES: Final = 64
WINDOW_BYTES: Final = 2 << 20
ATTEMPTS_MAX: Final = 10
RETRY_DELAY_S: Final = 0.1
RETRY_DELAY_MAX_S: Final = 5.0
RETRYABLE_CODES: Final = frozenset({"busy", "rate_limited", "storage", "try_later", "fenced"})

Level = Literal["local", "replicated"]

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What became of one envelope: `seq` where it is stored, else `code` and why.

    `duplicate`: it had been stored before, at `seq`. `entity`, `index` and `reason` point at the
    patch that failed.
    """

    event_id: str
    seq: int | None = None
    duplicate: bool = False
    code: str | None = None
    message: str = ""
    entity: str | None = None
    index: int | None = None
    reason: str | None = None
    epoch: str | None = None
    durable_seq: int | None = None

    @property
    def ok(self) -> bool:
        """True where the envelope is stored."""
        return self.seq is not None


@dataclass(slots=True)
class Ticket:
    """One call of `publish`: its results fill up, `remaining` counts what is missing."""

    results: list[PublishResult | None]
    remaining: int

    @property
    def done(self) -> bool:
        return self.remaining == 0

    def settle(self, slot: int, result: PublishResult) -> None:
        """Fill one place; a place is filled once."""
        assert self.results[slot] is None
        self.results[slot] = result
        self.remaining -= 1


@dataclass(slots=True)
class _Item:
    slot: int
    event_id: str
    body: bytes


@dataclass(slots=True)
class _Frame:
    id: int
    scope: str
    options: bytes  # members of the frame that ask for more than the scope's own level
    ticket: Ticket
    items: list[_Item]
    size: int = 0
    attempts: int = 0
    not_before: float = 0.0
    payload: bytes = field(default=b"", repr=False)


class Outbox:
    """All publishes of one client."""

    def __init__(
        self, *, window_frames: int = WINDOW_FRAMES, frame_bytes_max: int = FRAME_BYTES_MAX
    ) -> None:
        self.retries = 0
        self._window = window_frames
        self._frame_bytes_max = frame_bytes_max
        self._last_id = 0
        self._waiting: deque[_Frame] = deque()
        self._later: list[_Frame] = []  # refused as busy, each with its time
        self._sent: dict[int, _Frame] = {}
        self._sent_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._later) + len(self._sent)

    def put(
        self,
        scope: str,
        envelopes: Sequence[Mapping[str, Any]],
        *,
        durable: bool = False,
        level: Level = "local",
    ) -> Ticket:
        """Queue envelopes that carry an `eventId`; `take_ready` yields their frames."""
        ticket = Ticket([None] * len(envelopes), len(envelopes))
        options = b',"durable":true' if durable else b""
        if level != "local":
            options += b',"level":%b' % _encode(level)
        overhead = len(_encode(scope)) + 120
        room = self._frame_bytes_max - overhead
        items: list[_Item] = []
        size = 0
        for slot, envelope in enumerate(envelopes):
            item = _Item(slot, envelope["eventId"], _encode(envelope))
            need = len(item.body) + 1
            if need > room:
                text = f"envelope of {need} bytes does not fit a frame of {self._frame_bytes_max}"
                ticket.settle(slot, PublishResult(item.event_id, code="too_large", message=text))
                continue
            if items and (size + need > room or len(items) == PUBLISH_ENVELOPES_MAX):
                self._queue(scope, options, ticket, items)
                items, size = [], 0
            items.append(item)
            size += need
        if items:
            self._queue(scope, options, ticket, items)
        return ticket

    def take_ready(self, now: float) -> list[bytes]:
        """Frames to send now; they count as sent."""
        due = [frame for frame in self._later if frame.not_before <= now]
        if due:
            self._later = [frame for frame in self._later if frame.not_before > now]
            self._waiting.extendleft(reversed(due))
        held_scopes = {frame.scope for frame in self._later}
        held: list[_Frame] = []
        frames = []
        while self._waiting and len(self._sent) < self._window:
            frame = self._waiting[0]
            if self._sent and self._sent_bytes + frame.size > WINDOW_BYTES:
                break
            self._waiting.popleft()
            if frame.scope in held_scopes:
                held.append(frame)
                continue
            self._sent[frame.id] = frame
            self._sent_bytes += frame.size
            frames.append(frame.payload)
        self._waiting.extendleft(reversed(held))
        return frames

    def next_due(self) -> float | None:
        """When the next refused frame may be repeated."""
        return min((frame.not_before for frame in self._later), default=None)

    def disconnected(self) -> None:
        """No answer will come to what was sent: it goes out again, first, in its order."""
        self._waiting.extendleft(sorted(self._sent.values(), key=_frame_id, reverse=True))
        self._sent.clear()
        self._sent_bytes = 0

    def answered(self, answer: Mapping[str, Any], now: float) -> Ticket | None:
        """Take a `published` frame; its ticket, None where the id is not ours."""
        frame = self._sent.pop(answer["id"], None)
        if frame is None:
            return None
        self._sent_bytes -= frame.size
        again: list[_Item] = []
        wait_s = 0.0
        results = answer.get("results") or ()
        for item, result in zip(frame.items, results, strict=False):
            code = result.get("code")
            passing = code in RETRYABLE_CODES or "retryAfterMs" in result
            if passing and frame.attempts + 1 < ATTEMPTS_MAX:
                again.append(item)
                wait_s = max(wait_s, (result.get("retryAfterMs") or 0) / 1000)
            else:
                frame.ticket.settle(item.slot, _result(item.event_id, result, answer))
        for item in frame.items[len(results) :]:
            lost = PublishResult(item.event_id, code="internal", message="no result in the answer")
            frame.ticket.settle(item.slot, lost)
        if again:
            self._repeat(frame, again, now, wait_s)
        return frame.ticket

    def size_of(self, frame_id: object) -> int:
        """Number of envelopes in a frame that was sent, 0 where the id is not ours."""
        frame = self._sent.get(frame_id) if isinstance(frame_id, int) else None
        return len(frame.items) if frame else 0

    def frame_too_large(self, message: str) -> Ticket | None:
        """The server ended the socket because of a frame's size, without saying which.

        With one frame unanswered it is that one, and it is refused; else frames go out one by one
        from here on, until the next such end tells.
        """
        if len(self._sent) > 1:
            self._window = 1
            return None
        for frame in self._sent.values():
            results = [{"code": "too_large", "message": message}] * len(frame.items)
            return self.answered({"id": frame.id, "results": results}, 0.0)
        return None

    def refused(self, code: str, message: str) -> list[Ticket]:
        """Give up on everything: each missing result becomes this refusal."""
        tickets: dict[int, Ticket] = {}
        for frame in (*self._sent.values(), *self._waiting, *self._later):
            for item in frame.items:
                result = PublishResult(item.event_id, code=code, message=message)
                frame.ticket.settle(item.slot, result)
            tickets[id(frame.ticket)] = frame.ticket
        self._waiting.clear()
        self._later.clear()
        self._sent.clear()
        self._sent_bytes = 0
        return list(tickets.values())

    def _repeat(self, frame: _Frame, items: list[_Item], now: float, wait_s: float) -> None:
        self.retries += 1
        attempts = frame.attempts + 1
        backoff_s = min(RETRY_DELAY_MAX_S, RETRY_DELAY_S * 2**frame.attempts)
        not_before = now + max(wait_s, backoff_s)
        again = self._frame(frame.scope, frame.options, frame.ticket, items)
        again.attempts, again.not_before = attempts, not_before
        self._later.append(again)

    def _queue(self, scope: str, options: bytes, ticket: Ticket, items: list[_Item]) -> None:
        self._waiting.append(self._frame(scope, options, ticket, items))

    def _frame(self, scope: str, options: bytes, ticket: Ticket, items: list[_Item]) -> _Frame:
        self._last_id += 1
        frame = _Frame(self._last_id, scope, options, ticket, items)
        head = b'{"type":"publish","id":%d,"scope":%b' % (frame.id, _encode(scope))
        bodies = b",".join([item.body for item in items])
        frame.payload = b'%b%b,"envelopes":[%b]}' % (head, options, bodies)
        frame.size = len(frame.payload)
        return frame


def _frame_id(frame: _Frame) -> int:
    return frame.id


def _result(event_id: str, result: Mapping[str, Any], answer: Mapping[str, Any]) -> PublishResult:
    return PublishResult(
        event_id=event_id,
        seq=result.get("seq"),
        duplicate=result.get("duplicate", False),
        code=result.get("code"),
        message=result.get("message", ""),
        entity=result.get("entity"),
        index=result.get("index"),
        reason=result.get("reason"),
        epoch=answer.get("epoch"),
        durable_seq=answer.get("durableSeq"),
    )
