"""What one client knows of a room, and what it shows: no I/O.

Always true: `confirmed` is the fold of all messages up to `confirmed_seq`, in the server's order;
`graph` is `confirmed` with the own pending messages and the uncommitted edits on top, made anew
whenever what is below them changes, never merged into it.

Undo needs the messages since a base: `base` at `floor_seq`, `tail` after it. The base moves only
once this client has seen the head at which the server moved its own floor, because until then an
undo of an older message may be under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from actors.clocks import lamport_receive, lamport_tick
from actors.dialects.vuer.buffer import merge_edit
from actors.dialects.vuer.graph import Graph, create_empty_graph, graph_from_json
from actors.dialects.vuer.message import REDO, UNDO, Message, Op, VuerRefusal, as_message
from actors.dialects.vuer.otypes import EFFECTS, apply_ops, inserted
from actors.dialects.vuer.rewrite import rewritten_op
from actors.dialects.vuer.undo import fold, undone_at_end
from actors.dialects.vuer.validate import OPS_MAX, check_message, check_op, is_session
from edge.client.vuer.own import Own, numbered

SYNC_AGAIN_MS: Final = 200
AHEAD_MAX: Final = 4096  # messages kept that came too early; what is dropped is asked for again

Send = Callable[[Message], None]
Listener = Callable[[Graph], None]


class GraphStore:
    """The store of one session in one room.

    `on_send` gets every committed message, once; sending again is up to the caller, who asks
    `get_unacked_messages`. `nonce` is part of its messages' ids: with a random one no other store,
    earlier or hostile, uses the same. `on_sync` is asked to fetch what follows a serverSeq.
    """

    def __init__(
        self,
        session_id: str,
        on_send: Send | None = None,
        *,
        now_ms: Callable[[], int] = lambda: 0,
        on_sync: Callable[[int], None] | None = None,
        on_error: Callable[[VuerRefusal], None] | None = None,
        nonce: str = "",
    ) -> None:
        if not is_session(session_id):
            raise ValueError("a session id is 1 to 64 of A-Z a-z 0-9 . _ @ -")
        self.session_id = session_id
        self.epoch: str | None = None
        self.confirmed = create_empty_graph()
        self.confirmed_seq = 0
        self.base = self.confirmed
        self.floor_seq = 0
        self.durable_seq = 0
        self.lamport = 0
        self.clock: dict[str, int] = {session_id: 0}
        self.tail: list[Message] = []
        self.edits: list[Op] = []
        self._own = Own(session_id, nonce)
        self._chars = 0  # above every number this store gave to a character, whatever became of it
        self._on_send = on_send
        self._on_sync = on_sync
        self._on_error = on_error
        self._now_ms = now_ms
        self._ahead: dict[int, Message] = {}
        self._floor = (0, 0)  # the server's floor, and the head at which it moved there
        self._asked_at: int | None = None
        self._with_pending: Graph = self.confirmed  # `confirmed` and the pending messages
        self._view: Graph = self.confirmed
        self._listeners: list[Listener] = []

    # -- reading -----------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """What to show."""
        return self._view

    @property
    def pending(self) -> list[Message]:
        """Own messages that have no number yet, in the order they were committed."""
        return list(self._own.pending.values())

    def get_unacked_messages(self) -> list[Message]:
        """What to send again after a reconnect, in order: the pending ones."""
        return self.pending

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have the listener called with each new `graph`; returns how to end it."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    # -- editing -----------------------------------------------------------------------------------

    def edit(self, op: Op) -> None:
        """Put one operation into the buffer and show it. Raises VuerRefusal; nothing changed then.

        Text positions and Euler angles are turned into what the room stores, against the view.
        """
        self.edit_batch([op])

    def edit_batch(self, ops: Sequence[Op]) -> None:
        """Several operations, all or none."""
        edits, scene, chars = self.edits, self._view.scene(), self._chars
        message = self._edit_message([])
        for raw in ops:
            op = check_op(raw, self.session_id)
            if op["otype"] in (UNDO, REDO):
                raise VuerRefusal("invalid_op", "undo and redo are no edits")
            op = rewritten_op(op, self.session_id, scene, chars)
            chars = max(chars, _chars_upto(op))
            EFFECTS[op["otype"]](scene, message, op)
            edits = merge_edit(edits, op)
        if len(edits) > OPS_MAX:
            raise VuerRefusal("invalid_op", f"more than {OPS_MAX} operations: commit first")
        self.edits, self._chars = edits, chars
        self._show(self._view.with_scene(scene))

    def cancel(self) -> None:
        """Drop the buffer: the graph before the first edit comes back."""
        if self.edits:
            self.edits = []
            self._show(self._with_pending)

    def commit(self) -> Message | None:
        """Make one message of the buffer and send it; None where it is empty.

        Raises VuerRefusal (too_large) and keeps the buffer.
        """
        if not self.edits:
            return None
        message = self._message(self.edits)
        check_message(_raw(message), session_id=self.session_id)
        self.edits = []
        self._take_own(message)
        self._with_pending = self._view
        self._own.committed(message)
        if self._on_send is not None:
            self._on_send(message)
        return message

    def undo(self) -> Message | None:
        """Undo the newest own message that is not undone; None where there is none."""
        self.commit()
        target = self._own.undo_target(self._undone())
        return None if target is None else self._meta(UNDO, target)

    def redo(self) -> Message | None:
        """Take the last undo back; None where there is none, or something was committed since."""
        target = self._own.redo_target()
        return None if target is None else self._meta(REDO, target)

    def _meta(self, otype: str, target: str) -> Message:
        op = {"otype": otype, "key": "_meta", "path": "_meta", "targetMsgId": target}
        message = self._message([op])
        self._take_own(message)
        self._own.meta(message)
        self._refresh()
        if self._on_send is not None:
            self._on_send(message)
        return message

    def _message(self, ops: list[Op]) -> Message:
        counter = self.clock[self.session_id] + 1
        return Message(
            id=self._own.next_id(counter), session_id=self.session_id,
            clock={**self.clock, self.session_id: counter}, lamport=lamport_tick(self.lamport),
            timestamp=self._now_ms(), ops=ops,
        )  # fmt: skip

    def _edit_message(self, ops: list[Op]) -> Message:
        return Message(
            id="", session_id=self.session_id, clock=self.clock,
            lamport=lamport_tick(self.lamport), timestamp=self._now_ms(), ops=ops,
        )  # fmt: skip

    def _take_own(self, message: Message) -> None:
        self.lamport = message.lamport
        self.clock = message.clock
        self._own.pending[message.id] = message

    # -- hearing -----------------------------------------------------------------------------------

    def receive(self, raw: Message | dict[str, Any]) -> None:
        """One sequenced message, in any order, any number of times."""
        message = as_message(raw)
        seq = message.server_seq
        if seq is None:
            raise VuerRefusal("invalid_message", "it has no serverSeq")
        if seq <= self.confirmed_seq:
            if self._own.settle(message.id, seq):
                self._refresh()
            return
        if seq > self.confirmed_seq + 1:
            if len(self._ahead) < AHEAD_MAX:
                self._ahead[seq] = message
            self._ask_again()
            return
        self._confirm_run(message)

    def ack(
        self, msg_id: str, server_seq: int, msg: Message | dict[str, Any] | None = None
    ) -> None:
        """The server's answer to an own message; `msg` where it was written over."""
        pending = self._own.pending.get(msg_id)
        if server_seq <= self.confirmed_seq:  # inside a snapshot, or received before
            if self._own.settle(msg_id, server_seq):
                self._refresh()
            return
        if msg is not None:
            self.receive(msg)
        elif pending is not None:
            self.receive(numbered(pending, server_seq))
        else:
            self._ask_again()

    def reject(self, msg_id: str, refusal: VuerRefusal) -> None:
        """The server refused an own message: take back what it showed."""
        if self._own.refuse(msg_id):
            self._refresh()
        if self._on_error is not None:
            self._on_error(refusal)

    def load(
        self,
        snapshot: dict[str, Any] | None,
        journal: Sequence[Message | dict[str, Any]],
        *,
        epoch: str,
        floor_at: int = 0,
        lamport: int = 0,
        durable_seq: int = 0,
    ) -> list[Message]:
        """A `state` frame: the snapshot's graph (None: go on from here) and the journal after it.

        Another epoch brings own messages back that may have been lost; returns what to send again.
        """
        if self.epoch != epoch:
            self._own.refill(self.durable_seq)
        self.epoch = epoch
        if snapshot is not None:
            seq = snapshot["journalIndex"]
            self.base = graph_from_json(snapshot["graph"], seq)
            self.confirmed, self.confirmed_seq, self.floor_seq = self.base, seq, seq
            self.tail.clear()
            self._ahead.clear()
            for session, count in snapshot.get("vectorClock", {}).items():
                self.clock[session] = max(self.clock.get(session, 0), count)
        self.lamport = lamport_receive(self.lamport, lamport)
        self.durable_seq = durable_seq
        for raw in journal:
            message = as_message(raw)
            if message.server_seq == self.confirmed_seq + 1:
                self._confirm(message)
        self._drain()
        self._refresh()
        if snapshot is not None:
            self._floor = (self.floor_seq, floor_at)
        return self.pending

    def clear(self) -> None:
        """The room was cleared: what was acknowledged in it is not brought back."""
        self._own.forget()

    def bind(
        self, *, on_send: Send, on_sync: Callable[[int], None],
        on_error: Callable[[VuerRefusal], None],
    ) -> None:  # fmt: skip
        """Have these called from now on, in place of those it was made with."""
        self._on_send, self._on_sync, self._on_error = on_send, on_sync, on_error

    def settle(self, *, floor_seq: int, floor_at: int, durable_seq: int) -> None:
        """What acks and heartbeats tell: the server's floor, and what is safe."""
        self._floor = (floor_seq, floor_at)
        self.durable_seq = max(self.durable_seq, durable_seq)
        self._own.safe(self.durable_seq)
        self.compact()

    def compact(self) -> None:
        """Move the base up to the server's floor, where this is allowed (see the module)."""
        floor, floor_at = self._floor
        if not (self.floor_seq < floor <= self.confirmed_seq and self.confirmed_seq >= floor_at):
            return
        count = floor - self.floor_seq
        undone = undone_at_end(self.tail)
        scene = self.base.scene()
        fold(scene, self.tail[:count], undone)
        self.base = self.base.with_scene(scene)
        self.floor_seq = floor
        self.tail = self.tail[count:]
        self._own.expire({message.id for message in self.tail})

    # -- confirming --------------------------------------------------------------------------------

    def _confirm_run(self, message: Message) -> None:
        """The next message, and those that waited for it."""
        pending = self._own.pending
        first = next(iter(pending)) if pending else None
        as_shown = message.id == first and pending[first].ops == message.ops
        if as_shown and not self._ahead and not message.is_meta:
            self._confirm(message)  # the view stays as it is
            if not pending:
                self._with_pending = self.confirmed
                if not self.edits:
                    self._view = self.confirmed
            return
        alone = not pending and not self._ahead
        self._confirm(message)
        self._drain()
        if alone and not self.edits and not pending:
            self._with_pending = self.confirmed
            self._show(self.confirmed)
        else:
            self._refresh()
        self.compact()

    def _drain(self) -> None:
        while (following := self._ahead.pop(self.confirmed_seq + 1, None)) is not None:
            self._confirm(following)
        if self._ahead:
            self._ahead = {s: m for s, m in self._ahead.items() if s > self.confirmed_seq}
        if self._ahead:
            self._ask_again()

    def _confirm(self, message: Message) -> None:
        self._own.confirm(message)
        self.tail.append(message)
        assert message.server_seq is not None
        self.confirmed_seq = message.server_seq
        if message.is_meta:
            scene = self.base.scene()
            fold(scene, self.tail, undone_at_end(self.tail))
            self.confirmed = self.base.with_scene(scene)
        else:
            scene = self.confirmed.scene()
            apply_ops(scene, message)
            self.confirmed = self.confirmed.with_scene(scene)
        self.confirmed.applied_seq = message.server_seq
        self.lamport = lamport_receive(self.lamport, message.lamport)
        author = message.session_id
        count = message.clock.get(author, 0)
        if count > self.clock.get(author, 0):
            self.clock = {**self.clock, author: count}

    def _ask_again(self) -> None:
        now = self._now_ms()
        if self._asked_at is None or now - self._asked_at >= SYNC_AGAIN_MS:
            self._asked_at = now
            if self._on_sync is not None:
                self._on_sync(self.confirmed_seq)

    # -- showing -----------------------------------------------------------------------------------

    def _undone(self) -> set[str]:
        return undone_at_end([*self.tail, *self._own.pending.values()])

    def _refresh(self) -> None:
        """Make the view anew."""
        pending = list(self._own.pending.values())
        if any(message.is_meta for message in pending):
            messages = [*self.tail, *pending]
            scene = self.base.scene()
            fold(scene, messages, undone_at_end(messages))
            self._with_pending = self.base.with_scene(scene)
        elif pending:
            scene = self.confirmed.scene()
            fold(scene, pending, set())
            self._with_pending = self.confirmed.with_scene(scene)
        else:
            self._with_pending = self.confirmed
        view = self._with_pending
        if self.edits:
            scene = view.scene()
            apply_ops(scene, self._edit_message(self.edits))
            view = view.with_scene(scene)
        self._show(view)

    def _show(self, view: Graph) -> None:
        self._view = view
        for listener in tuple(self._listeners):
            listener(view)


def _chars_upto(op: Op) -> int:
    """One above the highest number of a character that the operation inserts."""
    fresh = inserted(op) if op["otype"].startswith("text.") else None
    return 0 if fresh is None else fresh[1] + len(fresh[2])


def _raw(message: Message) -> dict[str, Any]:
    return {
        "id": message.id, "sessionId": message.session_id, "clock": message.clock,
        "lamportTime": message.lamport, "timestamp": message.timestamp, "ops": message.ops,
    }  # fmt: skip


def create_graph(session_id: str, on_send: Send | None = None, **options: Any) -> GraphStore:
    """A store for one session; see GraphStore for the options."""
    return GraphStore(session_id, on_send, **options)
