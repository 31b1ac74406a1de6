"""The defects of the original engine and server, one test each at least: ours has none of them.

Numbers are those of docs/starkeep.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors.clocks import HLC
from actors.dialects.starkeep.channels import COMBINED
from actors.dialects.starkeep.wire import (
    Answer,
    BadExchange,
    ClockDrift,
    Exchange,
    Record,
    RowEntry,
    decode_answer,
    encode_request,
)
from actors.host import Host
from actors.types import Address
from edge.dialects.starkeep.spaces import Spaces
from infra.stores.directory import DirectoryStore
from tests.support.starkeep import NOTES, NOW, Cloud, Node, pair, record, row, stamp, walls

SPACE = Address("default", "keep:home")


@pytest.fixture
async def spaces(tmp_path: Path) -> AsyncIterator[Spaces]:
    async with Host(tmp_path) as host:
        found = Spaces(
            host, DirectoryStore(tmp_path / "files"), spool_dir=tmp_path, now_ms=lambda: NOW
        )
        (tmp_path / "files").mkdir()
        await found.declare(SPACE, NOTES)
        yield found
        await found.aclose()


async def ask(
    spaces: Spaces, *items: Record | RowEntry, seen: dict[str, HLC] | None = None, limit: int = 1000
) -> Answer:
    records = [item for item in items if isinstance(item, Record)]
    rows = [item for item in items if isinstance(item, RowEntry)]
    body = encode_request(seen or {}, records, rows, limit)
    return decode_answer(await spaces.exchange(SPACE, COMBINED, spaces.decode(body), body))


async def pages(spaces: Spaces, limit: int) -> int:
    """How many items a client gets that moves its watermarks as the real one does."""
    seen: dict[str, HLC] = {}
    count = 0
    while True:
        answer = await ask(spaces, seen=seen, limit=limit)
        for at in [r.stamp for r in answer.records] + [r.timestamp for r in answer.rows]:
            if at.node_id not in seen or at.position > seen[at.node_id].position:
                seen[at.node_id] = at
            count += 1
        if not answer.has_more:
            return count


def restamped() -> list[Record]:
    """Fifteen records of which the first by id was changed last."""
    items = [record(n) for n in range(1, 16)]
    items[0] = record(99, id=items[0].id)
    return items


def test_1_pushed_pages_are_in_stamp_order() -> None:
    node, cloud = pair(page_limit=10)
    node.put(*restamped())
    node.drain()
    assert len(cloud.all()) == 15


async def test_1_pulled_pages_are_in_stamp_order(spaces: Spaces) -> None:
    await ask(spaces, *restamped())
    assert await pages(spaces, 10) == 15


def test_1_at_default_limits_a_record_deleted_before_the_first_sync() -> None:
    node, cloud = pair()
    items = [record(n, "local") for n in range(1, 1501)]
    node.put(*items)
    node.records.delete(items[0].id, stamp(2000, "local"))
    node.drain()
    assert len(cloud.all()) == 1500


async def test_2_a_tombstone_touches_one_row_and_travels_with_where(spaces: Spaces) -> None:
    rows = [row(n, "a", "insert", {"id": f"r{n}"}) for n in range(1, 6)]
    await ask(spaces, *rows)
    # As a real client sends it: no `where`.
    answer = await ask(spaces, row(9, "a", "delete", {"id": "r3"}))
    ops = {(entry.row or {}).get("id"): entry.op for entry in answer.rows}
    assert ops == {"r1": "insert", "r2": "insert", "r3": "delete", "r4": "insert", "r5": "insert"}
    assert [entry.where for entry in answer.rows if entry.op == "delete"] == [{"id": "r3"}]


def test_2_our_engine_sends_where_and_row() -> None:
    node, cloud = pair()
    node.tables.apply(row(1, "local", "insert", {"id": "x", "n": 1}))
    node.tables.apply(row(2, "local", "delete", where={"id": "x"}))
    node.round()
    (entry,) = cloud.requests[0].rows
    text = str(stamp(2, "local"))
    assert entry.where == {"id": "x"}
    assert entry.row == {"id": "x", "updated_at": text, "deleted_at": text}


async def test_3_pages_go_across_tables(spaces: Spaces) -> None:
    later = [row(n, "a", "insert", {"id": n}) for n in (4, 5, 6)]
    earlier = [row(n, "a", "insert", {"note": n, "name": "x"}, table="tag") for n in (1, 2, 3)]
    await ask(spaces, *later, *earlier)
    assert await pages(spaces, 3) == 6


def test_3_our_engine_pushes_across_tables() -> None:
    node, cloud = pair(page_limit=3)
    for n in (4, 5, 6):
        node.tables.apply(row(n, "local", "insert", {"id": n}))
    for n in (1, 2, 3):
        node.tables.apply(row(n, "local", "insert", {"note": n, "name": "x"}, table="tag"))
    node.drain()
    assert cloud.state() == node.state()


async def test_4_a_tombstone_of_a_row_never_held_is_kept_and_covered(spaces: Spaces) -> None:
    answer = await ask(spaces, row(5, "a", "delete", {"id": "never"}))
    assert walls(answer.responder_watermarks or {}) == {"a": 5}
    other = await ask(spaces, seen={})
    assert [entry.op for entry in other.rows] == ["delete"]


def test_5_bytes_under_a_kept_key_are_replaced() -> None:
    node, cloud = pair()
    second = Node("second", cloud, cloud.objects)
    second.tables.declare(NOTES)
    for n, data in enumerate((b"old", b"new"), 1):
        file = {
            "id": "k", "object_storage_key": "k", "size_bytes": 3,
            "content_hash": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip
        node.blob("k", data)
        node.tables.apply(row(n, "local", "insert", file, table="_starkeep_sync_records"))
        node.drain()
        second.drain()
        assert second.objects.objects["k"].data == data


def test_6_a_peer_that_lost_its_data_gets_it_again() -> None:
    node, cloud = pair()
    node.put(record(1, "local"), record(2, "x"))
    node.drain()
    cloud.file.db.execute("DELETE FROM items")
    cloud.file.db.execute("DELETE FROM heads")
    node.drain()
    node.drain()
    assert cloud.all() == node.all()


async def test_7_a_row_that_fails_is_neither_covered_nor_lost(spaces: Spaces) -> None:
    unknown = row(2, "a", "insert", {"id": 1}, table="later")
    answer = await ask(spaces, record(1), unknown, record(3))
    assert walls(answer.responder_watermarks or {}) == {"a": 1}
    from actors.dialects.starkeep.namespaces import Namespace, TableInfo

    await spaces.declare(SPACE, Namespace("notes", (TableInfo("later", ("id",)),)))
    answer = await ask(spaces)
    assert (len(answer.records), len(answer.rows)) == (2, 1)


async def test_8_a_stamp_too_far_ahead_refuses_the_request(spaces: Spaces) -> None:
    with pytest.raises(ClockDrift):
        await ask(spaces, record(NOW), record(41_000_000_000_000))
    assert (await ask(spaces)).records == []
    drifting = Cloud(drift_ms=1000)
    with pytest.raises(ClockDrift):
        drifting.responder.respond(Exchange({}, [record(NOW + 1001)], [], 10))


async def test_9_the_same_file_imported_twice_is_two_records(spaces: Spaces) -> None:
    same = {"originalFilename": "a.jpg", "content_hash": "f" * 64}
    answer = await ask(spaces, record(1, "a", **same), record(1, "b", **same))
    assert len(answer.records) == 2


def test_9_also_on_a_device() -> None:
    node, cloud = pair()
    same = {"originalFilename": "a.jpg", "content_hash": "f" * 64}
    node.put(record(1, "local", **same))
    cloud.put(record(1, "b", **same))
    node.drain()
    assert node.all() == cloud.all()
    assert len(node.all()) == 2


async def test_10_an_idle_poll_looks_at_no_item(
    spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(spaces, *[record(n) for n in range(1, 50)])
    looked: list[object] = []
    from actors.dialects.starkeep import delta

    real = delta._source

    def source(*args: Any) -> Any:
        looked.append(args)
        return real(*args)

    monkeypatch.setattr(delta, "_source", source)
    spaces._held.clear()
    await ask(spaces, seen={"a": stamp(49)})
    assert looked == []
    await ask(spaces, seen={"a": stamp(48)})
    assert len(looked) == 1


def test_10_nor_does_an_idle_round_of_an_engine() -> None:
    node, cloud = pair()
    node.put(*[record(n, "local") for n in range(1, 50)])
    node.drain()
    node.round()
    asked: list[str] = []
    for store in (node, cloud):
        store.file.db.set_trace_callback(asked.append)
    node.round()
    assert [text for text in asked if "FROM items" in text] == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"records":[1]}', b"[" * 99_999])
def test_11_malformed_requests_are_an_error_of_theirs(spaces: Spaces, body: bytes) -> None:
    with pytest.raises(BadExchange):
        spaces.decode(body)


# 12 (path traversal) is tests/e2e/test_starkeep_http.py::test_keys_that_are_refused.


async def test_12_keys_never_become_paths(spaces: Spaces, tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    await spaces.write(SPACE, "a/b c/..x/" + "k" * 900, pieces(), None)
    assert all("..x" not in str(path) for path in tmp_path.rglob("*"))


def test_13_nothing_is_echoed_to_our_engine() -> None:
    node, cloud = pair()
    node.put(record(1, "local"))
    node.round()
    for n in range(2, 6):
        node.put(record(n, "local"))
        node.round()
        assert cloud.answers[-1].records == []


# 14 (no push channel) is tests/e2e/test_starkeep_http.py::test_changes_are_announced.


def test_14_a_backlog_drains_at_once() -> None:
    node, cloud = pair(page_limit=2)
    cloud.put(*[record(n, "b") for n in range(1, 10)])
    assert node.drain().applied == 9
