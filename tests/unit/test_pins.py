"""Moved scopes: what processes take for theirs, and the order in which a supervisor tells them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.pins import Pin, Placed, pins_of, table_of
from actors.types import Address
from edge.processes.moves import FILE, Moves
from infra.errors import HoldfastError, StorageError
from infra.link.errors import LinkLost

PLACES = {"actor-0": "unix:/x/0", "actor-1": "unix:/x/1", "actor-2": "unix:/x/2"}
A = Address("default", "run:a")


def test_a_pin_outweighs_the_hash_and_a_scope_that_leaves_is_nobodys() -> None:
    views = {name: Placed(name, PLACES) for name in PLACES}
    old = views["actor-0"].of(A)
    new = next(name for name in PLACES if name != old)
    assert [view.has(A) for view in views.values()] == [name == old for name in PLACES]
    mine = views[old]
    mine.leaving.add(A)
    assert (mine.has(A), mine.accepts(A)) == (True, False), "it may still be written to its end"
    mine.gone.add(A)
    assert (mine.has(A), mine.accepts(A)) == (False, False)
    mine.keep(A)
    assert mine.accepts(A)
    mine.gone.add(A)
    mine.learn([Pin(*A, new)])
    assert not mine.has(A) and not mine.gone
    views[new].learn([Pin(*A, new)])
    assert views[new].accepts(A)
    assert table_of(pins_of(mine.pins)) == {A: new}
    mine.gone.add(A)
    mine.learn([Pin(*A, old)])
    assert not mine.has(A), "a table that says nothing new does not take back what was given"


class Scripted(Moves):
    """Notes who is asked what; `script` says who fails how often."""

    def __init__(self, directory: Path, **script: int) -> None:
        super().__init__(directory, PLACES, b"k" * 32)
        self.asked: list[tuple[str, str]] = []
        self.script = dict(script)
        self.directory = directory

    async def _ask(self, name: str, method: str, asked: Any, within_s: float) -> None:
        stored = (self.directory / FILE).exists()
        self.asked.append((name, method + ("*" if stored else "")))
        if self.script.get(method, 0):
            self.script[method] -= 1
            raise LinkLost("it has died")


async def test_the_pin_is_durable_and_the_old_process_knows_before_the_new_one(
    tmp_path: Path,
) -> None:
    moves = Scripted(tmp_path)
    old = moves.placed.of(A)
    new, third = (name for name in PLACES if name != old)
    await moves.move(A, new)
    assert moves.asked == [
        (new, "pins"), (old, "give"), (old, "pins*"), (new, "pins*"), (third, "pins*"),
    ]  # fmt: skip
    assert json.loads((tmp_path / FILE).read_bytes()) == [[*A, new]]
    assert Scripted(tmp_path).placed.of(A) == new, "it is so after a restart"
    await moves.move(A, new)
    assert len(moves.asked) == 5, "it is there already"
    with pytest.raises(HoldfastError, match="no process"):
        await moves.move(A, "actor-9")
    fewer = Moves(tmp_path, {name: PLACES[name] for name in PLACES if name != new}, b"k" * 32)
    assert fewer.pins == [], "a process that is gone has nothing"
    await moves.aclose()


async def test_a_process_that_dies_is_told_again_before_the_next_is(tmp_path: Path) -> None:
    moves = Scripted(tmp_path)
    old = moves.placed.of(A)
    new = next(name for name in PLACES if name != old)
    given = moves._ask

    async def ask(name: str, method: str, asked: Any, within_s: float) -> None:
        await given(name, method, asked, within_s)
        if method == "give":
            moves.script["pins"] = 2  # from now on

    moves._ask = ask  # type: ignore[method-assign]
    await moves.move(A, new)
    told = [name for name, method in moves.asked if method == "pins*"]
    assert told[:4] == [old, old, old, new]
    await moves.aclose()


@pytest.mark.parametrize("what", ["pins", "give", "store"])
async def test_a_move_that_fails_before_the_pin_leaves_the_scope(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = Scripted(tmp_path, **({} if what == "store" else {what: 1}))
    old = moves.placed.of(A)
    new = next(name for name in PLACES if name != old)

    def full(_table: object) -> None:
        raise StorageError("disk full")

    if what == "store":
        monkeypatch.setattr(moves, "_store", full)
    with pytest.raises(HoldfastError):
        await moves.move(A, new)
    assert moves.placed.of(A) == old and not (tmp_path / FILE).exists()
    kept = (old, "keep") in moves.asked
    assert kept is (what != "pins"), "what was given is taken back"
    await moves.aclose()


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("[[")
    with pytest.raises(StorageError, match="pins"):
        Moves(tmp_path, PLACES, b"k" * 32)
