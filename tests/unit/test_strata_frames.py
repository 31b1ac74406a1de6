"""StrataSync's wire as values: causes, actions, checked requests, audiences. No server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.dialects.stratasync.codecs import plain
from actors.ephemeral import Ephemera
from actors.types import Address, Batch, Bounds, Entry
from edge.dialects.stratasync import frames as f
from edge.dialects.stratasync.feed import Audience, StrataFeed
from edge.dialects.stratasync.requests import (
    Invalid,
    bootstrap_ask,
    deltas_ask,
    lookups_ask,
    subscribe_ask,
    transactions_ask,
)  # fmt: skip
from edge.dialects.stratasync.topics import TOPICS_MAX, Topics
from edge.wire import Frames
from infra.errors import ProtocolError

texts = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(texts, texts)
def test_causes_are_reversible(client: str, transaction: str) -> None:
    assert f.parts_of(f.cause_of(client, transaction)) == (client, transaction)


@given(st.lists(st.tuples(texts, texts), unique=True, max_size=20))
def test_no_two_transactions_share_a_cause(pairs: list[tuple[str, str]]) -> None:
    assert len({f.cause_of(*pair) for pair in pairs}) == len(pairs)
    assert not any(f.cause_of(*pair).startswith("~/") for pair in pairs), "the server's own"


def entry(seq: int, group: str | None = None, **more: Any) -> Entry:
    body = more.pop("body", '{"title":"x"}')
    return Entry(
        seq, 1767323045678, more.pop("kind", "U"), more.pop("cause", "c/t"), body, len(body),
        None, more.pop("origin", "c"), more.pop("ref", "Task:m"), group,
    )  # fmt: skip


def test_an_action_as_clients_read_it() -> None:
    assert msgspec.json.decode(f.action(entry(43, "ws1"))) == {
        "action": "U", "clientId": "c", "clientTxId": "t",
        "createdAt": "2026-01-02T03:04:05.678Z", "data": {"title": "x"}, "groupId": "ws1",
        "modelId": "m", "modelName": "Task", "syncId": "43",
    }  # fmt: skip
    bare = msgspec.json.decode(f.action(entry(1, cause="~/job", origin=None)))
    assert not {"groupId", "clientId", "clientTxId"} & set(bare)
    odd = entry(1, ref='Task:a:"b"', cause=f.cause_of("x/y", "z/w"))
    found = msgspec.json.decode(f.delta(odd))["packet"]["actions"][0]
    assert (found["modelId"], found["clientId"], found["clientTxId"]) == ('a:"b"', "x/y", "z/w")


@given(values)
def test_whatever_comes_is_a_request_or_invalid(body: Any) -> None:
    for decode in (transactions_ask, lookups_ask):
        for shape in (body, {"batchId": "b", "transactions": body, "requests": body}):
            try:
                decode(shape)
            except Invalid as error:
                assert error.details and error.body("r")["error"] == "Validation failed"
    if isinstance(body, dict):
        subscribe_ask(body)


@given(st.dictionaries(
    st.sampled_from(["after", "limit", "type", "onlyModels", "firstSyncId", "syncGroups"]),
    st.lists(texts, min_size=1, max_size=2),
))  # fmt: skip
def test_whatever_query_comes(query: dict[str, list[str]]) -> None:
    for decode in (bootstrap_ask, deltas_ask):
        try:
            decode(query)
        except Invalid as error:
            assert error.source == "query"


@pytest.mark.parametrize(
    ("frame", "after"),
    [
        ({"token": "t"}, 0),
        ({"token": "t", "afterSyncId": "42", "groups": ["a"]}, 42),
        ({"token": "t", "afterSyncId": 42}, None),
        ({"token": "t", "afterSyncId": "-1"}, None),
        ({"token": "t", "afterSyncId": "٣"}, None),
        ({"token": "t", "groups": [1]}, None),
        ({"token": "t", "groups": "a"}, None),
        ({"token": 5}, None),
        ({}, None),
    ],
)
def test_subscribe_frames(frame: dict[str, Any], after: int | None) -> None:
    asked = subscribe_ask(frame)
    assert (None if asked is None else asked.after) == after


@given(values)
def test_plain_values_are_the_same_json(value: Any) -> None:
    assert plain("x", value) == value
    assert ".0" not in str(plain("x", {"a": [1.0, {"b": 2.0}]}))


class Reader:
    """Fits Shown."""

    def __init__(self, *groups: str, cursor: int = 0) -> None:
        self.audience = Audience("u", groups, 0)
        self.ahead = 0
        self.cursor = cursor
        self.batched = self.congested = False
        self.frames: list[Frames] = []
        self.late = 0

    def offer(self, frames: Frames) -> bool:
        if not self.congested:
            self.frames.append(frames)
        return not self.congested

    def lagging(self) -> None:
        self.late += 1

    def durable(self, bounds: Bounds) -> None: ...
    def reset(self, bounds: Bounds) -> None: ...


def test_frames_are_built_once_for_each_set_of_groups() -> None:
    feed = StrataFeed(Address("default", "strata:x"), lambda *_: Frames([]))
    readers = [Reader("a"), Reader("a", "z"), Reader("b"), Reader(), Reader("a", "b")]
    behind, full = Reader("a", cursor=-1), Reader("a")
    full.congested = True
    for reader in (*readers, behind, full):
        feed.live[reader] = None
    entries = [entry(1, "a"), entry(2, "b"), entry(3)]
    bounds = Bounds("e", 3, 0, 3)
    feed.deliver(Batch(1, 3, [], bounds, entries))
    first, alike, second, none, both = [reader.frames[0] for reader in readers]
    assert first is alike and first is not both
    assert [len(frames.texts) for frames in (first, second, none, both)] == [2, 2, 1, 3]
    assert all(reader.cursor == 3 for reader in readers)
    assert (behind.late, full.late, full.cursor) == (1, 1, 0)
    assert list(feed.live) == readers


def test_topics_are_bounded_and_forgotten() -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def tell(self, frames: Frames) -> None:
            self.heard += frames.texts

    ephemera = Ephemera("one", lambda: 0)
    topics, here, there = (
        Topics(ephemera.open), Address("t", "strata:a"), Address("t", "strata:b")
    )  # fmt: skip
    one, two = Listener(), Listener()
    for number in range(TOPICS_MAX):
        topics.join(here, str(number), one)
    with pytest.raises(ProtocolError):
        topics.join(here, "more", one)
    topics.join(there, "1", two)
    assert topics.broadcast(here, "1", "x") == 1 and topics.broadcast(here, "1", "y", but=one) == 0
    assert topics.broadcast(there, "1", "z") == 1
    topics.leave(here, "1", one)
    topics.leave(here, "1", one)
    assert topics.broadcast(here, "1", "x") == 0
    topics.forget(one)
    assert topics.broadcast(here, "2", "x") == 0 and (one.heard, two.heard) == (["x"], ["z"])
    topics.forget(two)
    assert not len(ephemera)


def test_topics_of_two_processes_are_one() -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def tell(self, frames: Frames) -> None:
            self.heard += frames.texts

    ephemera = Ephemera("one", lambda: 0)
    here, there, address = Topics(ephemera.open), Topics(ephemera.open), Address("t", "strata:a")
    one, two, three = Listener(), Listener(), Listener()
    here.join(address, "room", one)
    there.join(address, "room", two)
    there.join(address, "other", three)
    assert here.broadcast(address, "room", "x", but=one) == 0
    assert (one.heard, two.heard, three.heard) == ([], ["x"], [])
    there.forget(three)
    there.forget(two)
    assert there.broadcast(address, "room", "y") == 0
    assert one.heard == ["y"], "from where nobody listens"
    with pytest.raises(ProtocolError):
        there.broadcast(address, "room", "x" * (1 << 21))
