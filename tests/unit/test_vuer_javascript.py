"""Random histories of scenes, folded in Python and in JavaScript: the same bits."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from typing import Any

import pytest

from actors.dialects.vuer.graph import apply_messages, create_empty_graph, graph_from_json
from actors.dialects.vuer.message import Message, VuerRefusal
from actors.dialects.vuer.validate import check_message
from tests.support.process import ROOT
from tests.unit.test_javascript import NODE_MAJOR_MIN, node_version

pytestmark = pytest.mark.skipif(
    node_version() < NODE_MAJOR_MIN, reason=f"no node {NODE_MAJOR_MIN} or newer on the path"
)
HISTORIES = 400
MESSAGES = 40
KEYS = ("root", "a", "b", "c", "d😀")
SESSIONS = ("ann", "bob", "B.o-b@x")
NUMBERS = (0, 1, -2, 3, 0.5, 0.1, 1e21, 1.5e300, -1e-7, 2**53, 1 / 3)
TEXTS = ("", "a", "é", "👍b", "\u2028x", "Zz")


def value(rng: random.Random, depth: int = 0) -> Any:
    """Some JSON."""
    kind = rng.randrange(7 if depth < 3 else 4)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(TEXTS)
    if kind < 4:
        return rng.choice((None, True, False, 1))
    if kind == 4:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return obj(rng, depth + 1)


def obj(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    names = ("k", "m", "d", "__proto__", "é", "😀")
    return {rng.choice(names): value(rng, depth + 1) for _ in range(rng.randrange(3))}


def vector(rng: random.Random, size: int = 3) -> list[Any]:
    return [rng.choice(NUMBERS) for _ in range(size)]


def value_op(rng: random.Random) -> dict[str, Any]:
    """An operation on a property; types and paths meet at random."""
    path = rng.choice(("x", "x", "v", "o", "o", "t", "name", "__proto__"))
    family = rng.randrange(9)
    if family == 0:
        kind = rng.choice(("set", "add", "multiply", "min", "max"))
        return {"otype": f"number.{kind}", "path": path, "value": rng.choice(NUMBERS)}
    if family == 1:
        kind = rng.choice(("vector3.set", "vector3.add", "vector3.multiply", "euler.set"))
        return {"otype": rng.choice((kind, "euler.add")), "path": "v", "value": vector(rng)}
    if family == 2:
        kind = rng.choice(("vector3.applyQuaternion", "quaternion.multiply", "quaternion.set"))
        place = "v" if kind.startswith("vector3") else "q"
        return {"otype": kind, "path": place, "value": vector(rng, 4)}
    if family == 3:
        kind = rng.choice(("object.set", "object.merge", "object.merge"))
        return {"otype": kind, "path": "o", "value": obj(rng)}
    if family == 4:
        return {"otype": "object.merge", "path": ".", "value": {"o": obj(rng), "name": "N", "x": 1}}
    if family == 5:
        kind = rng.choice(("push", "remove"))
        return {"otype": f"array.{kind}", "path": rng.choice(("l", "x")), "value": value(rng)}
    if family == 6:
        kind = rng.choice(("set", "union"))
        return {"otype": f"array.{kind}", "path": "l", "value": [value(rng), value(rng)]}
    if family == 7:
        color = rng.choice(("#ff0000", "#00FF80", "#123456"))
        kind = rng.choice(("set", "blend"))
        return {
            "otype": f"color.{kind}",
            "path": "c",
            "value": color,
            "alpha": rng.choice((0.25, 1, 0.3)),
        }
    if rng.random() < 0.5:
        kind = rng.choice(("set", "or", "and"))
        return {"otype": f"boolean.{kind}", "path": "on", "value": rng.random() < 0.5}
    kind = rng.choice(("set", "concat"))
    name = rng.choice(("s", "name", "tag", "t"))
    return {"otype": f"string.{kind}", "path": name, "value": rng.choice(TEXTS), "separator": "/"}


def node_op(rng: random.Random, key: str) -> dict[str, Any]:
    kind = rng.randrange(6)
    other = rng.choice(KEYS)
    data = {"tag": "Mesh", "x": rng.choice(NUMBERS), "t": rng.choice(TEXTS), "o": obj(rng)}
    if kind == 0:
        return {"otype": "node.insert", "path": "-", "parent": other, "value": {"key": "u"} | data}
    if kind == 1:
        value = {"key": key, "children": [rng.choice(KEYS)]} | data
        return {"otype": "node.insert", "key": other, "path": "children", "value": value}
    if kind == 2:
        return {"otype": "node.remove", "path": "-"}
    if kind == 3:
        return {"otype": "node.move", "path": "-", "value": {"nodeKey": key, "newParent": other}}
    if kind == 4:
        return {"otype": rng.choice(("node.upsert", "node.inset")), "path": "-", "value": data}
    if rng.random() < 0.5:
        return {
            "otype": rng.choice(("array.push", "array.remove")),
            "path": "children",
            "value": other,
        }
    kinds = rng.choice(("array.set", "array.union"))
    return {"otype": kinds, "path": "children", "value": [other, rng.choice(KEYS)]}


def text_op(rng: random.Random, session: str, fresh: int) -> dict[str, Any]:
    author = rng.choice((*SESSIONS, "@init"))
    anchor = rng.choice((None, f"{author}:{rng.randrange(30)}"))
    id = f"{session}:{fresh if rng.random() < 0.9 else rng.randrange(30)}"
    content = rng.choice(TEXTS)
    ranges = [[f"{author}:{rng.randrange(30)}", rng.randrange(1, 5)] for _ in range(2)]
    kind = rng.choice(("insert", "insert", "delete", "replace", "init"))
    if kind == "init":
        return {"otype": "text.init", "path": "t", "value": content, "id": id}
    op: dict[str, Any] = {"otype": f"text.{kind}", "path": "t"}
    if kind != "delete":
        op |= {"id": id, "value": [anchor, content]}
    return op if kind == "insert" else op | {"rm": ranges}


def history(seed: int) -> list[dict[str, Any]]:
    """Sequenced messages of several sessions."""
    rng = random.Random(seed)
    fresh = 0
    messages: list[dict[str, Any]] = []
    for number in range(1, MESSAGES + 1):
        session = rng.choice(SESSIONS)
        ops: list[dict[str, Any]] = []
        if messages and rng.random() < 0.12:
            otype = rng.choice(("meta.undo", "meta.undo", "meta.redo"))
            target = rng.choice(messages)["id"]
            ops.append({"otype": otype, "key": "_meta", "path": "_meta", "targetMsgId": target})
        while not ops or (ops[0]["path"] != "_meta" and rng.random() < 0.5):
            key = rng.choice(KEYS)
            dice = rng.random()
            if number == 1 or dice < 0.25:
                op = node_op(rng, key)
            elif dice < 0.5:
                op = text_op(rng, session, fresh := fresh + 4)
            else:
                op = value_op(rng)
            ops.append({"key": key} | op)
        messages.append({
            "id": f"m{number}", "sessionId": session, "clock": {session: number},
            "lamportTime": max(0, number + rng.randrange(-6, 3)), "timestamp": number, "ops": ops,
            "serverSeq": number,
        })  # fmt: skip
    return messages


def folded_in_node(histories: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    node = shutil.which("node")
    assert node is not None
    lines = "\n".join(json.dumps(messages) for messages in histories)
    command = [node, str(ROOT / "tests" / "js" / "rtc_fold.mjs")]
    done = subprocess.run(
        command, input=lines, capture_output=True, encoding="utf-8", check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.rstrip("\n").split("\n")]


def test_python_and_javascript_fold_alike() -> None:
    histories = [history(seed) for seed in range(HISTORIES)]
    found = folded_in_node(histories)
    assert len(found) == HISTORIES
    inserted = texts = refused = 0
    for seed, (messages, other) in enumerate(zip(histories, found, strict=True)):
        codes: list[str | None] = []
        checked: list[Message] = []
        for message in messages:
            try:
                checked.append(check_message(message))
                codes.append(None)
            except VuerRefusal as refusal:
                codes.append(refusal.code)
        assert other["codes"] == codes, f"seed {seed}"
        refused += len(messages) - len(checked)
        graph = apply_messages(create_empty_graph(), checked)
        ours = graph.to_json()
        inserted += len(ours["nodes"])
        texts += sum(bool(node["_crdt"]["text"]) for node in ours["nodes"].values())
        if other["hash"] != graph.hash():
            theirs = graph_from_json(other["graph"]).to_json()
            assert theirs == ours, f"seed {seed}"
        assert other["hash"] == graph.hash(), f"seed {seed}"
        assert other["again"] == graph.hash(), f"seed {seed}: not the same after the wire"
        assert graph_from_json(json.loads(json.dumps(other["graph"]))).hash() == graph.hash()
    assert inserted > 2 * HISTORIES and texts > HISTORIES / 2
    assert 0 < refused < HISTORIES * MESSAGES / 4


def long_text(seed: int) -> list[dict[str, Any]]:
    """Some 3,000 edits of one text by three authors: thousands of runs, far more than one block."""
    rng = random.Random(seed)
    counts = dict.fromkeys(SESSIONS, 0)
    insert = {"otype": "node.insert", "key": "a", "path": "-", "value": {"key": "u", "t": "0é👍"}}
    messages: list[dict[str, Any]] = []
    for number in range(1, 13):
        session = rng.choice(SESSIONS)
        ops: list[dict[str, Any]] = [insert] if number == 1 else []
        for _ in range(250):
            author = rng.choice(SESSIONS)
            place = f"{author}:{rng.randrange(counts[author] + 2)}"  # not always there
            if rng.random() < 0.75:
                content = rng.choice(("x", "yé", "👍z", "zz"))
                id = f"{session}:{counts[session]}"
                ops.append({"otype": "text.insert", "value": [rng.choice((place, None, place)),
                            content], "id": id})  # fmt: skip
                counts[session] += len(content) + rng.randrange(2)
            else:
                ops.append({"otype": "text.delete", "rm": [[place, rng.randrange(1, 9)]]})
        messages.append({
            "id": f"m{number}", "sessionId": session, "clock": {}, "lamportTime": number,
            "timestamp": 0, "serverSeq": number,
            "ops": [{"key": "a", "path": "t"} | op for op in ops],
        })  # fmt: skip
    return messages


def test_long_texts_fold_alike() -> None:
    histories = [long_text(seed) for seed in range(6)]
    for messages, other in zip(histories, folded_in_node(histories), strict=True):
        graph = apply_messages(create_empty_graph(), [check_message(m) for m in messages])
        node = graph.nodes["a"]
        assert len(node.text["t"].wire()) > 1000
        assert other["graph"]["nodes"]["a"]["t"] == node.value("t")
        assert other["hash"] == other["again"] == graph.hash()


def test_wide_objects_and_lists_fold_alike() -> None:
    """Thousands of members and items: before, 4,000 members took a browser 44 s."""
    rng = random.Random(5)
    insert = {"otype": "node.insert", "key": "a", "path": "-", "value": {"key": "u"}}
    messages: list[dict[str, Any]] = []
    for number in range(1, 9):
        members = {
            f"m{rng.randrange(3000)}": rng.choice((1, {"k": number}, {})) for _ in range(900)
        }
        items: list[Any] = [rng.choice((n, n + 0.5, str(n), [n], {"n": n})) for n in range(900)]
        ops = [
            {"otype": "object.merge", "key": "a", "path": "o", "value": members},
            {"otype": "array.union", "key": "a", "path": "l", "value": rng.sample(items, 600)},
        ]
        messages.append({
            "id": f"m{number}", "sessionId": "ann", "clock": {}, "timestamp": 0,
            "lamportTime": rng.randrange(5), "ops": [insert, *ops] if number == 1 else ops,
            "serverSeq": number,
        })  # fmt: skip
    (other,) = folded_in_node([messages])
    graph = apply_messages(create_empty_graph(), [check_message(m) for m in messages])
    assert len(graph.value("a", "o")) > 1500 and len(graph.value("a", "l")) > 1500
    assert other["hash"] == other["again"] == graph.hash()
