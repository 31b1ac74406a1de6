"""What an application declares of its data: models, and who may see and change their rows. Pure.

A model is one kind of row. `group_key` names the column that holds the row's sync group; MODEL_ID
makes the row's own id its group; None makes the row everybody's. Reading goes by `Bootstrap`,
writing by `Standard` (rows under the id their creator chose) or `Composite` (rows whose id follows
from their content, such as joins). Declarations are checked when a registry is made, so that a
mistake ends the start and not a client's request.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from actors.dialects.stratasync.ids import create_composite_sync_id
from infra.errors import ConfigError

MODEL_ID: Final = "__modelId__"
MEMBERS: Final = "member"  # the collection of stored memberships
ARCHIVED: Final = "archivedAt"
ACTIONS: Final = {
    "INSERT": "I", "UPDATE": "U", "DELETE": "D", "ARCHIVE": "A", "UNARCHIVE": "V",
}  # fmt: skip
MODELS_MAX: Final = 500
COLUMNS_MAX: Final = 500
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_TAKEN = frozenset({
    "scope", "entries", "rows", "unfolded", "dedupe", "alarms", "owners", "bases", "peers", "blobs",
    "blob_refs", "sync_group_memberships",
})  # fmt: skip
_OWN = frozenset({"_id", "_group", "_rev", "_seq", "_body"})  # columns of every view (schema.py)

FieldType = Literal["string", "stringNull", "number", "date", "dateNow", "dateOnly"]
FIELD_TYPES: Final = frozenset({"string", "stringNull", "number", "date", "dateNow", "dateOnly"})
Payload = Mapping[str, Any]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A column's codec. `default` is what an insert without a value stores (string and number)."""

    type: FieldType
    default: Any = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who writes, as hooks see it. `groups` are the writer's effective ones."""

    user_id: str
    groups: tuple[str, ...]
    email: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A committed mutation, as after-hooks see it. `sync_id` is a string of digits."""

    model: str
    id: str
    action: str
    payload: Payload
    data: Payload
    sync_id: str


BeforeWrite = Callable[[str, Payload, Values, Actor], "Awaitable[Values] | Values"]
BeforeDelete = Callable[[str, Payload, Actor], "Awaitable[None] | None"]
AfterMutation = Callable[[Change], "Awaitable[None] | None"]
ComputeId = Callable[[str, str, Payload], str]
FieldTypes = Mapping[str, FieldType | Field]


@dataclass(frozen=True, slots=True)
class SimpleCursor:
    """Rows in the order of one column, whose value is also the row's `id` on the wire."""

    field: str = "id"


@dataclass(frozen=True, slots=True)
class CompositeCursor:
    """Rows in the order of several columns. Their `id` is the one they are stored under;
    `synthetic_id(row)` makes it where a Composite computes none.
    """

    fields: Sequence[str]
    synthetic_id: Callable[[Payload], str] | None = None


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What readers get of a model.

    `fields` in this order. `instant_fields` and `date_only_fields` are sent as epoch milliseconds.
    `scope` is an SQL condition over the model's view; it may use `:groups` and
    `:workspace_groups` (JSON lists, for `json_each`) and `:user_id`. None is what `group_key` says:
    rows of the reader's groups. `allowed_indexed_keys` may be asked for by value.
    """

    fields: Sequence[str]
    instant_fields: Sequence[str] = ()
    date_only_fields: Sequence[str] = ()
    cursor: SimpleCursor | CompositeCursor = SimpleCursor()
    scope: str | None = None
    allowed_indexed_keys: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Standard:
    """Writing rows under the id their creator chose.

    `actions` are letters of I U D A V. Before-hooks return the data to write (delete: nothing);
    they run outside the transaction, so they may be async and may run again; an exception refuses
    the mutation with its text. `on_after_mutation` runs at most once, after publication.
    """

    insert_fields: FieldTypes
    update_fields: Iterable[str] = ()
    actions: Iterable[str] = "IUDAV"
    id_field: str = "id"
    on_before_insert: BeforeWrite | None = None
    on_before_update: BeforeWrite | None = None
    on_before_delete: BeforeDelete | None = None
    on_after_mutation: AfterMutation | None = None


@dataclass(frozen=True, slots=True)
class Composite:
    """Writing rows whose id follows from their content, once: they are inserted and deleted.

    `delete_key` are the columns that identify a row. `compute_id(model, id, payload)` must give the
    id that clients create such rows under; None is `create_composite_sync_id` of the delete key.
    """

    insert_fields: FieldTypes
    delete_key: Sequence[str] = ()
    compute_id: ComputeId | None = None
    actions: Iterable[str] = "ID"
    on_after_mutation: AfterMutation | None = None


@dataclass(frozen=True, slots=True)
class SyncModel:
    """One kind of row. `table` names its view in the ledger file where that is not `name`."""

    name: str
    group_key: str | None
    bootstrap: Bootstrap
    mutate: Standard | Composite
    table: str | None = None
    columns: Mapping[str, Field] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", _columns_of(self))
        _check(self)

    @property
    def view(self) -> str:
        """The name of the model's view."""
        return self.table or self.name

    @property
    def id_field(self) -> str | None:
        """The column that holds the row's id; None for composite rows."""
        return self.mutate.id_field if isinstance(self.mutate, Standard) else None

    @property
    def id_name(self) -> str:
        """The name that readers know the row's id by; composite rows have no column for it."""
        return self.id_field or "id"

    @property
    def actions(self) -> frozenset[str]:
        """The letters that may be written."""
        return frozenset(self.mutate.actions)

    def canonical_id(self, id: str, payload: Payload, *, deleting: bool = False) -> str:
        """The id a row is stored under. What the application's `compute_id` raises passes."""
        mutate = self.mutate
        if isinstance(mutate, Standard):
            return id
        if mutate.compute_id is not None:
            return mutate.compute_id(self.name, id, payload)
        if mutate.delete_key:
            if deleting and any(key not in payload for key in mutate.delete_key):
                return id
            return create_composite_sync_id(
                self.name, [payload.get(key) for key in mutate.delete_key]
            )
        cursor = self.bootstrap.cursor
        if isinstance(cursor, CompositeCursor) and cursor.synthetic_id is not None:
            return cursor.synthetic_id(payload)
        return id


def _columns_of(model: SyncModel) -> dict[str, Field]:
    """Every column a stored row has, in order, with its codec."""
    found: dict[str, Field] = {}
    for name, kind in model.mutate.insert_fields.items():
        found[name] = kind if isinstance(kind, Field) else Field(kind)
    more = [*model.bootstrap.fields]
    if isinstance(model.mutate, Standard):
        more += model.mutate.update_fields
        found.pop(model.mutate.id_field, None)
    if set(model.mutate.actions) & {"A", "V"}:
        more.append(ARCHIVED)
    for name in more:
        if name != model.id_name and name not in found:
            found[name] = Field("date" if name == ARCHIVED else "stringNull")
    return found


def _check(model: SyncModel) -> None:
    name = model.name
    for text in (name, model.view):
        if _NAME.fullmatch(text) is None:
            raise ConfigError(f"model {text!r}: a name is up to 100 of A-Z a-z 0-9 _")
    if model.view.lower() in _TAKEN or model.view.lower().startswith("sqlite_"):
        raise ConfigError(f"model {name}: {model.view!r} is a table of every ledger; set table=")
    if name == MEMBERS:
        raise ConfigError(f"model {name!r}: the name belongs to stored memberships")
    letters = model.actions
    if not letters <= set(ACTIONS.values()):
        raise ConfigError(f"model {name}: actions are letters of IUDAV, not {sorted(letters)}")
    if len(model.columns) > COLUMNS_MAX:
        raise ConfigError(f"model {name}: {len(model.columns)} columns; at most {COLUMNS_MAX}")
    for column, kind in model.columns.items():
        if column in _OWN:
            raise ConfigError(f"model {name}: column {column!r} is the ledger's own in every view")
        if _NAME.fullmatch(column) is None:
            raise ConfigError(f"model {name}: column {column!r}: up to 100 of A-Z a-z 0-9 _")
        if kind.type not in FIELD_TYPES:
            raise ConfigError(f"model {name}: column {column}: no type {kind.type!r}")
    _check_known(model)


def _check_known(model: SyncModel) -> None:
    shown = model.bootstrap
    known = {*model.columns, model.id_name}
    cursor = shown.cursor
    wanted = {
        "instant_fields": shown.instant_fields,
        "date_only_fields": shown.date_only_fields,
        "allowed_indexed_keys": shown.allowed_indexed_keys,
        "cursor": [cursor.field] if isinstance(cursor, SimpleCursor) else list(cursor.fields),
        "delete_key": getattr(model.mutate, "delete_key", ()),
    }
    if model.group_key is not None and model.group_key != MODEL_ID:
        wanted["group_key"] = [model.group_key]
    for what, names in wanted.items():
        for column in names:
            if column not in known:
                raise ConfigError(f"model {model.name}: {what}: no column {column!r}")
    if isinstance(cursor, CompositeCursor) and not cursor.fields:
        raise ConfigError(f"model {model.name}: cursor: a composite one needs columns")


class Registry:
    """The models of one application, by name, in the order they were given."""

    def __init__(self, models: Iterable[SyncModel] = ()) -> None:
        self.models: dict[str, SyncModel] = {}
        views: set[str] = set()
        for model in models:
            if model.name in self.models or model.view.lower() in views:
                raise ConfigError(f"model {model.name!r} is declared twice")
            self.models[model.name] = model
            views.add(model.view.lower())
        if len(self.models) > MODELS_MAX:
            raise ConfigError(f"{len(self.models)} models; at most {MODELS_MAX}")

    def get(self, name: str) -> SyncModel | None:
        """The model, or None."""
        return self.models.get(name)
