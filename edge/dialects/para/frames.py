"""The frames of an objectfeed, and the two codecs they travel in. Pure.

Text messages are JSON (integers beyond 2^53-1 as `{"$int": "…"}`), binary ones msgpack. Whatever
bytes come, `decode` gives a frame or raises BadFrame.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.integers import WORD, may_be_wide, unwrapped, wrapped
from infra.errors import ProtocolError

ID_CHARS_MAX: Final = 128
TX_INTENTS_MAX: Final = 100
MESSAGE_CHARS_MAX: Final = 300
Frame = dict[str, Any]
Mark = tuple[str, int | None]
"""(opId, v)"""


class BadFrame(ProtocolError):
    """The message is no frame of this protocol."""


class _Inbound(msgspec.Struct, tag_field="type", forbid_unknown_fields=False):
    pass


class Sub(_Inbound, tag="sub"):
    """Follow a key from what the client has applied."""

    key: str
    sequence: int = -1
    schema_version: str | None = None
    epoch: str | None = None


class Unsub(_Inbound, tag="unsub"):
    """Follow it no longer."""

    key: str


class Fetch(_Inbound, tag="fetch"):
    """The current envelope, once."""

    id: str | int
    key: str


class Query(_Inbound, tag="query"):
    """Follow the members of a query."""

    qid: str
    spec: Any = None


class Unquery(_Inbound, tag="unquery"):
    """No longer."""

    qid: str


class IntentFrame(_Inbound, tag="intent"):
    """A wish to change one object. `base`: its merged fields as the client saw them before."""

    clientId: str
    opId: str
    key: str
    v: int = 0
    value: Any = UNSET
    name: str | UnsetType = UNSET
    input: Any = None
    base: Any = None


class TxIntent(msgspec.Struct):
    """One of the intents of a group."""

    key: str
    v: int = 0
    value: Any = UNSET
    name: str | UnsetType = UNSET
    input: Any = None
    base: Any = None


class Tx(_Inbound, tag="tx"):
    """Intents that succeed together or not at all."""

    clientId: str
    groupOpId: str
    intents: list[TxIntent]


class PresenceFrame(_Inbound, tag="presence"):
    """Say what one is at, leave, or watch a channel."""

    channel: str
    value: Any = UNSET
    leave: bool = False
    watch: bool | None = None
    peerId: str | None = None


class Ping(_Inbound, tag="ping"):
    """Answered with `pong`; keeps presence alive."""

    t: Any = UNSET


Inbound = Sub | Unsub | Fetch | Query | Unquery | IntentFrame | Tx | PresenceFrame | Ping
_json = msgspec.json.Decoder(Inbound).decode
_msgpack = msgspec.msgpack.Decoder(Inbound).decode


class FrameCodec(Protocol):
    """How frames become messages."""

    binary: bool

    def decode(self, data: bytes | bytearray | str) -> Inbound:
        """Raises BadFrame."""

    def encode(self, frame: Frame) -> str | bytes:
        """One message."""


class JsonFrames:
    """Text messages."""

    binary = False

    def decode(self, data: bytes | bytearray | str) -> Inbound:
        """Raises BadFrame."""
        try:
            frame = _json(data)
            wide = WORD in data if isinstance(data, str) else WORD.encode() in data
            return _unwrap(frame) if wide else frame
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BadFrame(f"not a frame: {error}") from error

    def encode(self, frame: Frame) -> str:
        """One message."""
        text = msgspec.json.encode(frame).decode()
        return msgspec.json.encode(wrapped(frame)).decode() if may_be_wide(text) else text


class MsgpackFrames:
    """Binary messages."""

    binary = True

    def decode(self, data: bytes | bytearray | str) -> Inbound:
        """Raises BadFrame."""
        try:
            frame: Inbound = _msgpack(data.encode() if isinstance(data, str) else data)
            return frame
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
            raise BadFrame(f"not a frame: {error}") from error

    def encode(self, frame: Frame) -> bytes:
        """One message."""
        return msgspec.msgpack.encode(frame)


JSON: Final = JsonFrames()
MSGPACK: Final = MsgpackFrames()


def _unwrap(frame: Inbound) -> Inbound:
    for member in frame.__struct_fields__:
        value = getattr(frame, member)
        if isinstance(value, dict):
            setattr(frame, member, unwrapped(value))
        elif isinstance(value, list):
            parts = [_unwrap_part(part) for part in value]
            setattr(frame, member, parts)
    return frame


def _unwrap_part(part: Any) -> Any:
    if isinstance(part, TxIntent):
        part.value, part.input = _given(part.value), unwrapped(part.input)
        part.base = unwrapped(part.base)
        return part
    return unwrapped(part)


def _given(value: Any) -> Any:
    return value if value is UNSET else unwrapped(value)


def check_id(value: str, what: str) -> str:
    """An id of the client's. Raises BadFrame."""
    if not 0 < len(value) <= ID_CHARS_MAX or not value.isprintable():
        raise BadFrame(f"{what} has 1 to {ID_CHARS_MAX} printable characters")
    return value


# -- what the server sends -----------------------------------------------------------------------


def members_of(envelope: SyncEnvelope) -> Frame:
    """An envelope as its three members."""
    return {
        "value": envelope.value,
        "schema_version": envelope.schema_version,
        "sequence": envelope.sequence,
    }


def subscribed(key: str, epoch: str, sequence: int, version: str) -> Frame:
    return {
        "type": "subscribed", "key": key, "epoch": epoch, "sequence": sequence,
        "schema_version": version,
    }  # fmt: skip


def envelope(
    key: str, shown: SyncEnvelope, *, baseline: bool = False, op: Mark | None = None
) -> Frame:
    """`op` is for the author."""
    frame: Frame = {"type": "envelope", "key": key, "envelope": members_of(shown)}
    if baseline:
        frame["baseline"] = True
    if shown.deleted:
        frame["deleted"] = True
    if op is not None:
        frame["opId"] = op[0]
        if op[1] is not None:
            frame["v"] = op[1]
    return frame


def fetched(id: str | int, key: str, shown: SyncEnvelope) -> Frame:
    frame: Frame = {"type": "fetched", "id": id, "key": key, "envelope": members_of(shown)}
    if shown.deleted:
        frame["deleted"] = True
    return frame


def unfetched(id: str | int, key: str, code: str, message: str) -> Frame:
    return {
        "type": "fetched", "id": id, "key": key,
        "error": {"code": code, "message": message[:MESSAGE_CHARS_MAX]},
    }  # fmt: skip


def membership(qid: str, keys: list[str], seeds: dict[str, SyncEnvelope]) -> Frame:
    shown = {key: members_of(seed) for key, seed in seeds.items()}
    return {"type": "membership", "qid": qid, "keys": keys, "seeds": shown}


def query_error(qid: str, code: str, message: str) -> Frame:
    return {"type": "error", "re": "query", "qid": qid, "code": code,
            "message": message[:MESSAGE_CHARS_MAX]}  # fmt: skip


def confirm(name: Frame, sequences: dict[str, int]) -> Frame:
    """`name` is the clientId with the opId or groupOpId."""
    return {"type": "confirm", **name, "sequences": sequences}


def reject(name: Frame, code: str, message: str, retry_after_ms: int | None = None) -> Frame:
    frame = {"type": "reject", **name, "code": code, "message": message[:MESSAGE_CHARS_MAX]}
    if retry_after_ms is not None:
        frame["retryAfterMs"] = retry_after_ms
    return frame


def presence(channel: str, peer: str, value: Any) -> Frame:
    return {"type": "presence", "channel": channel, "peerId": peer, "value": value}


def left(channel: str, peer: str) -> Frame:
    return {"type": "presence", "channel": channel, "peerId": peer, "leave": True}


def key_error(key: str, code: str, message: str) -> Frame:
    return {"type": "keyError", "key": key, "code": code, "message": message[:MESSAGE_CHARS_MAX]}


def error(code: str, message: str, re: str | None = None) -> Frame:
    frame = {"type": "error", "code": code, "message": message[:MESSAGE_CHARS_MAX]}
    if re is not None:
        frame["re"] = re
    return frame


def pong(t: Any, now_ms: int) -> Frame:
    frame: Frame = {"type": "pong", "now": now_ms}
    if t is not UNSET:
        frame["t"] = t
    return frame
