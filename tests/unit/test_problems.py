"""The table of errors is whole: every code the product can say is in it and in docs/errors.md."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import problems
from edge.problems import CLOSE_CODES, HTTP_STATUS, Problem, problem, status_of
from infra import errors
from infra.errors import HoldfastError

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs/errors.md").read_text()
# Said by the command line, the configuration or the client only: never over HTTP.
LOCAL = {
    "bad_config", "bad_key", "bad_link", "bad_pattern", "bad_token", "link_refused",
    "placement_unavailable", "insecure", "unreachable", "below_floor",
    "bad_query", "corrupt", "not_declared", "object_busy", "object_exists", "object_missing",
    "scope_error", "sequence_gap", "stale", "unknown", "verification_failed",
}  # fmt: skip
# Said in frames only.
FRAMES = {"cross_scope", "merge_failed", "moved", "not_subscribed", "revoked", "session_taken",
          "snapshot_required",
          "too_many_subscriptions", "unknown_type"}  # fmt: skip
# The first argument is a code in these calls, the second in the others.
FIRST = {"Problem", "PublishError", "BadFrame", "Rejected", "protocol_error", "error"}
SECOND = {"scope_error", "_refuse"}
CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def codes() -> Iterator[tuple[str, str]]:
    """(code, file) of everything in the source that looks like an error code being said."""
    for path in sorted([*(ROOT / "edge").rglob("*.py"), *(ROOT / "actors").rglob("*.py"),
                        *(ROOT / "infra").rglob("*.py")]):  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text())):
            for value in _said(node):
                said = value.value if isinstance(value, ast.Constant) else None
                if isinstance(said, str) and CODE.fullmatch(said):
                    yield said, path.name


def _said(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        yield from (word.value for word in node.keywords if word.arg == "code")
        if name in FIRST and node.args:
            yield node.args[0]
        if name in SECOND and len(node.args) > 1:
            yield node.args[1]
    elif isinstance(node, ast.ClassDef):
        for line in node.body:
            if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "code":
                yield line.value


def test_every_code_said_is_in_the_table() -> None:
    said = {code for code, _ in codes()}
    assert {"patch_failed", "token_expired", "view_expired", "snapshot_required"} <= said
    unknown = {pair for pair in codes() if pair[0] not in {*HTTP_STATUS, *LOCAL, *FRAMES}}
    assert not unknown


def test_every_error_class_has_a_status() -> None:
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, HoldfastError):
            assert found.code in {*HTTP_STATUS, *LOCAL}, found


def test_every_code_is_documented_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (\d+) \|", DOC, re.M))
    assert {code: int(status) for code, status in rows.items()} == HTTP_STATUS
    for code in FRAMES:
        assert f"| `{code}` |" in DOC


def test_every_close_code_is_documented() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d{4}) \|", DOC, re.M)}
    assert set(CLOSE_CODES) <= documented
    used = set()
    for path in (ROOT / "edge").rglob("*.py"):
        used |= {int(code) for code in re.findall(r"= (1\d{3}|4[4-9]\d\d)\b", path.read_text())}
    used -= {1000, 1024}
    assert {code for code in used if code >= 4400 or code in range(1001, 1016)} <= documented


def test_a_code_nobody_thought_of_is_an_error() -> None:
    assert status_of("surprise") == 500
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())


@pytest.mark.parametrize("code", sorted(HTTP_STATUS))
def test_bodies(code: str) -> None:
    body = json.loads(
        problem(code, "why", request_id="r", retry_after_ms=7, detail={"entity": "a"})
    )
    assert body["status"] == HTTP_STATUS[code] and body["code"] == code
    assert (body["detail"], body["request_id"], body["retry_after_ms"], body["entity"]) == (
        "why", "r", 7, "a",
    )  # fmt: skip
    assert body["retryable"] == (body["status"] in (429, 503))


def test_detail_cannot_replace_the_standard_members() -> None:
    body = json.loads(
        problem("forbidden", "m", request_id="r", detail={"code": "x", "status": 200})
    )
    assert (body["code"], body["status"]) == ("forbidden", 403)
    error = Problem("busy", "m", retry_after_ms=3)
    assert (error.code, error.retry_after_ms) == ("busy", 3)
    assert problems.__doc__
