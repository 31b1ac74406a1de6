"""The patch operations against the shared vectors and against any JSON at all."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dialects.asterql.canonical import canonical
from actors.dialects.asterql.patches import PatchError, apply_entity_patches
from infra.errors import ProtocolError
from tests.support.vectors import vectors

CASES = vectors("asterql/patches")
OPS = ["set", "unset", "merge", "appendText", "spliceText", "increment", "append", "insert"]
OPS += ["removeAt", "removeValue", "addToSet", "move", "nonsense"]


def typed(value: Any) -> Any:
    """A form in which True is not 1; 1.0 stays 1."""
    if isinstance(value, dict):
        return {name: typed(member) for name, member in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return (isinstance(value, bool), value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.get('edge', 'x')}-{case['name']}")
def test_vector(case: dict[str, Any]) -> None:
    record = case["record"]
    kept = copy.deepcopy((record, case["patches"]))
    if "error" in case:
        with pytest.raises(PatchError) as caught:
            apply_entity_patches(record, case["patches"])
        assert {"index": caught.value.index, "reason": caught.value.reason} == case["error"]
    else:
        result = apply_entity_patches(record, case["patches"])
        assert typed(result) == typed(case["expect"])
    assert typed([record, case["patches"]]) == typed(list(kept))


def test_every_numbered_edge_case_has_a_vector() -> None:
    assert {case["edge"] for case in CASES if "edge" in case} == set(range(1, 23))


def test_patch_error_is_the_peers_fault_and_says_where() -> None:
    with pytest.raises(ProtocolError) as caught:
        apply_entity_patches({}, [{"op": "unset", "path": "/a"}, {"op": "x", "path": ""}])
    assert caught.value.code == "patch_failed"
    assert str(caught.value).startswith("patch 1: ")


def test_containers_off_the_path_are_shared_and_the_rest_copied() -> None:
    record: dict[str, Any] = {"a": {"b": {"c": 1}, "d": {}}, "e": []}
    result = apply_entity_patches(record, [{"op": "set", "path": "/a/b/c", "value": 2}])
    assert record == {"a": {"b": {"c": 1}, "d": {}}, "e": []}
    assert result["a"]["d"] is record["a"]["d"]
    assert result["e"] is record["e"]


def test_values_of_a_patch_stay_as_they_were_when_patched_further() -> None:
    value: dict[str, Any] = {"l": [1], "m": {}}
    twice = {"op": "set", "path": "/a", "value": value}
    further = {"op": "append", "path": "/a/l", "values": [2]}
    copied = {"op": "set", "path": "", "value": value}
    assert apply_entity_patches(None, [twice, further, twice]) == {"a": {"l": [1], "m": {}}}
    assert apply_entity_patches(None, [copied, {"op": "unset", "path": "/m"}]) == {"l": [1]}
    assert value == {"l": [1], "m": {}}


def test_integers_beyond_doubles_are_not_finite() -> None:
    with pytest.raises(PatchError) as caught:
        apply_entity_patches({"n": 10**400}, [{"op": "increment", "path": "/n"}])
    assert caught.value.reason == "not_finite"


scalars = (
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats(-9, 9) | st.text("ab~/", max_size=3)
)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab01"), inner, max_size=4)
    ),
    max_leaves=12,
)
records = st.dictionaries(st.sampled_from("ab01"), documents, max_size=4)
paths = st.lists(st.sampled_from(["a", "b", "0", "1", "2", "~0", "-"]), max_size=4).map(
    lambda tokens: "".join("/" + token for token in tokens)
)
# Well formed often enough to reach every operation, ill formed in every member now and then.
plausible = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS), "path": paths | paths | documents},
    optional={
        "value": documents,
        "values": st.lists(documents, max_size=3) | documents,
        "delta": st.text(max_size=3) | documents,
        "insert": st.text(max_size=3) | documents,
        "by": st.floats(allow_nan=False) | st.integers() | documents,
        **{
            name: st.integers(-1, 4) | documents
            for name in ("index", "count", "deleteCount", "from", "to")
        },
    },
)


def refold(record: Any, patches: list[Any]) -> Any:
    """The same patches one call each, on deep copies: the plain meaning of "in order"."""
    for patch in patches:
        record = apply_entity_patches(copy.deepcopy(record), [copy.deepcopy(patch)])
    return record


@settings(max_examples=150, deadline=None)
@given(st.none() | records, st.lists(plausible | plausible | documents, min_size=1, max_size=6))
def test_any_json_applies_or_raises_patch_error_and_changes_no_input(
    record: Any, patches: Any
) -> None:
    before = json.dumps([record, patches])
    try:
        result = apply_entity_patches(record, patches)
    except PatchError as error:
        assert 0 <= error.index < len(patches)
        refold(record, patches[: error.index])
        with pytest.raises(PatchError):
            refold(record, patches[: error.index + 1])
    else:
        assert canonical(result) == canonical(refold(record or {}, patches))
    assert json.dumps([record, patches]) == before


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["set", "merge", "insert", "append", "addToSet"]),
    st.integers(0, 66),
    st.integers(0, 66),
)
def test_no_result_nests_deeper_than_64(op: str, way: int, height: int) -> None:
    value: Any = {}
    for _ in range(height):
        value = {"k": value}
    patch = {"op": op, "path": "/a" * way, "index": 0, "value": value, "values": [value]}
    try:
        assert depth(apply_entity_patches(None, [patch])) <= 64
    except PatchError as error:
        lists = op in ("insert", "append", "addToSet")
        assert way + lists + height + 1 > 64 or (lists and way == 0)
        assert error.reason in ("bad_field", "bad_pointer", "type_mismatch")
