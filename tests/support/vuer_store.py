"""A store on its own, and messages as a server would number them."""

from __future__ import annotations

from typing import Any

from actors.dialects.vuer.message import Message, VuerRefusal
from actors.dialects.vuer.validate import check_message
from edge.client.vuer.store import GraphStore
from tests.support.vuer import START


class Alone:
    """A store with what it sends, asks and reports; `hear` gives it others' messages."""

    def __init__(self, session: str = "a") -> None:
        self.sent: list[Message] = []
        self.syncs: list[int] = []
        self.errors: list[str] = []
        self.now = 0
        self.store = GraphStore(
            session, self.sent.append, now_ms=lambda: self.now, on_sync=self.syncs.append,
            on_error=lambda refusal: self.errors.append(refusal.code),
        )  # fmt: skip
        self.head = 0
        self.store.load({"graph": {}, "journalIndex": 0}, [], epoch="e1")
        self.hear(*START[0]["ops"], s="start", lamport=0)

    def message(
        self, *ops: dict[str, Any], s: str = "b", seq: int | None = None, id: str = "",
        lamport: int | None = None,
    ) -> Message:  # fmt: skip
        self.head = seq if seq is not None else self.head + 1
        message = check_message({
            "id": id or f"{s}-{self.head}", "sessionId": s, "clock": {s: self.head},
            "lamportTime": self.head if lamport is None else lamport, "ops": list(ops),
        })  # fmt: skip
        message.server_seq = self.head
        return message

    def hear(self, *ops: dict[str, Any], **more: Any) -> Message:
        message = self.message(*ops, **more)
        self.store.receive(message)
        return message

    def ack(self, seq: int | None = None) -> None:
        """Number the oldest pending message."""
        self.head = seq if seq is not None else self.head + 1
        self.store.ack(self.store.pending[0].id, self.head)

    def refuse(self, code: str) -> None:
        self.store.reject(self.store.pending[0].id, VuerRefusal(code, "no"))

    @property
    def x(self) -> Any:
        return self.store.graph.value("n", "x")


def put(value: Any, otype: str = "number.set", **more: Any) -> dict[str, Any]:
    return {"otype": otype, "key": "n", "path": "x", "value": value, **more}


def add(value: float = 1) -> dict[str, Any]:
    return put(value, "number.add")
