"""StrataSync's plan and apply: mutations become sync actions, actions fold into rows. Pure.

An entry is a sync action: `kind` its letter, `ref` `Model:id`, `grp` the group that may see it,
`body` the action's `data`, `cause` the client's (clientId, clientTxId). Its seq is the syncId. Rows
stand in a collection named after the model, memberships in one of their own (models.MEMBERS).

Everything that decides on a mutation is looked at here, inside the writer: the stored row, the
stored memberships, the model's rules. What had to be found out before (groups an application's
resolver knows, data a hook has changed) comes with the draft; a hook's data carries the revision of
the row it has seen, and is refused with `stale` where that is not the row's any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actors.dialects.stratasync import codecs
from actors.dialects.stratasync.models import (
    MEMBERS,
    MODEL_ID,
    Composite,
    Payload,
    Registry,
    Standard,
    SyncModel,
    Values,
)
from actors.dialects.stratasync.schema import statements
from actors.rows import Key, Overlay, Row
from actors.types import Draft, Entry, Refusal
from infra import limits

if TYPE_CHECKING:
    from actors.dialects import Schema

GROUPS_MAX: Final = 10_000  # stored memberships of one user
GROUP_MODEL: Final = "SyncGroup"  # the model name of membership actions
NOT_FOUND: Final = "Invalid mutation: record not found"
NO_GROUP: Final = "Invalid mutation: missing required group identifier"
_decode = msgspec.json.decode
_encode = msgspec.json.encode


class Mutation(msgspec.Struct, kw_only=True, tag="mutation", omit_defaults=True):
    """One write of a client (`user` its id) or of the server itself (`user` None).

    `groups` are those the application's resolver gives the user. `data` is what a before-hook made
    of it, `rev` the row's revision it was made for (0: there was no row); None without a hook.
    """

    action: str
    model: str
    id: str
    payload: dict[str, Any]
    user: str | None = None
    groups: tuple[str, ...] = ()
    data: dict[str, Any] | None = None
    rev: int | None = None


class Membership(msgspec.Struct, kw_only=True, tag="member", omit_defaults=True):
    """A change of one user's stored groups; `groups` are those the resolver gives the user."""

    user: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class Action(msgspec.Struct, kw_only=True, tag="action", omit_defaults=True):
    """A sync action as the server's own code wants it, folded into rows as it stands."""

    action: str
    model: str
    id: str
    data: dict[str, Any]
    group: str | None = None


DRAFTS: Final = (Mutation, Membership, Action)


class Prepared(msgspec.Struct):
    """A mutation that may be written: its canonical id, its group, and what it would write."""

    model: SyncModel
    id: str
    group: str | None
    data: Values
    row: Row | None


def refuse(message: str, code: str = "refused") -> Refusal:
    """The refusal that the client is told in these words."""
    return Refusal(message, code=code)


def stored_groups(row: Row | None) -> list[str]:
    """The groups of a membership row."""
    return [] if row is None else row.value["groups"]


def effective_groups(resolved: Sequence[str], stored: Sequence[str], user: str) -> tuple[str, ...]:
    """Every group a user may see, in the order of the reference: resolved, stored, own."""
    return tuple(dict.fromkeys([*resolved, *stored, user]))


def prepare(registry: Registry, mutation: Mutation, row_of: Any, at: int) -> Prepared:
    """Check a mutation as far as the row and the rules go (stratasync.md section 5, steps 2 to 7).

    `row_of(coll, id)` gives a row or None. Raises Refusal.
    """
    model = registry.get(mutation.model)
    id, row = mutation.id, None
    if model is not None:
        id, row = _locate(model, mutation, row_of)
    group = _group_of(model, mutation, id, row)
    if group is not None and mutation.user is not None:
        stored = stored_groups(row_of(MEMBERS, mutation.user))
        if group not in effective_groups(mutation.groups, stored, mutation.user):
            raise refuse("Access denied")
    if model is None:
        raise refuse(f"Unknown model: {mutation.model}")
    if mutation.action not in model.actions:
        raise refuse(f'Unsupported action "{mutation.action}" for this model')
    if mutation.action == "I" and row is not None:
        raise refuse("Invalid mutation: record already exists")
    if mutation.action != "I" and row is None:
        raise refuse(NOT_FOUND)
    return Prepared(model, id, group, _data_of(model, mutation, row, at), row)


def _locate(model: SyncModel, mutation: Mutation, row_of: Any) -> tuple[str, Row | None]:
    deleting = mutation.action == "D"
    try:
        id = model.canonical_id(mutation.id, mutation.payload, deleting=deleting)
    except Exception as error:  # the application's compute_id, given whatever a client sent
        if mutation.action == "I":
            raise refuse(f"Invalid mutation: no id for this {model.name}") from error
        id = mutation.id
    row = row_of(model.name, id)
    if row is None and deleting and id != mutation.id:
        row = row_of(model.name, mutation.id)
        id = id if row is None else mutation.id
    if row is None and mutation.action != "I" and isinstance(model.mutate, Standard):
        raise refuse(NOT_FOUND)
    return id, row


def _group_of(model: SyncModel | None, mutation: Mutation, id: str, row: Row | None) -> str | None:
    if model is None or model.group_key is None:
        return None
    if model.group_key == MODEL_ID:
        return id
    if mutation.action == "I":
        return _named_group(mutation.payload.get(model.group_key))
    if row is None:  # a composite one that is not there: nothing to compare with
        raise refuse(NOT_FOUND)
    return _named_group(row.grp)


def _named_group(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise refuse(NO_GROUP)
    return value


def _data_of(model: SyncModel, mutation: Mutation, row: Row | None, at: int) -> Values:
    payload: Payload = mutation.payload
    match mutation.action:
        case "I":
            return codecs.insert_data(model, payload, at)
        case "U" if isinstance(model.mutate, Standard) and model.mutate.update_fields:
            return codecs.update_data(model, payload, frozenset(model.mutate.update_fields))
        case "A" if isinstance(model.mutate, Standard):
            return codecs.archive_data(payload)
        case "V" if isinstance(model.mutate, Standard):
            return {"archivedAt": None}
        case "D":
            assert row is not None
            return _keys_of(model, row)
        case letter:
            word = {"U": "Update", "A": "Archive", "V": "Unarchive"}[letter]
            raise refuse(f"{word} not configured for this model")


def _keys_of(model: SyncModel, row: Row) -> Values:
    """What a deletion tells the group: what the row was, by its keys alone."""
    names = [model.id_field] if model.id_field is not None else [*_delete_key(model)]
    if model.group_key not in (None, MODEL_ID):
        names.append(model.group_key)
    return {name: row.value.get(name) for name in names if name is not None}


def _delete_key(model: SyncModel) -> Sequence[str]:
    return model.mutate.delete_key if isinstance(model.mutate, Composite) else ()


class StrataDialect:
    """See actors/dialects/__init__.py for the contract. Without models it can fold, not plan."""

    name = "stratasync"
    whole_entries = True
    needs_rows = True

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry

    @property
    def schema(self) -> Schema | None:
        registry = self.registry
        return None if registry is None else lambda found: statements(registry, found)

    # -- plan --------------------------------------------------------------------------------

    def plan(self, draft: Draft, seq: int, at: int, rows: Overlay) -> Sequence[Entry]:
        if draft.kind == "probe":  # asks whether the cause is known: here it is not
            raise refuse("not written before", "probe")
        match draft.data:
            case Mutation() as mutation:
                return self._mutate(draft, mutation, seq, at, rows)
            case Membership() as change:
                return self._change_groups(draft, change, seq, at, rows)
            case Action() as action:
                return self._publish(draft, action, seq, at, rows)
            case _:
                raise refuse("not a StrataSync draft", "bad_envelope")

    def _mutate(
        self, draft: Draft, mutation: Mutation, seq: int, at: int, rows: Overlay
    ) -> list[Entry]:
        if self.registry is None:
            raise refuse("this server has no models for the scope", "unavailable")
        found = prepare(self.registry, mutation, rows.get, at)
        data = found.data
        if mutation.rev is not None:
            if mutation.rev != (0 if found.row is None else found.row.rev):
                raise refuse("the row has changed since the hook saw it", "stale")
            if mutation.data is not None:
                data = mutation.data
        if found.model is not None and found.model.mutate.on_after_mutation is not None:
            draft.written = {"id": found.id, "data": data}
        target = _moved_to(found, mutation, data, rows)
        model, group = found.model, found.group
        if mutation.action == "I" and mutation.data is not None and group not in (None, found.id):
            group = _named_group(data.get(model.group_key or ""))  # a hook may choose another
        ref = f"{model.name}:{found.id}"
        if target is not None:
            assert found.row is not None
            whole = {**found.row.value, **data}
            gone = _entry(draft, seq, at, "D", ref, group, _keys_of(model, found.row))
            here = _entry(draft, seq + 1, at, "I", ref, target, whole, cause=None)
            here.origin = None
            return [gone, here]
        if mutation.action == "I" and model.id_field is not None:
            data = {model.id_field: found.id, **data}
        return [_entry(draft, seq, at, mutation.action, ref, group, data)]

    def _change_groups(
        self, draft: Draft, change: Membership, seq: int, at: int, rows: Overlay
    ) -> list[Entry]:
        before = stored_groups(rows.get(MEMBERS, change.user))
        gone = set(change.remove)
        stored = list(dict.fromkeys([g for g in [*before, *change.add] if g not in gone]))
        if len(stored) > GROUPS_MAX:
            raise refuse(f"{len(stored)} groups of one user; at most {GROUPS_MAX}", "too_large")
        groups = effective_groups(change.groups, stored, change.user)
        data = {"subscribedSyncGroups": groups, "stored": stored}
        ref = f"{GROUP_MODEL}:{change.user}"
        return [_entry(draft, seq, at, "G", ref, change.user, data)]

    def _publish(
        self, draft: Draft, action: Action, seq: int, at: int, rows: Overlay
    ) -> list[Entry]:
        known = {"I", "U", "D", "A", "V"}
        if action.action not in known or not action.id or ":" in action.model:
            raise refuse(f"an action is one of {sorted(known)} on a model and an id")
        if action.model == MEMBERS:
            raise refuse("memberships are changed through their own calls")
        group = action.group
        if group is None and (row := rows.get(action.model, action.id)) is not None:
            group = row.grp
        ref = f"{action.model}:{action.id}"
        return [_entry(draft, seq, at, action.action, ref, group, action.data)]

    def renumber(self, body: str, seq: int) -> str:
        return body  # the seq is no part of it

    # -- apply -------------------------------------------------------------------------------

    def apply(self, overlay: Overlay, entry: Entry, only: frozenset[Key] | None = None) -> None:
        coll, _, id = (entry.ref or "").partition(":")
        data = entry.data if entry.data is not None else _decode(entry.body)
        if entry.kind == "G":
            coll, data = MEMBERS, {"groups": data["stored"]}
        if only is not None and (coll, id) not in only:
            return
        old = overlay.get(coll, id)
        if entry.kind == "D":
            overlay.remove(coll, id)
            return
        whole = entry.kind in ("I", "G")
        if not whole and old is None:
            return  # an update of what is not there changes nothing
        value = data if whole or old is None else {**old.value, **data}
        size = entry.size + (0 if whole or old is None else old.size)
        if size > limits.RECORD_BYTES_MAX:
            size = len(_encode(value))
            if size > limits.RECORD_BYTES_MAX:
                raise refuse(
                    f"Invalid mutation: the record would have {size} bytes;"
                    f" at most {limits.RECORD_BYTES_MAX}", "too_large",
                )  # fmt: skip
        rev = 1 if old is None else old.rev + 1
        # `stored` 0: always written at once, because scans read the file and fold no tails.
        overlay.replace(coll, id, Row(value, rev, entry.seq, size, grp=entry.grp))


def _moved_to(found: Prepared, mutation: Mutation, data: Values, rows: Overlay) -> str | None:
    """The group a row moves to with this change, or None. Raises Refusal."""
    key = found.model.group_key
    if key in (None, MODEL_ID) or key not in data or found.row is None or mutation.action == "D":
        return None
    target = _named_group(data[key])
    if target == found.group:
        return None
    if mutation.user is not None:
        stored = stored_groups(rows.get(MEMBERS, mutation.user))
        if target not in effective_groups(mutation.groups, stored, mutation.user):
            raise refuse("Access denied")
    return target


def _entry(
    draft: Draft, seq: int, at: int, kind: str, ref: str, group: str | None, data: Values,
    cause: str | None = "",
) -> Entry:  # fmt: skip
    try:
        body = _encode(data).decode()
    except (msgspec.MsgspecError, UnicodeError, OverflowError, TypeError, RecursionError) as error:
        raise refuse(f"Invalid mutation: not JSON: {error}") from error
    size = len(body) if body.isascii() else len(body.encode())
    kept = (draft.cause or None) if cause == "" else cause
    return Entry(seq, at, kind, kept, body, size, data, draft.origin, ref, group)
