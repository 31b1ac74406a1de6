"""What a join reads of a room's file in one go: `port.scan(address, work)` with these. Pure.

A room at its floor is its rows at head, with the base's in place of those that were touched since.
Rows that lag behind were touched since, so at the head they are made of the base and the journal.
The text is put together inside SQLite, where 10,000 nodes are a few milliseconds.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors.dialects.vuer.hashing import node_hash, state_hash, state_hash_of, wire_hash
from actors.dialects.vuer.message import decode_message
from actors.dialects.vuer.node import Node, from_wire, to_wire
from actors.dialects.vuer.scene import Scene
from actors.dialects.vuer.undo import fold, undone_at_end
from actors.scan import Reader
from actors.types import Entry
from actors.visible import entry_of

_AT_FLOOR = (
    "SELECT r.id AS id, r.body AS body FROM rows r WHERE r.coll='node' AND r.deleted=:places"
    " AND NOT EXISTS (SELECT 1 FROM rows b WHERE b.coll='base' AND b.id=r.id)"
    " UNION ALL SELECT id, body FROM rows WHERE coll='base' AND id<>'' AND body<>'null'"
    " AND deleted=:places"
)
_AT_HEAD = (
    "SELECT id, body FROM rows WHERE coll='node' AND deleted=:places"
    " AND id NOT IN (SELECT id FROM unfolded)"
)
_JOINED = "SELECT coalesce(group_concat(json_quote(id) || ':' || body), '') FROM ({})"
_ENTRIES = (
    "SELECT seq, at, kind, cause, body, origin, ref, grp, stamp1, stamp2, flags FROM entries"
    " WHERE seq>? ORDER BY seq LIMIT ?"
)
_NODES_A_TIME = 1000


class RoomSnapshot(msgspec.Struct, frozen=True):
    """`text` is the JSON of `{graph, journalIndex, vectorClock, lamportTime, epoch}`, `entries` the
    first of those after `journalIndex`.
    """

    text: str
    journal_index: int
    lamport: int
    floor_at: int
    entries: list[Entry]


def read_room(reader: Reader, *, at_head: bool, entries_max: int = 1000) -> RoomSnapshot:
    """The room at its floor with the newest messages, or at its head without any."""
    header = reader.header
    nodes = _AT_HEAD if at_head else _AT_FLOOR
    tails = read_tails(reader) if at_head else []
    found = [_joined(reader, nodes, tails, places) for places in (False, True)]
    text, tree = found
    root = msgspec.json.encode(_root(reader, at_head=at_head)).decode()
    places = f',"tree":{{{tree}}}' if tree else ""
    index = header.head if at_head else header.floor
    about = msgspec.json.encode({
        "journalIndex": index, "vectorClock": read_clocks(reader),
        "lamportTime": int(header.clock or 0), "epoch": header.epoch,
    }).decode()  # fmt: skip
    graph = f'{{"graph":{{"nodes":{{{text}}},"rootKey":{root}{places}}},{about[1:]}'
    entries = [] if at_head else reader.rows(_ENTRIES, (index, entries_max))
    return RoomSnapshot(
        graph, index, int(header.clock or 0), header.floor_at, [entry_of(row) for row in entries]
    )


def _joined(reader: Reader, nodes: str, tails: list[Node], places: bool) -> str:
    """Members of a JSON object: the nodes, or the empty places, by key."""
    ((text,),) = reader.rows(_JOINED.format(nodes), {"places": int(places)})
    late = {node.key: to_wire(node) for node in tails if (node.ins is None) is places}
    more = msgspec.json.encode(late).decode()[1:-1]
    return f"{text},{more}" if text and more else text or more


def read_tails(reader: Reader) -> list[Node]:
    """The nodes whose rows lag behind, as they are at the head."""
    behind = reader.rows("SELECT id FROM unfolded WHERE coll='node'")
    if not behind:
        return []
    scene = Scene(lambda key: _at_floor(reader, key), _root(reader, at_head=False))
    _fold_journal(reader, scene)
    found = [scene.node(key) for (key,) in behind]
    return [node for node in found if node is not None]


def _at_floor(reader: Reader, key: str) -> Node | None:
    for coll in ("base", "node"):
        rows = reader.rows("SELECT body FROM rows WHERE coll=? AND id=?", (coll, key))
        if rows:
            wire = msgspec.json.decode(rows[0][0])
            return None if wire is None else from_wire(wire)
    return None


def _fold_journal(reader: Reader, scene: Scene) -> None:
    bodies = reader.rows("SELECT body FROM entries ORDER BY seq")
    messages = [decode_message(body) for (body,) in bodies]
    fold(scene, messages, undone_at_end(messages))


def read_clocks(reader: Reader) -> dict[str, int]:
    """How far each session has counted."""
    rows = reader.rows("SELECT id, body FROM rows WHERE coll='session'")
    return {id: msgspec.json.decode(body)["clock"] for id, body in rows}


def read_hash(reader: Reader) -> str:
    """The state hash at head."""
    tails = read_tails(reader)
    hashes = [(node.key, node_hash(node)) for node in tails if node.ins is not None]
    after = ""
    while True:
        page = reader.rows(
            "SELECT id, body FROM rows WHERE coll='node' AND deleted=0 AND id>?"
            " AND id NOT IN (SELECT id FROM unfolded)"
            " ORDER BY id LIMIT ?",
            (after, _NODES_A_TIME),
        )
        if not page:
            return state_hash_of(_root(reader, at_head=True), hashes)
        hashes += [(id, wire_hash(msgspec.json.decode(body))) for id, body in page]
        after = page[-1][0]


def read_refolded_hash(reader: Reader) -> str:
    """The state hash of base and journal folded anew: equal to `read_hash` in a sound file."""
    held: dict[str, Node] = {}
    for places in (0, 1):
        for _, body in reader.rows(_AT_FLOOR, {"places": places}):
            node = from_wire(msgspec.json.decode(body))
            held[node.key] = node
    scene = Scene(held.get, _root(reader, at_head=False))
    _fold_journal(reader, scene)
    every = held | scene.changed
    return state_hash(scene.root_key, every.values())


def _root(reader: Reader, *, at_head: bool) -> str:
    found: list[tuple[Any, ...]] = []
    if not at_head:
        found = reader.rows("SELECT body FROM rows WHERE coll='base' AND id=''")
    found = found or reader.rows("SELECT body FROM rows WHERE coll='room' AND id='tree'")
    return str(msgspec.json.decode(found[0][0])["rootKey"]) if found else ""
