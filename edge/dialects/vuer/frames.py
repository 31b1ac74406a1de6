"""Frames of the vuer-rtc dialect in both codecs and both sets of names (section 11). Pure.

A `Format` is how one connection is written to: JSON text or msgpack bytes, long or short names.
What comes in is read by what it is, text or bytes, and may use either names. Messages travel as
the JSON text they are stored as and are spliced into JSON frames; the other formats decode them
once a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from actors.types import Bounds, Entry
from edge.dialects.vuer import limits
from edge.wire import Message
from infra.errors import ProtocolError

_SHORT: Final = {"sessionId": "client", "lamportTime": "lt", "timestamp": "ts"}
_SCALARS: Final = (str, int, float, type(None))  # bool is an int
_to_json = msgspec.json.encode
_to_msgpack = msgspec.msgpack.encode
_from_json = msgspec.json.Decoder().decode
_from_msgpack = msgspec.msgpack.Decoder().decode


class BadFrame(ProtocolError):
    """Nothing this dialect can act on. `code` is the wire's; `msg_id` where a message had one."""

    def __init__(self, message: str, code: str = "invalid_message", msg_id: str | None = None):
        super().__init__(message, code=code)
        self.msg_id = msg_id


class Format(NamedTuple):
    """How a connection is written to."""

    codec: Literal["json", "msgpack"] = "json"
    names: Literal["long", "short"] = "long"

    def encode(self, frame: Mapping[str, Any]) -> Message:
        """One server frame; bodies in it come from `body` of the same format."""
        if self.codec == "json":
            return _to_json(frame).decode()
        return _to_msgpack(frame)

    def body(self, text: str) -> Any:
        """A stored message (JSON text) as this format's frames hold it."""
        if self == JSON:
            return msgspec.Raw(text.encode())
        value = _from_json(text)
        return short_names(value) if self.names == "short" else value

    def value(self, text: str) -> Any:
        """Any other JSON text (a snapshot) as this format's frames hold it."""
        return msgspec.Raw(text.encode()) if self.codec == "json" else _from_json(text)


JSON: Final = Format()
_FORMATS: Final = (
    JSON, Format("json", "short"), Format("msgpack", "long"), Format("msgpack", "short"),
)  # fmt: skip


def format_of(query: Mapping[str, str]) -> Format:
    """What the query of the upgrade asks for. Raises BadFrame."""
    asked = query.get("codec", "json"), query.get("names", "long")
    for format in _FORMATS:
        if format == asked:
            return format
    raise BadFrame("codec: json or msgpack; names: long or short")


# -- names -----------------------------------------------------------------------------------------


def short_names(message: dict[str, Any]) -> dict[str, Any]:
    """A stored message with the aliases in place of its names; the reader of a message
    (actors/dialects/vuer/validate.py) takes both.
    """
    found = {_SHORT.get(name, name): value for name, value in message.items()}
    ops = found.get("ops", ())
    found["ops"] = [
        {("ot" if name == "otype" else name): value for name, value in op.items()} for op in ops
    ]
    return found


# -- what comes in ---------------------------------------------------------------------------------


class Join(msgspec.Struct, frozen=True):
    """`since` and `epoch` are what the client holds; a thin client takes `graph`."""

    since: int | None
    epoch: str | None
    mode: Literal["tail", "graph"]
    presence: Any


class Crdt(msgspec.Struct, frozen=True):
    """`msg` is unchecked."""

    msg: dict[str, Any]
    prev: str | None


class Sync(msgspec.Struct, frozen=True):
    """Exactly one of `since` and `clock` is given."""

    since: int | None
    clock: dict[str, int] | None
    request_id: Any


class SyncCheck(msgspec.Struct, frozen=True):
    """Asks for the state hash."""

    request_id: Any


class Heartbeat(msgspec.Struct, frozen=True):
    """The client is there, and knows this much."""

    clock: dict[str, int] | None
    confirmed_seq: int | None


class Presence(msgspec.Struct, frozen=True):
    """What the session points at; None takes it back."""

    state: Any


class Leave(msgspec.Struct, frozen=True):
    """The session goes for good."""


Inbound = Join | Crdt | Sync | SyncCheck | Heartbeat | Presence | Leave


def decode(data: bytes | bytearray | str, *, binary: bool) -> Inbound:
    """One client frame. Raises BadFrame, never anything else."""
    try:
        frame = _from_msgpack(data) if binary else _from_json(data)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise BadFrame(f"not {'msgpack' if binary else 'JSON'}: {error}"[:200]) from None
    if not isinstance(frame, dict):
        raise BadFrame("a frame is an object")
    check_plain(frame)
    kind = frame.get("mtype")
    make = _KINDS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise BadFrame(f"no frame has this mtype: {str(kind)[:64]!r}")
    found: Inbound = make(frame)
    return found


def check_plain(value: Any, depth: int = 0) -> None:
    """Whether the value is what JSON can hold. msgpack has more; NaN is left to the operations'
    own rules, which know the code for it. Raises BadFrame.
    """
    if depth > limits.NESTING_MAX:
        raise BadFrame(f"nested deeper than {limits.NESTING_MAX}")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise BadFrame("names of members are text")
            if not isinstance(inner, _SCALARS):
                check_plain(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            if not isinstance(inner, _SCALARS):
                check_plain(inner, depth + 1)
    elif not isinstance(value, _SCALARS):
        raise BadFrame(f"a {type(value).__name__} has no place in a frame")


def _join(frame: dict[str, Any]) -> Join:
    mode = frame.get("mode", "tail")
    if mode not in ("tail", "graph"):
        raise BadFrame("mode: tail or graph")
    epoch = frame.get("epoch")
    if epoch is not None and not isinstance(epoch, str):
        raise BadFrame("epoch: text")
    return Join(_since(frame.get("since")), epoch, mode, _presence_state(frame, "presence"))


def _crdt(frame: dict[str, Any]) -> Crdt:
    message = frame.get("msg")
    if not isinstance(message, dict):
        raise BadFrame("msg: a message")
    prev = frame.get("prev")
    if prev is not None and not isinstance(prev, str):
        raise BadFrame("prev: the id of a message", msg_id=id_of(message))
    return Crdt(message, prev)


def _sync(frame: dict[str, Any]) -> Sync:
    since, clock = _since(frame.get("since")), _clock(frame.get("vectorClock"))
    if (since is None) == (clock is None):
        raise BadFrame("sync: either since or vectorClock", "bad_since")
    return Sync(since, clock, _request_id(frame))


def _sync_check(frame: dict[str, Any]) -> SyncCheck:
    return SyncCheck(_request_id(frame))


def _heartbeat(frame: dict[str, Any]) -> Heartbeat:
    return Heartbeat(_clock(frame.get("vectorClock")), _since(frame.get("confirmedSeq")))


def _presence(frame: dict[str, Any]) -> Presence:
    return Presence(_presence_state(frame, "state"))


def _leave(frame: dict[str, Any]) -> Leave:
    return Leave()


_KINDS: Final[dict[str, Any]] = {
    "join": _join,
    "crdt": _crdt,
    "sync": _sync,
    "sync-check": _sync_check,
    "heartbeat": _heartbeat,
    "presence": _presence,
    "leave": _leave,
}


def id_of(message: Mapping[str, Any]) -> str | None:
    """The id of a message that may be anything, short enough to send back."""
    found = message.get("id")
    return found[:128] if isinstance(found, str) else None


def _since(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 2**53:
        raise BadFrame("a position is an integer from 0 to 2^53-1", "bad_since")
    return value


def _clock(value: Any) -> dict[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > limits.CLOCK_SESSIONS_MAX:
        raise BadFrame(f"vectorClock: at most {limits.CLOCK_SESSIONS_MAX} sessions")
    for count in value.values():
        if type(count) is not int or not 0 <= count < 2**53:
            raise BadFrame("vectorClock: counts from 0 to 2^53-1")
    return value


def _request_id(frame: dict[str, Any]) -> Any:
    found = frame.get("requestId")
    if found is not None and not isinstance(found, int | str):
        raise BadFrame("requestId: text or an integer")
    if isinstance(found, str) and len(found) > 128:
        raise BadFrame("requestId: at most 128 characters")
    return found


def _presence_state(frame: dict[str, Any], name: str) -> Any:
    state = frame.get(name)
    if state is None:
        return None
    if has_odd_number(state):
        raise BadFrame(f"{name}: numbers are finite")
    try:
        size = len(_to_json(state))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise BadFrame(f"{name}: {error}"[:200]) from None
    if size > limits.PRESENCE_BYTES_MAX:
        raise BadFrame(f"{name}: at most {limits.PRESENCE_BYTES_MAX} bytes", "too_large")
    return state


def has_odd_number(value: Any) -> bool:
    """Whether anything in it is NaN or infinite."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(has_odd_number(inner) for inner in value.values())
    return isinstance(value, list) and any(has_odd_number(inner) for inner in value)


# -- what goes out ---------------------------------------------------------------------------------


def error(
    code: str, message: str, *, msg_id: str | None = None, retry_after_ms: int | None = None,
    expected: Any = msgspec.UNSET,
) -> dict[str, Any]:  # fmt: skip
    """The frame of a refusal; whether it may be repeated follows from its code."""
    frame: dict[str, Any] = {"mtype": "error", "error": code, "message": message}
    frame["retryable"] = code in RETRYABLE
    if msg_id is not None:
        frame["msgId"] = msg_id
    if retry_after_ms is not None and code in RETRYABLE:
        frame["retryAfterMs"] = retry_after_ms
    if expected is not msgspec.UNSET:
        frame["expected"] = expected
    return frame


RETRYABLE: Final = frozenset({"rate_limited", "moved", "internal"})
CODES: Final = frozenset({
    "invalid_message", "invalid_op", "unknown_otype", "session_mismatch", "session_taken",
    "forbidden", "undo_expired", "invalid_target", "clock_skew", "text_id_conflict",
    "missing_prev", "too_old", "too_large", "rate_limited", "not_joined", "bad_since", "moved",
    "internal",
})  # fmt: skip
_MOVED: Final = frozenset({"busy", "closed", "fenced", "try_later", "unavailable", "storage"})


def wire_code(code: str) -> str:
    """The dialect's word for a code that may come from anywhere in the server."""
    if code in CODES:
        return code
    return "moved" if code in _MOVED else "internal"


class Room(Protocol):
    """What a `state` frame tells; edge.dialects.vuer.journal.Bootstrap fits."""

    @property
    def bounds(self) -> Bounds: ...
    @property
    def lamport(self) -> int: ...
    @property
    def snapshot(self) -> str | None: ...
    @property
    def entries(self) -> Sequence[Entry]: ...
    @property
    def last(self) -> int: ...


def state(format: Format, room: Room, members: Sequence[Any]) -> Message:
    """The room, whole or from where the client stands. Slow for a big room."""
    bounds = room.bounds
    frame: dict[str, Any] = {
        "mtype": "state", "epoch": bounds.epoch, "headSeq": bounds.head,
        "floorSeq": bounds.floor, "floorAt": bounds.floor_at, "durableSeq": bounds.durable,
        "lamportTime": room.lamport, "resume": room.snapshot is None,
        "more": room.last < bounds.head, "members": members,
    }  # fmt: skip
    if room.snapshot is not None:
        frame["snapshot"] = format.value(room.snapshot)
    frame["journal"] = [format.body(entry.body) for entry in room.entries]
    return format.encode(frame)


def broadcast(format: Format, bodies: Iterable[str]) -> Message:
    """One or several messages of others, ascending."""
    found = [format.body(text) for text in bodies]
    if len(found) == 1:
        return format.encode({"mtype": "broadcast", "msg": found[0]})
    return format.encode({"mtype": "broadcast", "msgs": found})


def pages_of(bodies: Iterable[str]) -> Iterable[list[str]]:
    """The bodies in runs that fit one frame; at least one in each."""
    run: list[str] = []
    size = 0
    for body in bodies:
        size += len(body)
        if run and (len(run) >= limits.JOURNAL_MESSAGES_MAX or size > limits.JOURNAL_BYTES_MAX):
            yield run
            run, size = [], len(body)
        run.append(body)
    if run:
        yield run


def is_beyond(entry: Entry, clock: Mapping[str, int]) -> bool:
    """Whether the entry's session has counted further than the clock knows."""
    message = _from_json(entry.body)
    session = message["sessionId"]
    counted: int = message["clock"].get(session, 0)
    return counted > clock.get(session, 0)
