"""Random operations of every family, on few keys and paths so that they meet."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.support.vuer_room import Network, Peer

KEYS = ["root", "a", "b", "c", "d"]
PATHS = ["x", "y", "o", "v", "q", "c", "b", "s", "l", "t", "u"]
COLORS = ["#ffffff", "#000000", "#12ab9f"]
NUMBERS = [0, 1, -2, 0.1, 3.7, 1e300, 1e-7, 12]


def vector(rng: random.Random, size: int) -> list[float]:
    return [rng.choice(NUMBERS) for _ in range(size)]


def value(rng: random.Random) -> Any:
    return rng.choice([1, "s", True, None, [1], {"k": 1}])


def tree(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    return {
        rng.choice("kmn"): tree(rng, depth + 1) if depth < 2 and rng.random() < 0.4 else value(rng)
        for _ in range(rng.randint(0, 2))
    }


def value_op(rng: random.Random) -> dict[str, Any]:
    choices: list[tuple[str, Callable[[], Any]]] = [
        ("number.set", lambda: rng.choice(NUMBERS)), ("number.add", lambda: rng.choice(NUMBERS)),
        ("number.multiply", lambda: rng.choice(NUMBERS)),
        ("number.min", lambda: rng.choice(NUMBERS)), ("number.max", lambda: rng.choice(NUMBERS)),
        ("string.set", lambda: rng.choice(["", "hi", "ho"])),
        ("string.concat", lambda: rng.choice(["", "x", "yz"])),
        ("boolean.set", lambda: rng.random() < 0.5), ("boolean.or", lambda: rng.random() < 0.5),
        ("boolean.and", lambda: rng.random() < 0.5),
        ("color.set", lambda: rng.choice(COLORS)), ("color.blend", lambda: rng.choice(COLORS)),
        ("vector3.set", lambda: vector(rng, 3)), ("vector3.add", lambda: vector(rng, 3)),
        ("vector3.multiply", lambda: vector(rng, 3)),
        ("vector3.applyQuaternion", lambda: vector(rng, 4)),
        ("vector3.applyEuler", lambda: vector(rng, 3)),
        ("euler.set", lambda: vector(rng, 3)), ("euler.add", lambda: vector(rng, 3)),
        ("quaternion.set", lambda: vector(rng, 4)), ("quaternion.multiply", lambda: vector(rng, 4)),
        ("array.set", lambda: [value(rng)]), ("array.push", lambda: value(rng)),
        ("array.remove", lambda: value(rng)), ("array.union", lambda: [value(rng), value(rng)]),
        ("object.set", lambda: tree(rng)), ("object.merge", lambda: tree(rng)),
    ]  # fmt: skip
    otype, make = rng.choice(choices)
    by_family = {"vector3": "v", "color": "c", "array": "l", "object": "o", "boolean": "b"}
    path = by_family.get(otype.split(".")[0], "x") if rng.random() < 0.7 else rng.choice(PATHS)
    if otype == "object.merge" and rng.random() < 0.3:
        path = "."
    if otype == "string.set" and rng.random() < 0.3:
        path = rng.choice(["name", "tag"])
    return {"otype": otype, "key": rng.choice(KEYS), "path": path, "value": make()}


def node_op(rng: random.Random) -> dict[str, Any]:
    key, other = rng.choice(KEYS), rng.choice(KEYS)
    dice = rng.random()
    data: dict[str, Any] = {"key": f"u{rng.randrange(99)}", "tag": "Mesh", "x": rng.choice(NUMBERS)}
    if dice < 0.4:
        if rng.random() < 0.2:
            data["children"] = [rng.choice(KEYS)]
        op = {"otype": "node.insert", "key": key, "path": "-", "value": data}
        return op | ({"parent": other} if key != "root" else {})
    if dice < 0.5:
        return {"otype": "node.remove", "key": key, "path": "-"}
    if dice < 0.7:
        value = {"nodeKey": key, "newParent": other}
        return {"otype": "node.move", "key": key, "path": "-", "value": value}
    if dice < 0.8:
        otype = rng.choice(["node.upsert", "node.inset"])
        return {"otype": otype, "key": key, "path": "-", "parent": other, "value": data}
    otype = rng.choice(["array.push", "array.remove", "array.union", "array.set"])
    one = otype in ("array.push", "array.remove")
    children = other if one else rng.sample(KEYS, 2)
    return {"otype": otype, "key": key, "path": "children", "value": children}


def text_op(rng: random.Random) -> dict[str, Any]:
    op = {"key": rng.choice(KEYS[:3]), "path": rng.choice("tu")}
    position, content = rng.randrange(12), rng.choice(["a", "bc", "\U0001f600", "def"])
    dice = rng.random()
    if dice < 0.1:
        return op | {"otype": "text.init"} | ({"value": content} if rng.random() < 0.5 else {})
    if dice < 0.6:
        return op | {"otype": "text.insert", "position": position, "value": content}
    if dice < 0.8:
        return op | {"otype": "text.delete", "position": position, "length": rng.randint(1, 4)}
    return op | {
        "otype": "text.replace", "position": position, "length": 2, "value": [None, content],
    }  # fmt: skip


def random_op(rng: random.Random) -> dict[str, Any]:
    dice = rng.random()
    return value_op(rng) if dice < 0.5 else node_op(rng) if dice < 0.75 else text_op(rng)


def act(net: Network, peer: Peer) -> None:
    """One thing a user may do."""
    rng, store = net.random, peer.store
    dice = rng.random()
    if dice < 0.6:
        store.edit(random_op(rng))
        if rng.random() < 0.6:
            store.commit()
    elif dice < 0.75:
        store.commit()
    elif dice < 0.87:
        store.undo()
    elif dice < 0.95:
        store.redo()
    else:
        store.cancel()
