"""Envelopes: checked once where they enter, spliced as text ever after. Pure.

`parse_envelope` decodes only as far as the rules of asterql.md section 3 need; values and patches
stay bytes. What a full decode would find in them (integers beyond 2**53-1, numbers that overflow,
nesting, lone surrogates) is looked for in the raw text by a few searches that may be wrong in one
direction only: any doubt leads to the full check.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from actors.dialects.asterql.keys import parse_entity_key
from actors.types import Draft
from infra import limits
from infra.errors import ProtocolError

KINDS = frozenset({"patch", "snapshot", "invalidate"})
_BODY_ROOM = 64  # what seq and at add to an envelope

_EventId = Annotated[
    str, msgspec.Meta(min_length=1, max_length=limits.EVENT_ID_CHARS_MAX, title="eventId")
]
_Millis = Annotated[int, msgspec.Meta(ge=0, le=limits.INTEGER_MAX)]


class Entity(msgspec.Struct, gc=False):
    """One entity entry: exactly one of patches, value, deleted."""

    key: str
    patches: list[msgspec.Raw] | UnsetType = UNSET
    value: msgspec.Raw | UnsetType = UNSET
    deleted: bool | UnsetType = UNSET
    version: Annotated[str, msgspec.Meta(max_length=limits.VERSION_CHARS_MAX)] | UnsetType = UNSET


class Envelope(msgspec.Struct, gc=False):
    """An envelope as far as the server looks into it; other members pass unseen."""

    eventId: _EventId
    kind: str
    scope: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    entities: list[Entity] | UnsetType = UNSET
    at: _Millis | UnsetType = UNSET
    cause: Annotated[str, msgspec.Meta(max_length=limits.CAUSE_CHARS_MAX)] | UnsetType = UNSET
    classes: list[str] | UnsetType = UNSET
    classVersions: dict[str, int] | UnsetType = UNSET


_UNDECODABLE = (msgspec.MsgspecError, RecursionError, UnicodeError)
_decode = msgspec.json.Decoder(Envelope).decode
_decode_any = msgspec.json.Decoder().decode
_FLAT = bytes.maketrans(b"123456789E{", b"000000000e[")  # every digit is 0, E is e, { is [
_LONG = b"0" * 16
_BEFORE_NUMBER = frozenset(b":[, \t\r\n")


class BadEnvelope(ProtocolError):
    """The envelope breaks a rule; the message says which."""

    code = "bad_envelope"


class TooLarge(BadEnvelope):
    """The envelope breaks a limit."""

    code = "too_large"


def decode_envelope(raw: bytes | str) -> Envelope:
    """The structure only, without the rules. Raises BadEnvelope."""
    try:
        return _decode(raw)
    except _UNDECODABLE as error:
        raise BadEnvelope(f"envelope: {error}") from error


def parse_envelope(raw: bytes, scope: str, *, seq: int | None = None) -> Draft:
    """A draft whose body is the envelope's text without its opening brace, scope included.

    `seq` is what a factory in the same process was handed; a remote envelope carries none.
    Raises BadEnvelope or TooLarge.
    """
    if len(raw) > limits.ENVELOPE_BYTES_MAX - _BODY_ROOM:
        raise TooLarge(f"envelope of {len(raw)} bytes; at most {limits.ENVELOPE_BYTES_MAX}")
    try:
        envelope = _decode(raw)
    except _UNDECODABLE as error:
        raise BadEnvelope(f"envelope: {error}") from error
    if envelope.seq is not UNSET and envelope.seq != seq:
        raise BadEnvelope(
            "envelope.seq: the server assigns it; leave it out"
            if seq is None
            else f"envelope.seq: {envelope.seq}, but {seq} was handed out"
        )
    _check_kind(envelope)
    if _doubtful(raw):
        check_value(_decode_fully(raw))
    if b"\n" in raw or b"\r" in raw:
        # Inside a JSON string a line break is escaped, so these are between tokens: one event
        # must stay one line in a server-sent stream.
        raw = raw.replace(b"\r", b" ").replace(b"\n", b" ")
    try:
        text = raw[raw.index(b"{") + 1 :].decode()
    except UnicodeDecodeError as error:
        raise BadEnvelope("envelope: not UTF-8") from error
    if envelope.scope is UNSET:
        text = scope_member(scope) + text
    elif envelope.scope != scope:
        raise BadEnvelope(f"envelope.scope: {envelope.scope!r}, but it is published to {scope!r}")
    if envelope.seq is not UNSET:
        text = _without_seq(raw, scope)
    return Draft(envelope.eventId, envelope.kind, text, len(raw), envelope)


@lru_cache(maxsize=4096)
def scope_member(scope: str) -> str:
    """`"scope":"…",` as it stands in a body."""
    return '"scope":' + msgspec.json.encode(scope).decode() + ","


def body_of(draft: Draft, seq: int, at: int) -> str:
    """The stored envelope: the draft's text behind the members the server adds."""
    if _has_own_at(draft):
        return f'{{"seq":{seq},{draft.body}'
    return f'{{"seq":{seq},"at":{at},{draft.body}'


def _has_own_at(draft: Draft) -> bool:
    """Whether the sender gave the time. A draft that came over a link was decoded and checked at
    the edge and is not decoded again where its text settles the question.
    """
    if draft.data is None:
        text = draft.body
        # The name, and any other way to write it: one character is found ten times as fast as two.
        if '"at"' not in text and ("\\" not in text or "\\u" not in text):
            return False
        draft.data = decode_envelope("{" + text)
    return draft.data.at is not UNSET


def _without_seq(raw: bytes, scope: str) -> str:
    members = _decode_any(raw)
    members.pop("seq", None)
    members["scope"] = scope
    return msgspec.json.encode(members)[1:].decode()


def _check_kind(envelope: Envelope) -> None:
    kind, entities = envelope.kind, envelope.entities
    if kind in ("patch", "snapshot"):
        if entities is UNSET:
            raise BadEnvelope(f"envelope.entities: a {kind} needs a list")
        _check_entities(entities, snapshot=kind == "snapshot")
    elif kind == "invalidate":
        if entities is not UNSET:
            raise BadEnvelope("envelope.entities: an invalidate has none")
        if envelope.classes is UNSET:
            raise BadEnvelope("envelope.classes: an invalidate needs a list of class names")
    else:
        raise BadEnvelope(f"envelope.kind: {kind!r} is not one of patch, snapshot, invalidate")


def _check_entities(entities: list[Entity], *, snapshot: bool) -> None:
    if len(entities) > limits.ENVELOPE_ENTITIES_MAX:
        raise TooLarge(f"{len(entities)} entities; at most {limits.ENVELOPE_ENTITIES_MAX}")
    if len(entities) > 1 and len({entity.key for entity in entities}) < len(entities):
        raise BadEnvelope("envelope.entities: a key occurs twice; put its patches together")
    patches = 0
    for entity in entities:
        _check_entity_key(entity.key)
        if entity.patches is not UNSET:
            patches += len(entity.patches)
            if snapshot or entity.value is not UNSET or entity.deleted is not UNSET:
                raise _form_error(entity, snapshot)
        elif entity.value is not UNSET:
            if entity.deleted is not UNSET:
                raise _form_error(entity, snapshot)
            if bytes(entity.value).lstrip()[:1] != b"{":
                raise BadEnvelope(f"entity {entity.key!r}: value must be an object")
        elif snapshot or entity.deleted is not True:
            raise _form_error(entity, snapshot)
    if patches > limits.ENVELOPE_PATCHES_MAX:
        raise TooLarge(f"{patches} patches; at most {limits.ENVELOPE_PATCHES_MAX}")


def _form_error(entity: Entity, snapshot: bool) -> BadEnvelope:
    wanted = "a value" if snapshot else "exactly one of patches, value, deleted:true"
    return BadEnvelope(f"entity {entity.key!r}: needs {wanted}")


@lru_cache(maxsize=8192)
def _check_entity_key(key: str) -> None:
    try:
        parse_entity_key(key)
    except ProtocolError as error:
        raise BadEnvelope(f"entity key: {error}") from error


def _doubtful(raw: bytes) -> bool:
    """Whether the text may hold what only a full decode can judge. False is certain."""
    # Single bytes are looked for first: that is ten times as fast as two or more.
    if b"\\" in raw and b"\\u" in raw:
        return True
    flat = raw.translate(_FLAT)
    if flat.count(b"[") > limits.NESTING_MAX:
        return True
    if b"+" in raw and b"e+000" in flat:
        return True
    found = flat.find(b"e000")
    while found >= 0:  # an exponent of three digits, or part of a string
        start = found
        while flat[start - 1] in b"0.":
            start -= 1
        if start < found and _begins_number(raw, start):
            return True
        found = flat.find(b"e000", found + 4)
    found = flat.find(_LONG)
    while found >= 0:  # 16 digits are fine below 9e15, longer runs never surely
        long = raw[found] == 0x39 or flat[found + 16 : found + 17] == b"0"
        if long and _begins_number(raw, found):
            return True
        found = flat.find(_LONG, found + 16)
    return False


def _begins_number(raw: bytes, start: int) -> bool:
    """Whether digits from `start` on may be a number: in a string or a fraction, others precede."""
    before = raw[start - 2] if raw[start - 1] == 0x2D else raw[start - 1]
    return before in _BEFORE_NUMBER


def _decode_fully(raw: bytes) -> Any:
    try:
        return _decode_any(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadEnvelope(f"envelope: {error}") from error


def check_value(value: Any, depth: int = -3) -> None:
    """Raise BadEnvelope where a value is beyond what every peer holds exactly.

    `depth` starts below zero so that the members of an envelope around a record do not count.
    """
    if depth > limits.NESTING_MAX:
        raise BadEnvelope(f"nesting deeper than {limits.NESTING_MAX}")
    if isinstance(value, dict):
        for name, item in value.items():
            check_value(name)
            check_value(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_value(item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadEnvelope("a number is not finite")
    elif isinstance(value, int) and abs(value) > limits.INTEGER_MAX:
        raise BadEnvelope("an integer is beyond 2^53-1; send it as a string")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadEnvelope("a string holds a lone surrogate") from error
