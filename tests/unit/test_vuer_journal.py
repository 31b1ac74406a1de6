"""The journal service: dedupe, batches, compaction, recovery, verification."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.host import Host
from actors.types import Bounds, Draft, Outcome, Rejected, Reply
from edge.dialects.vuer import limits
from edge.dialects.vuer.journal import JournalService
from edge.dialects.vuer.repositories import InMemoryRepository, LedgerRepository
from edge.dialects.vuer.rooms import room_address
from infra.errors import Busy, HoldfastError, StorageError
from infra.paths import ledger_path
from tests.support.rtc import insert, message, meta, op


class Counting(InMemoryRepository):
    """Remembers how large each batch was."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches: list[int] = []
        self.error: HoldfastError | None = None

    def append(self, address: Any, drafts: list[Draft], reply: Reply, tag: Any) -> None:
        if self.error is not None:
            raise self.error
        self.batches.append(len(drafts))
        super().append(address, drafts, reply, tag)


class Collected:
    """A Reply that keeps outcomes."""

    def __init__(self, count: int) -> None:
        self.found: list[tuple[Any, Outcome]] = []
        self.flushes = 0
        self._count = count
        self.all: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, tag: Any, outcomes: list[Outcome], bounds: Bounds) -> None:
        self.found.append((tag, outcomes[0]))
        if len(self.found) == self._count:
            self.all.set_result(None)

    def flush(self) -> None:
        self.flushes += 1


async def test_a_message_is_applied_once() -> None:
    async with JournalService() as journal:
        first = message("ann", 1, insert("n", x=1))
        done = await journal.process_message("a", first)
        assert (done.status, done.server_seq) == ("applied", 1)
        assert done.msg == {"serverSeq": 1, **first}
        again = await journal.process_message("a", first | {"ops": [insert("other")]})
        assert (again.status, again.server_seq, again.msg) == ("duplicate", 1, done.msg)
        other = await journal.process_message("b", first)
        assert (other.status, other.server_seq) == ("applied", 1)
        state = await journal.get_state("a")
        assert list(state["graph"]["nodes"]) == ["n"] and state["journalIndex"] == 1
        assert (state["vectorClock"], state["lamportTime"]) == ({"ann": 1}, 1)


async def test_what_is_refused_says_why_and_is_not_stored() -> None:
    async with JournalService() as journal:
        for bad, code in (
            (message("ann", 1) | {"lamportTime": 1 << 40}, "clock_skew"),
            ({}, "invalid_message"),
            (message("ann", 1, meta("undo", "x:1")), "undo_expired"),
            (message("ann", 1, op("no.such", "n", "x", 1)), "unknown_otype"),
        ):
            done = await journal.process_message("a", bad)
            assert (done.status, done.error, done.msg) == ("rejected", code, None)
        assert await journal.get_messages_since("a", 0) == []


async def test_an_undo_of_another_session_needs_to_be_allowed() -> None:
    async with JournalService() as journal:
        await journal.process_message("a", message("ann", 1, insert("n")))
        undo = message("bob", 1, meta("undo", "ann:1"))
        assert (await journal.process_message("a", undo)).error == "forbidden"
        assert (await journal.process_message("a", undo, undo_any=True)).status == "applied"
        assert (await journal.get_state("a"))["graph"]["nodes"] == {}


async def test_messages_of_one_turn_are_one_batch_of_at_most_256() -> None:
    repository = Counting()
    async with JournalService(repository) as journal:
        address = room_address("a")
        reply = Collected(600)
        for number in range(1, 601):
            draft = journal.draft(message("ann", number))
            journal.submit(address, draft, reply, number)
        await reply.all
        assert repository.batches == [256, 256, 88]
        assert [tag for tag, _ in reply.found] == list(range(1, 601))
        assert [getattr(outcome, "last", None) for _, outcome in reply.found] == list(range(1, 601))
        assert reply.flushes == 3


async def test_a_batch_closes_with_256_kib_as_well() -> None:
    repository = Counting()
    async with JournalService(repository) as journal:
        reply = Collected(10)
        big = insert("n", text="x" * 60_000)
        for number in range(1, 11):
            draft = journal.draft(message("ann", number, big))
            journal.submit(room_address("a"), draft, reply, number)
        await reply.all
        assert repository.batches == [5, 5]  # the fifth makes it full


async def test_a_refused_message_disturbs_nobody_in_its_batch() -> None:
    async with JournalService() as journal:
        reply = Collected(3)
        msgs = [message("ann", 1), message("ann", 2, meta("undo", "none:1")), message("ann", 3)]
        for msg in msgs:
            journal.submit(room_address("a"), journal.draft(msg), reply, msg["id"])
        await reply.all
        assert [isinstance(outcome, Rejected) for _, outcome in reply.found] == [False, True, False]
        assert [m["id"] for m in await journal.get_messages_since("a", 0)] == ["ann:1", "ann:3"]


async def test_fixed_batches_wait_for_their_window() -> None:
    repository = Counting()
    async with JournalService(repository, batch_mode="fixed", batch_window=0.05) as journal:
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number in range(1, 6):
                group.create_task(journal.process_message("a", message("ann", number)))
                await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() - began >= 0.045
        assert repository.batches == [5]
        one = asyncio.ensure_future(journal.process_message("a", message("ann", 9)))
        await asyncio.sleep(0)
        await journal.close()  # does not wait for the window
        assert (await one).status == "applied"


async def test_a_full_store_is_told_to_who_asked() -> None:
    repository = Counting()
    async with JournalService(repository) as journal:
        await journal.process_message("a", message("ann", 1))
        repository.error = Busy("full", retry_after_ms=7)
        done = await journal.process_message("a", message("ann", 2))
        assert (done.status, done.error) == ("rejected", "busy")
        repository.error = None
        assert (await journal.process_message("a", message("ann", 2))).server_seq == 2


async def test_59_compaction_at_a_thousand_messages_keeps_a_hundred() -> None:
    async with JournalService() as journal:
        await journal.process_message("a", message("ann", 1, insert("n", x=0)))
        for number in range(2, 1000):
            msg = message("ann", number, op("number.add", "n", "x", 1))
            await journal.process_message("a", msg)
        before = await journal.status(room_address("a"))
        assert (await journal.repository.bounds(room_address("a"))).floor == 0
        await journal.process_message("a", message("bob", 1, op("number.add", "n", "x", 0)))
        bounds = await journal.repository.bounds(room_address("a"))
        assert (bounds.floor, bounds.floor_at, bounds.head) == (900, 1000, 1000)
        assert (await journal.status(room_address("a")))[1] == before[1]
        kept = await journal.get_messages_since("a", 900)
        assert [m["serverSeq"] for m in kept] == list(range(901, 1001))
        with pytest.raises(StorageError) as refused:
            await journal.get_messages_since("a", 899)
        assert refused.value.code == "bad_since"
        await journal.load("a", verify=True)


async def test_compaction_by_hand_and_by_time_and_at_the_end() -> None:
    repository = Counting(snapshot_every=1000, keep_tail=2)
    journal = JournalService(repository, snapshot_interval=0.05)
    async with journal:
        assert (await journal.compact("a")).epoch == ""  # nothing is made for it
        for number in range(1, 6):
            await journal.process_message("a", message("ann", number))
        assert (await journal.compact("a")).floor == 3
        await journal.process_message("a", message("ann", 6))
        async with asyncio.timeout(20):
            while (await repository.bounds(room_address("a"))).floor < 4:
                await asyncio.sleep(0.02)
        await journal.load("a", verify=True)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


async def test_close_compacts_and_opening_is_loading(directory: Path) -> None:
    async with Host(directory) as host:
        journal = JournalService(LedgerRepository(host))
        for number in range(1, 151):
            await journal.process_message("a", message("ann", number))
        kept = await journal.status(room_address("a"))
        await journal.close()
    async with Host(directory) as host, JournalService(LedgerRepository(host)) as journal:
        state = await journal.load("a", verify=True)
        assert state["journalIndex"] == 150 and len(state["graph"]["nodes"]) == 150
        assert await journal.status(room_address("a")) == kept
        assert (await host.bounds(room_address("a"))).floor == 50


async def test_verification_finds_a_graph_that_is_not_the_fold(directory: Path) -> None:
    async with Host(directory) as host:
        journal = JournalService(LedgerRepository(host))
        await journal.process_message("a", message("ann", 1, insert("n", x=1)))
        await journal.load("a", verify=True)
    db = sqlite3.connect(ledger_path(directory, *room_address("a")))
    ((body,),) = db.execute("SELECT body FROM rows WHERE coll='node'").fetchall()
    changed = msgspec.json.decode(body) | {"x": 2}
    db.execute("UPDATE rows SET body=? WHERE coll='node'", (msgspec.json.encode(changed).decode(),))
    db.commit()
    db.close()
    async with Host(directory) as host:
        journal = JournalService(LedgerRepository(host))
        with pytest.raises(StorageError, match="folds to another graph"):
            await journal.load("a", verify=True)


async def test_how_much_is_kept_is_the_ports_to_say() -> None:
    for options in ({"snapshot_every": 50}, {"keep_tail": 5}):
        with pytest.raises(ValueError, match="dialect"):
            JournalService(LedgerRepository(None), **options)  # type: ignore[arg-type]
    async with JournalService(snapshot_every=20, keep_tail=5) as journal:
        for number in range(1, 22):
            await journal.process_message("a", message("ann", number))
        bounds = await journal.repository.bounds(room_address("a"))
        assert (bounds.head, bounds.floor) == (21, 15)


async def test_a_bootstrap_fits_a_frame() -> None:
    async with JournalService() as journal:
        for number in range(1, 31):
            await journal.process_message("a", message("ann", number, insert("n", t="x" * 60_000)))
        found = await journal.bootstrap(room_address("a"), None, None, graph=False)
        assert sum(entry.size for entry in found.entries) <= limits.JOURNAL_BYTES_MAX
        assert found.last == found.entries[-1].seq < found.bounds.head
