"""The histories of test_vuer_converges.py can fail: with one rule broken, one of them does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from actors.dedupe import DedupeWindow
from actors.dialects.vuer import plan, rooms
from actors.dialects.vuer.message import Message, as_message
from actors.dialects.vuer.otypes import apply_ops
from actors.dialects.vuer.rooms import Change, Room
from actors.dialects.vuer.scene import Scene
from edge.client.vuer import store as stores
from edge.client.vuer.own import Own
from edge.client.vuer.store import GraphStore
from tests.support.vuer_ops import act
from tests.support.vuer_room import Network, disagreements

SEEDS = 1500
Break = Callable[[pytest.MonkeyPatch], None]


def base_moves_before_floor_at(patch: pytest.MonkeyPatch) -> None:
    compact = GraphStore.compact

    def early(self: GraphStore) -> None:
        self._floor = (self._floor[0], 0)
        compact(self)

    patch.setattr(GraphStore, "compact", early)


def order_of_arrival(patch: pytest.MonkeyPatch) -> None:
    def receive(self: GraphStore, raw: Any) -> None:
        message = as_message(raw)
        if (message.server_seq or 0) > self.confirmed_seq:
            self._confirm(message)
            self._refresh()

    patch.setattr(GraphStore, "receive", receive)


def acks_inside_a_snapshot_are_passed_over(patch: pytest.MonkeyPatch) -> None:
    ack = GraphStore.ack

    def only_new(self: GraphStore, id: str, seq: int, msg: Any = None) -> None:
        if seq > self.confirmed_seq:
            ack(self, id, seq, msg)

    patch.setattr(GraphStore, "ack", only_new)


def undone_text_leaves_no_places(patch: pytest.MonkeyPatch) -> None:
    def fold(scene: Scene, messages: list[Message], undone: set[str]) -> None:
        for message in messages:
            if message.id not in undone:
                apply_ops(scene, message)

    patch.setattr(stores, "fold", fold)


def no_refill(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Own, "refill", lambda self, durable: None)


def no_dedupe(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DedupeWindow, "get", lambda self, cause: None)


def compaction_forgets_what_is_undone(patch: pytest.MonkeyPatch) -> None:
    rebased = rooms.rebased

    def forgetful(*args: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(rooms, "undone_at_end", lambda messages: set())
            rebased(*args)

    patch.setattr(plan, "rebased", forgetful)


def the_base_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "rebased", lambda *args: None)


def undo_does_not_refold(patch: pytest.MonkeyPatch) -> None:
    def nothing(self: Room, message: Message, seq: int) -> Change:
        return self._weighed({}, self.root_key)

    patch.setattr(Room, "_refolded", nothing)


def pending_is_merged_into_confirmed(patch: pytest.MonkeyPatch) -> None:
    refresh = GraphStore._refresh

    def merging(self: GraphStore) -> None:
        refresh(self)
        self.confirmed = self._with_pending

    patch.setattr(GraphStore, "_refresh", merging)


def ties_by_one_name(patch: pytest.MonkeyPatch) -> None:
    def nameless(scene: Scene, message: Message) -> None:
        apply_ops(scene, Message(
            id=message.id, session_id="z", clock=message.clock, lamport=message.lamport,
            timestamp=0, ops=message.ops,
        ))  # fmt: skip

    patch.setattr(stores, "apply_ops", nameless)


BREAKS: list[Break] = [
    base_moves_before_floor_at, order_of_arrival, acks_inside_a_snapshot_are_passed_over,
    undone_text_leaves_no_places, no_refill, no_dedupe, compaction_forgets_what_is_undone,
    the_base_stays, undo_does_not_refold, pending_is_merged_into_confirmed, ties_by_one_name,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: str(rule.__name__))
def test_a_broken_rule_is_found(rule: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    rule(monkeypatch)
    for seed in range(SEEDS):
        net = Network(seed)
        try:
            net.run(120, act)
            found = disagreements(net)
        except (AssertionError, KeyError) as error:
            found = [repr(error)]
        if found:
            print(f"{rule.__name__}: seed {seed}: {found[0][:100]}")
            return
    raise AssertionError(f"{SEEDS} histories and nobody noticed")
