"""A client's own messages: those without a number yet, those not safe yet, and what may be undone.

Pure. A message stays here until it is as safe as the server makes it, so that a client can bring
back what a fail-over lost: the room recognises what it still has by the ids.
"""

from __future__ import annotations

from collections.abc import Collection

from actors.dialects.vuer.message import UNDO, Message

STACK_MAX = 1000


def numbered(message: Message, seq: int | None) -> Message:
    """The message with its serverSeq, or without one."""
    return Message(
        server_seq=seq, id=message.id, session_id=message.session_id, clock=message.clock,
        lamport=message.lamport, timestamp=message.timestamp, ops=message.ops,
    )  # fmt: skip


class Own:
    """`pending` are in the order they were committed."""

    def __init__(self, session_id: str, nonce: str = "") -> None:
        self.session_id = session_id
        self._nonce = nonce
        self.pending: dict[str, Message] = {}
        self._unsafe: dict[str, Message] = {}  # numbered, above the durable seq, ascending
        self._done: list[str] = []  # own data messages, oldest first
        self._redo: list[str] = []

    def next_id(self, counter: int) -> str:
        """The id of the message with that count of its session."""
        id = f"{self.session_id}:{counter}"
        return f"{id}-{self._nonce}" if self._nonce else id

    # -- undo and redo -----------------------------------------------------------------------------

    def committed(self, message: Message) -> None:
        """A data message joins what can be undone; nothing can be redone any more."""
        self._done.append(message.id)
        del self._done[:-STACK_MAX]
        self._redo.clear()

    def undo_target(self, undone: Collection[str]) -> str | None:
        """The newest own data message that is not undone."""
        return next((id for id in reversed(self._done) if id not in undone), None)

    def redo_target(self) -> str | None:
        """What the last undo took away."""
        return self._redo[-1] if self._redo else None

    def meta(self, message: Message) -> None:
        """An own undo or redo was sent."""
        for target, undone in message.targets:
            if undone:
                self._redo.append(target)
            elif target in self._redo:
                self._redo.remove(target)

    def expire(self, kept: Collection[str]) -> None:
        """Messages that are neither kept in the tail nor pending cannot be undone or redone."""
        self._done = [id for id in self._done if id in kept or id in self.pending]
        self._redo = [id for id in self._redo if id in kept or id in self.pending]

    # -- what the server says ----------------------------------------------------------------------

    def confirm(self, message: Message) -> None:
        """The message has its number; if it is an own one it is kept until it is safe."""
        self.pending.pop(message.id, None)
        if message.session_id == self.session_id:
            self._unsafe[message.id] = message

    def settle(self, msg_id: str, seq: int) -> bool:
        """A pending message turns out to be numbered already; False where it is not pending."""
        message = self.pending.get(msg_id)
        if message is not None:
            self.confirm(numbered(message, seq))
        return message is not None

    def safe(self, durable_seq: int) -> None:
        """What is numbered up to there cannot be lost."""
        for message in [*self._unsafe.values()]:
            if (message.server_seq or 0) <= durable_seq:
                del self._unsafe[message.id]

    def forget(self) -> None:
        """Keep nothing of what has a number."""
        self._unsafe.clear()

    def refill(self, durable_seq: int) -> None:
        """Another epoch: what was not safe is pending again, before what never had a number."""
        self.safe(durable_seq)
        by_seq = sorted(self._unsafe.values(), key=lambda message: message.server_seq or 0)
        lost = {message.id: numbered(message, None) for message in by_seq}
        self._unsafe.clear()
        self.pending = lost | self.pending

    def refuse(self, msg_id: str) -> bool:
        """The server takes it not; False where it was not pending."""
        message = self.pending.pop(msg_id, None)
        if message is None:
            return False
        if msg_id in self._done:
            self._done.remove(msg_id)
        if message.is_meta and message.ops[0]["otype"] == UNDO:
            for target, _ in message.targets:
                if target in self._redo:
                    self._redo.remove(target)
                # It has expired or is forbidden: asking again would not help.
                if target in self._done:
                    self._done.remove(target)
        return True
