"""AsterQL's plan and apply: an envelope becomes one entry; entries fold into `entity` rows.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from actors.dialects.asterql.envelope import Entity, Envelope, body_of, decode_envelope
from actors.dialects.asterql.patches import PatchError, apply_entity_patches
from actors.rows import Key, Overlay
from actors.types import Draft, Entry, Refusal
from infra import limits

COLL = "entity"
_decode = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Named(msgspec.Struct):
    seq: int
    scope: str


_decode_named = msgspec.json.Decoder(_Named).decode


class AsterqlDialect:
    """See actors/dialects/__init__.py for the contract."""

    name = "asterql"
    whole_entries = False
    needs_rows = False
    schema = None

    def plan(self, draft: Draft, seq: int, at: int, rows: Overlay) -> Sequence[Entry]:
        body = body_of(draft, seq, at)
        # Exact: the file's byte count is taken down by what SQLite measures when entries go.
        size = len(body) if body.isascii() else len(body.encode())
        return (Entry(seq, at, draft.kind, draft.cause, body, size, draft.data),)

    def renumber(self, body: str, seq: int) -> str:
        _, _, rest = body.partition(",")  # `{"seq":N` leads every stored envelope
        return f'{{"seq":{seq},{rest}'

    def named(self, body: str) -> tuple[int, str]:
        found = _decode_named(body)
        return found.seq, found.scope

    def rename(self, body: str, scope: str) -> str:
        members = _decode_members(body)
        members["scope"] = msgspec.Raw(msgspec.json.encode(scope))
        return msgspec.json.encode(members).decode()

    def apply(self, overlay: Overlay, entry: Entry, only: frozenset[Key] | None = None) -> None:
        envelope: Envelope = entry.data if entry.data is not None else decode_envelope(entry.body)
        if envelope.entities is UNSET:
            return
        if envelope.kind == "snapshot":
            overlay.clear(COLL)
        for entity in envelope.entities:
            if only is None or (COLL, entity.key) in only:
                _fold(overlay, entity, entry)


def _fold(overlay: Overlay, entity: Entity, entry: Entry) -> None:
    key = entity.key
    if entity.deleted is not UNSET:
        overlay.remove(COLL, key)
        return
    if entity.value is not UNSET:
        value: Any = _decode(entity.value)
        old = overlay.get(COLL, key)
        row = overlay.put(COLL, key, value, seq=entry.seq, grown=entry.size)
        if old is not None:
            row.size -= old.size  # replaced, not added to
    else:
        old = overlay.get(COLL, key)
        patches = [_decode_patch(raw, index, key) for index, raw in enumerate(entity.patches)]  # type: ignore[arg-type]
        try:
            value = apply_entity_patches(None if old is None else old.value, patches)
        except PatchError as error:
            raise _failed(key, error.index, error.reason, str(error)) from error
        row = overlay.put(COLL, key, value, seq=entry.seq, grown=entry.size)
    if row.size > limits.RECORD_BYTES_MAX:
        # The bound has run into the limit: measure, and keep the measure as the new bound.
        row.size = len(msgspec.json.encode(value))
        if row.size > limits.RECORD_BYTES_MAX:
            raise Refusal(
                f"record {key!r} would be {row.size} bytes; at most {limits.RECORD_BYTES_MAX}",
                code="too_large",
                detail={"entity": key},
            )


def _decode_patch(raw: msgspec.Raw, index: int, key: str) -> dict[str, Any]:
    patch = _decode(raw)
    if type(patch) is not dict:
        raise _failed(key, index, "bad_field", "a patch must be an object")
    return patch


def _failed(key: str, index: int, reason: str, message: str) -> Refusal:
    detail = {"entity": key, "index": index, "reason": reason}
    return Refusal(f"entity {key!r}, patch {index}: {message}", code="patch_failed", detail=detail)
