"""Declared SQL, tried on an empty ledger before a server starts.

A mistake in a model's `scope` would otherwise wait for the first bootstrap.
"""

from __future__ import annotations

import sqlite3

from actors.dialects.stratasync.models import Registry, SyncModel
from actors.dialects.stratasync.reads import line_sql, order_sql, scope_sql
from actors.dialects.stratasync.schema import statements
from actors.schema import TABLES
from infra.errors import ConfigError

_PARAMS = {"groups": "[]", "workspace_groups": "[]", "user_id": ""}


def try_models(registry: Registry) -> None:
    """Raises ConfigError that names the model, with what SQLite says of its SQL."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in [*TABLES.split(";"), *statements(registry, {})]:
            db.execute(statement)
        for model in registry.models.values():
            _try(db, model)
    finally:
        db.close()


def _try(db: sqlite3.Connection, model: SyncModel) -> None:
    sql = (
        f'EXPLAIN SELECT {line_sql(model)} FROM "{model.view}"'
        f" WHERE {scope_sql(model)} ORDER BY {order_sql(model)}"
    )
    try:
        db.execute(sql, _PARAMS).fetchall()
    except sqlite3.Error as error:
        scope = model.bootstrap.scope
        raise ConfigError(f"model {model.name}: scope {scope!r}: {error}") from error
