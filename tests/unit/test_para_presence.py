"""Presence channels: of one process, and of two that hear each other."""

from __future__ import annotations

from typing import Any

import pytest

from actors import ephemeral as ephemeral_module
from actors.ephemeral import Ephemera
from actors.types import Address
from edge.dialects.para import presence as module
from edge.dialects.para.presence import CHANNELS_MAX, TTL_MS, Channels, PeerTaken
from infra.errors import Busy

A = Address("default", "para:main")
ROOM, OTHER = (A, "room:1"), (A, "room:2")


class Connection:
    """Fits Member; `present` is what it was told of others."""

    def __init__(self, user: str) -> None:
        self.user_id = user
        self.heard_at_ms = 0
        self.present: dict[str, Any] = {}
        self.told: list[str] = []

    def peer_said(self, channel: str, peer: str, value: Any) -> None:
        self.present[peer] = value
        self.told.append(f"{peer} {value}")

    def peer_left(self, channel: str, peer: str) -> None:
        del self.present[peer]
        self.told.append(f"{peer} left")


def two() -> tuple[Channels, Channels, Ephemera]:
    ephemera = Ephemera("one", lambda: 0)
    return Channels(ephemera.open), Channels(ephemera.open), ephemera


def test_peers_of_two_processes_see_each_other() -> None:
    here, there, ephemera = two()
    ada, bob = Connection("ada"), Connection("bob")
    here.watch(ROOM, ada)
    here.say(ROOM, ada, "a", {"x": 1})
    there.watch(ROOM, bob)
    there.say(ROOM, bob, "b", {"x": 2})
    there.say(OTHER, bob, "b", {"x": 3})
    assert (ada.present, bob.present) == ({"b": {"x": 2}}, {"a": {"x": 1}})
    here.say(ROOM, ada, "a", {"x": 4})
    assert bob.present == {"a": {"x": 4}} and here.peers(ROOM) == there.peers(ROOM)
    here.leave(ROOM, ada, "a")
    assert bob.present == {} and ada.present == {"b": {"x": 2}}
    there.forget(bob)
    assert ada.present == {}
    here.forget(ada)
    assert len(here) == len(there) == len(ephemera) == 0


def test_who_was_silent_for_too_long_is_gone_everywhere() -> None:
    here, there, _ = two()
    ada, bob = Connection("ada"), Connection("bob")
    here.say(ROOM, ada, "a", 1)
    there.watch(ROOM, bob)
    bob.heard_at_ms = TTL_MS
    there.expire(TTL_MS + 1)
    assert bob.present == {"a": 1}, "it is the other process's to say"
    here.expire(TTL_MS + 1)
    assert bob.present == {}


def test_a_peer_is_its_users_whichever_process_has_it() -> None:
    here, there, _ = two()
    ada, eve, again = Connection("ada"), Connection("eve"), Connection("ada")
    here.watch(ROOM, ada)
    here.say(ROOM, ada, "a", 1)
    with pytest.raises(PeerTaken):
        there.say(ROOM, eve, "a", 2)
    assert ada.present == {} and here.peers(ROOM) == {"a": 1}
    there.say(ROOM, again, "a", 3)
    assert ada.present == {"a": 3}
    here.leave(ROOM, ada, "a")
    here.forget(ada)
    assert there.peers(ROOM) == {"a": 3}, "what was said elsewhere later stands"
    there.leave(ROOM, again)
    there.say(ROOM, eve, "a", 4)


def test_a_connection_whose_peer_speaks_elsewhere_is_in_no_channel() -> None:
    here, there, _ = two()
    ada, again = Connection("ada"), Connection("ada")
    here.say(ROOM, ada, "a", 1)
    there.say(ROOM, again, "a", 2)
    assert len(here) == 0
    for number in range(CHANNELS_MAX):
        here.watch((A, str(number)), ada)


def test_a_channel_without_anybody_of_this_process_is_forgotten() -> None:
    here, there, _ = two()
    ada, bob = Connection("ada"), Connection("bob")
    here.say(ROOM, ada, "a", 1)
    there.watch(ROOM, bob)
    there.say(ROOM, bob, "a2", 1)
    there.unwatch(ROOM, bob)
    assert len(there) == 1
    there.leave(ROOM, bob)
    assert len(there) == 0 and here.peers(ROOM) == {"a": 1}
    there.watch(ROOM, bob)
    assert bob.present == {"a": 1}


def test_what_cannot_be_said_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there, ephemera = two()
    ada, bob = Connection("ada"), Connection("bob")
    there.watch(ROOM, bob)
    monkeypatch.setattr(module, "PEERS_MAX", 1)
    here.say(ROOM, ada, "a", 1)
    with pytest.raises(Busy):
        here.say(ROOM, ada, "b", 1)
    monkeypatch.setattr(ephemeral_module, "KEPT_MAX", 1)
    with pytest.raises(Busy):
        here.say(OTHER, ada, "b", 1)
    assert here.peers(ROOM) == {"a": 1} and here.peers(OTHER) == {} and len(here) == 1
    here.forget(ada)
    there.forget(bob)
    assert len(ephemera) == 0
