"""Beside the authors' own Python port: one author's histories give equal graphs.

With one author there is nothing to merge, so both must agree; where several write the port's
result depends on the order of arrival (docs/vuer-rtc.md). Not compared, because they differ on
purpose: text (the port counts otherwise), undo, and inserts after a removal.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from actors.dialects.vuer.graph import Graph, apply_message, create_empty_graph
from actors.dialects.vuer.validate import check_message
from tests.support.vuer_ops import value_op

original: Any = pytest.importorskip("vuer_rtc", reason="vuer-rtc is not installed")

KEYS = ["a", "b", "c", "d"]
# The port rounds a blend otherwise, clears what is not there on `array.remove`, and takes relative
# operations on values of another type.
FAMILIES = {
    "number.set": "x", "number.add": "x", "number.multiply": "x", "number.min": "x",
    "number.max": "x", "string.set": "s", "string.concat": "s", "boolean.set": "f",
    "boolean.or": "f", "boolean.and": "f", "color.set": "c", "vector3.set": "v",
    "vector3.add": "v", "vector3.multiply": "v", "euler.set": "e", "euler.add": "e",
    "quaternion.set": "q", "quaternion.multiply": "q", "array.set": "l", "array.push": "l",
    "array.union": "l", "object.set": "o",
}  # fmt: skip


def tamed(value: Any) -> Any:
    """Without what the port takes otherwise: true equals 1 to it, and it keeps infinities."""
    if isinstance(value, list):
        return ["yes" if item is True else tamed(item) for item in value]
    return 2 if value == 1e300 else value


def random_op(rng: random.Random, live: set[str]) -> dict[str, Any] | None:
    dice = rng.random()
    if dice < 0.12:
        fresh = [key for key in KEYS if key not in live]
        if not fresh:
            return None
        key = rng.choice(fresh)
        parent = rng.choice(["root", *sorted(live)])
        live.add(key)
        value = {"key": key, "tag": "Mesh", "name": key, "x": 1}
        return {"otype": "node.insert", "key": parent, "path": "children", "value": value}
    op = value_op(rng)
    if op["otype"] not in FAMILIES or not live:
        return None
    path = FAMILIES[op["otype"]]
    op["value"] = tamed(op["value"])
    if op["otype"] == "array.push" and op["value"] is True:
        op["value"] = "yes"
    return op | {"key": rng.choice(sorted(live)), "path": path}


def both(ops: list[list[dict[str, Any]]]) -> tuple[Graph, Any]:
    ours, theirs = create_empty_graph(), original.createEmptyGraph()
    for lamport, batch in enumerate(ops, 1):
        raw = {
            "id": f"m{lamport}", "sessionId": "me", "clock": {"me": lamport},
            "lamportTime": lamport, "timestamp": 1000 + lamport, "ops": batch,
        }  # fmt: skip
        ours = apply_message(ours, check_message(raw))
        message = original.CRDTMessage(
            id=raw["id"], client="me", clock={"me": lamport}, lt=lamport, ts=1000.0 + lamport,
            ops=[{**op, "ot": op["otype"]} for op in batch],
        )  # fmt: skip
        theirs = original.applyMessage(theirs, message)
    return ours, theirs


@pytest.mark.parametrize("seed", range(40))
def test_one_author_gives_equal_graphs(seed: int) -> None:
    rng = random.Random(seed)
    live: set[str] = set()
    root = {"key": "root", "tag": "Scene", "name": "root"}
    ops: list[list[dict[str, Any]]] = [
        [{"otype": "node.insert", "key": "", "path": "children", "value": root}]
    ]
    for _ in range(60):
        op = random_op(rng, live)
        if op is not None:  # one a message: of two sets in one the port keeps the first
            ops.append([op])
    ours, theirs = both(ops)
    assert ours.root_key == theirs.rootKey
    assert set(ours.nodes) == set(theirs.nodes)
    for key, node in ours.nodes.items():
        other = theirs.nodes[key]
        assert (node.tag, node.name, list(node.children)) == (
            other.tag, other.name, other.children,
        )  # fmt: skip
        assert set(node.props) == set(other.properties), key
        for path, value in node.props.items():
            assert _close(value, other.properties[path]), (key, path)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_close, a, b))
    if type(a) in (int, float) and type(b) in (int, float):
        return bool(a == pytest.approx(b, rel=1e-12, abs=1e-300))
    return bool(a == b)
