"""Declarations of StrataSync models: what is refused, ids, views, how a file grows with them."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from actors.dialects.stratasync.ids import COMPOSITE_NAMESPACE
from actors.dialects.stratasync.models import Registry
from actors.dialects.stratasync.schema import statements
from actors.schema import migrate
from holdfast import (
    MODEL_ID,
    Bootstrap,
    Composite,
    CompositeCursor,
    SimpleCursor,
    Standard,
    SyncModel,
    create_composite_sync_id,
)
from infra.errors import ConfigError, FileRefused


def model(name: str = "Task", group: str | None = "ws", **more: Any) -> SyncModel:
    shown = Bootstrap(fields=["id", "title", "ws"], **more.pop("bootstrap", {}))
    fields = more.pop("insert_fields", {"title": "string", "ws": "string"})
    return SyncModel(name, group, shown, Standard(insert_fields=fields, **more))


@pytest.mark.parametrize(
    ("model_name", "parts", "namespace", "wanted"),
    [
        ("TaskLabel", ["task-1", "label-1"], None, "2d4e0cc0-a17b-5cf4-b540-db93f7f26b62"),
        ("TaskLabel", ["zażółć", 'a"b'], None, "7b175e10-1b88-5be5-a5c3-cf671d784398"),
        ("M", [], None, "7146c811-12e7-55d4-8706-feff9d4da1fe"),
        ("Model", ["a"], "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
         "92fb085b-a0a3-5806-8a0b-7918f813c801"),
    ],
)  # fmt: skip
def test_composite_ids_are_the_clients(
    model_name: str, parts: list[str], namespace: str | None, wanted: str
) -> None:
    found = create_composite_sync_id(model_name, parts, namespace or COMPOSITE_NAMESPACE)
    assert found == wanted and uuid.UUID(found).version == 5
    with pytest.raises(ValueError, match="UUID"):
        create_composite_sync_id("M", [], "abcd")


@pytest.mark.parametrize(
    "declare",
    [
        lambda: model("Task; DROP TABLE rows"),
        lambda: model("entries"),
        lambda: model("Rows"),
        lambda: model("member"),
        lambda: model('Ta"sk'),
        lambda: model(insert_fields={"a'b": "string", "ws": "string"}),
        lambda: model(insert_fields={"_body": "string", "ws": "string"}),
        lambda: model(insert_fields={"x": "text", "ws": "string"}),
        lambda: model(actions="IX"),
        lambda: model(group="nope"),
        lambda: model(bootstrap={"instant_fields": ["nope"]}),
        lambda: model(bootstrap={"allowed_indexed_keys": ["nope"]}),
        lambda: model(bootstrap={"cursor": SimpleCursor("nope")}),
        lambda: model(bootstrap={"cursor": CompositeCursor([])}),
        lambda: SyncModel("L", None, Bootstrap([]), Composite({"a": "string"}, ["b"])),
        lambda: Registry([model(), model()]),
        lambda: Registry([model(), SyncModel("Other", None, Bootstrap([]), Standard({}),
                                             table="TASK")]),
    ],
)  # fmt: skip
def test_mistakes_end_the_start(declare: Any) -> None:
    with pytest.raises(ConfigError):
        declare()


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    handle = sqlite3.connect(":memory:", isolation_level=None)
    migrate(handle)
    yield handle
    handle.close()


def extend(db: sqlite3.Connection, *models: SyncModel) -> list[str]:
    found = dict(db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall())
    missing = statements(Registry(models), found)
    for statement in missing:
        db.execute(statement)
    return missing


def put(db: sqlite3.Connection, coll: str, id: str, body: str, group: str | None = None) -> None:
    db.execute(
        "INSERT INTO rows(coll, id, rev, seq, grp, body) VALUES (?,?,1,1,?,?)",
        (coll, id, group, body),
    )


def test_a_view_shows_columns(db: sqlite3.Connection) -> None:
    extend(db, model())
    put(db, "Task", "t", '{"id":"t","title":"x","ws":"w"}', "w")
    put(db, "member", "ann", '{"groups":["a","b"]}')
    assert db.execute("SELECT id, title, ws, _group FROM Task").fetchall() == [("t", "x", "w", "w")]
    rows = db.execute("SELECT userId, groupId FROM sync_group_memberships").fetchall()
    assert rows == [("ann", "a"), ("ann", "b")]


def test_growth_is_a_new_view(db: sqlite3.Connection) -> None:
    extend(db, model(bootstrap={"allowed_indexed_keys": ["title"]}))
    put(db, "Task", "t", '{"id":"t","title":"x","ws":"w"}', "w")
    assert extend(db, model(bootstrap={"allowed_indexed_keys": ["title"]})) == []
    grown = {"title": "string", "ws": "string", "due": "date"}
    done = extend(db, model(insert_fields=grown))
    assert [sql.split('"')[0] for sql in done] == ["DROP VIEW ", "CREATE VIEW ", "DROP INDEX "]
    assert db.execute("SELECT title, due FROM Task").fetchall() == [("x", None)]


def test_lookups_use_the_index(db: sqlite3.Connection) -> None:
    from actors.dialects.stratasync.schema import key_text

    extend(db, model(bootstrap={"allowed_indexed_keys": ["title"]}))
    sql = f"EXPLAIN QUERY PLAN SELECT _id FROM Task WHERE {key_text('title', '_body')} = 'x'"
    assert "Task_by_title" in str(db.execute(sql).fetchall())


@pytest.mark.parametrize(
    "changed",
    [
        model(group="title"),
        model(group=None),
        model(group=MODEL_ID),
        model(id_field="uuid"),
        model(insert_fields={"title": "date", "ws": "string"}),
        SyncModel("Task", "ws", Bootstrap(["ws"]), Composite({"ws": "string"}, ["ws"])),
    ],
)
def test_what_would_change_the_meaning_of_rows_is_refused(
    db: sqlite3.Connection, changed: SyncModel
) -> None:
    extend(db, model())
    with pytest.raises(FileRefused, match="Task"):
        extend(db, changed)


def test_a_stranger_in_the_place_of_a_view(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE Task(id TEXT)")
    with pytest.raises(FileRefused, match="table="):
        extend(db, model())


def test_standard_models_have_their_id_first() -> None:
    assert list(model().columns) == ["title", "ws", "archivedAt"]
    assert model().id_field == "id"
