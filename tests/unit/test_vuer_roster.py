"""Members and presence on a clock of the test's own."""

from __future__ import annotations

import pytest

from edge.dialects.vuer.limits import MEMBER_TTL_S, MEMBERS_MAX, PRESENCE_EVERY_S
from edge.dialects.vuer.roster import MemberState, Roster, SessionTaken
from infra.errors import ProtocolError


def roster() -> Roster[str]:
    """`ann` is in, by the socket `s1`."""
    found: Roster[str] = Roster()
    assert found.join("ann", "u1", "s1", 1000) == (None, True)
    return found


def test_joining_hearts_and_going() -> None:
    room = roster()
    assert room.states() == [MemberState("ann", {}, 1000, True)]
    assert room.seen("ann", "s1", {"ann": 3}, 2000) == (
        MemberState("ann", {"ann": 3}, 2000, True), False)  # fmt: skip
    seen = room.seen("ann", "s1", None, 3000)
    assert seen is not None and seen[0].vector_clock == {"ann": 3}
    assert room.seen("ann", "another", None, 4000) is None
    gone = room.gone("ann", "s1", 10.0)
    assert gone == MemberState("ann", {"ann": 3}, 3000, False)
    assert room.holders() == [] and room.state("ann") == gone


def test_a_member_without_a_socket_is_removed_after_its_time() -> None:
    room = roster()
    room.gone("ann", "s1", 100.0)
    assert room.expire(100.0 + MEMBER_TTL_S - 0.001) == []
    assert room.expire(100.0 + MEMBER_TTL_S) == ["ann"] and len(room) == 0
    assert room.expire(1e9) == []


def test_who_comes_back_in_time_was_never_away() -> None:
    room = roster()
    room.gone("ann", "s1", 100.0)
    assert room.join("ann", "u1", "s2", 5000) == (None, False)
    assert room.expire(1e9) == [] and room.holders() == ["s2"]


def test_the_newest_socket_wins_and_the_older_one_cannot_end_it() -> None:
    room = roster()
    assert room.join("ann", "u1", "s2", 2000) == ("s1", False)
    assert room.gone("ann", "s1", 1.0) is None and not room.leave("ann", "s1")
    assert room.holder("ann") == "s2"
    assert room.join("ann", "u1", "s2", 2000) == (None, False)
    assert room.leave("ann", "s2") and len(room) == 0


def test_a_session_is_one_users_until_it_is_forgotten() -> None:
    room = roster()
    with pytest.raises(SessionTaken):
        room.join("ann", "u2", "s2", 2000)
    room.gone("ann", "s1", 0.0)
    with pytest.raises(SessionTaken):
        room.join("ann", "u2", "s2", 2000)
    room.expire(MEMBER_TTL_S)
    assert room.join("ann", "u2", "s2", 2000) == (None, True)


def test_a_full_room(monkeypatch: pytest.MonkeyPatch) -> None:
    room: Roster[int] = Roster()
    for number in range(MEMBERS_MAX):
        room.join(f"s{number}", "u", number, 0)
    with pytest.raises(ProtocolError) as refused:
        room.join("one more", "u", -1, 0)
    assert refused.value.code == "forbidden" and len(room) == MEMBERS_MAX


def test_presence_is_told_at_most_so_often_and_the_newest_wins() -> None:
    room = roster()
    assert room.present("ann", 1, 10.0) == 0
    assert room.tell("ann", 10.0) == (True, 1)
    wait = room.present("ann", 2, 10.010)
    assert wait == pytest.approx(PRESENCE_EVERY_S - 0.010)
    assert room.present("ann", 3, 10.020) is None  # the one that waits will tell it
    assert room.tell("ann", 10.033) == (True, 3)
    assert room.tell("ann", 10.040) == (False, None)
    assert room.presences() == {"ann": 3}
    assert room.present("ann", None, 11.0) == 0 and room.tell("ann", 11.0) == (True, None)
    assert room.presences() == {}
    assert room.present("nobody", 1, 0.0) is None and room.tell("nobody", 0.0) == (False, None)


def test_what_a_gone_session_pointed_at_is_taken_back_once() -> None:
    room = roster()
    room.present("ann", 1, 0.0)
    room.tell("ann", 0.0)
    assert room.hide("ann") and not room.hide("ann") and not room.hide("nobody")


def test_an_emptied_room_keeps_whose_sessions_they_are() -> None:
    room = roster()
    room.join("bob", "u2", "s2", 0)
    room.gone("bob", "s2", 0.0)
    room.empty()
    assert room.states() == [] and room.state("ann") is None and room.holders() == ["s1"]
    with pytest.raises(SessionTaken):
        room.join("ann", "u9", "s9", 0)
    seen = room.seen("ann", "s1", None, 7000)
    assert seen is not None and seen[1] is True and len(room.states()) == 1
    assert room.join("bob", "u3", "s3", 0) == (None, True)  # he was gone: forgotten
