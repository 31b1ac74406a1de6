"""Reading and writing objects through the port: rows as envelopes, drafts and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.plan import (
    OBJECTS,
    Answer,
    Change,
    Op,
    answer_of,
    probe_draft,
    refusal_draft,
    set_draft,
    version_text,
)
from actors.port import StatePort
from actors.reply import FutureReply
from actors.rows import Row
from actors.types import Address, Bounds, Draft, Duplicate, Rejected
from edge.dialects.para.kinds import SyncedKind
from infra.errors import Busy, HoldfastError

EPOCH_ROUNDS_MAX = 5
RETRYABLE = frozenset({"busy", "try_later", "closed", "storage", "unavailable", "fenced"})


class ParaRefused(HoldfastError):
    """The write was not taken; `code` says why."""

    code = "refused"


class Stale(ParaRefused):
    """The object has changed since it was read."""

    code = "stale"


class Held(NamedTuple):
    """Rows as released, and where in the history they stand."""

    rows: list[Row | None]
    bounds: Bounds


class Written(NamedTuple):
    """A write's answer: the sequence of each key, how many of them changed."""

    sequences: dict[str, int]
    changed: int
    duplicate: bool
    answer: Answer


async def read_rows(port: StatePort, address: Address, keys: Sequence[str]) -> Held:
    """The rows of the keys, all of one epoch."""
    for _ in range(EPOCH_ROUNDS_MAX):
        before = await port.bounds(address)
        rows = await port.get(address, [(OBJECTS, key) for key in keys])
        bounds = await port.bounds(address)
        if before.epoch in ("", bounds.epoch):
            return Held(rows, bounds)
    raise Busy("the scope is being replaced", retry_after_ms=1000)


def envelope_of(row: Row | None, jump: int) -> SyncEnvelope | None:
    """The row as it is stored; None where there never was one."""
    if row is None:
        return None
    return SyncEnvelope(row.value, version_text(row), row.rev + jump, deleted=row.deleted)


def own_copy(envelope: SyncEnvelope | None) -> SyncEnvelope | None:
    """For code that may change what it is given: rows are shared."""
    if envelope is None or not isinstance(envelope.value, dict | list):
        return envelope
    value = msgspec.json.decode(msgspec.json.encode(envelope.value))
    return msgspec.structs.replace(envelope, value=value)


def upcast(kind: SyncedKind, key: str, envelope: SyncEnvelope) -> SyncEnvelope:
    """The envelope as of the server's schema. Raises SchemaSkew."""
    if envelope.deleted:
        return envelope
    if kind.is_current(envelope.schema_version):
        return envelope
    own = own_copy(envelope)  # upcasters are user code
    assert own is not None
    value, version = kind.current(key, own.value, own.schema_version)
    return SyncEnvelope(value, version, envelope.sequence)


async def write(
    port: StatePort, address: Address, changes: list[Change], op: Op | None = None
) -> Written:
    """Set the objects, all or none. Released on return. Raises Stale or ParaRefused."""
    return await _append(port, address, set_draft(changes, op))


async def recall(port: StatePort, address: Address, op: Op) -> Written | None:
    """What the intent was answered before; None where it is new."""
    if not (await port.bounds(address)).epoch:
        return None  # no file yet, and none is made for a question
    try:
        return await _append(port, address, probe_draft(op))
    except ParaRefused as error:
        if error.code == "unknown":
            return None
        raise


async def refuse(port: StatePort, address: Address, op: Op, code: str, message: str) -> Written:
    """Have the intent and its repeats refused alike; the answer that holds, perhaps an older."""
    return await _append(port, address, refusal_draft(op, code, message))


async def _append(port: StatePort, address: Address, draft: Draft) -> Written:
    reply = FutureReply()
    port.append(address, [draft], reply, None)
    (outcome,), bounds = await reply.future
    if isinstance(outcome, Rejected):
        kind: type[ParaRefused] = Stale if outcome.code == "stale" else ParaRefused
        error = kind(outcome.message, code=outcome.code, retry_after_ms=outcome.retry_after_ms)
        error.retryable = outcome.code in RETRYABLE
        raise error
    answer = answer_of(outcome.outcome)
    sequences = {key: rev + bounds.jump for key, rev in answer.revs.items() if rev}
    if isinstance(outcome, Duplicate):
        return Written(sequences, 0, True, answer)
    return Written(sequences, outcome.last - outcome.first + 1, False, answer)


def change_of(
    kind: SyncedKind, key: str, value: Any, *, version: str | None = None, rev: int | None = None,
    v: int | None = None,
) -> Change:  # fmt: skip
    """The change that sets the object. Raises ParseGateError, BadValue or TooLarge."""
    plain, text = kind.gate(value)
    return Change(key, version or kind.version, plain, text, False, rev, v)


def deletion_of(
    kind: SyncedKind, key: str, *, rev: int | None = None, v: int | None = None
) -> Change:
    """The change that leaves a tombstone."""
    return Change(key, kind.version, None, "null", True, rev, v)
