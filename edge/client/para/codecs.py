"""Envelopes as bytes, for buses. Pure.

A value comes out as it went in, 64-bit integers included, or the publisher hears of it.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import msgspec

from actors.dialects.para import integers
from actors.dialects.para.envelope import BadEnvelope, SyncEnvelope, as_envelope

_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
_UNDECODABLE = (ValueError, RecursionError, msgspec.MsgspecError)


class Codec(Protocol):
    """Both ways; `encode` raises BadEnvelope for what it cannot carry, `decode` for what it is not.

    An envelope whose sequence is no integer passes: a replica counts it.
    """

    def encode(self, envelope: SyncEnvelope, /) -> Any: ...

    def decode(self, payload: Any, /) -> SyncEnvelope: ...


class IdentityCodec:
    """Nothing changes; for connections within one process."""

    def encode(self, envelope: SyncEnvelope) -> SyncEnvelope:
        """The envelope."""
        return envelope

    def decode(self, payload: Any) -> SyncEnvelope:
        """The envelope, or of a mapping one."""
        return as_envelope(payload)


class MsgpackCodec:
    """msgpack: compact, integers of -2^63 to 2^64-1, bytes and times of their own."""

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(SyncEnvelope).decode
        self._decode_any = msgspec.msgpack.Decoder().decode

    def encode(self, envelope: SyncEnvelope) -> bytes:
        """A map of the envelope's members."""
        try:
            return self._encode(envelope)
        except _UNENCODABLE as error:
            raise BadEnvelope(f"msgpack has no word for the value: {error}") from error

    def decode(self, payload: bytes) -> SyncEnvelope:
        """The envelope."""
        try:
            try:
                return self._decode(payload)
            except msgspec.ValidationError:  # not what is expected: perhaps without a sequence
                members = self._decode_any(payload)
        except _UNDECODABLE as error:
            raise BadEnvelope(f"not msgpack: {error}") from error
        return as_envelope(members)


class JsonCodec:
    """JSON for whoever reads along: integers beyond 2^53-1 are `{"$int": "…"}`."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._decode_any = msgspec.json.Decoder().decode

    def encode(self, envelope: SyncEnvelope) -> bytes:
        """An object of the envelope's members."""
        try:
            payload = self._encode(envelope)
            if b"null" in payload:
                _check_finite(envelope.value)
            if integers.may_be_wide(payload.decode()):
                wide = integers.wrapped(msgspec.to_builtins(envelope.value))
                payload = self._encode(msgspec.structs.replace(envelope, value=wide))
        except _UNENCODABLE as error:
            raise BadEnvelope(f"JSON has no word for the value: {error}") from error
        return payload

    def decode(self, payload: bytes) -> SyncEnvelope:
        """The envelope."""
        try:
            members = self._decode_any(payload)
        except _UNDECODABLE as error:
            raise BadEnvelope(f"not JSON: {error}") from error
        envelope = as_envelope(members)
        if b'"$int"' not in payload:
            return envelope
        return msgspec.structs.replace(envelope, value=integers.unwrapped(envelope.value))


def _check_finite(value: Any) -> None:
    """Raise ValueError for a number that JSON would turn into null without a word."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number of JSON")
    elif isinstance(value, dict):
        for inner in value.values():
            _check_finite(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            _check_finite(inner)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check_finite(getattr(value, name))
