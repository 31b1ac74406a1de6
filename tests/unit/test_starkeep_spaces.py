"""Spaces on a host: plans and their entries, blobs and who refers to them, collecting, parking."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.clocks import HLC
from actors.dialects.starkeep.blobs import BlobChange
from actors.dialects.starkeep.channels import BLOBS, COMBINED, DRIVE_CHANNEL, Channel, channel_of
from actors.dialects.starkeep.fold import split_ref, value_of
from actors.dialects.starkeep.namespaces import Namespace, TableInfo
from actors.dialects.starkeep.parking import AUTHORS_MAX, ITEMS_MAX, Parked
from actors.dialects.starkeep.plan import decode_draft, exchange_draft
from actors.dialects.starkeep.wire import Answer, Record, RowEntry, decode_answer, encode_request
from actors.host import Host
from actors.scan import Reader
from actors.types import Address, Draft, EntryPage, Refusal
from edge.contents import TooLarge
from edge.dialects.starkeep.spaces import Spaces, SpaceSettings
from infra import clock
from infra.errors import HoldfastError
from infra.stores.directory import DirectoryStore
from tests.support.starkeep import NOTES, NOW, Clock, record, record_json, row, stamp, walls

SPACE = Address("default", "keep:home")
DAY_MS = 86_400_000


class Bench:
    """A host, its spaces, and the shortest way to ask them."""

    def __init__(self, host: Host, directory: Path, now_ms: Clock) -> None:
        self.host = host
        self.now = now_ms
        self.files = directory / "files"
        self.files.mkdir(exist_ok=True)
        self.spaces = Spaces(
            host, DirectoryStore(self.files), spool_dir=directory, now_ms=now_ms,
            settings=SpaceSettings(file_bytes_max=4 << 20),
        )  # fmt: skip

    async def exchange(
        self, *items: Record | RowEntry, channel: Channel = COMBINED, limit: int = 1000,
        seen: dict[str, HLC] | None = None,
    ) -> Answer:  # fmt: skip
        records = [item for item in items if isinstance(item, Record)]
        rows = [item for item in items if isinstance(item, RowEntry)]
        body = encode_request(seen or {}, records, rows, limit)
        decoded = self.spaces.decode(body)
        return decode_answer(await self.spaces.exchange(SPACE, channel, decoded, body))

    async def entries(self, after: int = 0) -> list[tuple[str, str | None]]:
        """(kind, ref) of what was written."""
        page = await self.host.visible(SPACE, after, "[]", entries_max=1000, bytes_max=1 << 24)
        assert isinstance(page, EntryPage)
        return [(entry.kind, entry.ref) for entry in page.entries]

    async def blob(self, key: str) -> dict[str, Any] | None:
        """The row of a key."""
        (found,) = await self.host.get(SPACE, [(BLOBS, key)])
        return None if found is None else value_of(found)

    async def write(self, key: str, data: bytes) -> None:
        await self.spaces.write(SPACE, key, pieces(data), None)

    def contents(self) -> int:
        """Files in the store."""
        return len([path for path in self.files.rglob("*") if path.is_file()])


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    now_ms = Clock(NOW)
    async with Host(tmp_path, now_ms=now_ms) as host:
        made = Bench(host, tmp_path, now_ms)
        yield made
        await made.spaces.aclose()


# -- plans -----------------------------------------------------------------------------------------


async def test_an_exchange_is_one_entry_an_item_and_repeats_are_none(bench: Bench) -> None:
    await bench.spaces.declare(SPACE, NOTES)
    one, two = record(1), row(2, "a", "insert", {"id": "x", "text": "t"})
    await bench.exchange(one, two)
    kinds = await bench.entries()
    assert kinds[1:] == [
        ("meta", "meta:channels"), ("rec", f"rec:{one.id}"), ("row", 'app:notes:note:["x"]'),
    ]  # fmt: skip
    head = (await bench.host.bounds(SPACE)).head
    await bench.exchange(one, two)
    assert (await bench.host.bounds(SPACE)).head == head


async def test_an_item_that_lost_is_covered_all_the_same(bench: Bench) -> None:
    """Or its author would send it again in every round."""
    item = record(9, "b")
    await bench.exchange(item)
    answer = await bench.exchange(record(5, "a", id=item.id))
    assert walls(answer.responder_watermarks or {}) == {"a": 5, "b": 9}
    assert [found.stamp for found in answer.records] == [stamp(9, "b")]


async def test_coverage_does_not_fall_when_the_latest_stamp_is_overwritten(bench: Bench) -> None:
    item = record(5, "a")
    await bench.exchange(item)
    answer = await bench.exchange(record(9, "b", id=item.id))
    assert walls(answer.responder_watermarks or {}) == {"a": 5, "b": 9}
    answer = await bench.exchange(record(3, "a"))  # pushed out of order
    assert walls(answer.responder_watermarks or {}) == {"a": 5, "b": 9}


async def test_several_changes_of_one_thing_in_one_request(bench: Bench) -> None:
    await bench.spaces.declare(SPACE, NOTES)
    item = record(1)
    answer = await bench.exchange(
        item, record(2, id=item.id, content_hash="second"),
        row(3, "a", "insert", {"id": "x", "n": 1}),
        row(4, "a", "update", {"n": 2}, where={"id": "x"}),
        row(5, "a", "update", {"m": 3}, where={"id": "x"}),
        row(6, "b", "insert", {"id": "y"}), row(7, "b", "delete", {"id": "y"}),
    )  # fmt: skip
    assert [msgspec.json.decode(r.text)["contentHash"] for r in answer.records] == ["second"]
    (live, gone) = answer.rows
    assert live.row is not None
    assert (live.op, live.row["n"], live.row["m"]) == ("insert", 2, 3)
    assert (gone.op, gone.where) == ("delete", {"id": "y"})


async def test_a_state_survives_closing_and_opening(bench: Bench, tmp_path: Path) -> None:
    await bench.spaces.declare(SPACE, NOTES)
    big = record(1, label="x" * 40_000)
    await bench.exchange(big, row(2, "a", "insert", {"id": 1, "text": "t" * 20_000}))
    for n in range(3, 8):  # big rows that change: none may lag behind the file
        await bench.exchange(record(n, id=big.id, label="y" * 40_000))
    before = await bench.exchange()
    await bench.host.aclose()
    async with Host(tmp_path, now_ms=bench.now) as host:
        again = Bench(host, tmp_path, bench.now)
        assert await again.exchange() == before  # (no bytes, so no threads to end)
        await again.exchange(record(50, id=big.id))
        await again.exchange(row(51, "a", "update", {"n": 1}, where={"id": 1}))
        answer = await again.exchange(seen={"a": stamp(50)})
        assert answer.rows[0].row is not None
        assert answer.rows[0].row["text"] == "t" * 20_000


def test_refs_and_channels_read_back() -> None:
    assert split_ref('app:notes:note:["a:b"]') == ("app:notes:note", '["a:b"]')
    assert split_ref("rec:id") == ("rec", "id")
    assert split_ref("blob:a:b/c") == ("blob", "a:b/c")
    for channel in (COMBINED, DRIVE_CHANNEL, Channel("app", "notes")):
        assert channel_of(str(channel)) == channel


def test_a_draft_of_another_process_is_decoded() -> None:
    body = encode_request({}, [record(1)], [], 10)
    from actors.dialects.starkeep.wire import decode_exchange

    made = exchange_draft(COMBINED, decode_exchange(body), body.decode())
    made.data = None
    again = decode_draft(made)
    assert again.channel == COMBINED
    assert again.exchange is not None
    assert len(again.exchange) == 1
    with pytest.raises(Refusal):
        decode_draft(Draft("", "patch", "{}", 2))


# -- paging ----------------------------------------------------------------------------------------


async def test_a_page_is_the_oldest_over_records_and_all_tables(bench: Bench) -> None:
    await bench.spaces.declare(SPACE, NOTES)
    for n in range(0, 12, 3):
        await bench.exchange(
            record(n + 1), row(n + 2, "a", "insert", {"id": n}),
            row(n + 3, "a", "insert", {"note": n, "name": "t"}, table="tag"),
        )  # fmt: skip
    seen: dict[str, HLC] = {}
    got: list[int] = []
    while True:
        answer = await bench.exchange(limit=5, seen=seen)
        stamps = [r.stamp for r in answer.records] + [r.timestamp for r in answer.rows]
        got += sorted(found.wall_ms for found in stamps)
        seen = {"a": stamp(got[-1])}
        if not answer.has_more:
            break
    assert got == list(range(1, 13))


async def test_a_page_ends_at_its_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.dialects.starkeep.delta.PAGE_BYTES_MAX", 3000)
    await bench.exchange(*[record(n, label="x" * 1000) for n in range(1, 7)])
    answer = await bench.exchange()
    assert 0 < len(answer.records) < 6
    assert answer.has_more


async def test_more_items_of_one_author_than_are_read_at_a_time(bench: Bench) -> None:
    items = [record(1000 + n // 3) for n in range(900)]  # three of each stamp
    await bench.exchange(*items)
    answer = await bench.exchange(limit=700)
    assert len(answer.records) == 702  # the last stamp is not parted
    rest = await bench.exchange(limit=700, seen={"a": answer.records[-1].stamp})
    assert len(rest.records) == 198
    assert not rest.has_more


async def test_authors_beyond_what_a_reader_gives_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.scan.LIST_ROWS_MAX", 3)
    monkeypatch.setattr("actors.dialects.starkeep.delta.COVERAGE_PAGE", 3, raising=False)
    await bench.exchange(*[record(5, f"node-{n}") for n in range(7)])
    answer = await bench.exchange()
    assert len(answer.records) == len(answer.responder_watermarks or {}) == 7


async def test_a_client_may_send_back_every_author_it_was_told_of(bench: Bench) -> None:
    for start in (0, 10_000):
        await bench.exchange(*[record(5, f"node-{start + n}") for n in range(10_000)], limit=0)
    seen = (await bench.exchange(limit=0)).responder_watermarks
    assert seen is not None
    assert len(seen) == 20_000
    assert not (await bench.exchange(seen=seen)).has_more


async def test_a_page_of_many_authors_reads_little_of_each(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.exchange(*[record(n // 50, f"node-{n % 50}") for n in range(5000)])
    rows, read = Reader.rows, []

    def counted(reader: Reader, sql: str, params: Any = ()) -> list[tuple[Any, ...]]:
        found = rows(reader, sql, params)
        read.append(len(found))
        return found

    monkeypatch.setattr(Reader, "rows", counted)
    answer = await bench.exchange(limit=100)
    assert len(answer.records) == 100
    assert sum(read) < 1000


# -- parking ---------------------------------------------------------------------------------------


async def test_parked_items_are_taken_in_order_up_to_the_next_gap(bench: Bench) -> None:
    other = Namespace("other", (TableInfo("t", ("id",)),))
    items: list[Record | RowEntry] = [
        row(1, "a", "insert", {"id": 1}), record(2), row(3, "a", "insert", {"id": 1}, app="other",
        table="t"), record(4),
    ]  # fmt: skip
    await bench.exchange(*items)
    await bench.exchange(*items)  # a newer client sends them again
    await bench.spaces.declare(SPACE, NOTES)
    answer = await bench.exchange()
    assert walls(answer.responder_watermarks or {}) == {"a": 2}
    await bench.spaces.declare(SPACE, other)
    answer = await bench.exchange()
    assert walls(answer.responder_watermarks or {}) == {"a": 4}
    assert (len(answer.records), len(answer.rows)) == (2, 2)
    await bench.exchange(record(5))
    assert walls((await bench.exchange()).responder_watermarks or {}) == {"a": 5}


async def test_a_row_without_key_values_halts_until_its_author_has_mended_it(
    bench: Bench,
) -> None:
    await bench.spaces.declare(SPACE, NOTES)
    bad, behind = row(5, "a", "insert", {"text": "t"}), record(6)
    for _ in range(2):  # a newer client sends them again
        answer = await bench.exchange(bad, behind)
        assert (answer.responder_watermarks, answer.records) == ({}, [])
    other = row(7, "a", "insert", {"id": 1}, app="other", table="t")
    answer = await bench.exchange(row(8, "a", "insert", {"id": 2, "text": "t"}), other)
    assert walls(answer.responder_watermarks or {}) == {"a": 6}
    await bench.spaces.declare(SPACE, Namespace("other", (TableInfo("t", ("id",)),)))
    answer = await bench.exchange(record(9))
    assert walls(answer.responder_watermarks or {}) == {"a": 9}
    assert (len(answer.records), len(answer.rows)) == (2, 2)


async def test_an_item_too_large_to_park_halts_its_author(bench: Bench) -> None:
    large = row(5, "a", "insert", {"id": 1, "text": "x" * (2 << 20)})
    for items in ((large,), (record(6),), (large, record(6))):
        assert (await bench.exchange(*items)).responder_watermarks == {}
    await bench.spaces.declare(SPACE, NOTES)
    answer = await bench.exchange(large, record(6))
    assert walls(answer.responder_watermarks or {}) == {"a": 6}


def test_parking_is_bounded_and_stays_a_prefix() -> None:
    parked = Parked([])
    for n in range(ITEMS_MAX):
        assert parked.add(record(n + 1))
    assert parked.add(record(ITEMS_MAX + 1))
    assert parked.overflow == stamp(ITEMS_MAX + 1)
    assert not parked.add(record(ITEMS_MAX + 2))
    del parked.items[:10]
    assert not parked.add(record(ITEMS_MAX + 2))  # room, but it would leave a gap
    assert parked.add(record(ITEMS_MAX + 1))
    assert parked.overflow is None
    again = Parked.load(msgspec.Raw(parked.dump()))
    assert [i.text for i in again.items if isinstance(i, Record)] == [
        i.text for i in parked.items if isinstance(i, Record)
    ]


async def test_authors_with_parked_items_are_bounded(bench: Bench) -> None:
    rows = [row(1, f"n{n}", "insert", {"id": n}) for n in range(AUTHORS_MAX + 3)]
    await bench.exchange(*rows)
    await bench.spaces.declare(SPACE, NOTES)
    assert len((await bench.exchange()).rows) == AUTHORS_MAX


# -- blobs -----------------------------------------------------------------------------------------


async def test_a_key_is_staged_until_its_bytes_come_and_counts_who_refers_to_it(
    bench: Bench,
) -> None:
    one, two = record(1, key="k"), record(2, key="k")
    await bench.exchange(one, two)
    found = await bench.blob("k")
    assert found is not None
    assert (found["state"], found["refs"]) == ("staged", 2)
    assert await bench.spaces.stat(SPACE, "k") is None
    await bench.write("k", b"abc")
    found = await bench.blob("k")
    assert found is not None
    assert (found["state"], found["refs"]) == ("present", 2)
    await bench.exchange(
        record(3, id=one.id, deleted=3, key="k"), record(3, id=two.id, key="other")
    )
    found = await bench.blob("k")
    assert found is not None
    assert (found["state"], found["refs"]) == ("present", 0)
    assert (await bench.blob("other") or {})["refs"] == 1


async def test_file_rows_refer_to_blobs_too(bench: Bench) -> None:
    await bench.spaces.declare(SPACE, NOTES)
    file = {"id": "f", "object_storage_key": "k", "content_hash": "h"}
    table = "_starkeep_sync_records"
    await bench.exchange(row(1, "a", "insert", file, table=table))
    assert (await bench.blob("k") or {})["refs"] == 1
    await bench.exchange(
        row(2, "a", "update", {"content_hash": "g"}, where={"id": "f"}, table=table)
    )
    assert (await bench.blob("k") or {})["refs"] == 1
    await bench.exchange(row(3, "a", "delete", where={"id": "f"}, table=table))
    assert (await bench.blob("k") or {})["refs"] == 0


async def test_equal_bytes_are_stored_once(bench: Bench) -> None:
    await bench.write("a", b"same")
    await bench.write("b", b"same")
    assert bench.contents() == 1


async def test_a_file_above_the_limit_is_refused_and_leaves_nothing(bench: Bench) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000

    with pytest.raises(TooLarge):
        await bench.spaces.write(SPACE, "k", endless(), None)
    assert bench.contents() == 0
    assert await bench.blob("k") is None


# -- collecting ------------------------------------------------------------------------------------


async def test_collecting_takes_what_nothing_refers_to_and_only_after_the_grace(
    bench: Bench,
) -> None:
    bench.now.ms = clock.now_ms()  # as files have it: their times are the machine's
    item = record(1, key="kept")
    await bench.exchange(item)
    for key in ("kept", "unused", "overwritten"):
        await bench.write(key, key.encode())
    await bench.write("overwritten", b"again")
    report = await bench.spaces.collect(SPACE, dry_run=False)
    assert (report.keys, report.contents) == ([], [])
    bench.now.ms = clock.now_ms() + 2 * DAY_MS
    dry = await bench.spaces.collect(SPACE, dry_run=True)
    assert dry.keys == ["overwritten", "unused"]
    assert len(dry.contents) == 3
    assert not dry.deleted
    assert bench.contents() == 4
    wet = await bench.spaces.collect(SPACE, dry_run=False)
    assert (wet.keys, sorted(wet.contents), wet.bytes) == (
        dry.keys,
        sorted(dry.contents),
        dry.bytes,
    )
    assert bench.contents() == 1
    info = await bench.spaces.stat(SPACE, "kept")
    assert info is not None
    assert b"".join([p async for p in bench.spaces.read(SPACE, info)]) == b"kept"
    assert await bench.spaces.stat(SPACE, "unused") is None
    await bench.write("unused", b"unused")  # the same bytes may come again
    assert bench.contents() == 2


async def test_a_key_that_is_referred_to_again_before_the_commit_stays(bench: Bench) -> None:
    await bench.write("k", b"abc")
    await bench.exchange(record(1, key="k"))
    from actors.dialects.starkeep.plan import blob_draft

    await bench.spaces._append(SPACE, blob_draft([BlobChange("k", "collect", before_ms=NOW + 1)]))
    assert (await bench.blob("k") or {})["state"] == "present"


async def test_a_key_that_a_device_was_told_of_is_not_collected(bench: Bench) -> None:
    """It does not send bytes that are here already, but their record, some time later."""
    await bench.write("k", b"abc")
    bench.now.ms += 3 * DAY_MS
    assert await bench.spaces.stat(SPACE, "k") is not None
    head = (await bench.host.bounds(SPACE)).head
    assert await bench.spaces.stat(SPACE, "k") is not None
    assert (await bench.host.bounds(SPACE)).head == head  # noted once in a while
    assert (await bench.spaces.collect(SPACE, dry_run=False)).keys == []
    await bench.exchange(record(1, key="k"))
    assert await bench.spaces.stat(SPACE, "k") is not None


async def test_an_upload_while_unused_keys_are_looked_for_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.write("k", b"abc")
    bench.now.ms += 3 * DAY_MS
    append = bench.spaces._append

    async def late(address: Address, draft: Draft) -> None:
        monkeypatch.undo()
        await bench.write("k", b"abc")
        await append(address, draft)

    monkeypatch.setattr(bench.spaces, "_append", late)
    await bench.spaces.collect(SPACE, dry_run=False)
    assert await bench.spaces.stat(SPACE, "k") is not None


async def test_a_key_shows_what_its_live_item_names_and_forgets_the_rest_in_time(
    bench: Bench,
) -> None:
    await bench.spaces.declare(SPACE, NOTES)
    table = "_starkeep_sync_records"
    digests = [hashlib.sha256(data).hexdigest() for data in (b"one", b"two", b"six")]

    async def name(at: int, digest: str) -> None:
        file = {"id": "f", "object_storage_key": "k", "content_hash": digest}
        await bench.exchange(row(at, "a", "insert", file, table=table))

    async def shown() -> str:
        info = await bench.spaces.stat(SPACE, "k")
        assert info is not None
        return info.hash

    await bench.write("k", b"one")
    await name(1, "an old client's word")
    assert await shown() == digests[0]
    await bench.write("k", b"two")
    assert await shown() == digests[1]  # the latest, where nothing names one that is here
    await name(2, digests[0])
    assert await shown() == digests[0]
    await bench.write("k", b"six")
    assert await shown() == digests[0]
    assert bench.contents() == 3

    def tomorrow() -> int:
        return max(bench.now.ms, clock.now_ms()) + 2 * DAY_MS

    bench.spaces._now_ms = tomorrow
    dry = await bench.spaces.collect(SPACE, dry_run=True)
    assert sorted(dry.contents) == sorted(digests[1:])
    bench.now.ms = clock.now_ms()
    wet = await bench.spaces.collect(SPACE, dry_run=False)
    assert sorted(wet.contents) == sorted(digests[1:])
    assert await shown() == digests[0]
    await name(3, digests[1])  # its bytes are gone: those that are here are better than none
    assert await shown() == digests[0]


async def test_uploads_wait_for_a_collection(bench: Bench) -> None:
    gate = bench.spaces._gate(SPACE)
    order: list[str] = []

    async def upload() -> None:
        await bench.write("k", b"abc")
        order.append("upload")

    async with asyncio.TaskGroup() as tasks, gate.alone():
        uploading = tasks.create_task(upload())
        while not (gate._waiting or uploading.done()):
            await asyncio.sleep(0)
        order.append("collected")
    assert order == ["collected", "upload"]
    assert bench.spaces._gates == {}


async def test_collecting_in_an_unknown_space_makes_no_file(bench: Bench, tmp_path: Path) -> None:
    report = await bench.spaces.collect(Address("default", "keep:none"), dry_run=False)
    assert report.keys == []
    assert [path.name for path in tmp_path.rglob("*.db")] == ["index.db"]


# -- the memory of coverage ------------------------------------------------------------------------


async def test_a_poll_that_finds_nothing_reads_no_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.exchange(record(1))
    seen = {"a": stamp(1)}
    first = await bench.exchange(seen=seen)

    async def forbidden(*args: object) -> None:
        raise AssertionError("it read")

    monkeypatch.setattr(bench.host, "scan", forbidden)
    assert await bench.exchange(seen=seen) == first
    monkeypatch.undo()
    await bench.exchange(record(2, "b"))
    assert len((await bench.exchange(seen=seen)).records) == 1


async def test_one_bad_item_refuses_the_whole_request(bench: Bench) -> None:
    good, bad = record_json(NOW), record_json(NOW + 2 * DAY_MS)
    body = msgspec.json.encode({"records": [good, bad]})
    with pytest.raises(HoldfastError) as caught:
        bench.spaces.decode(body)
    assert caught.value.code == "clock_drift"
    assert await bench.host.bounds(SPACE) is not None
    assert (await bench.exchange()).records == []
