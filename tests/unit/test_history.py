"""Earlier states out of a bucket: the first that holds a seq, and what is told where there is none.

The replicas are written by a host, one batch for each publish.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.history import restore_state
from actors.host import Host
from actors.identity import whose
from actors.moment import At
from infra.errors import FileRefused
from infra.layout import LEVEL_SNAPSHOT, NoBackup, file_key, parse_key
from infra.objects import LIST_KEYS_MAX, Listing
from infra.replicator import ReplicaSettings
from tests.support.hosts import A, host_at, prefix_of, put, running, shipped
from tests.support.ledgers import check_file
from tests.support.memory_store import MemoryStore

PREFIX = prefix_of(A)


async def replica(directory: Path, *batches: int, clear_after: int | None = None) -> MemoryStore:
    """A bucket with one batch for each number, of so many entries."""
    store = MemoryStore()
    settings = ReplicaSettings(put_interval_ms=0, history_ms=0)
    host: Host = host_at(directory, store, level="replicated", replica=settings)
    async with running(host):
        number = 0
        for index, count in enumerate(batches):
            await put(host, A, *(f"e{number + n}" for n in range(1, count + 1)))
            number += count
            if clear_after == index:
                await host.clear(A)
        await shipped(host, A)
        await host.aclose()
    return store


def heads(store: MemoryStore, tmp_path: Path, *seqs: int) -> list[tuple[int, int]]:
    """(TXID, head) of the states that are found for the seqs."""
    found = []
    for seq in seqs:
        target = tmp_path / "found.db"
        restored = restore_state(store, PREFIX, target, At(seq=seq))
        found.append((restored.txid, check_file(target).header["head"]))
    assert not (tmp_path / "found.db.probe").exists()
    return found


def txids(store: MemoryStore, level: int) -> list[int]:
    parsed = [parse_key(PREFIX, key, 0, 0) for key in sorted(store.objects)]
    return [file.max_txid for file in parsed if file is not None and file.level == level]


async def test_the_first_state_that_holds_the_seq(tmp_path: Path) -> None:
    store = await replica(tmp_path / "data", 1, 1, 3, 2)
    assert heads(store, tmp_path, 1, 2, 3, 4, 5, 6, 7) == [
        (1, 1), (2, 2), (3, 5), (3, 5), (3, 5), (4, 7), (4, 7),
    ]  # fmt: skip


async def test_txid_and_latest_are_those_of_restore(tmp_path: Path) -> None:
    store = await replica(tmp_path / "data", 1, 1, 1)
    target = tmp_path / "x.db"
    assert restore_state(store, PREFIX, target, At(txid=2)).txid == 2
    assert whose(target).header.head == 2
    assert restore_state(store, PREFIX, target).txid == max(txids(store, 0))
    with pytest.raises(NoBackup, match=r"1970-01-01T00:00:01\.000Z"):
        restore_state(store, PREFIX, target, At(time_ms=1000))


async def test_across_snapshots_and_narrow_listings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large replica only the changes after one snapshot are listed and looked at."""
    store = await replica(tmp_path / "data", *([1] * 110))
    assert len(txids(store, LEVEL_SNAPSHOT)) > 2
    plain = store.list

    def narrow(prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        return plain(prefix, after=after, limit=min(limit, 7))

    monkeypatch.setattr(store, "list", narrow)
    store.counts.clear()
    for seq in (1, 31, 32, 33, 34, 64, 65, 66, 99, 110):
        assert heads(store, tmp_path, seq) == [(seq, seq)]


async def test_a_seq_that_does_not_exist_yet(tmp_path: Path) -> None:
    store = await replica(tmp_path / "data", 2)
    with pytest.raises(NoBackup, match="does not hold seq 3: it has up to seq 2"):
        heads(store, tmp_path, 3)
    with pytest.raises(NoBackup, match="it has nothing"):
        restore_state(MemoryStore(), PREFIX, tmp_path / "x.db", At(seq=1))
    assert not (tmp_path / "x.db").exists()


async def test_a_state_that_retention_took_is_not_replaced_by_a_later_one(tmp_path: Path) -> None:
    store = await replica(tmp_path / "data", *([1] * 40))
    first = min(txids(store, LEVEL_SNAPSHOT))
    # As retention leaves it: the owner's first file and what follows the snapshot.
    store.delete([file_key(PREFIX, 0, txid, txid) for txid in range(2, first + 1)])
    assert heads(store, tmp_path, 1, first, first + 1) == [
        (1, 1), (first, first), (first + 1, first + 1),
    ]  # fmt: skip
    with pytest.raises(NoBackup, match=f"seq {first - 1} is not kept .* use --at txid:{first}"):
        heads(store, tmp_path, first - 1)


async def test_numbers_that_a_cut_history_skipped(tmp_path: Path) -> None:
    store = await replica(tmp_path / "data", 2, 1, clear_after=0)
    assert heads(store, tmp_path, 2)[0][1] == 2
    jumped = 2 + 2**20
    with pytest.raises(NoBackup, match="no entry was given seq 3: the history was cut after 2"):
        heads(store, tmp_path, 3)
    assert heads(store, tmp_path, jumped + 1)[0][1] == jumped + 1


async def test_a_replica_of_something_else_has_no_seqs(tmp_path: Path) -> None:
    from infra.ltx import Header, encode

    page = bytearray(4096)
    page[:16] = b"SQLite format 3\0"
    header = Header(page_size=4096, commit=1, min_txid=1, max_txid=1, timestamp_ms=1)
    store = MemoryStore()
    store.put(file_key("other", 0, 1, 1), encode(header, [(1, bytes(page))]))
    with pytest.raises(FileRefused):
        restore_state(store, "other", tmp_path / "x.db", At(seq=1))
    assert list(tmp_path.iterdir()) == []
