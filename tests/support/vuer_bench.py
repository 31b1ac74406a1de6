"""A vuer room as a scope over a real file, and what is read of it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from actors.check import check_ledger
from actors.dialects.vuer.graph import graph_from_json
from actors.dialects.vuer.message import UNDO, Message
from actors.dialects.vuer.plan import VuerDialect, message_draft
from actors.dialects.vuer.snapshot import (
    RoomSnapshot,
    read_hash,
    read_refolded_hash,
    read_room,
)
from actors.dialects.vuer.validate import check_message
from actors.dialects.vuer.weight import node_weight
from actors.scan import take_scan
from actors.types import Address, Draft
from tests.support.ledgers import Bench, FakeReply
from tests.support.vuer import START
from tests.support.works import Doing

ROOM = Address("default", "rtc:lab")


class VuerBench(Bench):
    """A room over a file, and what a session says in it."""

    def __init__(self, path: Path, made: VuerDialect | None = None) -> None:
        super().__init__(path, address=ROOM, dialect="vuer-rtc", made=made)
        self.counts: dict[str, int] = {}

    def message(self, *ops: dict[str, Any], s: str = "a", **more: Any) -> Message:
        count = self.counts[s] = self.counts.get(s, 0) + 1
        raw = {
            "id": f"{s}:{count}", "sessionId": s, "clock": {s: count}, "timestamp": 0,
            "lamportTime": sum(self.counts.values()), "ops": list(ops),
        }  # fmt: skip
        return check_message(raw | more)

    def send(self, *drafts: Draft) -> list[Any]:
        reply = self.append(list(drafts), reply=FakeReply())
        self.shell.settle()
        return reply.outcomes

    def say(self, *ops: dict[str, Any], **more: Any) -> Any:
        (outcome,) = self.send(message_draft(self.message(*ops, **more)))
        return outcome

    def scan(self, work: Any) -> Any:
        spool = take_scan(self.path, ROOM, Doing(work), self.path.parent, VuerDialect())
        spool.close()
        return spool.result

    def start(self) -> None:
        self.say(*START[0]["ops"])

    def value(self, key: str = "n", path: str = "x") -> Any:
        snapshot: RoomSnapshot = self.scan(lambda reader: read_room(reader, at_head=True))
        graph = graph_from_json(json.loads(snapshot.text)["graph"])
        return graph.value(key, path)

    def flags(self) -> dict[int, int]:
        db = sqlite3.connect(self.path)
        try:
            return dict(db.execute("SELECT seq, flags FROM entries WHERE flags<>0").fetchall())
        finally:
            db.close()

    def sound(self) -> str:
        """The state hash; base and journal fold to it, and the file is as it must be."""
        found: str = self.scan(read_hash)
        assert self.scan(read_refolded_hash) == found
        assert self.bytes == self.recount(), "the kept total is not the sum"
        assert (problems := check_ledger(self.path).problems) == [], problems
        return found

    @property
    def bytes(self) -> int:
        """What the file says that the room weighs."""
        db = sqlite3.connect(self.path)
        try:
            ((body,),) = db.execute("SELECT body FROM rows WHERE coll='room'").fetchall()
            return int(json.loads(body)["bytes"])
        finally:
            db.close()

    def recount(self) -> int:
        """The weight of all nodes and places, as a join gets them."""
        snapshot: RoomSnapshot = self.scan(lambda reader: read_room(reader, at_head=True))
        nodes = graph_from_json(json.loads(snapshot.text)["graph"]).nodes
        return sum(map(node_weight, nodes.values()))


def add(value: float = 1, **more: Any) -> dict[str, Any]:
    return {"otype": "number.add", "key": "n", "path": "x", "value": value, **more}


def undo(target: str, otype: str = UNDO) -> dict[str, Any]:
    return {"otype": otype, "key": "_meta", "path": "_meta", "targetMsgId": target}
