"""A network that loses: what is lost is asked for, sent again, and counted once."""

from __future__ import annotations

import random

import pytest

from tests.support.vuer_ops import act
from tests.support.vuer_room import Network, disagreements
from tests.support.vuer_store import Alone, add


@pytest.mark.parametrize("lost", [0.1, 0.5, 0.9])
def test_lost_broadcasts_are_fetched(lost: float) -> None:
    alone, rng = Alone(), random.Random(1)
    messages = [alone.message(add(), seq=seq) for seq in range(2, 102)]
    for message in messages:
        if rng.random() >= lost:
            alone.store.receive(message)
        alone.now += 300
        while alone.syncs:
            since = alone.syncs.pop()
            for again in messages:
                assert again.server_seq is not None
                if since < again.server_seq <= message.server_seq:  # type: ignore[operator]
                    alone.store.receive(again)
    for message in messages:  # the end of the journal, after a reconnect
        alone.store.receive(message)
    assert (alone.x, alone.store.confirmed_seq) == (100, 101)


def test_a_lost_message_is_sent_again_and_counted_once() -> None:
    net = Network(3, 2, faults=False)
    for peer in net.peers:
        peer.join()
        net.hear(peer)
    one, other = net.peers
    insert = {"otype": "node.insert", "key": "n", "path": "-", "value": {"key": "u", "x": 0}}
    one.store.edit(insert)
    one.store.commit()
    one.store.edit(add())
    one.store.commit()
    one.outbox.clear()  # never arrived
    one.leave()
    one.join()
    net.hear(one)
    assert len(one.outbox) == 2
    net.deliver(one)
    one.inbox.clear()  # the acks are lost
    one.leave()
    one.join()
    net.settle()
    assert disagreements(net) == []
    assert other.store.graph.value("n", "x") == 1
    assert net.server.header.head == 2


@pytest.mark.parametrize("seed", range(10))
def test_histories_on_a_bad_line(seed: int) -> None:
    net = Network(seed, 3)
    net.run(150, act)
    assert disagreements(net) == []
