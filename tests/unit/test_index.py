"""The host's index: never the truth, so damage and unclean ends cost a rebuild and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from actors.host import Host
from actors.index import Index, scan
from actors.ledger import Ledger
from actors.types import Address
from actors.write import Write
from infra import sqlite as sqlite_module
from infra.errors import StorageError
from infra.paths import ledger_path
from tests.support.ledgers import NOW

A, B = Address("default", "run:r1"), Address("acme", "größe: 1")


def make_ledger(root: Path, address: Address, *, due_at: int | None = None) -> Path:
    path = ledger_path(root, *address)
    ledger = Ledger.create(path, address, dialect="asterql", epoch="e1", at=NOW, materialize=True)
    if due_at is not None:
        ledger.commit(Write(NOW, alarms=[("tick", due_at, None, 0)]))
    ledger.close()
    return path


def names(index: Index, tenant: str = "default", **more: str) -> list[str]:
    options = {"prefix": "", "after": "", **more}
    return [scope for scope, _ in index.page(tenant, options["prefix"], options["after"], 100)]


def test_a_clean_end_is_trusted(tmp_path: Path) -> None:
    index = Index(tmp_path)
    assert index.must_rebuild, "a new one knows nothing"
    index.add(A, ledger_path(tmp_path, *A))
    index.close()
    again = Index(tmp_path)
    assert not again.must_rebuild and names(again) == [A.scope]
    again.close()


def test_an_unclean_end_is_rebuilt(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index._db.close()  # killed
    again = Index(tmp_path)
    assert again.must_rebuild
    again.close()


def test_due_times_come_soonest_first(tmp_path: Path) -> None:
    index = Index(tmp_path)
    for address in (A, B):
        index.add(address, ledger_path(tmp_path, *address))
    assert index.next_due() is None
    index.set_due(A, 50)
    index.lower_due(A, 90)
    index.lower_due(B, 20)
    assert index.next_due() == 20 and index.next_due({B}) == 50 and index.next_due({A, B}) is None
    assert index.due(49, 10) == [B] and index.due(50, 10) == [B, A] and index.due(50, 1) == [B]
    index.set_due(B, None)
    assert index.due(100, 10) == [A]
    index.close()


def test_listing_pages_by_prefix(tmp_path: Path) -> None:
    index = Index(tmp_path)
    for scope in ("a:1", "a:2", "a%3", "b:1", "ä:1"):
        index.add(Address("default", scope), ledger_path(tmp_path, "default", scope))
    assert names(index) == ["a%3", "a:1", "a:2", "b:1", "ä:1"]
    assert names(index, prefix="a:") == ["a:1", "a:2"]
    assert names(index, prefix="a", after="a:1") == ["a:2"]
    assert names(index, tenant="acme") == []
    index.close()


def test_scan_finds_ledgers_and_skips_the_rest(tmp_path: Path) -> None:
    first, second = make_ledger(tmp_path, A), make_ledger(tmp_path, B, due_at=77)
    (first.parent / "noise.db").write_bytes(b"no ledger" * 100)
    (first.parent / "empty.db").touch()
    found = {address: (path, due) for address, path, due in scan(tmp_path)}
    assert found == {
        A: (str(first.relative_to(tmp_path)), None),
        B: (str(second.relative_to(tmp_path)), 77),
    }


def test_a_rebuild_keeps_the_earlier_due_time(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.add(A, ledger_path(tmp_path, *A))
    index.set_due(A, 30)
    index.replace([(A, "p", 50), (B, "q", 20)])
    assert index.due(30, 10) == [B, A]
    index.close()


@pytest.mark.parametrize("kind", ["not a database", "torn page", "other tables"])
def test_a_damaged_index_is_set_aside_and_built_again(tmp_path: Path, kind: str) -> None:
    make_ledger(tmp_path, A, due_at=5)
    index = Index(tmp_path)
    index.add(A, ledger_path(tmp_path, *A))
    index.close()
    path = tmp_path / "index.db"
    if kind == "not a database":
        path.write_bytes(b"x" * 8192)
    elif kind == "torn page":
        whole = bytearray(path.read_bytes())
        whole[4096:] = b"\xff" * (len(whole) - 4096)
        path.write_bytes(whole)
    else:
        path.unlink()
        path.write_bytes(b"SQLite format 3\x00" + b"\x00" * 5000)
    (tmp_path / "index.db-wal").write_bytes(b"left over")
    again = Index(tmp_path)
    assert again.must_rebuild
    assert (tmp_path / "index.damaged").exists()
    again.replace(list(scan(tmp_path)))
    assert names(again) == [A.scope] and again.next_due() == 5
    again.close()


def test_trouble_with_the_disk_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index(tmp_path).close()

    def refuse(_path: Path) -> sqlite_module.Handle:
        raise StorageError("the disk is full", code="disk_full")

    monkeypatch.setattr("actors.index.open_writer", refuse)
    with pytest.raises(StorageError):
        Index(tmp_path)
    assert not (tmp_path / "index.damaged").exists()


async def test_a_host_rebuilds_what_a_crash_left_out(tmp_path: Path) -> None:
    async with Host(tmp_path):
        pass
    make_ledger(tmp_path, A, due_at=5)
    db = sqlite3.connect(tmp_path / "index.db")
    db.execute("UPDATE state SET clean=0")
    db.commit()
    db.close()
    async with Host(tmp_path) as host:
        assert names(host.index) == [A.scope] and host.index.next_due() == 5
