"""What a room weighs is kept message by message, and is what counting it anew gives.

The histories of test_vuer_converges.py compare the two as well, over undo, compaction and crashes.
"""

from __future__ import annotations

import random

import msgspec
import pytest

from actors.dialects.vuer import text as texts
from actors.dialects.vuer.node import from_wire, to_wire
from actors.dialects.vuer.text import Text
from actors.dialects.vuer.weight import node_weight, weight_change
from tests.support.vuer import START, family, sequenced
from tests.support.vuer_ops import random_op
from tests.support.vuer_room import Network, Peer


@pytest.mark.parametrize("seed", range(40))
def test_a_text_carries_its_weight_along(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK_MAX", 4)  # many blocks, many borders
    rng = random.Random(seed)
    text, counts = Text.of("plain é\n"), dict.fromkeys("abc", 0)
    assert text.weight > 0
    for _ in range(300):
        author = rng.choice("abc")
        if rng.random() < 0.7:
            content = rng.choice(["x", "yé", '"\\', "\x01z", "\U0001f600"])
            visible = rng.random() < 0.9
            ends = [(who, n - 1) for who, n in counts.items() if n]
            anchor = rng.choice(ends) if ends and rng.random() < 0.5 else None
            anchor = anchor or text.anchor_at(rng.randrange(len(text) + 1))
            text = text.insert(author, counts[author], content, anchor, visible=visible)
            counts[author] += len(content)
        else:
            text = text.delete([(author, rng.randrange(counts[author] + 1), rng.randint(1, 4))])
        wire = text.wire()
        assert text.weight == Text.from_wire(msgspec.json.decode(msgspec.json.encode(wire))).weight
        assert text.weight >= len(msgspec.json.encode(wire)) + len(msgspec.json.encode(str(text)))


@pytest.mark.parametrize("seed", range(20))
def test_the_weight_of_a_node_follows_its_changes(seed: int) -> None:
    """Every operation, one by one: the sum of the changes is the weight, the JSON is within it."""
    net = Network(seed, 2, faults=False)
    for _ in range(150):
        peer: Peer = net.random.choice(net.peers)
        before = peer.store.confirmed
        if not peer.online:
            peer.join()
            net.settle()
        peer.store.edit(random_op(net.random))
        peer.store.commit()
        net.deliver(peer)
        while peer.inbox:
            net.hear(peer)
        after = peer.store.confirmed
        for key, node in after.nodes.items():
            change = weight_change(before.nodes.get(key), node)
            assert change == node_weight(node) - node_weight(before.nodes.get(key))
            again = from_wire(msgspec.json.decode(msgspec.json.encode(to_wire(node))))
            assert node_weight(again) == node_weight(node)
    total = sum(map(node_weight, after.nodes.values()))
    assert total >= len(msgspec.json.encode(after.to_json())) - len('{"nodes":{},"rootKey":"root"}')
    assert net.server.hash()  # compares the server's kept total too


def test_the_vectors_weigh_what_they_say() -> None:
    """Every family, folded by the server: its JSON is never heavier than its weight."""
    from actors.dialects.vuer.graph import apply_messages, create_empty_graph

    assert START
    for name in ("array", "object", "string", "text", "node"):
        for case in family(name):
            graph = apply_messages(create_empty_graph(), sequenced(case))
            for node in graph.nodes.values():
                assert node_weight(node) >= len(msgspec.json.encode(to_wire(node))) - sum(
                    len(msgspec.json.encode(child)) + 1 for child in node.children
                )
