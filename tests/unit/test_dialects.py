"""What scopes offer to dialects beyond AsterQL: plans that read rows and make no, one or several
entries, kept answers, tables of their own, whole entries by group, scans.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.dialects import Schema
from actors.dialects.asterql.keys import BadScope, check_scope
from actors.dialects.kinds import KINDS, dialect_name_of, reserved_kind
from actors.host import Host
from actors.host_settings import HostSettings
from actors.ledger import Ledger
from actors.mailbox import Request
from actors.reply import FutureReply
from actors.rows import Key, Overlay, Row
from actors.scan import Reader
from actors.scope import Scope
from actors.types import (
    Address,
    Appended,
    Draft,
    Duplicate,
    Entry,
    EntryPage,
    Outcome,
    Refusal,
    Rejected,
    Resync,
    Retention,
    ScopePolicy,
)  # fmt: skip
from tests.support.ledgers import FakeReply, FakeShell, FakeTap
from tests.support.works import Doing

ADDRESS = Address("default", "keep:k1")
NOW = 1_795_200_000_000


class Counting:
    """A toy: `n:g` makes n entries of group g and counts the row `c` up; `say` sets an outcome;
    `max` refuses above the row's value.
    """

    name = "starkeep"
    whole_entries = True
    needs_rows = True

    def __init__(self, *statements: str) -> None:
        self.statements = statements

    @property
    def schema(self) -> Schema | None:
        return self._missing if self.statements else None

    def _missing(self, found: Mapping[str, str]) -> Sequence[str]:
        return [sql for sql in self.statements if sql.split()[2].partition("(")[0] not in found]

    def plan(self, draft: Draft, seq: int, at: int, rows: Overlay) -> Sequence[Entry]:
        count, _, group = draft.body.partition(":")
        row = rows.get("c", "total")
        if draft.kind == "max" and row is not None and row.value >= int(count):
            raise Refusal(f"already {row.value}", code="conflict")
        if draft.kind == "say":
            draft.outcome = f"was {0 if row is None else row.value}"
        return [
            Entry(
                seq + index, at, "add", (draft.cause or None) if index == 0 else None, "1", 1,
                grp=group or None, ref="c:total",
            )
            for index in range(int(count))
        ]  # fmt: skip

    def renumber(self, body: str, seq: int) -> str:
        return body

    def apply(self, overlay: Overlay, entry: Entry, only: frozenset[Key] | None = None) -> None:
        row = overlay.get("c", "total")
        value = 1 if row is None else row.value + 1
        overlay.replace("c", "total", Row(value, value, entry.seq, 2, grp=entry.grp))


def make(
    path: Path, shell: FakeShell, dialect: Counting, retain: int = 0, tap: FakeTap | None = None
) -> Scope:
    if path.exists():
        ledger = Ledger.open(path, ADDRESS)
    else:
        ledger = Ledger.create(
            path, ADDRESS, dialect=dialect.name, epoch="e1", at=NOW, materialize=True
        )
    taps: list[Any] = [] if tap is None else [tap]
    return Scope(ADDRESS, ledger, ScopePolicy(Retention(retain)), shell, taps, dialect)


def draft(body: str, cause: str = "", kind: str = "add") -> Draft:
    return Draft(cause, kind, body, len(body))


def put(scope: Scope, shell: FakeShell, *drafts: Draft) -> list[Outcome]:
    reply = FakeReply()
    scope.append(Request(list(drafts), reply, None))
    shell.settle()
    return reply.outcomes


def test_names_decide_the_dialect() -> None:
    assert dialect_name_of("run:r1") == dialect_name_of("strata") == "asterql"
    assert {kind: dialect_name_of(f"{kind}:x") for kind in KINDS} == KINDS
    assert reserved_kind("strata:a:b") == "strata"
    for kind in KINDS:
        with pytest.raises(BadScope):
            check_scope(f"{kind}:x")


def test_none_one_or_several_entries(tmp_path: Path) -> None:
    shell, tap = FakeShell(), FakeTap()
    scope = make(tmp_path / "a.db", shell, Counting(), tap=tap)
    assert put(scope, shell, draft("2:g", "a"), draft("0", "b"), draft("1", "c")) == [
        Appended(1, 2), Appended(3, 2), Appended(3, 3),
    ]  # fmt: skip
    assert scope.head == 3
    assert [(e.seq, e.grp, e.cause) for b in tap.batches for e in b.entries] == [
        (1, "g", "a"), (2, "g", None), (3, None, "c"),
    ]  # fmt: skip
    scope.ledger.close()


def test_a_plan_sees_rows_of_its_batch(tmp_path: Path) -> None:
    shell = FakeShell()
    scope = make(tmp_path / "a.db", shell, Counting())
    first, second = put(scope, shell, draft("2", "a"), draft("2", "b", "max"))
    assert first == Appended(1, 2)
    assert isinstance(second, Rejected) and second.message == "already 2"
    scope.ledger.close()


def test_repeats_get_the_kept_answer(tmp_path: Path) -> None:
    path, shell = tmp_path / "a.db", FakeShell()
    scope = make(path, shell, Counting(), retain=64)
    drafts = [draft("3", "three"), draft("1", "said", "say"), draft("0", "none", "say")]
    wanted = [
        Duplicate(1, 3, None, "1"), Duplicate(4, 1, "was 3", "1"), Duplicate(4, 0, "was 4"),
    ]  # fmt: skip
    got = put(scope, shell, *drafts, *[draft(d.body, d.cause, d.kind) for d in drafts])
    assert got[:3] == [Appended(1, 3), Appended(4, 4, "was 3"), Appended(5, 4, "was 4")]
    assert got[3:] == wanted, "in the same batch"
    assert put(scope, shell, *[draft(d.body, d.cause, d.kind) for d in drafts]) == wanted
    put(scope, shell, draft("600", "many"))  # retention takes their entries
    put(scope, shell, draft("600", "more"))
    assert scope.ledger.header.floor >= 4
    scope.ledger.close()
    scope = make(path, shell, Counting(), retain=64)
    again = put(scope, shell, *[draft(d.body, d.cause, d.kind) for d in drafts])
    assert again == [Duplicate(1, 3), Duplicate(4, 1, "was 3"), Duplicate(4, 0, "was 4")]
    scope.ledger.close()


def test_without_a_cause_nothing_is_remembered(tmp_path: Path) -> None:
    shell = FakeShell()
    scope = make(tmp_path / "a.db", shell, Counting())
    assert put(scope, shell, draft("1"), draft("1")) == [Appended(1, 1), Appended(2, 2)]
    assert put(scope, shell, draft("1")) == [Appended(3, 3)]
    scope.ledger.close()


def test_tables_and_views_come_with_opening(tmp_path: Path) -> None:
    path, shell = tmp_path / "a.db", FakeShell()
    table = "CREATE TABLE extra(id TEXT)"
    view = "CREATE VIEW totals AS SELECT body FROM rows WHERE coll='c'"
    scope = make(path, shell, Counting(table))
    assert scope.busy, "the commit waits for the disk"
    shell.settle()
    assert "extra" in scope.ledger.schema() and "totals" not in scope.ledger.schema()
    scope.ledger.close()
    scope = make(path, shell, Counting(table, view))
    assert "totals" in scope.ledger.schema()
    position = scope.position
    scope.ledger.close()
    scope = make(path, shell, Counting(table, view))
    assert (position, scope.position) == (1, 0), "nothing to do, nothing committed"
    scope.ledger.close()


def test_pages_by_group(tmp_path: Path) -> None:
    shell = FakeShell()
    scope = make(tmp_path / "a.db", shell, Counting())
    put(scope, shell, draft("2:a", "1"), draft("2:b", "2"), draft("1", "3"), draft("1:a", "4"))

    def seqs(after: int, groups: str, most: int = 9) -> tuple[int, list[int]]:
        page = scope.visible(after, groups, entries_max=most, bytes_max=1000)
        assert isinstance(page, EntryPage)
        return page.last, [entry.seq for entry in page.entries]

    assert seqs(0, '["a"]') == (6, [1, 2, 5, 6])
    assert seqs(0, "[]") == (6, [5])
    assert seqs(0, '["b","a"]', 3) == (3, [1, 2, 3])
    assert seqs(2, '["a"]', 1) == (5, [5])
    assert isinstance(scope.visible(7, "[]", entries_max=1, bytes_max=9), Resync)
    scope.ledger.close()


async def test_rows_and_scans_show_what_is_released(tmp_path: Path) -> None:
    dialect = Counting("CREATE VIEW totals AS SELECT id, body FROM rows WHERE coll='c'")
    settings = HostSettings(
        policy=lambda _: ScopePolicy(materialize=False), dialects={"starkeep": dialect}
    )

    def work(reader: Reader) -> Any:
        copied = reader.copy("SELECT body || char(10) FROM totals")
        return copied, reader.rows("SELECT count(*) FROM entries"), reader.header.head

    async with Host(tmp_path, settings) as host:
        assert await host.get(ADDRESS, [("c", "total")]) == [None]
        assert await host.scan(ADDRESS, Doing(work)) is None
        replies = []
        for number in range(50):
            replies.append(FutureReply())
            host.append(ADDRESS, [draft("2", str(number))], replies[-1], None)
        (row,) = await host.get(ADDRESS, [("c", "total")])
        assert row is None or row.seq <= host.open_scopes[ADDRESS].released
        for reply in replies:
            await reply.future
        spool = await host.scan(ADDRESS, Doing(work))
        assert spool is not None
        assert spool.result == (1, [(100,)], 100) and spool.seq == 100
        assert spool.read(100) == b"100\n" and spool.read(100) == b""
        spool.close()
        page = await host.visible(ADDRESS, 98, "[]", entries_max=9, bytes_max=99)
        assert isinstance(page, EntryPage) and page.last == 100
        with pytest.raises(ZeroDivisionError):
            await host.scan(ADDRESS, Doing(lambda reader: 1 // 0))


async def test_a_scan_that_nobody_waits_for_any_more_is_closed(tmp_path: Path) -> None:
    settings = HostSettings(dialects={"starkeep": Counting()})
    begun, go = threading.Event(), threading.Event()
    readers: list[Reader] = []

    def work(reader: Reader) -> None:
        readers.append(reader)
        begun.set()
        assert go.wait(20)

    async with Host(tmp_path, settings) as host:
        reply = FutureReply()
        host.append(ADDRESS, [draft("1", "a")], reply, None)
        await reply.future
        waiting = asyncio.get_running_loop().create_task(host.scan(ADDRESS, Doing(work)))
        await asyncio.to_thread(begun.wait, 20)
        waiting.cancel()
        await asyncio.wait([waiting])
        go.set()
        async with asyncio.timeout(20):
            while not readers[0].spool._file.closed:
                await asyncio.sleep(0.005)
