"""Text sync: runs in blocks against a plain list of characters, and two who type at once."""

from __future__ import annotations

import random
from typing import Any

import pytest

from actors.dialects.vuer.otypes import parse_id
from actors.dialects.vuer.text import BLOCK_MAX, Text
from tests.support.vuer_room import Network, disagreements

Char = tuple[str, int, str | None]  # author, n, content; None once deleted


class Naive:
    """The definition: a list of characters."""

    def __init__(self) -> None:
        self.chars: list[Char] = []

    def place(self, author: str, n: int) -> int | None:
        return next((i for i, c in enumerate(self.chars) if c[:2] == (author, n)), None)

    def insert(
        self, author: str, n: int, content: str, anchor: tuple[str, int] | None, visible: bool
    ) -> None:
        found = -1 if anchor is None else self.place(*anchor)
        at = len(self.chars) if found is None else found + 1
        fresh: list[Char] = [
            (author, n + i, char if visible else None) for i, char in enumerate(content)
        ]
        self.chars[at:at] = fresh

    def delete(self, author: str, n: int, count: int) -> None:
        for i, (who, number, _) in enumerate(self.chars):
            if who == author and n <= number < n + count:
                self.chars[i] = (who, number, None)

    def __str__(self) -> str:
        return "".join(char for _, _, char in self.chars if char is not None)

    @property
    def visible(self) -> list[Char]:
        return [char for char in self.chars if char[2] is not None]


def same(text: Text, naive: Naive) -> None:
    flat = [
        (author, n + i, None if content is None else content[i])
        for author, n, count, content in text
        for i in range(count)
    ]
    assert flat == naive.chars
    assert str(text) == str(naive) and len(text) == len(str(naive))


@pytest.mark.parametrize("seed", range(30))
def test_random_edits_equal_a_list(seed: int) -> None:
    rng = random.Random(seed)
    text, naive, counts = Text(), Naive(), {"a": 0, "b": 0, "c": 0}
    for step in range(300 if seed else 1500):
        author, dice = rng.choice("abc"), rng.random()
        if dice < 0.75:
            content = rng.choice(["x", "yz", "\U0001f600", "longer text"])
            n = counts[author] = counts[author] + rng.choice([0, 0, 0, 2])
            anchor = text.anchor_at(rng.randint(0, len(text) + 1))
            if rng.random() < 0.2:
                anchor = (rng.choice("abc"), rng.randrange(400))
            visible = rng.random() < 0.9
            before = text
            text = text.insert(author, n, content, anchor, visible=visible)
            naive.insert(author, n, content, anchor, visible)
            counts[author] += len(content)
            assert text is not before
        elif dice < 0.9:
            ranges = text.ranges_at(rng.randint(0, len(text)), rng.randint(1, 8))
            text = text.delete(ranges)
            for one in ranges:
                naive.delete(*one)
        else:
            one = (author, rng.randrange(300), rng.randint(1, 30))
            text = text.delete([one])
            naive.delete(*one)
        if step % 50 == 0:
            same(text, naive)
    same(text, naive)
    again = Text.from_wire(text.wire())
    same(again, naive)
    assert again.wire() == text.wire()
    for author, count in counts.items():
        assert text.next_of(author) == max(
            (n + 1 for who, n, _ in naive.chars if who == author), default=0
        )
        for _ in range(20):
            n, length = rng.randrange(count + 2), rng.randint(1, 5)
            there = any(who == author and n <= k < n + length for who, k, _ in naive.chars)
            assert text.overlaps(author, n, length) is there
    for position in range(0, len(text) + 2, 7):
        anchor = text.anchor_at(position)
        at = min(position, len(text))
        assert anchor == (naive.visible[at - 1][:2] if at else None)


def test_many_runs_are_held_in_blocks() -> None:
    text = Text()
    for n in range(0, 8 * BLOCK_MAX, 2):  # every other number: no two runs join
        text = text.insert("a", n, "x", None)
    assert len(text.wire()) == 4 * BLOCK_MAX
    assert all(len(block) <= BLOCK_MAX for block in text._blocks)


def test_typing_is_one_run() -> None:
    text = Text()
    for n in range(1000):
        text = text.insert("a", n, "x", ("a", n - 1) if n else None)
    assert text.wire() == [["a", 0, "x" * 1000]]


def test_an_edit_leaves_the_text_before_it_alone() -> None:
    text = Text.of("abc")
    changed = text.insert("a", 0, "X", ("@init", 0)).delete([("@init", 1, 1)])
    assert (str(text), str(changed)) == ("abc", "aXc")


@pytest.mark.parametrize("id", ["", "a", ":1", "a:", "a:-1", "a:01", "a:x", "a:1.0", "a:\u0661"])
def test_what_names_no_character(id: str) -> None:
    with pytest.raises(ValueError):
        parse_id(id)


# -- two who type ----------------------------------------------------------------------------------


def type_word(net: Network, index: int, position: int, word: str) -> None:
    for offset, char in enumerate(word):
        op: dict[str, Any] = {"otype": "text.insert", "key": "doc", "path": "t"}
        net.peers[index].store.edit(op | {"position": position + offset, "value": char})
        net.peers[index].store.commit()


def test_words_typed_at_once_do_not_interleave() -> None:
    net = Network(1, 2, faults=False)
    for peer in net.peers:
        peer.join()
        net.hear(peer)
    insert = {"otype": "node.insert", "key": "doc", "path": "-", "value": {"key": "u"}}
    net.peers[0].store.edit(insert)
    net.peers[0].store.commit()
    net.settle()
    type_word(net, 0, 0, "hello")
    type_word(net, 1, 0, "world")
    for _ in range(5):  # the letters arrive in turn
        for peer in net.peers:
            net.deliver(peer, 1)
    net.settle()
    assert disagreements(net) == []
    assert net.peers[0].store.graph.value("doc", "t") in ("helloworld", "worldhello")
    for peer in net.peers:
        assert peer.store.undo() is not None
    net.settle()
    assert disagreements(net) == []
    assert net.peers[0].store.graph.value("doc", "t") in ("hellworl", "worlhell")
