"""Open intents on the client: echoes, rejections, order; fields and their rules; presence rooms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.client.para.intent_store import MemoryIntentStore, SqliteIntentStore
from edge.client.para.ops import Op, OpQueue, StoredOp
from edge.client.para.pending import PendingKey
from edge.client.para.schema import PASSTHROUGH
from edge.dialects.para.fields import LWW, SERVER, MergeFailed, Visibility, admit
from edge.dialects.para.frames import JSON, MSGPACK, BadFrame, IntentFrame, Tx
from edge.dialects.para.kinds import SyncedKind
from edge.dialects.para.sources import Source
from edge.dialects.para.spaces import Spaces
from infra.errors import ConfigError, ProtocolError


def test_37_the_echo_of_an_older_intent_is_suppressed() -> None:
    key = PendingKey()
    assert (key.begin("like"), key.begin("unlike")) == (1, 2)
    assert key.echo("like", 1) == "suppress"
    assert key.echo("somebody's", 9) == "pass" and key.echo(None, None) == "pass"
    assert key.echo("unlike", 2) == "dedupe"
    assert not key and key.echo("unlike", 2) == "pass", "it is open no longer"


def test_38_an_intent_is_open_until_its_change_is_seen() -> None:
    key = PendingKey()
    key.begin("a"), key.begin("b")
    key.rejected("a")
    assert key, "b is open"
    key.confirmed("b", 5, applied=4)
    assert key
    key.applied(5)
    assert not key
    key.begin("c")
    key.confirmed("c", 5, applied=5)
    assert not key, "an equal value: no change comes"


def test_a_repetition_has_a_fresh_version() -> None:
    key = PendingKey()
    key.begin("a"), key.begin("b")
    assert (key.again("a"), key.again("b"), key.again("c")) == (3, 4, 0)
    assert key.echo("a", 1) == "suppress"
    assert key.echo("b", 2) == "suppress", "an echo of the first sending"


def op(op_id: str, *keys: str, group: bool = False) -> Op:
    return Op(StoredOp(op_id, [{"key": key} for key in keys], group), lambda s, e: None)


def test_intents_of_a_key_keep_their_order() -> None:
    queue = OpQueue()
    for one in (op("1", "a"), op("2", "a", "b", group=True), op("3", "b"), op("4", "c")):
        queue.add(one)

    def ids(ready: str, now: float = 0.0) -> list[str]:
        return [found.stored.op_id for found in queue.sendable(lambda key: key in ready, now)]

    assert ids("abc") == ["1", "2", "3", "4"]
    assert ids("bc") == ["4"], "2 waits for a, so 3 must"
    first = queue.get("1")
    assert first is not None
    first.not_before = 5.0
    assert ids("abc") == ["4"] and ids("abc", 5.0) == ["1", "2", "3", "4"]
    assert queue.next_at(0.0) == 5.0
    assert queue.groups_of("b") and not queue.groups_of("c")


def test_a_store_survives_and_never_repeats_an_id(tmp_path: Path) -> None:
    path = tmp_path / "intents.db"
    store = SqliteIntentStore(path)
    first = StoredOp(store.next_op_id(), [{"key": "a", "value": {"n": 2**63 - 1}}])
    store.save(first)
    store.save(
        StoredOp(second := store.next_op_id(), [{"key": "b", "name": "x", "input": 1}], True)
    )
    store.remove(second)
    client = store.client_id
    store.close()
    store = SqliteIntentStore(path)
    assert store.client_id == client and store.load() == [first]
    assert store.next_op_id() > second > first.op_id
    store.close()
    memory = MemoryIntentStore()
    assert memory.next_op_id() < memory.next_op_id() and memory.client_id != client


# -- fields ----------------------------------------------------------------------------------------


def union(mine: Any, theirs: Any, base: Any) -> Any:
    return sorted(set(mine or []) | set(theirs or []))


def test_field_authority() -> None:
    rules: dict[str, Any] = {"total": SERVER, "title": LWW, "tags": union}
    theirs = {"total": 5, "title": "old", "tags": ["a"]}
    mine = {"total": 9, "title": "new", "tags": ["b"], "extra": 1}
    assert admit(rules, mine, theirs) == {
        "total": 5, "title": "new", "tags": ["a", "b"], "extra": 1,
    }  # fmt: skip
    assert admit(rules, mine, None) == {"title": "new", "tags": ["b"], "extra": 1}
    assert admit(rules, "text", theirs) == "text" and admit({}, mine, theirs) is mine
    assert mine["total"] == 9, "what is given is not changed"
    with pytest.raises(MergeFailed):
        admit({"tags": lambda *_: 1 / 0}, mine, theirs)


def test_visibility_reaches_into_objects_and_lists() -> None:
    rules = Visibility(
        {"a": "no", "b.c": "no", "rows.price": "no", "d": "yes"}, {"yes": lambda *_: True}
    )
    value = {"a": 1, "b": {"c": 2, "e": 3}, "rows": [{"price": 1, "n": 2}, [{"price": 3}]], "d": 4}
    hidden = rules.hidden(None, "k", value)
    assert hidden == ("a", "b.c", "rows.price")
    assert rules.strip(value, hidden) == {"b": {"e": 3}, "rows": [{"n": 2}, [{}]], "d": 4}
    assert value["a"] == 1
    kept = rules.keep({"b": {"e": 9}, "d": 5, "a": "mine"}, {**value, "rows": {}}, ("a", "b.c"))
    assert kept == {"a": 1, "b": {"e": 9, "c": 2}, "d": 5}
    with pytest.raises(MergeFailed):
        rules.keep({"rows": []}, value, ("rows.price",))
    with pytest.raises(MergeFailed):
        rules.keep({}, value, ("b.c",))
    resolvers: list[Any] = [lambda *_: 1, lambda *_: 1 / 0, lambda *_: None]
    for resolver in resolvers:
        assert Visibility({"a": "t"}, {"t": resolver}).hidden(None, "k", value) == ("a",)
    with pytest.raises(ConfigError):
        Visibility({"a..b": "t"}, {})


# -- declarations, frames --------------------------------------------------------------------------


def test_declarations_that_cannot_work() -> None:
    kinds: list[dict[str, Any]] = [{"version": "1"}, {"authority": {"x": "mine"}}]
    for bad in kinds:
        with pytest.raises(ConfigError):
            SyncedKind("post", PASSTHROUGH, **bad)
    sources: list[dict[str, Any]] = [{}, {"every": 1.0, "once": True}, {"every": 0.0}]
    for given in sources:
        with pytest.raises(ConfigError):
            Source("k", lambda: 1, **given)
    for name in ("", "a\n", "x" * 200, "/a", "a/"):
        with pytest.raises(ProtocolError):
            Spaces(name, "default", None)
    assert Spaces("a", "t", lambda key: key).of("k").scope == "para:a/k"


def test_wide_integers_of_frames() -> None:
    frame = JSON.decode(
        b'{"type":"intent","clientId":"c","opId":"o","key":"k","value":{"n":{"$int":"-9007199254740993"}}}'
    )
    assert isinstance(frame, IntentFrame) and frame.value == {"n": -9007199254740993}
    group = JSON.decode(
        b'{"type":"tx","clientId":"c","groupOpId":"o","intents":[{"key":"k","value":[{"$int":"7"}]}]}'
    )
    assert isinstance(group, Tx) and group.intents[0].value == [7]
    assert JSON.encode({"n": 2**63 - 1}) == '{"n":{"$int":"9223372036854775807"}}'
    assert JSON.encode({"n": 2**53 - 1, "t": "12345678901234567890"}) == (
        '{"n":9007199254740991,"t":"12345678901234567890"}'
    )
    for codec, data in ((JSON, b"{"), (JSON, b'{"type":"no"}'), (MSGPACK, b"\xc1"), (JSON, b"[]")):
        with pytest.raises(BadFrame):
            codec.decode(data)
