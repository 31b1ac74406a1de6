"""Scopes of the other dialects: what they write passes the checker, and comes back from lines."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.check import check_ledger
from actors.identity import copy_database
from actors.line_files import read_lines, write_lines
from actors.types import Address
from tests.support.strata import NAME, strata, tx

pytestmark = pytest.mark.e2e


async def test_a_stratasync_scope_is_folded_and_comes_back(tmp_path: Path) -> None:
    address = Address("default", f"strata:{NAME}")
    async with strata(tmp_path / "one") as ann:
        for n in range(20):
            await ann.insert(f"t{n}")
        await ann.write("UPDATE", "Task", "t3", {"title": "new"})
        await ann.write("DELETE", "Task", "t4")
        await ann.write("ARCHIVE", "Task", "t5", {"archivedAt": "2026-01-01T00:00:00.000Z"})
        await ann.mutate(tx("INSERT", "Task", "t1", {"workspaceId": "ws1"}))
        rows = await ann.rows("Task")
        scope = await ann.server.host.awake(address)
        assert scope is not None and ann.server.transfers is not None
        copy = tmp_path / "copy.db"
        copy_database(scope.ledger.path, copy)
        fork = await ann.server.transfers.fork(address, Address("default", "strata:other"), None)
        assert fork.bounds.head == scope.bounds.head
    found = check_ledger(copy)
    assert found.problems == [] and found.refolded and found.dialect == "stratasync"
    assert found.rows >= len(rows) > 10
    out = io.BytesIO()
    write_lines(copy, out)
    out.seek(0)
    assert read_lines(out, tmp_path / "again.db") == address
    again = check_ledger(tmp_path / "again.db")
    assert again.problems == [] and (again.entries, again.rows) == (found.entries, found.rows)
    out.seek(0)

    async def chunks() -> AsyncIterator[bytes]:
        yield out.getvalue()

    async with strata(tmp_path / "two") as ann:
        assert ann.server.transfers is not None
        await ann.server.transfers.accept(address, chunks(), keep_epoch=True)
        assert await ann.rows("Task") == rows
        await ann.insert("t99")
        assert "t99" in await ann.rows("Task")
