"""A message: operations of one session that take effect together, and why one is refused. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec

from actors.dialects.vuer.node import Stamp
from actors.types import Refusal

UNDO: Final = "meta.undo"
REDO: Final = "meta.redo"
Op = dict[str, Any]


class VuerRefusal(Refusal):
    """A message is refused with one of the codes of docs/vuer-rtc.md; nothing was stored."""

    def __init__(self, code: str, message: str, *, detail: dict[str, Any] | None = None) -> None:
        super().__init__(message, code=code, detail=detail)


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """As it travels and is stored; not to be changed. `server_seq`: once it is sequenced."""

    server_seq: int | None = msgspec.field(name="serverSeq", default=None)
    id: str
    session_id: str = msgspec.field(name="sessionId")
    clock: dict[str, int]
    lamport: int = msgspec.field(name="lamportTime")
    timestamp: int | float
    ops: list[Op]

    @property
    def stamp(self) -> Stamp:
        return self.lamport, self.session_id

    @property
    def is_meta(self) -> bool:
        """Whether it undoes or redoes; such a message has no other operations."""
        return self.ops[0]["otype"] in (UNDO, REDO)

    @property
    def targets(self) -> list[tuple[str, bool]]:
        """(id of a message, whether it is undone) in the order of a meta message's operations."""
        return [(op["targetMsgId"], op["otype"] == UNDO) for op in self.ops]


_decoder: Final = msgspec.json.Decoder(Message)


def encode_message(message: Message) -> str:
    """The JSON text of a message."""
    return msgspec.json.encode(message).decode()


@lru_cache(maxsize=4096)
def decode_message(text: str) -> Message:
    """A stored message. Undo reads the newest thousand again and again, so they are remembered."""
    return _decoder.decode(text)


def as_message(raw: Message | dict[str, Any]) -> Message:
    """A message out of decoded JSON in its long names. Raises msgspec.ValidationError."""
    return raw if isinstance(raw, Message) else msgspec.convert(raw, Message)
