"""The client's side of the AsterQL socket as a state machine: no socket, task, clock or random.

Calls come in with the time, effects (edge/client/effects.py) go out, to be done in order. The parts
are `Subscriptions` (who reads what from where) and `Outbox` (publishes until answered); here are
the connection, its heartbeat and its pace. Whatever happens to the socket, `opened` subscribes at
the consumers' cursors again and repeats the publishes that were not answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from edge.client.effects import Answered, Drop, Effect, Send, SyncError
from edge.client.outbox import Level, Outbox, Ticket
from edge.client.subscriptions import Subscriptions, reconnect_delay
from infra.errors import ProtocolError
from infra.limits import CONTROL_FRAMES_BURST, CONTROL_FRAMES_PER_S

PING_EVERY_S: Final = 25.0
PONGS_MISSED_MAX: Final = 2
MESSAGE_TOO_BIG: Final = 1009  # close code
# A margin below the server's limits, for frames that bunch up on the way.
CONTROL_BURST: Final = CONTROL_FRAMES_BURST * 3 // 4
CONTROL_PER_S: Final = CONTROL_FRAMES_PER_S * 3 / 4

_decode = msgspec.json.Decoder().decode


class ClientMachine:
    """All scopes and publishes of one client, over all of its connections."""

    def __init__(self, outbox: Outbox | None = None) -> None:
        self.outbox = Outbox() if outbox is None else outbox
        self._out: list[Effect] = []
        self._control: deque[bytes] = deque()
        self._subscriptions = Subscriptions(self._out, self._control)
        self._attempt = 0
        self._ping_at = 0.0
        self._pongs_missed = 0
        self._allowance = float(CONTROL_BURST)
        self._allowance_at = 0.0

    @property
    def connected(self) -> bool:
        """Between `opened` and `disconnected`."""
        return self._subscriptions.connected

    @property
    def idle(self) -> bool:
        """Nothing to be connected for."""
        return not self._subscriptions.consumers and not len(self.outbox)

    def opened(self, now: float) -> list[Effect]:
        """A socket is there: subscribe everything, repeat unanswered publishes."""
        self._ping_at, self._pongs_missed = now + PING_EVERY_S, 0
        self._allowance, self._allowance_at = float(CONTROL_BURST), now
        self._subscriptions.opened()
        return self._flush(now)

    def disconnected(
        self, random: float, close_code: int | None = None
    ) -> tuple[float, list[Effect]]:
        """The socket is gone (or never came): seconds to wait before the next attempt."""
        self._control.clear()
        self._out.clear()
        self._subscriptions.disconnected()
        if close_code == MESSAGE_TOO_BIG:
            ticket = self.outbox.frame_too_large("the server accepts no frame of this size")
            if ticket is not None and ticket.done:
                self._out.append(Answered(ticket))
        self.outbox.disconnected()
        delay_s = reconnect_delay(self._attempt, random)
        self._attempt += 1
        return delay_s, self._flush(0.0)

    def received(self, text: str | bytes, now: float) -> list[Effect]:
        """Take one text frame. Raises ProtocolError on what is no frame; then drop the socket."""
        self._pongs_missed = 0  # any frame proves that the server lives
        try:
            frame = _decode(text)
            self._dispatch(frame["type"], frame, now)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the server sent no valid frame: {error!r}") from error
        return self._flush(now)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: ping, paced frames, retries. Call at `next_wakeup`."""
        if self.connected:
            if now >= self._ping_at:
                self._ping(now)
            self._subscriptions.retry_due(now)
        return self._flush(now)

    def next_wakeup(self) -> float | None:
        """When `tick` has something to do; None while there is no connection."""
        if not self.connected:
            return None
        times = [self._ping_at, *self._subscriptions.retry_at.values()]
        if (due := self.outbox.next_due()) is not None:
            times.append(due)
        if self._control:
            times.append(self._allowance_at + 1 / CONTROL_PER_S)
        return min(times)

    def subscribe(
        self, scope: str, since: int | None, epoch: str | None, now: float, *, durable: bool = False
    ) -> tuple[int, list[Effect]]:
        """Add a consumer and return its id. `since` None reads from now on."""
        consumer_id = self._subscriptions.add(scope, since, epoch, durable)
        return consumer_id, self._flush(now)

    def unsubscribe(self, consumer_id: int, now: float) -> list[Effect]:
        """Remove a consumer; the last one of a scope ends its subscription. Safe to repeat."""
        self._subscriptions.remove(consumer_id)
        return self._flush(now)

    def restart(self, consumer_id: int, seq: int, epoch: str | None, now: float) -> list[Effect]:
        """Put a consumer at a cursor (after a snapshot, say) and read on from there."""
        self._subscriptions.restart(consumer_id, seq, epoch)
        return self._flush(now)

    def gap(self, consumer_id: int, seq: int, now: float) -> list[Effect]:
        """The consumer refused the envelope `seq` as ahead of it: read again from before it."""
        self._subscriptions.refused(consumer_id, seq)
        return self._flush(now)

    def reads(self, consumer_id: int) -> bool:
        """True while the consumer is subscribed and not waiting for `restart`."""
        consumer = self._subscriptions.consumers.get(consumer_id)
        return consumer is not None and not consumer.resting

    def publish(
        self,
        scope: str,
        envelopes: Sequence[Mapping[str, Any]],
        now: float,
        *,
        durable: bool,
        level: Level = "local",
    ) -> tuple[Ticket, list[Effect]]:
        """Queue envelopes, each with an `eventId`; `Answered` brings the ticket back when full."""
        ticket = self.outbox.put(scope, envelopes, durable=durable, level=level)
        return ticket, self._flush(now)

    def refuse_all(self, error: SyncError) -> list[Effect]:
        """The client ends: every consumer and publish hears why. Nothing is sent any more."""
        for ticket in self.outbox.refused(error.code, str(error)):
            self._out.append(Answered(ticket))
        for scope in list(self._subscriptions.scopes.values()):
            self._subscriptions.fail(scope, error)
        out: list[Effect] = [effect for effect in self._out if not isinstance(effect, Send)]
        self._out.clear()
        return out

    def _dispatch(self, kind: str, frame: dict[str, Any], now: float) -> None:
        subscriptions = self._subscriptions
        match kind:
            case "event":
                subscriptions.events(frame["envelope"]["scope"], (frame["envelope"],))
            case "events":
                subscriptions.events(frame["scope"], frame["envelopes"])
            case "published":
                self._answered(frame, now)
            case "subscribed":
                subscriptions.subscribed(frame)
            case "caughtUp":
                subscriptions.caught_up(frame["scope"], frame["seq"])
            case "durable":
                subscriptions.durable(frame)
            case "scopeError":
                subscriptions.scope_error(frame, now)
            case "error":
                self._error(frame, now)
            case _:
                pass  # pong, unsubscribed, authenticated, and what later servers may add
        if kind != "error":
            self._attempt = 0  # the connection is of use: the next delay starts small again

    def _answered(self, frame: Mapping[str, Any], now: float) -> None:
        ticket = self.outbox.answered(frame, now)
        if ticket is not None and ticket.done:
            self._out.append(Answered(ticket))

    def _error(self, frame: Mapping[str, Any], now: float) -> None:
        """The server refused a frame of ours.

        A publish that is named gets its refusal. Otherwise it is not known which frame it was, and
        a new connection puts both sides on known ground.
        """
        count = self.outbox.size_of(frame.get("id"))
        if count:
            result = {"code": frame["code"], "message": frame.get("message", "")}
            self._answered({"id": frame["id"], "results": [result] * count}, now)
        else:
            self._out.append(Drop(f"{frame['code']}: {frame.get('message', '')}"))

    def _ping(self, now: float) -> None:
        if self._pongs_missed >= PONGS_MISSED_MAX:
            self._out.append(Drop(f"{self._pongs_missed} pongs missed"))
        else:
            self._pongs_missed += 1
            self._out.append(Send(b'{"type":"ping"}'))
        self._ping_at = now + PING_EVERY_S

    def _flush(self, now: float) -> list[Effect]:
        if self.connected:
            earned = max(0.0, now - self._allowance_at) * CONTROL_PER_S
            self._allowance = min(float(CONTROL_BURST), self._allowance + earned)
            self._allowance_at = now
            while self._control and self._allowance >= 1:
                self._allowance -= 1
                self._out.append(Send(self._control.popleft()))
            self._out.extend(map(Send, self.outbox.take_ready(now)))
        out = self._out.copy()
        self._out.clear()
        return out
