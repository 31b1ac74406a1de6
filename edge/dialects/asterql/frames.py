"""AsterQL's socket frames: inbound as a tagged union, outbound as text. Pure.

Bodies are never decoded here: they are spliced into the frames as the ledger holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from actors.types import Bounds, Duplicate, Outcome, Rejected
from infra import limits
from infra.errors import ProtocolError


class Auth(msgspec.Struct, tag="auth"):
    """Credentials in the first frame, or renewed ones."""

    token: str


class Sub(msgspec.Struct, tag="sub"):
    """`since` is judged later: a bad one ends the subscription, not the frame."""

    scope: str
    since: Any = None
    epoch: str | None = None
    batch: bool = False
    durable: bool = False


class Unsub(msgspec.Struct, tag="unsub"):
    """Follow the scope no longer."""

    scope: str


class Replay(msgspec.Struct, tag="replay"):
    """Read again from `since`: the client saw a gap."""

    scope: str
    since: Any = None


class Ping(msgspec.Struct, tag="ping"):
    """A sign of life; `t` comes back."""

    t: msgspec.Raw | UnsetType = UNSET


class Publish(msgspec.Struct, tag="publish", gc=False):
    """Envelopes to append, 1 to 512 of them; answered by one `published` of the same id.

    `durable` adds `durableSeq` to the answer, `level` has it wait for the bucket.
    """

    id: int | str
    scope: str
    envelopes: list[msgspec.Raw]
    durable: bool = False
    level: Literal["local", "replicated"] = "local"


Inbound = Auth | Sub | Unsub | Replay | Ping | Publish
_TYPES = frozenset({"auth", "sub", "unsub", "replay", "ping", "publish"})
_decode = msgspec.json.Decoder(Inbound).decode
_decode_any = msgspec.json.Decoder().decode


class BadFrame(ProtocolError):
    """`re` is the type of the frame that was wrong, as far as it could be read."""

    def __init__(self, code: str, message: str, re: str | None = None) -> None:
        super().__init__(message, code=code)
        self.re = re


def decode_frame(data: bytes | bytearray | str) -> Inbound:
    """Raises BadFrame: bad_json, bad_frame or unknown_type."""
    try:
        return _decode(data)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _why(data, error) from error


def _why(data: bytes | bytearray | str, error: Exception) -> BadFrame:
    try:
        frame = _decode_any(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return BadFrame("bad_json", f"not JSON: {error}")
    if not isinstance(frame, dict):
        return BadFrame("bad_frame", "a frame is one JSON object")
    kind = frame.get("type")
    if not isinstance(kind, str):
        return BadFrame("bad_frame", "a frame needs a string member `type`")
    if kind not in _TYPES:
        return BadFrame("unknown_type", f"unknown type {kind[:40]!r}", kind[:40])
    return BadFrame("bad_frame", str(error), kind)


def quote(value: Any) -> str:
    """Any value as JSON text."""
    return msgspec.json.encode(value).decode()


def subscribed(scope: str, bounds: Bounds, since: int) -> str:
    return (
        f'{{"type":"subscribed","scope":{quote(scope)},"epoch":"{bounds.epoch}","since":{since},'
        f'"head":{bounds.head},"floor":{bounds.floor}}}'
    )


def event(body: str) -> str:
    return f'{{"type":"event","envelope":{body}}}'


def events_head(scope: str) -> str:
    """An `events` frame up to its first envelope; `]}` ends it."""
    return f'{{"type":"events","scope":{quote(scope)},"envelopes":['


def events(scope: str, bodies: list[str]) -> list[str]:
    """As many frames as the limits ask for."""
    start = events_head(scope)
    size = sum(map(len, bodies))
    if size <= limits.EVENTS_BYTES_MAX and len(bodies) <= limits.PAGE_ENTRIES_MAX:
        return [f"{start}{','.join(bodies)}]}}"]
    frames: list[str] = []
    part: list[str] = []
    size = 0
    for body in bodies:
        full = size + len(body) > limits.EVENTS_BYTES_MAX or len(part) == limits.PAGE_ENTRIES_MAX
        if part and full:
            frames.append(f"{start}{','.join(part)}]}}")
            part, size = [], 0
        part.append(body)
        size += len(body)
    frames.append(f"{start}{','.join(part)}]}}")
    return frames


def caught_up(scope: str, seq: int, durable: int | None) -> str:
    more = "" if durable is None else f',"durableSeq":{durable}'
    return f'{{"type":"caughtUp","scope":{quote(scope)},"seq":{seq}{more}}}'


def durable(scope: str, bounds: Bounds) -> str:
    return (
        f'{{"type":"durable","scope":{quote(scope)},"epoch":"{bounds.epoch}",'
        f'"seq":{bounds.durable}}}'
    )


def unsubscribed(scope: str) -> str:
    return f'{{"type":"unsubscribed","scope":{quote(scope)}}}'


def scope_error(
    scope: str,
    code: str,
    message: str,
    *,
    reason: str | None = None,
    bounds: Bounds | None = None,
    retry_after_ms: int | None = None,
) -> str:
    frame: dict[str, Any] = {"type": "scopeError", "scope": scope, "code": code, "message": message}
    if reason is not None:
        frame["reason"] = reason
    if bounds is not None:
        frame.update(epoch=bounds.epoch, head=bounds.head, floor=bounds.floor)
    if retry_after_ms is not None:
        frame["retryAfterMs"] = retry_after_ms
    return quote(frame)


def error(code: str, message: str, re: str | None = None) -> str:
    frame = {"type": "error", "code": code, "message": message[:300]}
    if re is not None:
        frame["re"] = re
    return quote(frame)


def pong(t: msgspec.Raw | UnsetType, now_ms: int, durable: Mapping[str, Bounds]) -> str:
    """`durable`: the scopes whose durable positions this client follows."""
    echo = "" if t is UNSET else f'"t":{bytes(t).decode()},'
    more = ""
    if durable:
        marks = ",".join(f"{quote(scope)}:{b.durable}" for scope, b in durable.items())
        more = f',"durableSeqs":{{{marks}}}'
    return f'{{"type":"pong",{echo}"now":{now_ms}{more}}}'


def authenticated(user: str, expires_at_ms: int | None) -> str:
    return quote({"type": "authenticated", "user": user, "expiresAt": expires_at_ms})


def published(
    id_text: str, scope_text: str, bounds: Bounds, results: str, with_durable: bool
) -> str:
    more = f',"durableSeq":{bounds.durable}' if with_durable else ""
    return (
        f'{{"type":"published","id":{id_text},"scope":{scope_text},"epoch":"{bounds.epoch}",'
        f'"results":[{results}]{more}}}'
    )


def result(outcome: Outcome) -> str:
    """One envelope's member of `results`."""
    if isinstance(outcome, Rejected):
        member: dict[str, Any] = {"code": outcome.code, "message": outcome.message[:300]}
        if outcome.detail:
            member.update(outcome.detail)
        if outcome.retry_after_ms is not None:
            member["retryAfterMs"] = outcome.retry_after_ms
        return quote(member)
    if isinstance(outcome, Duplicate):
        return f'{{"seq":{outcome.seq},"duplicate":true}}'
    return f'{{"seq":{outcome.first}}}'
