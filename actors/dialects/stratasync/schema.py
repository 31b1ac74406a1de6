"""Each model as a view with real columns, and the indexes its readers need. Pure: SQL as text.

`rows.body` is the truth; the view is how a person with the sqlite shell, and every query here, sees
it. Columns that begin with `_` are the ledger's: `_id`, `_group`, `_rev`, `_seq`, `_body`. A model
that grows gets a new view. What would make stored rows mean something else is refused: the view
carries the shape it was made for in a comment, so the file itself says what it was written with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from actors.dialects.stratasync.models import MEMBERS, Composite, Registry, SyncModel
from infra.errors import FileRefused

MEMBERSHIPS: Final = "sync_group_memberships"
_SHAPE = re.compile(r"/\* shape (.*?) \*/", re.DOTALL)
_TIMES = {"date": "time", "dateNow": "time", "dateOnly": "day"}

_FIXED: Final = {
    "rows_grp": "CREATE INDEX rows_grp ON rows(coll, grp, id) WHERE grp IS NOT NULL",
    MEMBERSHIPS: (
        f"CREATE VIEW {MEMBERSHIPS} AS SELECT rows.id AS userId, json_each.value AS groupId"
        f" FROM rows, json_each(rows.body, '$.groups') WHERE coll='{MEMBERS}'"
    ),
}  # fmt: skip


def statements(registry: Registry, found: Mapping[str, str]) -> list[str]:
    """What a file with the tables, indexes and views `found` lacks.

    Raises FileRefused where rows were stored by rules that no longer hold.
    """
    wanted = [sql for name, sql in _FIXED.items() if name not in found]
    for model in registry.models.values():
        wanted += _for_model(model, found)
    return wanted


def view_sql(model: SyncModel) -> str:
    """The model's view."""
    columns = list(model.columns)
    if model.id_field is not None:
        columns.insert(0, model.id_field)
    listed = "".join(f", json_extract(body, '$.{name}') AS \"{name}\"" for name in columns)
    shape = msgspec.json.encode(_shape(model)).decode()
    return (
        f'CREATE VIEW "{model.view}" AS /* shape {shape} */'
        " SELECT id AS _id, grp AS _group, rev AS _rev, seq AS _seq, body AS _body"
        f"{listed} FROM rows WHERE coll='{model.name}' AND deleted=0"
    )


def indexes(model: SyncModel) -> dict[str, str]:
    """The expression indexes of the columns that may be asked for by value.

    The expression stands alone: behind `coll`, SQLite 3.40 would take the primary key instead.
    """
    return {
        f"{model.view}_by_{key}": (
            f'CREATE INDEX "{model.view}_by_{key}" ON rows({key_text(key)})'
            f" WHERE coll='{model.name}' AND deleted=0"
        )
        for key in model.bootstrap.allowed_indexed_keys
        if key != model.id_name
    }


def key_text(key: str, body: str = "body") -> str:
    """A column's value as text, as the indexes have it."""
    return f"CAST(json_extract({body}, '$.{key}') AS TEXT)"


def _shape(model: SyncModel) -> dict[str, Any]:
    kinds = {name: _TIMES.get(field.type, "json") for name, field in model.columns.items()}
    return {
        "group": model.group_key,
        "id": model.id_field,
        "key": list(model.mutate.delete_key) if isinstance(model.mutate, Composite) else None,
        "times": {name: kind for name, kind in kinds.items() if kind != "json"},
        "columns": list(model.columns),
    }


def _for_model(model: SyncModel, found: Mapping[str, str]) -> list[str]:
    wanted: list[str] = []
    view = view_sql(model)
    held = found.get(model.view)
    if held != view:
        if held is not None:
            _check_change(model, held)
            wanted.append(f'DROP VIEW "{model.view}"')
        wanted.append(view)
    keys = indexes(model)
    wanted += [sql for name, sql in keys.items() if name not in found]
    for name, sql in found.items():
        ours = name.startswith(f"{model.view}_by_") and f"coll='{model.name}'" in sql
        if ours and name not in keys and sql.startswith("CREATE INDEX"):
            wanted.append(f'DROP INDEX "{name}"')
    return wanted


def _check_change(model: SyncModel, held: str) -> None:
    shape = _SHAPE.search(held)
    if shape is None:
        raise FileRefused(f"{model.view!r} is no view of this server; set table= of {model.name}")
    old, new = msgspec.json.decode(shape.group(1)), _shape(model)
    for what, word in (("group", "group_key"), ("id", "id_field"), ("key", "delete_key")):
        if old.get(what) != new[what]:
            raise FileRefused(
                f"model {model.name}: {word} was {old.get(what)!r} and is {new[what]!r} now, but "
                "rows are stored by the former; declare a new model and move them"
            )
    for name in set(old["columns"]) & set(new["columns"]):
        if old["times"].get(name) != new["times"].get(name):
            raise FileRefused(
                f"model {model.name}: column {name} was {old['times'].get(name, 'json')} and is "
                f"{new['times'].get(name, 'json')} now; declare it under another name"
            )
