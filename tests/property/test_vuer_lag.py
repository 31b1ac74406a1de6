"""Rows of big nodes lag behind in the file, and whoever reads it finds the room as it is: while
it is written, after a crash, in another epoch, out of an export.
"""

from __future__ import annotations

import io
import json
import random
import sqlite3
from pathlib import Path

import pytest

from actors import rows
from actors.dialects.vuer import rooms
from actors.dialects.vuer.graph import apply_message, create_empty_graph
from actors.dialects.vuer.message import decode_message
from actors.dialects.vuer.plan import VuerDialect, compact_draft
from actors.dialects.vuer.snapshot import read_room
from actors.identity import copy_database
from actors.line_files import read_lines, write_lines
from actors.snapshot import take_snapshot
from actors.types import Appended
from tests.support.vuer_bench import ROOM, VuerBench, undo
from tests.support.vuer_ops import random_op


def behind(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        (count,) = db.execute("SELECT count(*) FROM unfolded").fetchone()
        return int(count)
    finally:
        db.close()


@pytest.mark.parametrize("seed", range(5))
def test_a_room_whose_rows_lag_is_what_was_said_in_it(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BIG_ROW_BYTES", 300)  # nearly every node
    monkeypatch.setattr(rooms, "BIG_ROW_BYTES", 300)
    monkeypatch.setattr(rows, "UNFOLDED_CHANGES_MAX", 20)
    rng = random.Random(seed)
    room = VuerBench(tmp_path / "room.db", VuerDialect(snapshot_every=60, keep_tail=20))
    room.start()
    (first,) = room.scope.ledger.entries(0, 1)
    graph = apply_message(create_empty_graph(), decode_message(first.body))
    lagged = 0
    for step in range(120):
        target = undo(f"a:{rng.randrange(max(1, step - 15), step + 2)}",
                      rng.choice(["meta.undo", "meta.redo"]))  # fmt: skip
        ops = [target] if rng.random() < 0.1 else [random_op(rng) for _ in range(2)]
        outcome = room.say(*ops)
        if isinstance(outcome, Appended):
            (entry,) = room.scope.ledger.entries(outcome.last - 1, outcome.last)
            graph = apply_message(graph, decode_message(entry.body))
        dice = rng.random()
        if dice < 0.05:
            room.crash()
        elif dice < 0.07:
            room.send(compact_draft())
        elif dice < 0.08:
            room.scope.fold_tails()
        count = behind(room.path)
        lagged += count
        if count and rng.random() < 0.2:
            assert room.sound() == graph.hash(), step
            text = room.scan(lambda reader: read_room(reader, at_head=True)).text
            wanted = {key for key, node in graph.nodes.items() if node.ins is not None}
            assert json.loads(text)["graph"]["nodes"].keys() == wanted
            with_tails = take_snapshot(room.path, ROOM, "node", tmp_path)
            shown = {id: json.loads(body) for id, body in with_tails}
            with_tails.close()
            assert {key: node["children"] for key, node in shown.items()} == {
                key: list(graph.nodes[key].children) for key in wanted
            }
    assert lagged > 100
    room.crash()
    assert room.sound() == graph.hash() and behind(room.path) == 0
    room.close()


def big(room: VuerBench) -> None:
    room.say({"otype": "string.set", "key": "n", "path": "s", "value": "x" * 30_000})


def test_a_big_row_is_written_now_and_then(tmp_path: Path) -> None:
    room = VuerBench(tmp_path / "room.db")
    room.start()
    big(room)
    stored = set()
    for number in range(200):
        room.say({"otype": "number.set", "key": "n", "path": "x", "value": number})
        row = room.scope.ledger.row("node", "n")
        assert row is not None
        stored.add(row.seq)
    assert len(stored) <= 5
    assert room.value("n", "x") == 199
    room.sound()
    room.close()


def test_an_undo_and_a_new_floor_leave_none_behind(tmp_path: Path) -> None:
    room = VuerBench(tmp_path / "room.db")
    room.start()
    for _ in range(2):
        big(room)
        assert room.say({"otype": "number.add", "key": "n", "path": "x", "value": 1})
    assert behind(room.path) == 1
    room.say(undo(f"a:{room.counts['a']}"))
    assert behind(room.path) == 0
    for _ in range(120):
        room.say({"otype": "number.add", "key": "n", "path": "x", "value": 1})
    assert behind(room.path) == 1
    room.send(compact_draft())
    assert behind(room.path) == 0
    room.sound()
    room.close()


def test_other_files_of_a_room_with_tails(tmp_path: Path) -> None:
    room = VuerBench(tmp_path / "room.db")
    room.start()
    big(room)
    for _ in range(10):
        room.say({"otype": "number.add", "key": "n", "path": "x", "value": 1})
    before = room.sound()
    assert behind(room.path) == 1
    copy_database(room.path, tmp_path / "copy.db")
    out = io.BytesIO()
    write_lines(tmp_path / "copy.db", out)
    out.seek(0)
    read_lines(out, tmp_path / "again.db")
    room.scope.ledger.move_epoch("e2", jump=1 << 20, at=1)
    room.crash()
    assert room.sound() == before
    room.scope.ledger.close()
    (tmp_path / "again.db").replace(room.path)
    room.crash()
    assert room.sound() == before and room.value("n", "x") == 10
    room.close()
