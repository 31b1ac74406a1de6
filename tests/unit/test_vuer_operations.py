"""Operations and validation: laws that hold for many values, and hostile messages."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dialects.vuer.graph import Graph, apply_message, create_empty_graph
from actors.dialects.vuer.message import Message, VuerRefusal
from actors.dialects.vuer.properties import GUARDS, TRANSFORMS
from actors.dialects.vuer.rewrite import quaternion_of, rewritten
from actors.dialects.vuer.validate import check_message
from actors.dialects.vuer.values import deep_equal, normal, rotated
from tests.support.vuer import sequenced
from tests.support.vuer_ops import tree, value_op

BASE: dict[str, Any] = {"id": "m", "sessionId": "a", "clock": {"a": 1}, "lamportTime": 1}


def graph_of(messages: list[Message]) -> Graph:
    graph = create_empty_graph()
    for seq, message in enumerate([*sequenced({"messages": []}), *messages], 1):
        message.server_seq = seq
        graph = apply_message(graph, message)
    return graph


def message(lamport: int, *ops: dict[str, Any], s: str = "a") -> Message:
    return check_message({"id": f"{s}{lamport}", "sessionId": s, "lamportTime": lamport,
                          "ops": list(ops)})  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_merges_and_sets_of_objects_commute(seed: int) -> None:
    rng = random.Random(seed)
    writes = []
    for lamport, session in rng.sample(list(itertools.product(range(1, 5), "ab")), 4):
        otype, path = rng.choice([("object.set", "o"), ("object.merge", "o")])
        value = tree(rng) or {"k": 1}
        op = {"otype": otype, "key": "n", "path": path, "value": _without_empty(value)}
        writes.append(message(lamport, op, s=session))
    values = []
    for order in itertools.permutations(writes):
        node = graph_of(list(order)).get("n")
        assert node is not None
        values.append(node.props["o"])
    assert all(deep_equal(value, values[0]) for value in values)


def _without_empty(value: Any) -> Any:
    """An empty object has no leaf that could win."""
    if not isinstance(value, dict):
        return value
    return {name: _without_empty(item) if item != {} else 0 for name, item in value.items()}


@pytest.mark.parametrize("otype", [
    "number.min", "number.max", "boolean.or", "boolean.and",
])  # fmt: skip
def test_operations_that_commute(otype: str) -> None:
    values = [True, False] if otype.startswith("boolean") else [3, -1, 2.5]
    results = set()
    for order in itertools.permutations(values):
        path = "b"
        ops = [{"otype": otype, "key": "n", "path": path, "value": value} for value in order]
        sent = [message(at, op) for at, op in enumerate(ops, 1)]
        results.add(graph_of(sent).value("n", path))
    assert len(results) == 1


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3),
       st.sampled_from(["XYZ", "YXZ", "ZXY", "ZYX", "YZX", "XZY"]))  # fmt: skip
def test_euler_angles_turn_one_after_the_other(angles: list[float], order: str) -> None:
    """Intrinsic XYZ is the rotation about z, then y, then x in fixed axes."""
    quaternion = quaternion_of([float(angle) for angle in angles], order, True)
    turned = [0.3, -1.2, 2.0]
    expected: list[Any] = turned
    for axis in reversed(order):
        at = "XYZ".index(axis)
        one = [0.0, 0.0, 0.0]
        one[at] = angles[at]
        expected = rotated(expected, quaternion_of([*one], "XYZ", True))
    assert rotated([*turned], quaternion) == pytest.approx(expected, abs=1e-9)
    extrinsic = quaternion_of([*angles], order[::-1], False)
    assert extrinsic == pytest.approx(quaternion, abs=1e-12)


def test_every_transform_has_a_guard() -> None:
    assert TRANSFORMS.keys() <= GUARDS.keys()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), JSON, st.sampled_from(["value", "key", "path", "otype"]))
def test_any_operation_is_applied_or_refused(rng: random.Random, junk: Any, member: str) -> None:
    op = value_op(rng) | {member: junk}
    try:
        checked = check_message(BASE | {"ops": [op]})
    except VuerRefusal as refusal:
        assert refusal.code in ("invalid_op", "unknown_otype", "invalid_message", "too_large")
        return
    stored = rewritten(checked, graph_of([]).scene())  # angles have no effect of their own
    assert graph_of([stored]).get("n") is not None


@settings(max_examples=200)
@given(st.dictionaries(
    st.sampled_from(["id", "sessionId", "clock", "lamportTime", "timestamp", "ops", "lt"]),
    JSON,
) | JSON)  # fmt: skip
def test_any_message_is_taken_or_refused(raw: Any) -> None:
    try:
        check_message(raw)
    except VuerRefusal as refusal:
        assert refusal.code in ("invalid_op", "unknown_otype", "invalid_message", "too_large")


@pytest.mark.parametrize("value", [
    float("nan"), float("inf"), 2**53 + 1, {"a": float("nan")}, {1: 2}, object(), {"a": (1,)},
])  # fmt: skip
def test_56_what_is_no_json_value(value: Any) -> None:
    with pytest.raises(ValueError):
        normal(value)
    op = {"otype": "array.push", "key": "n", "path": "l", "value": value}
    with pytest.raises(VuerRefusal) as refused:
        check_message(BASE | {"ops": [op]})
    assert refused.value.code == "invalid_op"


def test_values_nested_too_deep_are_refused() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    op = {"otype": "array.push", "key": "n", "path": "l", "value": value}
    with pytest.raises(VuerRefusal):
        check_message(BASE | {"ops": [op]})


def test_57_a_message_for_another_session() -> None:
    op = {"otype": "number.set", "key": "n", "path": "x", "value": 1}
    with pytest.raises(VuerRefusal) as refused:
        check_message(BASE | {"ops": [op]}, session_id="b")
    assert refused.value.code == "session_mismatch"


def test_half_a_surrogate_pair_is_no_text() -> None:
    op = {"otype": "string.set", "key": "n", "path": "x", "value": "\ud800"}
    with pytest.raises(VuerRefusal):
        check_message(BASE | {"ops": [op]})
