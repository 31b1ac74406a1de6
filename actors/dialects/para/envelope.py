"""The envelope of para-sync: one whole object at one sequence of its key. Pure.

The key is not inside; it is the channel an envelope travels on. `sequence` counts the real changes
of a key, so `(key, sequence)` orders everything and a hole in it is a gap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from infra.errors import ProtocolError

_MAJOR: Final = re.compile(r"([0-9]+)\.")


class BadEnvelope(ProtocolError):
    """What came is no envelope; the message says what is missing."""

    code = "bad_envelope"


class SyncEnvelope(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """`value` as of `sequence` (from 1, one more for each change of the key).

    `schema_version` is "major.minor" of the value's schema. `deleted` says that there is no object
    any more; `value` is None then.
    """

    value: Any
    schema_version: str
    sequence: int
    deleted: bool = False


def as_envelope(given: object) -> SyncEnvelope:
    """An envelope from one, or from a mapping with its members.

    A `sequence` that is no integer passes: what it means is the receiver's matter (a replica counts
    it). Raises BadEnvelope where there is no mapping or no value in it.
    """
    if isinstance(given, SyncEnvelope):
        return given
    if not isinstance(given, Mapping):
        raise BadEnvelope(f"an envelope is an object, not {type(given).__name__}")
    if "value" not in given:
        raise BadEnvelope("an envelope has a value")
    version: Any = given.get("schema_version")
    sequence: Any = given.get("sequence")
    return SyncEnvelope(given["value"], version, sequence, given.get("deleted") is True)


def has_sequence(envelope: SyncEnvelope) -> bool:
    """Whether the sequence is an integer; True and False are none."""
    return type(envelope.sequence) is int


def majors_differ(mine: str, theirs: object) -> bool:
    """Whether both versions are readable and their majors differ; anything unreadable agrees."""
    if mine == theirs or not isinstance(theirs, str):
        return False
    own, other = _MAJOR.match(mine), _MAJOR.match(theirs)
    return own is not None and other is not None and int(own[1]) != int(other[1])
