"""Bodies of both protocol versions against tests/vectors/starkeep, names, namespaces, merging."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.clocks import HLC
from actors.dialects.starkeep.merge import RowState, merge_row
from actors.dialects.starkeep.namespaces import (
    Namespace,
    StaticNamespaces,
    TableInfo,
    extend,
    key_values,
    row_id,
)
from actors.dialects.starkeep.naming import (
    BadName,
    UlidMaker,
    app_object_key,
    category_of,
    check_app_id,
    check_object_key,
    is_starkeep_id,
    shared_object_key,
    table_name,
    ulid,
)
from actors.dialects.starkeep.watermarks import (
    Watermarks,
    advance_watermark,
    merge_watermarks,
    select_unseen,
    watermark_for,
)
from actors.dialects.starkeep.wire import (
    BadExchange,
    RowEntry,
    decode_answer,
    decode_exchange,
    encode_request,
    record_of,
)
from actors.host import Host
from actors.types import Address
from edge.dialects.starkeep.spaces import Spaces
from infra.stores.directory import DirectoryStore
from tests.support.starkeep import NOTES, NOW, record_json, row, stamp

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "starkeep" / "bodies.json").read_text()
)
SPACE = Address("default", "keep:home")


def named(kind: str) -> Any:
    return pytest.mark.parametrize("case", VECTORS[kind], ids=lambda case: case["name"])


# -- bodies ----------------------------------------------------------------------------------------


@pytest.fixture
async def spaces(tmp_path: Path) -> AsyncIterator[Spaces]:
    async with Host(tmp_path) as host:
        store = DirectoryStore(tmp_path / "files")
        yield Spaces(host, store, spool_dir=tmp_path, now_ms=lambda: NOW)


@named("exchanges")
async def test_a_server_answers_both_versions(case: dict[str, Any], spaces: Spaces) -> None:
    from actors.dialects.starkeep.channels import COMBINED

    await spaces.declare(SPACE, NOTES)
    body = json.dumps(case["request"]).encode()
    answer = await spaces.exchange(SPACE, COMBINED, spaces.decode(body), body)
    assert json.loads(answer) == case["response"]


@named("answers")
def test_a_client_reads_both_versions(case: dict[str, Any]) -> None:
    answer = decode_answer(json.dumps(case["response"]).encode())
    expected = case["watermarks"]
    found = answer.responder_watermarks
    assert (None if found is None else msgspec.to_builtins(found)) == expected
    assert answer.has_more == case["response"]["hasMore"]
    assert [json.loads(r.text) for r in answer.records] == case["response"]["records"]


@named("requests")
def test_a_client_writes_what_real_servers_take(case: dict[str, Any]) -> None:
    watermarks = msgspec.convert(case["watermarks"], Watermarks)
    records = [record_of(item) for item in case["records"]]
    rows = msgspec.convert(case["rows"], list[RowEntry])
    assert json.loads(encode_request(watermarks, records, rows, case["limit"])) == case["body"]


def test_half_of_a_surrogate_pair_is_no_reason_to_refuse() -> None:
    """JavaScript writes it of a name that was cut within an emoji."""
    name = r'"\ud83d \uD83D\uDE00 \\ud83d \\\udE00"'
    text = json.dumps(record_json(5)).replace('"a.jpg"', name)
    for taken in (
        decode_exchange(f'{{"records":[{text}]}}'),
        decode_answer(f'{{"records":[{text}]}}'.encode()),
    ):
        (found,) = taken.records
        shown = msgspec.json.decode(found.text)["originalFilename"]
        assert shown == "\ufffd \U0001f600 \\ud83d \\\ufffd"
    entry = r'{"timestamp":{"wallTime":1,"counter":0,"nodeId":"a"},"appId":"x","table":"t"'
    body = f'{{"appSyncableRows":[{entry},"op":"insert","row":{{"id":{name}}}}}]}}'
    assert decode_exchange(body).rows[0].row == {"id": shown}


def test_a_record_that_is_none() -> None:
    with pytest.raises(BadExchange):
        record_of({"id": 5})
    with pytest.raises(BadExchange):
        record_of({**record_json(1), "x": object()})


# -- watermarks ------------------------------------------------------------------------------------


def test_the_watermark_algebra() -> None:
    watermarks = {"a": stamp(5)}
    advance_watermark(watermarks, stamp(3))
    advance_watermark(watermarks, stamp(7, "b"))
    assert watermarks == {"a": stamp(5), "b": stamp(7, "b")}
    incoming = {"a": stamp(9), "c": stamp(1, "c")}
    merged = merge_watermarks(watermarks, incoming)
    assert merged == {"a": stamp(9), "b": stamp(7, "b"), "c": stamp(1, "c")}
    assert watermarks["a"] == stamp(5)
    assert watermark_for(watermarks, "none") == HLC(0, 0, "")
    records = [record_json(n) for n in (4, 5, 6)]
    assert select_unseen(records, watermarks) == [records[2]]


# -- names -----------------------------------------------------------------------------------------


def test_ulids_rise_within_one_maker() -> None:
    times = iter([5, 5, 4, 6, 6])
    bits = iter([1, (1 << 80) - 1, 7])
    maker = UlidMaker(lambda: next(times), lambda count: next(bits))
    made = [maker.new() for _ in range(5)]
    assert made == sorted(made)
    assert len(set(made)) == 5
    assert made[0] == ulid(5, 1) == "0000000005" + "0" * 15 + "1"
    assert made[4] == ulid(7, 7)  # the random part was full: the next millisecond
    assert all(is_starkeep_id(found) for found in made)
    assert not is_starkeep_id("short")
    assert not is_starkeep_id(5)


@pytest.mark.parametrize(
    ("type", "category"),
    [
        ("jpg", "image"), (".JPEG", "image"), ("mkv", "video"), ("flac", "audio"),
        ("md", "document"), ("yml", "text"), ("hpp", "code"), ("woff2", "font"), ("7z", "archive"),
        ("ndjson", "data"), ("usdz", "model3d"), ("", "other"), ("xyz", "other"),
        ("image/jpeg", "image"), ("application/pdf", "other"), ("model3d/gltf", "model3d"),
        ("/x", "other"),
    ],
)  # fmt: skip
def test_categories(type: str, category: str) -> None:
    assert category_of(type) == category


def test_object_keys() -> None:
    assert shared_object_key("jpg", "abcd") == "shared/image/ab/abcd"
    assert app_object_key("notes", "a/b.txt") == "apps/notes/syncable/a/b.txt"
    assert app_object_key("notes", "apps/notes/syncable/a") == "apps/notes/syncable/a"
    for app_id, sub_key in (("", "a"), ("a/b", "a"), ("a b", "a"), ("a", "/a"), ("a", "x/../y")):
        with pytest.raises(BadName):
            app_object_key(app_id, sub_key)
    assert table_name("My-App", "note") == "my_app_syncable_note"


@pytest.mark.parametrize(
    "key", ["", "/a", "a/../b", "./a", "a/.", "a\x00", "a\n", "\ud800", "x" * 1025, "é" * 513]
)
def test_object_keys_that_are_refused(key: str) -> None:
    with pytest.raises(BadName):
        check_object_key(key)


@pytest.mark.parametrize("app_id", ["", "a/b", "a b", "a:b", "..", "starkeep-drive", "x" * 129])
def test_app_ids_that_are_refused(app_id: str) -> None:
    with pytest.raises(BadName):
        check_app_id(app_id)


# -- namespaces ------------------------------------------------------------------------------------


def test_namespaces() -> None:
    store = StaticNamespaces([NOTES])
    assert store.get("notes") is NOTES
    assert store.get("other") is None
    assert store.list() == (NOTES,)
    assert NOTES.table("NOTE") is NOTES.tables[0]
    assert NOTES.table("_starkeep_sync_records") is not None
    assert Namespace("x").table("_starkeep_sync_records") is None
    bigger = extend(NOTES, Namespace("notes", (TableInfo("more", ("k",)),)))
    assert bigger.table_names == ("note", "tag", "more", "_starkeep_sync_records")
    with pytest.raises(BadName, match="already"):
        extend(NOTES, Namespace("notes", (TableInfo("note", ("other",)),)))


def test_what_names_a_row() -> None:
    table = TableInfo("t", ("a", "b"))
    assert key_values(table, {"a": 1, "b": "x", "c": 2}) == {"a": 1, "b": "x"}
    assert key_values(table, {"a": 1}, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    for bad in ({"a": 1}, {"a": 1, "b": None}, {"a": 1, "b": []}, None):
        assert key_values(table, bad) is None
    assert row_id({"a": 1.0, "b": "x"}) == row_id({"a": 1, "b": "x"}) == '[1,"x"]'
    assert row_id({"a": True}) != row_id({"a": 1})


# -- merging ---------------------------------------------------------------------------------------

KEY = {"id": "x"}


def held(wall: int, *, deleted: bool = False, **columns: Any) -> RowState:
    return RowState({**KEY, **columns}, stamp(wall), deleted)


@pytest.mark.parametrize(
    ("before", "entry", "after"),
    [
        (None, row(5, "a", "insert", {"id": "x", "n": 1}), held(5, n=1)),
        (held(5, n=1), row(5, "a", "insert", {"id": "x", "n": 2}), None),
        (held(5, n=1), row(4, "z", "insert", {"id": "x", "n": 2}), None),
        (held(5, n=1, m=1), row(6, "a", "insert", {"id": "x", "n": 2}), held(6, n=2)),
        (held(5, n=1, m=1), row(6, "a", "update", {"n": 2}, where=KEY), held(6, n=2, m=1)),
        (None, row(6, "a", "update", {"n": 2}, where=KEY), None),
        (held(5), row(6, "a", "update", {"n": 2, "updated_at": "x", "node_id": "y"}, where=KEY),
         held(6, n=2)),
        (held(5, n=1), row(6, "a", "delete", where=KEY), held(6, deleted=True)),
        (None, row(6, "a", "delete", {"id": "x", "n": 1}), held(6, deleted=True)),
        (held(7, n=1), row(6, "a", "delete", where=KEY), None),
        (held(5, deleted=True), row(6, "a", "insert", {"id": "x", "n": 1}), held(6, n=1)),
        (held(5, deleted=True), row(6, "a", "update", {"n": 1}, where=KEY), held(6, n=1)),
        (None, row(6, "a", "insert", {"id": "x", "n": 1, "deleted_at": "t"}),
         held(6, deleted=True)),
    ],
)  # fmt: skip
def test_merging_rows(before: RowState | None, entry: RowEntry, after: RowState | None) -> None:
    assert merge_row(before, entry, KEY) == after
