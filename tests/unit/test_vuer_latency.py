"""Latency: own edits show at once, whatever is under way, and never jump when they come back."""

from __future__ import annotations

import pytest

from tests.support.vuer_room import Network, disagreements
from tests.support.vuer_store import Alone, add, put


def test_own_edits_do_not_wait_for_the_server() -> None:
    alone = Alone()
    for count in range(1, 101):
        alone.store.edit(add())
        alone.store.commit()
        assert alone.x == count
    for _ in range(100):
        alone.ack()
        assert alone.x == 100
    assert alone.store.confirmed.value("n", "x") == 100


@pytest.mark.parametrize("delay", [1, 3, 10])
def test_a_drag_over_a_slow_line_never_jumps(delay: int) -> None:
    """Two drag one thing; each sees its own moves at once and the other's some steps later."""
    net = Network(1, 2, faults=False)
    for peer in net.peers:
        peer.join()
        net.hear(peer)
    node = {"key": "u", "position": [0, 0, 0]}
    net.peers[0].store.edit({"otype": "node.insert", "key": "n", "path": "-", "value": node})
    net.peers[0].store.commit()
    net.settle()
    for step in range(40):
        for axis, peer in enumerate(net.peers):
            before = peer.store.graph.value("n", "position")
            value = [0, 0, 0]
            value[axis] = 1
            op = {"otype": "vector3.add", "key": "n", "path": "position", "value": value}
            peer.store.edit(op)
            peer.store.commit()
            after = peer.store.graph.value("n", "position")
            assert after[axis] == before[axis] + 1 == step + 1
            assert after[1 - axis] == before[1 - axis]
        if step % delay == 0:
            for axis, peer in enumerate(net.peers):
                net.deliver(peer, 100)
                while peer.inbox:
                    net.hear(peer)
                assert peer.store.graph.value("n", "position")[axis] == step + 1
    net.settle()
    assert disagreements(net) == []
    assert net.peers[0].store.graph.value("n", "position") == [40, 40, 0]


def test_a_late_old_set_does_not_flicker() -> None:
    alone = Alone()
    alone.store.edit(put(5))
    alone.store.commit()
    alone.hear(put(99), s="b", lamport=0)  # written before, arrives now
    assert alone.x == 5
    alone.ack()
    assert alone.x == 5
