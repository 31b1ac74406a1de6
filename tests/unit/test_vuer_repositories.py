"""The repositories, in memory and on a port: one suite for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.dialects.vuer.plan import message_draft
from actors.dialects.vuer.validate import check_message
from actors.host import Host
from actors.reply import FutureReply
from actors.types import Appended, Batch, Bounds, Duplicate, EntryPage, Resync
from edge.dialects.vuer.repositories import (
    Document,
    DocumentRepository,
    InMemoryRepository,
    JournalRepository,
    LedgerRepository,
    SessionRecord,
    SessionRepository,
)
from edge.dialects.vuer.rooms import ROOM_BYTES_MAX, room_address, room_of, scope_of
from infra.errors import ProtocolError
from tests.support.rtc import insert, message, op
from tests.support.works import Doing

A = room_address("studio")


@pytest.fixture(params=["memory", "port"])
async def repository(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[LedgerRepository]:
    if request.param == "memory":
        found: LedgerRepository = InMemoryRepository()
        await found.start()
        yield found
        await found.aclose()
    else:
        async with Host(tmp_path) as host:
            yield LedgerRepository(host)


async def append(repository: JournalRepository, *msgs: dict[str, Any]) -> list[Any]:
    drafts = [message_draft(check_message(msg)) for msg in msgs]
    reply = FutureReply()
    repository.append(A, drafts, reply, None)
    outcomes, _ = await reply.future
    return outcomes


async def test_a_room_never_written_is_empty_and_is_not_made(repository: LedgerRepository) -> None:
    journal: JournalRepository = repository
    documents: DocumentRepository = repository
    sessions: SessionRepository = repository
    assert await journal.bounds(A) == Bounds("", 0, 0, 0)
    page = await journal.range(A, 0)
    assert isinstance(page, EntryPage) and page.entries == []
    assert await journal.snapshot(A, Doing(lambda reader: 1)) is None
    assert await documents.document(A) is None and await sessions.sessions(A) == {}
    assert await journal.bounds(A) == Bounds("", 0, 0, 0)


async def test_a_batch_is_appended_in_order_and_read_in_ranges(
    repository: LedgerRepository,
) -> None:
    msgs = [message("ann", number) for number in range(1, 6)]
    assert await append(repository, *msgs) == [Appended(n, n) for n in range(1, 6)]
    (again,) = await append(repository, msgs[2])
    assert isinstance(again, Duplicate) and again.seq == 3
    page = await repository.range(A, 2)
    assert isinstance(page, EntryPage)
    assert [entry.seq for entry in page.entries] == [3, 4, 5] and page.last == 5
    assert msgspec.json.decode(page.entries[0].body) == {"serverSeq": 3, **msgs[2]}
    assert [entry.origin for entry in page.entries] == ["ann"] * 3
    beyond = await repository.range(A, 6)
    assert isinstance(beyond, Resync) and beyond.reason == "ahead_of_head"


async def test_documents_and_sessions(repository: LedgerRepository) -> None:
    await append(repository, message("ann", 1, insert("root")), message("bob", 7, insert("n")))
    document = await repository.document(A)
    assert document is not None and document.epoch
    assert msgspec.structs.replace(document, epoch="") == Document(
        "studio", "", 2, 0, 0, 7, "root", 2)  # fmt: skip
    assert await repository.sessions(A) == {
        "ann": SessionRecord(1, "ann:1"), "bob": SessionRecord(7, "bob:7")}  # fmt: skip


class Tap:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.resets: list[Bounds] = []

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)

    def durable(self, bounds: Bounds) -> None:
        """Not kept."""

    def moved(self, bounds: Bounds) -> None:
        """Not kept."""

    def reset(self, bounds: Bounds) -> None:
        self.resets.append(bounds)


async def test_followers_hear_batches_and_a_clear(repository: LedgerRepository) -> None:
    await append(repository, message("ann", 1, insert("n")))
    tap = Tap()
    assert (await repository.subscribe(A, tap)).head == 1
    await append(repository, message("ann", 2), message("ann", 3))
    heard = [(batch.first, batch.last, len(batch.entries)) for batch in tap.batches]
    assert heard == [(2, 3, 2)]
    bounds = await repository.clear(A)
    assert [one.epoch for one in tap.resets] == [bounds.epoch]
    assert bounds.head == bounds.floor == 3 + 2**20
    repository.unsubscribe(A, tap)
    await append(repository, message("ann", 1, op("number.set", "n", "x", 1)))
    assert len(tap.batches) == 1
    document = await repository.document(A)
    assert document is not None and document.nodes == 0


async def test_rooms_in_memory_are_forgotten(tmp_path: Path) -> None:
    repository = InMemoryRepository()
    await repository.start()
    await repository.start()
    await append(repository, message("ann", 1))
    directory = repository.host.directory
    assert directory.exists()
    await repository.aclose()
    assert not directory.exists()
    unused = InMemoryRepository()
    await unused.aclose()
    assert not unused.host.directory.exists()
    await asyncio.sleep(0)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * (ROOM_BYTES_MAX + 1), "é" * 100, "\x00"])
def test_names_that_are_no_rooms(name: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        scope_of(name)
    assert refused.value.code == "bad_scope"


def test_names_of_rooms_and_their_scopes() -> None:
    for name in ("studio", "a:b/c", "é", "x" * ROOM_BYTES_MAX):
        assert room_of(room_address(name)) == name
    assert scope_of("studio") == "rtc:studio"
