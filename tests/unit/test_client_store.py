"""The client's entity store: its fold equals a plain-list model whatever the network does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.dialects.asterql.canonical import hash_record_version, snapshot_hash
from edge.client.store import Change, EntityStore, Update

SCOPE = "run:r1"
Json = dict[str, Any]


def envelope(seq: int, *entities: Json, kind: str = "patch", **more: Any) -> Json:
    return {
        "eventId": f"e{seq}",
        "kind": kind,
        "scope": SCOPE,
        "seq": seq,
        "entities": list(entities),
        **more,
    }


def append(key: str, text: str) -> Json:
    patch = {"op": "appendText", "path": "/text", "delta": text}
    return {"key": key, "patches": [patch]}


def test_the_three_entry_forms_fold() -> None:
    store = EntityStore()
    assert store.ingest(envelope(1, {"key": "m:1", "value": {"text": "a"}})) == "applied"
    assert store.ingest(envelope(2, append("m:1", "b"), append("m:2", "x"))) == "applied"
    assert store.get(SCOPE, "m:1") == {"text": "ab"}
    assert store.ingest(envelope(3, {"key": "m:1", "deleted": True})) == "applied"
    assert store.get(SCOPE, "m:1") is None
    assert list(store.items(SCOPE, "m")) == [("m:2", {"text": "x"})]
    assert list(store.items(SCOPE, "n")) == []
    assert store.count(SCOPE) == 1


def test_edge_case_35_a_snapshot_drops_what_it_omits() -> None:
    store = EntityStore()
    seen: list[Change] = []
    store.subscribe_entity(SCOPE, "m:1", seen.append)
    store.ingest(envelope(1, append("m:1", "a"), append("m:2", "b")))
    store.ingest(envelope(2, {"key": "m:2", "value": {"text": "n"}}, kind="snapshot"))
    assert store.get(SCOPE, "m:1") is None
    assert [change.value for change in seen] == [{"text": "a"}, None]


def test_edge_case_36_a_patch_after_deletion_starts_from_nothing() -> None:
    store = EntityStore()
    store.ingest(envelope(1, append("m:1", "old")))
    store.ingest(envelope(2, {"key": "m:1", "deleted": True}))
    store.ingest(envelope(3, append("m:1", "new")))
    assert store.get(SCOPE, "m:1") == {"text": "new"}


def test_edge_case_38_an_entity_that_cannot_follow_is_broken_and_the_stream_goes_on() -> None:
    store = EntityStore()
    store.seed(SCOPE, [{"key": "m:1", "value": {"text": 7}}], seq=5)
    updates: list[Update] = []
    store.subscribe(SCOPE, updates.append)
    assert store.ingest(envelope(6, append("m:1", "x"), append("m:2", "y"))) == "applied"
    assert store.cursors.scope_last_seq(SCOPE) == 6
    assert store.get(SCOPE, "m:2") == {"text": "y"}
    assert list(store.broken(SCOPE)) == ["m:1"]
    assert store.ingest(envelope(7, append("m:1", "z"))) == "applied"
    assert [update.broken for update in updates] == [("m:1",), ("m:1",)]
    store.seed(SCOPE, [{"key": "m:1", "value": {"text": "xz"}}], seq=7)
    assert store.broken(SCOPE) == {}
    store.ingest(envelope(8, append("m:1", "!")))
    assert store.get(SCOPE, "m:1") == {"text": "xz!"}


@pytest.mark.parametrize("heal", [{"value": {"text": "v"}}, {"deleted": True}])
def test_a_whole_value_or_a_deletion_heals(heal: Json) -> None:
    store = EntityStore()
    store.seed(SCOPE, [{"key": "m:1", "value": {"text": 7}}], seq=0)
    store.ingest(envelope(1, append("m:1", "x")))
    assert "m:1" in store.broken(SCOPE)
    store.ingest(envelope(2, {"key": "m:1", **heal}))
    assert store.broken(SCOPE) == {}
    assert store.get(SCOPE, "m:1") == heal.get("value")


def test_edge_case_43_invalidate_moves_the_cursor_and_nothing_else() -> None:
    store = EntityStore()
    store.ingest(envelope(1, append("m:1", "a")))
    before = store.snapshot_hash(SCOPE)
    updates: list[Update] = []
    store.subscribe(SCOPE, updates.append)
    invalidate = {"kind": "invalidate", "scope": SCOPE, "seq": 2, "classes": ["users"]}
    assert store.ingest(invalidate) == "applied"
    assert store.snapshot_hash(SCOPE) == before
    assert updates == [Update(SCOPE, 2, "invalidate", (), (), ("users",))]


def test_snapshot_hash_is_that_of_the_records_whatever_version_a_writer_claims() -> None:
    store = EntityStore()
    store.ingest(envelope(1, {"key": "m:1", "value": {"n": 1.0}, "version": "mine"}))
    expected = snapshot_hash([("m:1", hash_record_version({"n": 1}))])
    assert store.snapshot_hash(SCOPE) == expected
    assert store.snapshot_hash("run:none") == snapshot_hash([])


def test_listeners_by_kind_and_their_end() -> None:
    store = EntityStore()
    changes: list[Change] = []
    first = store.subscribe_kind(SCOPE, "m", changes.append)
    second = store.subscribe_kind(SCOPE, "m", changes.append)
    store.ingest(envelope(1, append("m:1", "a"), append("n:1", "a")))
    assert [change.key for change in changes] == ["m:1", "m:1"]
    first()
    first()
    store.ingest(envelope(2, append("m:2", "a")))
    assert [change.key for change in changes][2:] == ["m:2"]
    second()
    store.ingest(envelope(3, append("m:2", "a")))
    assert len(changes) == 3


def test_a_raising_listener_stops_neither_the_others_nor_the_fold() -> None:
    store = EntityStore()
    seen: list[Update] = []

    def fail(update: Update) -> None:
        raise LookupError(update.scope)

    store.subscribe(SCOPE, fail)
    store.subscribe(SCOPE, seen.append)
    with pytest.raises(ExceptionGroup):
        store.ingest(envelope(1, append("m:1", "a")))
    assert len(seen) == 1
    assert store.get(SCOPE, "m:1") == {"text": "a"}
    assert store.cursors.scope_last_seq(SCOPE) == 1


def test_seed_tells_what_came_and_what_went() -> None:
    store = EntityStore()
    store.ingest(envelope(1, append("m:1", "a")))
    updates: list[Update] = []
    store.subscribe(SCOPE, updates.append)
    store.seed(SCOPE, [{"key": "m:2", "value": {}}], seq=9, epoch="e")
    assert updates == [Update(SCOPE, 9, "seed", ("m:2", "m:1"))]


KEYS = st.sampled_from(["m:1", "m:2", "n:1"])
ENTRIES = st.one_of(
    st.tuples(KEYS, st.sampled_from(["a", "bc"])).map(lambda kt: append(*kt)),
    KEYS.map(lambda key: {"key": key, "value": {"text": "v", "n": 1}}),
    KEYS.map(lambda key: {"key": key, "deleted": True}),
    KEYS.map(lambda key: {"key": key, "patches": [{"op": "increment", "path": "/n"}]}),
)
HISTORIES = st.lists(
    st.tuples(
        st.sampled_from(["patch", "patch", "patch", "snapshot", "invalidate"]),
        st.lists(ENTRIES, min_size=1, max_size=3, unique_by=lambda entry: str(entry["key"])),
    ),
    min_size=1,
    max_size=15,
)


def history(drawn: list[tuple[str, list[Json]]]) -> list[Json]:
    made = []
    for seq, (kind, entries) in enumerate(drawn, 1):
        if kind == "snapshot":
            listed = [{"key": entry["key"], "value": {"text": "s"}} for entry in entries]
        else:
            listed = entries if kind == "patch" else []
        made.append(envelope(seq, *listed, kind=kind))
    return made


def fold(envelopes: list[Json]) -> dict[str, Json]:
    """The model: dictionaries and the three rules, nothing shared with the store."""
    records: dict[str, Json] = {}
    for one in envelopes:
        if one["kind"] == "snapshot":
            records = {}
        for entry in one["entities"]:
            record = copy.deepcopy(records.pop(entry["key"], {}))
            if "value" in entry:
                record = copy.deepcopy(entry["value"])
            for patch in entry.get("patches", ()):
                if patch["op"] == "appendText":
                    record["text"] = record.get("text", "") + patch["delta"]
                else:
                    record["n"] = record.get("n", 0) + 1
            if not entry.get("deleted"):
                records[entry["key"]] = record
    return records


@given(HISTORIES, st.lists(st.integers(0, 14), max_size=60), st.integers(0, 15))
def test_drops_repeats_and_reorderings_end_in_the_model(
    drawn: list[tuple[str, list[Json]]], deliveries: list[int], seeded_at: int
) -> None:
    envelopes = history(drawn)
    untouched = copy.deepcopy(envelopes)
    store = EntityStore()
    if seeded_at <= len(envelopes):
        items = [{"key": k, "value": v} for k, v in fold(envelopes[:seeded_at]).items()]
        store.seed(SCOPE, items, seq=seeded_at)
    for index in deliveries:
        if index < len(envelopes):
            store.ingest(envelopes[index])
            at = store.cursors.scope_last_seq(SCOPE)
            assert dict(store.items(SCOPE)) == fold(envelopes[:at])
    for one in envelopes:  # the repair: a replay of all
        store.ingest(one)
    model = fold(envelopes)
    assert dict(store.items(SCOPE)) == model
    versions = [(key, hash_record_version(value)) for key, value in model.items()]
    assert store.snapshot_hash(SCOPE) == snapshot_hash(versions)
    assert store.broken(SCOPE) == {}
    assert envelopes == untouched
