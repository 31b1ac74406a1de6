"""The vectors of the vuer-rtc dialect, applied by the pure core."""

from __future__ import annotations

from typing import Any

import pytest

from actors.dialects.vuer.buffer import merge_edit
from actors.dialects.vuer.graph import Graph, apply_message, create_empty_graph, graph_from_json
from actors.dialects.vuer.message import Op, VuerRefusal
from actors.dialects.vuer.validate import check_message
from tests.support.vuer import HISTORY_FAMILIES, family, mismatches, sequenced

HISTORIES = [
    pytest.param(case, id=f"{name}: {case['name']}")
    for name in HISTORY_FAMILIES
    for case in family(name)
]


def folded(case: dict[str, Any]) -> Graph:
    graph = create_empty_graph()
    for message in sequenced(case):
        graph = apply_message(graph, message)
    return graph


@pytest.mark.parametrize("case", HISTORIES)
def test_history_ends_in_the_expected_state(case: dict[str, Any]) -> None:
    graph = folded(case)
    assert mismatches(graph, case["state"]) == []
    assert graph.hash() == case["hash"]
    again = graph_from_json(graph.to_json())
    assert again.hash() == case["hash"]
    assert again.to_json() == graph.to_json()


def test_every_edge_case_of_the_core_is_there() -> None:
    numbers = {case["case"] for name in HISTORY_FAMILIES for case in family(name) if "case" in case}
    assert numbers >= set(range(1, 48))


@pytest.mark.parametrize("case", family("edit-buffer"), ids=lambda case: case["name"])
def test_edit_buffer(case: dict[str, Any]) -> None:
    edits: list[Op] = []
    for op in case["edits"]:
        edits = merge_edit(edits, op)
    assert edits == case["merged"]


@pytest.mark.parametrize("case", family("messages"), ids=lambda case: case["name"])
def test_validation(case: dict[str, Any]) -> None:
    try:
        check_message(case["message"])
    except VuerRefusal as refusal:
        assert refusal.code == case["error"]
    else:
        assert case["error"] is None
