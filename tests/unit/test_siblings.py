"""Edges of one server tell each other what they count; one that is away or hangs keeps nobody."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edge.metrics import EdgeCounts, render
from edge.processes import siblings
from edge.processes.siblings import Siblings

KEY = b"k" * 32
REPORT = {
    "scopes_open": 0, "bucket": None,
    "counters": dict.fromkeys(("commits", "entries", "refused", "duplicates", "opens", "passes",
                               "release_wait_s", "fenced"), 0),
}  # fmt: skip


def counts(connections: int) -> EdgeCounts:
    return EdgeCounts(connections=connections, subscriptions=0, feeds=1, uptime_s=connections)


async def test_others_are_those_that_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "COUNT_WAIT_S", 0.2)
    names = ("a", "b", "away", "hangs")
    places = {name: f"unix:{tmp_path}/{name}" for name in names}
    one = Siblings("a", places, KEY, lambda: counts(1))
    two = Siblings("b", places, KEY, lambda: counts(2))
    await one.listen()
    await two.listen()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "hangs"))
        silent.listen()
        assert await one.others() == [counts(2)]
        assert await two.others() == [counts(1)]
        stranger = Siblings("a", places, b"x" * 32, lambda: counts(9))
        assert await stranger.others() == [], "who has another key learns nothing"
    await one.aclose()
    await two.aclose()


def test_a_scrape_adds_them_up() -> None:
    text = render([counts(3), counts(5)], REPORT).decode()
    assert "holdfast_connections 8.0" in text and "holdfast_edges 2.0" in text
    assert "holdfast_uptime_seconds 5.0" in text
