"""The engine against a peer of its own kind: the scenario families of the Starkeep document."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from actors.clocks import HLC
from actors.dialects.starkeep.wire import Answer, Exchange, Record
from edge.client.starkeep.types import ChangeEvent
from tests.support.starkeep import NOTES, Cloud, Node, Store, blobs, pair, record, row, stamp, walls

# -- base ------------------------------------------------------------------------------------------


def test_an_insert_reaches_the_peer_with_its_blob() -> None:
    node, cloud = pair()
    item = record(10, "local", key="shared/image/ab/ab")
    node.put(item)
    node.blob(item.key, b"abc")
    result = node.round()
    assert (result.applied, result.shipped, result.has_more) == (0, 1, False)
    assert cloud.all() == {item.id: (stamp(10, "local"), False)}
    assert cloud.objects.objects[item.key].data == b"abc"
    assert node.events == []


def test_an_insert_at_the_peer_comes_with_its_blob() -> None:
    node, cloud = pair()
    item = record(10, "b", key="shared/image/ab/ab")
    cloud.put(item)
    cloud.blob(item.key, b"xyz")
    result = node.round()
    assert (result.applied, result.applied_records, result.shipped) == (1, 1, 0)
    assert node.objects.objects[item.key].data == b"xyz"
    (event,) = node.events
    assert (event.event_type, event.record_ids) == ("local-data-synced", (item.id,))
    assert [p.direction for p in node.progress] == ["pull"]


def test_a_converged_pair_moves_nothing() -> None:
    node, cloud = pair()
    node.put(record(10, "local", key="k"))
    node.blob("k")
    cloud.put(record(11, "b"))
    node.drain()
    node.round()
    before = node.own(), node.peer()
    node.objects.calls.clear()
    cloud.objects.calls.clear()
    result = node.round()
    assert (result.applied, result.shipped, result.has_more) == (0, 0, False)
    assert (node.own(), node.peer()) == before
    assert node.objects.calls == cloud.objects.calls == []
    node.put(record(20, "local"))
    assert node.round().shipped == 1


def test_the_first_round_ships_everything_of_everybody() -> None:
    node, cloud = pair()
    node.put(record(1, "local"), record(2, "x"), record(3, "y"))
    assert node.round().shipped == 3
    assert cloud.all() == node.all()


def test_without_state_every_round_starts_anew_and_harms_nothing() -> None:
    node, cloud = pair(state=False)
    node.put(record(1, "local"))
    assert [node.round().shipped for _ in range(3)] == [1, 1, 1]
    assert node.all() == cloud.all()


# -- presence and operation ------------------------------------------------------------------------


def test_unrelated_records_cross_in_one_round() -> None:
    node, cloud = pair()
    node.put(record(1, "local"))
    cloud.put(record(2, "b"))
    node.round()
    assert node.all() == cloud.all()
    assert len(node.all()) == 2


@pytest.mark.parametrize("local_wins", [True, False])
def test_the_later_stamp_wins_on_both_sides(local_wins: bool) -> None:
    node, cloud = pair()
    first = record(1, "local")
    node.put(first)
    node.drain()
    mine, theirs = (30, 20) if local_wins else (20, 30)
    node.put(record(mine, "local", id=first.id, content_hash="mine"))
    cloud.put(record(theirs, "b", id=first.id, content_hash="theirs"))
    node.drain()
    expected = stamp(30, "local" if local_wins else "b")
    assert node.all() == cloud.all() == {first.id: (expected, False)}
    held = node.records.get(first.id)
    assert held is not None
    assert held["contentHash"] == ("mine" if local_wins else "theirs")
    assert node.round().shipped == 0


def test_equal_positions_are_settled_by_the_greater_node_id() -> None:
    node, cloud = pair()
    one = record(5, "a-node")
    node.put(one)
    cloud.put(record(5, "z-node", id=one.id))
    node.drain()
    assert node.all() == cloud.all() == {one.id: (stamp(5, "z-node"), False)}


# -- tombstones ------------------------------------------------------------------------------------


def test_a_tombstone_travels_and_the_blobs_stay() -> None:
    node, cloud = pair()
    item = record(1, "local", key="k")
    node.put(item)
    node.blob("k")
    node.drain()
    node.records.delete(item.id, stamp(9, "local"))
    node.drain()
    assert cloud.all()[item.id] == (stamp(9, "local"), True)
    assert "k" in cloud.objects.objects
    assert "k" in node.objects.objects


def test_a_tombstone_from_the_peer_pulls_no_blob() -> None:
    node, cloud = pair()
    cloud.put(record(1, "b", key="k", deleted=5))
    cloud.blob("k")
    node.round()
    ((_, deleted),) = node.all().values()
    assert deleted
    assert "k" not in node.objects.objects


def test_a_local_tombstone_ships_without_its_blob() -> None:
    node, cloud = pair()
    node.put(record(1, "local", key="nowhere", deleted=5))
    assert node.round().shipped == 1
    assert cloud.objects.objects == {}


@pytest.mark.parametrize(("deleted", "updated"), [(5, 9), (9, 5)])
def test_delete_against_update(deleted: int, updated: int) -> None:
    node, cloud = pair()
    item = record(1, "local")
    node.put(item)
    node.drain()
    node.records.delete(item.id, stamp(deleted, "local"))
    cloud.put(record(updated, "b", id=item.id))
    node.drain()
    assert node.all() == cloud.all()
    held = node.records.get(item.id)
    assert held is not None
    assert (held["deletedAt"] is None) == (updated > deleted)


def test_both_deleted_the_later_wins_whole() -> None:
    node, cloud = pair()
    item = record(1, "local")
    node.put(item)
    node.drain()
    node.records.delete(item.id, stamp(5, "local"))
    cloud.records.delete(item.id, stamp(6, "b"))
    node.drain()
    held = node.records.get(item.id)
    assert held is not None
    assert held["deletedAt"] == held["updatedAt"] == msgspec.to_builtins(stamp(6, "b"))
    assert cloud.records.get(item.id) == held


# -- blobs that fail -------------------------------------------------------------------------------


def test_a_record_without_its_blob_never_ships() -> None:
    node, cloud = pair()
    node.put(record(1, "local", key="k"))
    for _ in range(2):
        assert node.round().shipped == 0
    assert node.peer() == {}
    assert cloud.all() == {}


def test_an_upload_that_fails_once_succeeds_in_the_next_round() -> None:
    node, cloud = pair()
    node.put(record(1, "local", key="k"))
    node.blob("k")
    cloud.objects.fails = lambda method, key: method == "write"
    assert node.round().shipped == 0
    cloud.objects.fails = lambda method, key: False
    assert node.round().shipped == 1


def test_a_middle_upload_that_fails_holds_back_its_authors_tail_only() -> None:
    node, cloud = pair()
    mine = [record(n, "local", key=f"k{n}") for n in range(1, 6)]
    other = [record(n, "other", key=f"o{n}") for n in range(1, 6)]
    node.put(*mine, *other)
    blobs([*mine, *other], node)
    cloud.objects.fails = lambda method, key: method == "write" and key == "k3"
    assert node.round().shipped == 2 + 5
    assert node.peer() == {"local": 2, "other": 5}
    cloud.objects.fails = lambda method, key: False
    node.drain()
    assert cloud.all() == node.all()


def test_a_download_that_fails_leaves_the_record_staged() -> None:
    node, cloud = pair()
    item = record(5, "b", key="k")
    cloud.put(item)
    cloud.blob("k")
    node.objects.fails = lambda method, key: method == "write"
    assert node.round().applied == 1
    assert item.id in node.all()
    assert "k" not in node.objects.objects
    assert node.own() == {}
    node.objects.fails = lambda method, key: False
    result = node.round()
    assert result.applied == 0  # it was held already; the blob was not
    assert "k" in node.objects.objects
    assert node.own() == {"b": 5}


def test_a_middle_download_that_fails_holds_the_watermark_not_the_rest() -> None:
    node, cloud = pair()
    items = [record(n, "b", key=f"k{n}") for n in range(1, 6)]
    cloud.put(*items)
    blobs(items, cloud)
    node.objects.fails = lambda method, key: method == "write" and key == "k3"
    node.round()
    assert len(node.all()) == 5
    assert sorted(node.objects.objects) == ["k1", "k2", "k4", "k5"]
    assert node.own() == {"b": 2}
    node.objects.fails = lambda method, key: False
    node.round()
    assert node.own() == {"b": 5}
    assert "k3" in node.objects.objects


def test_several_downloads_that_fail() -> None:
    node, cloud = pair()
    items = [record(n, "b", key=f"k{n}") for n in range(1, 6)]
    cloud.put(*items)
    blobs(items, cloud)
    node.objects.fails = lambda method, key: method == "write" and key in ("k2", "k4")
    node.round()
    assert node.own() == {"b": 1}
    node.objects.fails = lambda method, key: method == "write" and key == "k4"
    node.round()
    assert node.own() == {"b": 3}


def test_a_file_row_holds_back_a_later_record_of_its_author_and_the_reverse() -> None:
    node, _ = pair()
    file = {"id": "f", "object_storage_key": "missing", "content_hash": "x", "size_bytes": 1}
    node.tables.apply(row(1, "local", "insert", file, table="_starkeep_sync_records"))
    node.put(record(2, "local"))
    node.put(record(1, "other", key="missing too"))
    node.tables.apply(row(2, "other", "insert", {"id": "n"}))
    assert node.round().shipped == 0
    node.blob("missing")
    assert node.round().shipped == 2
    assert node.peer() == {"local": 2}


def test_the_bytes_of_an_item_that_lost_do_not_replace_later_ones() -> None:
    """They may be nowhere else: this node has not sent its own yet."""
    node, cloud = pair(page_limit=1)
    node.put(record(2, "local"))  # goes first, so the file is still unsent when the other comes

    def write(store: Store, at: int, author: str, data: bytes) -> None:
        file = {
            "id": "k", "object_storage_key": "k", "content_hash": hashlib.sha256(data).hexdigest()
        }  # fmt: skip
        store.blob("k", data)
        store.tables.apply(row(at, author, "insert", file, table="_starkeep_sync_records"))

    write(node, 9, "local", b"later")
    write(cloud, 1, "b", b"earlier")
    node.drain()
    assert node.objects.objects["k"].data == b"later"
    assert cloud.objects.objects["k"].data == b"later"
    assert node.own() == {"b": 1, "local": 9}


def test_a_file_row_without_a_key_ships_as_metadata() -> None:
    node, cloud = pair()
    file = {"id": "f", "object_storage_key": "", "content_hash": "x", "size_bytes": 1}
    node.tables.apply(row(1, "local", "insert", file, table="_starkeep_sync_records"))
    assert node.round().shipped == 1
    assert cloud.tables.row("notes", "_starkeep_sync_records", id="f") is not None


# -- watermarks ------------------------------------------------------------------------------------


def test_own_watermarks_lost() -> None:
    node, cloud = pair()
    cloud.put(*[record(n, "b") for n in range(1, 4)])
    node.put(record(1, "local"))
    node.drain()
    before = node.state()
    events = len(node.events)
    node.sync_state.set_watermarks({})
    assert node.drain().applied == 0
    assert node.state() == before
    assert len(node.events) == events
    assert node.own() == {"b": 3, "local": 1}


def test_peer_watermarks_lost() -> None:
    node, cloud = pair()
    node.put(record(1, "local"))
    node.drain()
    before = cloud.state()
    node.sync_state.set_peer_watermarks({})
    assert node.round().shipped == 1
    assert cloud.state() == before


def test_a_peer_map_that_is_too_high_heals_against_an_intact_peer() -> None:
    node, _ = pair()
    node.put(record(1, "local"))
    node.drain()
    node.sync_state.set_peer_watermarks({"local": stamp(99, "local")})
    assert node.round().shipped == 0
    assert node.peer() == {"local": 1}


def test_one_drain_fills_a_wiped_peer_again() -> None:
    """The first round moves nothing but says that the peer fell, so there is more."""
    node, cloud = pair(page_limit=2)
    node.put(*[record(n, "local") for n in range(1, 6)])
    node.drain()
    for table in ("items", "heads"):
        cloud.file.db.execute(f"DELETE FROM {table}")
    assert not node.drain().has_more
    assert cloud.all() == node.all()


@pytest.mark.parametrize("page_limit", [1000, 2])
def test_a_wiped_peer_is_filled_again_blobs_and_other_authors_too(page_limit: int) -> None:
    node, cloud = pair(page_limit=page_limit)
    items = [record(n, "local", key=f"k{n}") for n in range(1, 4)]
    node.put(*items)
    blobs(items, node)
    cloud.put(*[record(n, "b") for n in range(1, 4)])
    node.drain()
    fresh = Cloud()
    fresh.tables.declare(NOTES)
    other = Node("local", fresh, fresh.objects, page_limit=page_limit)
    other.file.db.close()
    for name in ("file", "records", "tables", "objects", "sync_state"):
        setattr(other, name, getattr(node, name))
    engine = other.engine
    engine._database, engine._local = node.records, node.objects
    engine._state, engine._source = node.sync_state, node.source
    assert other.round().shipped == 0  # it learns
    while other.round().shipped:
        pass
    assert fresh.all() == node.all()
    assert set(fresh.objects.objects) == {"k1", "k2", "k3"}


def test_a_peer_of_version_0_1_says_no_watermarks() -> None:
    node, cloud = pair()
    cloud.old = True
    node.put(record(1, "local"), record(2, "x"))
    cloud.put(record(3, "b"))
    node.drain()
    assert node.all() == cloud.all()
    assert node.peer() == {"local": 1, "x": 2, "b": 3}
    assert node.round().shipped == 0


def test_own_writes_are_not_sent_back_once_the_node_knows_itself() -> None:
    node, cloud = pair()
    node.put(record(1, "local"))
    node.round()
    assert len(cloud.answers[-1].records) == 1  # the first echo
    node.put(*[record(n, "local") for n in range(2, 6)])
    result = node.round()
    assert result.shipped == 4
    assert cloud.answers[-1].records == []
    assert node.own() == {"local": 5}


def test_a_node_that_lost_its_map_gets_everything_of_itself_before_it_skips_the_echo() -> None:
    node, _ = pair(page_limit=2)
    node.put(*[record(n, "local") for n in range(1, 6)])
    node.drain()
    node.sync_state.set_watermarks({})
    node.put(record(9, "local"))
    node.round()
    assert node.own() == {"local": 2}
    node.put(record(10, "local"))
    node.round()
    assert node.own() == {"local": 4}  # what it has lost of itself may lie between
    node.drain()
    assert node.own() == {"local": 10}


# -- paging ----------------------------------------------------------------------------------------


def test_six_records_by_five() -> None:
    node, cloud = pair(page_limit=5)
    node.put(*[record(n, "local") for n in range(1, 7)])
    results = [node.round(), node.round(), node.round()]
    assert [result.shipped for result in results] == [5, 1, 0]
    assert results[0].has_more
    assert cloud.all() == node.all()


def test_six_records_of_the_peer_by_five() -> None:
    node, cloud = pair(page_limit=5)
    cloud.put(*[record(n, "b") for n in range(1, 7)])
    assert [node.round().applied for _ in range(3)] == [5, 1, 0]
    assert node.own() == {"b": 6}


def test_several_authors_by_two() -> None:
    node, cloud = pair(page_limit=2)
    node.put(*[record(n, author) for n in range(1, 6) for author in ("x", "y", "local")])
    assert node.round().has_more
    node.drain()
    assert cloud.all() == node.all()
    assert node.own() == {"x": 5, "y": 5, "local": 5}


def test_rows_by_three_scanned_by_two() -> None:
    node, cloud = pair(page_limit=3, scan_page_size=2)
    for n in range(1, 11):
        node.tables.apply(row(n, "local", "insert", {"id": n}))
    node.drain()
    assert cloud.state() == node.state()


def test_items_of_one_stamp_are_never_parted() -> None:
    node, cloud = pair(page_limit=2, scan_page_size=2)
    node.put(*[record(5, "x") for _ in range(7)])
    for n in range(7):
        node.tables.apply(row(5, "x", "insert", {"id": n}))
    node.drain()
    assert cloud.state() == node.state()
    other = Node("second", cloud, cloud.objects, page_limit=2)
    other.tables.declare(NOTES)
    other.drain()
    assert other.state() == node.state()


# -- app rows and app writes -----------------------------------------------------------------------


def test_inserts_updates_and_deletes_of_rows() -> None:
    node, cloud = pair()
    node.tables.apply(row(1, "local", "insert", {"id": 1, "text": "one", "n": 1}))
    node.tables.apply(row(2, "local", "update", {"text": "two"}, where={"id": 1}))
    node.tables.apply(row(3, "local", "insert", {"id": 2, "text": "gone"}))
    node.tables.apply(row(4, "local", "delete", where={"id": 2}))
    result = node.round()
    assert result.shipped == 2
    assert cloud.tables.row("notes", "note", id=1) == {"id": 1, "text": "two", "n": 1}
    assert cloud.tables.row("notes", "note", id=2) is None
    assert cloud.state() == node.state()
    assert node.events == []  # rows cause none


def test_an_update_from_the_wire_is_taken_and_one_of_a_missing_row_has_no_effect() -> None:
    node, cloud = pair()
    cloud.tables.apply(row(1, "b", "insert", {"id": 1, "text": "x"}))

    class Updating:
        async def exchange(self, request: Exchange) -> Answer:
            rows = [
                row(5, "c", "update", {"id": 1, "text": "new"}),
                row(6, "c", "update", {"id": 9, "text": "lost"}),
            ]
            return Answer([], rows, {}, False)

    node.tables.apply(row(1, "b", "insert", {"id": 1, "text": "x"}))
    node.engine._transport = Updating()
    assert node.round().applied_rows == 1
    assert node.tables.row("notes", "note", id=1) == {"id": 1, "text": "new"}
    assert node.tables.row("notes", "note", id=9) is None
    assert node.own() == {"c": 6}


def test_a_row_that_cannot_be_applied_holds_its_author() -> None:
    node, cloud = pair()
    cloud.tables.apply(row(1, "b", "insert", {"id": 1}))
    cloud.tables.declare(NOTES.__class__("other", (NOTES.tables[0],)))
    cloud.tables.apply(row(2, "b", "insert", {"id": 1}, app="other"))
    cloud.tables.apply(row(3, "b", "insert", {"id": 3}))
    cloud.put(record(4, "b"), record(4, "c"))
    node.round()
    assert node.own() == {"b": 1, "c": 4}
    assert node.tables.row("notes", "note", id=3) is None
    node.tables.declare(NOTES.__class__("other", (NOTES.tables[0],)))
    node.drain()
    assert node.state() == cloud.state()


def test_a_scan_that_fails_sends_nothing_and_still_pulls(caplog: pytest.LogCaptureFixture) -> None:
    node, cloud = pair()
    node.put(record(1, "local"))
    cloud.put(record(2, "b"))

    def broken(*args: object) -> object:
        raise OSError("no such table")

    node.tables.scan_since = broken  # type: ignore[assignment,method-assign]
    result = node.round()
    assert (result.shipped, result.applied) == (0, 1)
    assert "a scan failed" in caplog.text


# -- the answering side ----------------------------------------------------------------------------


def ask(
    cloud: Cloud, *items: object, limit: int = 1000, seen: dict[str, HLC] | None = None
) -> Answer:
    records = [item for item in items if isinstance(item, Record)]
    rows = [item for item in items if not isinstance(item, Record)]
    return cloud.responder.respond(Exchange(seen or {}, records, rows, limit))  # type: ignore[arg-type]


def test_coverage_is_of_everything_held_and_what_the_request_brought() -> None:
    cloud = Cloud()
    cloud.tables.declare(NOTES)
    assert ask(cloud).responder_watermarks == {}
    answer = ask(cloud, record(5, "a"), row(7, "a", "insert", {"id": 1}), record(3, "b"))
    assert walls(answer.responder_watermarks or {}) == {"a": 7, "b": 3}
    assert walls(ask(cloud, seen={"a": stamp(99)}).responder_watermarks or {}) == {"a": 7, "b": 3}


def test_a_row_that_fails_halts_its_author_and_is_not_covered() -> None:
    cloud = Cloud()
    cloud.tables.declare(NOTES)
    bad = row(2, "a", "insert", {"id": 1}, app="foreign")
    later = row(3, "a", "insert", {"id": 1})
    answer = ask(cloud, record(1, "a"), bad, later, record(4, "a"), record(4, "b"))
    assert walls(answer.responder_watermarks or {}) == {"a": 1, "b": 4}
    assert cloud.tables.row("notes", "note", id=1) is None


def test_a_table_whose_coverage_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    cloud = Cloud()
    cloud.tables.declare(NOTES)
    ask(cloud, row(3, "a", "insert", {"id": 1}), record(2, "b"))

    def broken(app_id: str, table: str) -> dict[str, HLC]:
        raise OSError(table)

    cloud.tables.get_node_watermarks = broken  # type: ignore[method-assign]
    answer = ask(cloud)
    assert walls(answer.responder_watermarks or {}) == {"b": 2}
    assert len(answer.rows) == 1
    assert "no coverage" in caplog.text


def test_has_more_is_exact() -> None:
    cloud = Cloud()
    cloud.put(*[record(n, "a") for n in range(1, 4)])
    assert [ask(cloud, limit=n).has_more for n in (2, 3, 4)] == [True, False, False]
    assert ask(cloud, limit=0).has_more
    assert not ask(Cloud(), limit=0).has_more


def test_a_channel_without_records_and_one_without_rows() -> None:
    app, drive = Cloud(records=False), Cloud(rows=False)
    app.tables.declare(NOTES)
    app.put(record(1, "x"))
    answer = ask(app, record(5, "a"), row(6, "a", "insert", {"id": 1}))
    assert answer.records == []
    assert walls(answer.responder_watermarks or {}) == {"a": 6}
    assert len(app.all()) == 1
    answer = ask(drive, record(5, "a"), row(6, "a", "insert", {"id": 1}), record(7, "a"))
    assert walls(answer.responder_watermarks or {}) == {"a": 5}
    assert answer.rows == []


def test_channels_of_an_engine() -> None:
    node, cloud = pair(records=False)
    cloud.put(record(1, "b"))
    node.put(record(1, "local"))
    node.tables.apply(row(2, "local", "insert", {"id": 1}))
    assert node.round().shipped == 1
    assert len(node.all()) == 1
    drive, far = pair(rows=False)
    far.put(record(1, "b"))
    far.tables.apply(row(2, "b", "insert", {"id": 1}))
    drive.tables.apply(row(3, "local", "insert", {"id": 1}))
    result = drive.round()
    assert (result.shipped, result.applied) == (0, 1)
    assert drive.own() == {"b": 1}


# -- listeners and rounds --------------------------------------------------------------------------


def test_a_listener_that_raises_spoils_it_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    node, cloud = pair()
    heard: list[ChangeEvent] = []

    def bad(event: ChangeEvent) -> None:
        raise RuntimeError("no")

    node.engine.change_notifier.subscribe(bad)
    stop = node.engine.change_notifier.subscribe(heard.append)
    node.engine.change_notifier.subscribe(heard.append)
    cloud.put(record(1, "b"))
    node.round()
    assert len(heard) == 1
    assert "a change listener failed" in caplog.text
    stop()
    stop()
    cloud.put(record(2, "b"))
    node.round()
    assert len(heard) == 1


def test_a_lost_answer_is_repeated_without_harm() -> None:
    node, cloud = pair()
    node.put(record(1, "local"))
    node.tables.apply(row(2, "local", "insert", {"id": 1}))
    real = cloud.exchange

    async def lossy(request: Exchange) -> Answer:
        await real(request)
        raise ConnectionError("the answer was lost")

    cloud.exchange = lossy  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        node.round()
    assert node.own() == node.peer() == {}
    cloud.exchange = real  # type: ignore[method-assign]
    node.drain()
    assert cloud.state() == node.state()


def test_a_stamp_of_the_year_3270_does_not_drag_the_clock() -> None:
    node, cloud = pair()
    far = 41_000_000_000_000
    cloud.put(record(far, "b"))
    node.round()
    assert len(node.all()) == 1
    assert node.clock.now().wall_ms < far


def test_the_clock_goes_on_behind_what_was_seen() -> None:
    node, cloud = pair()
    ahead = node.clock.physical_ms() + 1000
    cloud.put(record(ahead, "b"))
    node.round()
    assert node.clock.now().wall_ms >= ahead
    kept = node.sync_state.get_hlc_clock_state()
    assert kept is not None
    assert kept.wall_ms == ahead
