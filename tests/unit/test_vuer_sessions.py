"""Whose a session is: bound in the ledger with its first message, while it is remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.dialects.vuer import sessions
from actors.dialects.vuer.plan import VuerDialect, message_draft
from actors.dialects.vuer.sessions import user_mark
from actors.types import Appended, Duplicate, Rejected
from tests.support.vuer_bench import VuerBench, add, undo

ANN, EVE = user_mark("ann"), user_mark("eve")


@pytest.fixture
def room(tmp_path: Path) -> Iterator[VuerBench]:
    bench = VuerBench(tmp_path / "room.db", VuerDialect(snapshot_every=40, keep_tail=10))
    bench.start()
    yield bench
    bench.close()


def say(room: VuerBench, user: str | None, *ops: dict[str, Any], s: str = "s") -> Any:
    (outcome,) = room.send(message_draft(room.message(*(ops or (add(),)), s=s), user=user))
    return outcome


def taken(outcome: Any) -> bool:
    return isinstance(outcome, Rejected) and outcome.code == "session_taken"


def test_a_session_is_its_first_users(room: VuerBench) -> None:
    assert say(room, ANN) == Appended(2, 2)
    assert taken(say(room, EVE)) and taken(say(room, EVE, undo("s:1")))
    assert say(room, ANN) == Appended(3, 3)
    assert say(room, EVE, s="other") == Appended(4, 4)
    room.sound()


def test_it_stays_so_after_a_crash_and_in_another_epoch(room: VuerBench) -> None:
    say(room, ANN)
    room.crash()
    assert taken(say(room, EVE)) and say(room, ANN) == Appended(3, 3)
    room.scope.ledger.move_epoch("e2", jump=1 << 20, at=1)
    room.crash()
    assert taken(say(room, EVE))
    for _ in range(60):  # all that ann said is compacted
        say(room, ANN, s="busy")
    assert room.scope.ledger.header.floor > (1 << 20) + 3
    assert taken(say(room, EVE))
    room.sound()


def test_within_one_batch_the_first_one_has_it(room: VuerBench) -> None:
    mine, hers = room.message(add(), s="s"), room.message(add(), s="s")
    outcomes = room.send(message_draft(mine, user=ANN), message_draft(hers, user=EVE))
    assert outcomes[0] == Appended(2, 2) and taken(outcomes[1])


def test_a_refused_message_binds_nothing(room: VuerBench) -> None:
    refused = say(room, EVE, undo("never"))
    assert isinstance(refused, Rejected) and refused.code == "undo_expired"
    assert say(room, ANN) == Appended(2, 2) and taken(say(room, EVE))


def test_a_repeat_tells_the_other_user_nothing_new(room: VuerBench) -> None:
    message = room.message(add(), s="s")
    room.send(message_draft(message, user=ANN))
    (again,) = room.send(message_draft(message, user=EVE))
    assert isinstance(again, Duplicate) and again.seq == 2


def test_the_servers_own_code_speaks_as_anybody_and_takes_nobodys_session(room: VuerBench) -> None:
    assert say(room, None) == Appended(2, 2)
    assert say(room, ANN) == Appended(3, 3)  # ann's from here on
    assert say(room, None) == Appended(4, 4) and taken(say(room, EVE))
    room.sound()


def test_a_draft_from_another_process_has_its_user(room: VuerBench) -> None:
    say(room, ANN)
    draft = message_draft(room.message(add(), s="s"), user=EVE)
    draft.data = None
    (outcome,) = room.send(draft)
    assert taken(outcome)


def test_the_mark_is_short_whatever_the_user_is_called() -> None:
    assert {len(user_mark(name)) for name in ("", "u", "x" * 5000, "\ud800")} == {32}


def test_what_is_remembered_of_sessions_is_bounded(
    room: VuerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 20)
    monkeypatch.setattr(sessions, "SESSIONS_KEPT", 5)
    say(room, ANN, s="old")
    most = 0
    for number in range(300):
        say(room, ANN, s=f"s{number}")
        most = max(most, len(room.scope.ledger.ids("session")))
        if number % 10 == 0:
            say(room, ANN, s="steady")
    assert most <= 20 + 40  # those with entries in the journal are kept besides
    kept = set(room.scope.ledger.ids("session"))
    journal = room.scope.ledger.entries(room.scope.ledger.header.floor, room.scope.head)
    assert {entry.origin for entry in journal} <= kept
    assert "steady" in kept and "old" not in kept
    assert taken(say(room, EVE, s="s299")) and taken(say(room, EVE, s="steady"))
    assert isinstance(say(room, EVE, s="old"), Appended)  # nothing of it is left to speak for
    room.sound()
