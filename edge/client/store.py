"""Entities of one or more scopes, folded from their envelopes. No clock, no I/O, one thread.

Always true: the entities of a scope that are not broken are the fold of every envelope up to the
scope's cursor. An entry that cannot be applied (this copy and the server's disagree) marks its
entity broken and nothing else; it heals with its next `value`, `deleted`, `snapshot` or `seed`.
Records are shared, not copied: treat what `get` returns as read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from actors.dialects.asterql.canonical import hash_record_version, snapshot_hash
from actors.dialects.asterql.patches import apply_entity_patches
from edge.client.cursors import Outcome, ScopeCursors
from infra.errors import HoldfastError, ProtocolError

Record = dict[str, Any]
Envelope = Mapping[str, Any]
Unsubscribe = Callable[[], None]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Change:
    """One entity after an envelope; `value` is None where it was deleted."""

    scope: str
    seq: int
    key: str
    value: Record | None


@dataclass(frozen=True, slots=True)
class Update:
    """One envelope after it was taken: which entities it touched, which classes it invalidated."""

    scope: str
    seq: int
    kind: str
    keys: tuple[str, ...]
    broken: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Entity:
    value: Record
    # Computed when somebody asks. An entry's own `version` is its writer's word, opaque, and no
    # part of the hash that the server compares.
    version: str | None = None


@dataclass(slots=True)
class _Scope:
    entities: dict[str, _Entity] = field(default_factory=dict)
    broken: dict[str, HoldfastError] = field(default_factory=dict)


class EntityStore:
    """Fold of envelopes into records, with listeners; `cursors` may be shared with others."""

    def __init__(self, cursors: ScopeCursors | None = None) -> None:
        self.cursors = ScopeCursors() if cursors is None else cursors
        self._scopes: dict[str, _Scope] = {}
        self._on_entity: dict[tuple[str, str], list[list[Callable[[Change], object]]]] = {}
        self._on_kind: dict[tuple[str, str], list[list[Callable[[Change], object]]]] = {}
        self._on_scope: dict[str, list[list[Callable[[Update], object]]]] = {}

    def ingest(self, envelope: Envelope) -> Outcome:
        """Take one envelope if it is the scope's next.

        Listeners run after the whole envelope is in; what they raise comes out as one
        ExceptionGroup when all of them have run, and the envelope stays taken.
        """
        scope, seq = envelope["scope"], envelope["seq"]
        return self.cursors.ingest_sequenced(scope, seq, lambda: self._take(scope, seq, envelope))

    def seed(
        self,
        scope: str,
        entities: Iterable[Mapping[str, Any]],
        *,
        seq: int,
        epoch: str | None = None,
    ) -> None:
        """Replace all of a scope by a view's `{"key", "value", "version"?}`, read at `seq`."""
        held = self._scopes.setdefault(scope, _Scope())
        before = set(held.entities)
        held.entities = {
            item["key"]: _Entity(item["value"], item.get("version")) for item in entities
        }
        held.broken = {}
        self.cursors.begin_scope(scope, seq, epoch)
        gone = tuple(sorted(before - set(held.entities)))
        self._notify(Update(scope, seq, "seed", (*held.entities, *gone)))

    def get(self, scope: str, key: str) -> Record | None:
        """The record as this store knows it, None if absent; see `broken` for how good it is."""
        held = self._scopes.get(scope)
        entity = held.entities.get(key) if held else None
        return None if entity is None else entity.value

    def items(self, scope: str, kind: str | None = None) -> Iterator[tuple[str, Record]]:
        """Entities of a scope sorted by key, all or those of one kind."""
        held = self._scopes.get(scope)
        for key in sorted(held.entities) if held else ():
            if kind is None or _kind(key) == kind:
                assert held is not None
                yield key, held.entities[key].value

    def count(self, scope: str) -> int:
        """Number of entities present."""
        held = self._scopes.get(scope)
        return len(held.entities) if held else 0

    def broken(self, scope: str) -> dict[str, HoldfastError]:
        """Entities whose record is not to be trusted, with the reason."""
        held = self._scopes.get(scope)
        return dict(held.broken) if held else {}

    def snapshot_hash(self, scope: str) -> str:
        """Equal to the server's at an equal (epoch, seq), or the two have diverged."""
        held = self._scopes.get(scope) or _Scope()
        return snapshot_hash((key, _version(entity)) for key, entity in held.entities.items())

    def subscribe_entity(
        self, scope: str, key: str, listener: Callable[[Change], object]
    ) -> Unsubscribe:
        """Hear of every change of one entity."""
        return _add(self._on_entity, (scope, key), listener)

    def subscribe_kind(
        self, scope: str, kind: str, listener: Callable[[Change], object]
    ) -> Unsubscribe:
        """Hear of every change of the entities `kind:…`."""
        return _add(self._on_kind, (scope, kind), listener)

    def subscribe(self, scope: str, listener: Callable[[Update], object]) -> Unsubscribe:
        """Hear of every envelope taken, and of every seed."""
        return _add(self._on_scope, scope, listener)

    def _take(self, scope: str, seq: int, envelope: Envelope) -> None:
        held = self._scopes.setdefault(scope, _Scope())
        kind = envelope.get("kind", "patch")
        entries = envelope.get("entities") or ()
        gone: tuple[str, ...] = ()
        if kind == "snapshot":
            gone = tuple(sorted(set(held.entities) - {entry["key"] for entry in entries}))
            held.entities, held.broken = {}, {}
        failed = [entry["key"] for entry in entries if not _apply(held, entry)]
        keys = tuple(entry["key"] for entry in entries) + gone
        classes = tuple(envelope.get("classes") or ())
        self._notify(Update(scope, seq, kind, keys, tuple(failed), classes))

    def _notify(self, update: Update) -> None:
        errors: list[Exception] = []
        if self._on_entity or self._on_kind:
            for key in update.keys:
                change = Change(update.scope, update.seq, key, self.get(update.scope, key))
                errors += _call(self._on_entity.get((update.scope, key)), change)
                errors += _call(self._on_kind.get((update.scope, _kind(key))), change)
        errors += _call(self._on_scope.get(update.scope), update)
        if errors:
            raise ExceptionGroup(f"listeners of {update.scope!r} at {update.seq}", errors)


def _apply(held: _Scope, entry: Mapping[str, Any]) -> bool:
    """Apply one entity entry; False (and the entity broken) where it does not fit this copy."""
    key = entry["key"]
    if entry.get("deleted"):
        held.entities.pop(key, None)
    elif "value" in entry:
        held.entities[key] = _Entity(entry["value"])
    else:
        return _apply_patches(held, key, entry)
    held.broken.pop(key, None)
    return True


def _apply_patches(held: _Scope, key: str, entry: Mapping[str, Any]) -> bool:
    if key in held.broken:
        return False  # its base is wrong already; only a whole value heals it
    entity = held.entities.get(key)
    try:
        value = apply_entity_patches(entity.value if entity else None, entry["patches"])
    except ProtocolError as error:
        held.broken[key] = error
        return False
    held.entities[key] = _Entity(value)
    return True


def _version(entity: _Entity) -> str:
    if entity.version is None:
        entity.version = hash_record_version(entity.value)
    return entity.version


def _kind(key: str) -> str:
    return key.partition(":")[0]


def _add(table: dict[K, list[list[V]]], key: K, listener: V) -> Unsubscribe:
    """Copy on write, so that a listener may come or go while listeners run."""
    once = [listener]  # a box, told apart by identity where one function listens twice
    table[key] = [*table.get(key, ()), once]

    def unsubscribe() -> None:
        left = [box for box in table.get(key, ()) if box is not once]
        if left:
            table[key] = left
        else:
            table.pop(key, None)

    return unsubscribe


def _call(boxes: list[list[Callable[[V], object]]] | None, value: V) -> list[Exception]:
    errors: list[Exception] = []
    for (listener,) in boxes or ():
        try:
            listener(value)
        except Exception as error:  # one listener's failure is not the others'; raised together
            errors.append(error)
    return errors
