"""The vuer vectors, and what helps to read a scene in tests."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from actors.dialects.vuer.graph import Graph
from actors.dialects.vuer.message import Message
from actors.dialects.vuer.validate import check_message
from tests.support.vectors import VECTORS

HISTORY_FAMILIES = (
    "array", "boolean", "color", "node", "number", "object", "operations", "string", "text",
    "undo-redo", "vector",
)  # fmt: skip
START: list[dict[str, Any]] = [
    {
        "id": "s1",
        "sessionId": "start",
        "lamportTime": 0,
        "ops": [
            {
                "otype": "node.insert", "key": "root", "path": "-",
                "value": {"key": "u-root", "tag": "Scene", "name": "root"},
            },
            {
                "otype": "node.insert", "key": "n", "path": "-", "parent": "root",
                "value": {"key": "u-n", "tag": "Mesh", "name": "n", "x": 0},
            },
        ],
    }
]  # fmt: skip


@cache
def family(name: str) -> list[dict[str, Any]]:
    """The cases of one file of tests/vectors/vuer."""
    lines = (VECTORS / "vuer" / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def sequenced(case: dict[str, Any]) -> list[Message]:
    """The messages of a case, start included, with their numbers."""
    found = []
    for seq, raw in enumerate([*case.get("start", START), *case["messages"]], 1):
        message = check_message({"clock": {}, "timestamp": 0, **raw})
        message.server_seq = seq
        found.append(message)
    return found


def mismatches(graph: Graph, state: dict[str, Any]) -> list[str]:
    """Where a graph differs from the `state` of a vector (README.md beside them)."""
    found = []
    for key, wanted in state.get("nodes", {}).items():
        node = graph.get(key)
        if node is None or wanted is None:
            if node is not wanted:
                found.append(f"{key}: {node}, expected {wanted}")
            continue
        shown = node.shown() | {"removed": node.del_ is not None}
        for name in wanted.get("absent", ()):
            if name in shown:
                found.append(f"{key}.{name}: is there")
        for name, value in wanted.items():
            if name != "absent" and _text(shown.get(name)) != _text(value):
                found.append(f"{key}.{name}: {shown.get(name)!r}, expected {value!r}")
    if graph.root_key != state.get("rootKey", graph.root_key):
        found.append(f"rootKey: {graph.root_key}")
    if "visible" in state and list(graph.visible()) != state["visible"]:
        found.append(f"visible: {list(graph.visible())}")
    return found


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # true is not 1 here
