"""A client's side of the wire (contract sections 9 and 11), without I/O: frames and time in, frames
out.

Always true: a message is sent once on a socket, in the order it was committed, and again on the
next one until it has its number. `outgoing` is what the caller has to send; `due` when it should
call `tick`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from actors.dialects.vuer.message import Message, VuerRefusal
from edge.budget import Budget
from edge.client.vuer.store import GraphStore
from infra.errors import ProtocolError

HEARTBEAT_EVERY_S: Final = 15.0
SILENCE_S: Final = 45.0  # nothing heard: the socket is given up
BEHIND_WAIT_S: Final = 1.0  # what a heartbeat tells may be on its way
REFILL_WAIT_S: Final = 0.05
PAUSE_MIN_S: Final = 0.25
PER_S: Final = 100  # below what the server takes
BURST: Final = 500
FINAL_CODES: Final = frozenset({4401, 4403, 4409})


class RtcMachine:
    """One room on one socket after the other. `now` is monotonic seconds."""

    def __init__(self, store: GraphStore, now: float) -> None:
        self.store = store
        self.outgoing: list[dict[str, Any]] = []
        self.joined = False
        self.members: dict[str, Any] = {}  # session: what it points at
        self.on_error: Callable[[VuerRefusal], object] = lambda refusal: None
        self.on_members: Callable[[dict[str, Any]], object] = lambda members: None
        self.on_status: Callable[[Any, int, str], object] = lambda request_id, seq, found: None
        self.ended: VuerRefusal | None = None  # what the server said before it closed for good
        self._presence: Any = None
        self._sent: set[str] = set()
        self._budget = Budget(PER_S, BURST, now)
        self._floor = (0, 0)
        self._paused_until: float | None = None
        self._refill_at: float | None = None
        self._behind: tuple[float, int] | None = None  # (look at, the room's head)
        self._beat_at = now + HEARTBEAT_EVERY_S
        self._heard_at = now

    # -- the socket --------------------------------------------------------------------------------

    def opened(self, now: float) -> None:
        """A socket is open: join where we were."""
        store = self.store
        frame: dict[str, Any] = {"mtype": "join"}
        if store.epoch:
            frame |= {"since": store.confirmed_seq, "epoch": store.epoch}
        if self._presence is not None:
            frame["presence"] = self._presence
        self.outgoing.append(frame)
        self._beat_at = now + HEARTBEAT_EVERY_S
        self._heard_at = now

    def gone(self) -> None:
        """The socket is closed: what it did not answer is sent again on the next."""
        self.joined = False
        self.outgoing.clear()
        self._sent.clear()
        self._paused_until = self._refill_at = self._behind = None
        if self.members:
            self.members = {}
            self.on_members(self.members)

    def received(self, text: str | bytes, now: float) -> None:
        """One frame. Raises ProtocolError for what no server sends."""
        self._heard_at = now
        try:
            frame = msgspec.json.decode(text)
            self._dispatch(frame, now)
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"no frame of this dialect: {error}") from error

    def _dispatch(self, frame: dict[str, Any], now: float) -> None:
        kind = frame["mtype"]
        if kind == "broadcast":
            for message in frame.get("msgs") or [frame["msg"]]:
                self.store.receive(message)
        elif kind == "ack":
            self._sent.discard(frame["msgId"])
            self.store.ack(frame["msgId"], frame["serverSeq"], frame.get("msg"))
            self._settle(frame)
        elif kind == "state":
            self._loaded(frame, now)
        elif kind == "error":
            self._refused(frame, now)
        elif kind == "heartbeat":
            self._settle(frame)
            if frame["serverSeq"] > self.store.confirmed_seq:
                self._behind = (now + BEHIND_WAIT_S, frame["serverSeq"])
        elif kind == "presence":
            self._told(frame["sessionId"], frame["state"])
        elif kind == "members":
            self._members_changed(frame)
        elif kind == "sync-status":
            status = frame["status"]
            self.on_status(frame["requestId"], status["serverSeq"], status["hash"])
        elif kind == "reset" and frame["reason"] == "cleared":
            self.store.clear()

    def _loaded(self, frame: dict[str, Any], now: float) -> None:
        self.store.load(
            frame.get("snapshot"), frame["journal"], epoch=frame["epoch"],
            floor_at=frame["floorAt"], lamport=frame["lamportTime"],
            durable_seq=frame["durableSeq"],
        )  # fmt: skip
        self._settle(frame)
        self.members = {
            member["sessionId"]: member.get("presence")
            for member in frame["members"]
            if member["sessionId"] != self.store.session_id
        }
        self.on_members(self.members)
        self.joined = True
        self._sent.clear()
        self.flush(now)

    def _settle(self, frame: dict[str, Any]) -> None:
        if "floorSeq" in frame:
            self._floor = (frame["floorSeq"], frame["floorAt"])
        self.store.settle(
            floor_seq=self._floor[0], floor_at=self._floor[1], durable_seq=frame["durableSeq"]
        )

    def _refused(self, frame: dict[str, Any], now: float) -> None:
        refusal = VuerRefusal(frame["error"], frame["message"])
        msg_id = frame.get("msgId")
        if frame.get("retryable"):
            wait_s = max(PAUSE_MIN_S, frame.get("retryAfterMs", 0) / 1000)
            self._paused_until = now + wait_s
            self._sent.clear()  # in order again, from the first without an answer
        elif msg_id is not None:
            self._sent.discard(msg_id)
            self.store.reject(msg_id, refusal)
        else:
            self.ended = refusal
            self.on_error(refusal)

    # -- members -----------------------------------------------------------------------------------

    def present(self, state: Any) -> None:
        """What this session points at; None takes it back."""
        self._presence = state
        if self.joined:
            self.outgoing.append({"mtype": "presence", "state": state})

    def _told(self, session: str, state: Any) -> None:
        self.members[session] = state
        self.on_members(self.members)

    def _members_changed(self, frame: dict[str, Any]) -> None:
        for member in frame.get("joined", ()):
            self.members.setdefault(member["sessionId"], None)
        for session in frame.get("left", ()):
            self.members.pop(session, None)
        self.on_members(self.members)

    # -- sending -----------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Send what is pending and was not sent on this socket, as fast as the server takes it."""
        if not self.joined or self._paused_until is not None:
            return
        for message in self.store.pending:
            if message.id in self._sent:
                continue
            if self._budget.take(1, now):
                self._refill_at = now + REFILL_WAIT_S
                return
            self._sent.add(message.id)
            self.outgoing.append({"mtype": "crdt", "msg": _wire(message)})

    def sync(self, since: int) -> None:
        """The store lacks what follows."""
        if self.joined:
            self.outgoing.append({"mtype": "sync", "since": since})

    def check(self, request_id: int) -> None:
        """Ask for the state hash; `on_status` hears it."""
        self.outgoing.append({"mtype": "sync-check", "requestId": request_id})

    def leave(self) -> None:
        """Say goodbye."""
        if self.joined:
            self.outgoing.append({"mtype": "leave"})

    # -- time --------------------------------------------------------------------------------------

    def due(self) -> float:
        """When to call `tick` next."""
        times = [self._beat_at, self._heard_at + SILENCE_S, self._paused_until, self._refill_at]
        times.append(None if self._behind is None else self._behind[0])
        return min(time for time in times if time is not None)

    def tick(self, now: float) -> bool:
        """Do what is due; False where the socket should be given up, for nothing was heard."""
        if now >= self._beat_at:
            self._beat_at = now + HEARTBEAT_EVERY_S
            if self.joined:
                self._beat()
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self.flush(now)
        if self._refill_at is not None and now >= self._refill_at:
            self._refill_at = None
            self.flush(now)
        if self._behind is not None and now >= self._behind[0]:
            if self.store.confirmed_seq < self._behind[1]:
                self.sync(self.store.confirmed_seq)
            self._behind = None
        if now < self._heard_at + SILENCE_S:
            return True
        self._heard_at = now
        return False

    def _beat(self) -> None:
        store = self.store
        self.outgoing.append({
            "mtype": "heartbeat", "sessionId": store.session_id, "vectorClock": store.clock,
            "confirmedSeq": store.confirmed_seq,
        })  # fmt: skip


def _wire(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(message)
    return found
