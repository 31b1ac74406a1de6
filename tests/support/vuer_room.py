"""A room and its clients without files, sockets or clock: the actor's own plan, the stores, and a
network that loses, repeats and reorders. One seed makes one history.
"""

from __future__ import annotations

import copy
import json
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from actors.batch_plan import BatchPlan
from actors.dedupe import DedupeWindow
from actors.dialects.vuer.graph import Graph, graph_from_json
from actors.dialects.vuer.hashing import state_hash
from actors.dialects.vuer.message import Message, VuerRefusal, encode_message
from actors.dialects.vuer.plan import VuerDialect, message_draft
from actors.dialects.vuer.rooms import BASES, NODES, Held, Room, node_of
from actors.dialects.vuer.undo import fold, undone_at_end
from actors.dialects.vuer.validate import check_message
from actors.dialects.vuer.weight import node_weight
from actors.host_settings import Counts
from actors.rows import Key, Overlay, Row, RowCache, wire_value
from actors.types import Appended, Duplicate, Entry, Rejected
from edge.client.vuer.store import GraphStore

EPOCH_JUMP = 1 << 20


@dataclass
class _Header:
    head: int = 0
    floor: int = 0
    floor_at: int = 0
    jump: int = 0
    bytes: int = 0
    clock: str | None = None
    materialize: bool = True


@dataclass
class RoomServer:
    """Fits what BatchPlan asks of a Ledger."""

    dialect: VuerDialect
    header: _Header = field(default_factory=_Header)
    stored: dict[Key, Row] = field(default_factory=dict)
    journal: list[Entry] = field(default_factory=list)
    causes: dict[str, int] = field(default_factory=dict)
    epoch: int = 1
    now: int = 1_000
    sent: dict[int, str] = field(default_factory=dict)  # bodies of the last batch
    path: Path = Path("room.db")

    def recall(self, cause: str, seq: int) -> Duplicate:
        return Duplicate(seq)

    def row(self, coll: str, id: str) -> Row | None:
        return self.stored.get((coll, id))

    def entries(self, after: int, upto: int) -> list[Entry]:
        return [entry for entry in self.journal if after < entry.seq <= upto]

    def ids(self, coll: str) -> list[str]:
        return [id for held, id in self.stored if held == coll]

    def append(self, messages: list[tuple[Message, bool]]) -> list[Any]:
        """One batch of (message, undo_any); outcomes as the actor gives them."""
        self.now += 1
        rows = RowCache(self.row, self.entries, self.ids)
        window = DedupeWindow(list(self.causes.items()))
        batch = BatchPlan(self, self.dialect, rows, window, Counts(), self.now)  # type: ignore[arg-type]
        outcomes = [batch.plan_one(message_draft(m, undo_any=any_)) for m, any_ in messages]
        write = batch.write([], None)
        if write is not None:
            self._commit(write, batch)
        return outcomes

    def _commit(self, write: Any, batch: BatchPlan) -> None:
        self.stored = {key: row for key, row in self.stored.items() if key[0] not in write.cleared}
        for key, row in batch.overlay.batch.items():
            if row is None:
                self.stored.pop(key, None)
            else:  # through JSON, as a file would have it
                text = msgspec.json.encode(row.value, enc_hook=wire_value)
                self.stored[key] = msgspec.structs.replace(row, value=msgspec.json.decode(text))
        self.journal += [msgspec.structs.replace(entry, data=None) for entry in write.entries]
        for entry in self.journal:
            entry.flags = write.flags.get(entry.seq, entry.flags)
        self.causes |= batch.causes
        self.sent = {entry.seq: entry.body for entry in write.entries}
        header = self.header
        if write.entries:
            header.head = write.entries[-1].seq
        if write.clock is not None:
            header.clock = write.clock
        if write.floor is not None:
            header.floor, header.floor_at = write.floor, header.head
            self.journal = [entry for entry in self.journal if entry.seq > write.floor]

    def restored(self, kept: RoomServer) -> None:
        """The machine was lost: go on from an older copy, as `Ledger.move_epoch` does."""
        self.stored = copy.deepcopy(kept.stored)
        self.causes = {cause: seq + EPOCH_JUMP for cause, seq in kept.causes.items()}
        self.journal = [
            msgspec.structs.replace(
                entry, seq=entry.seq + EPOCH_JUMP,
                body=self.dialect.renumber(entry.body, entry.seq + EPOCH_JUMP),
            )
            for entry in kept.journal
        ]  # fmt: skip
        old = kept.header
        floor = old.floor + EPOCH_JUMP
        jump = old.jump + EPOCH_JUMP
        self.header = _Header(old.head + EPOCH_JUMP, floor, floor, jump, clock=old.clock)
        self.epoch += 1

    def copy(self) -> RoomServer:
        kept = RoomServer(self.dialect, copy.copy(self.header))
        kept.stored, kept.causes = copy.deepcopy(self.stored), dict(self.causes)
        kept.journal = [msgspec.structs.replace(entry) for entry in self.journal]
        return kept

    # -- what joins and checks read ----------------------------------------------------------------

    def _overlay(self) -> Overlay:
        rows = RowCache(self.row, self.entries, self.ids)
        return Overlay(rows, at=0, floor=self.header.floor, clock=self.header.clock)

    def graph_at_floor(self) -> dict[str, Any]:
        room = Room(self._overlay())
        keys = {id for coll, id in self.stored if coll in (NODES, BASES)} - {""}
        nodes: dict[str, Any] = {}
        tree: dict[str, Any] = {}
        for key in keys:
            node = room.base(key)
            if node is not None:
                (nodes if node.ins is not None else tree)[key] = Held(node).wire()
        return {"nodes": nodes, "tree": tree, "rootKey": room.base_root}

    def hash(self) -> str:
        nodes = [node_of(row) for (coll, _), row in self.stored.items() if coll == NODES]
        room = Room(self._overlay())
        assert room.node_count == sum(n is not None and n.ins is not None for n in nodes)
        assert room.bytes == sum(map(node_weight, nodes)), "the kept total is not the sum"
        return state_hash(room.root_key, [node for node in nodes if node is not None])

    def refolded_hash(self) -> str:
        """Of base and journal alone."""
        base = graph_from_json(self.graph_at_floor())
        scene = base.scene()
        messages = self.messages(self.header.floor)
        undone = undone_at_end(messages)
        fold(scene, messages, undone)
        assert {e.cause for e in self.journal if e.flags} == undone & {
            e.cause for e in self.journal if e.kind == "msg"
        }
        return base.with_scene(scene).hash()

    def messages(self, after: int) -> list[Message]:
        return [
            msgspec.json.decode(entry.body, type=Message)
            for entry in self.journal
            if entry.seq > after
        ]


class Peer:
    """A client on a bad line. `inbox` holds what the server sent and it has not heard yet."""

    def __init__(self, name: str, net: Network) -> None:
        self.name = name
        self.net = net
        self.online = False
        self.ready = False  # has heard a `state` on this line: only then does it send
        self.outbox: deque[Message] = deque()
        self.inbox: list[dict[str, Any]] = []
        self.store = GraphStore(name, self.outbox.append, now_ms=net.tick, on_sync=self._sync)

    def _sync(self, since: int) -> None:
        if self.online:
            self.inbox += self.net.catch_up(self, since)

    def join(self) -> None:
        self.online, self.ready = True, False
        self.inbox.append(self.net.state(self.store))
        self.outbox = deque()
        self.store._on_send = self.outbox.append

    def leave(self) -> None:
        self.online = False
        self.inbox.clear()
        self.outbox.clear()

    def hear(self, frame: dict[str, Any]) -> None:
        store = self.store
        match frame["kind"]:
            case "state":
                again = store.load(
                    frame["snapshot"], frame["journal"], epoch=frame["epoch"],
                    floor_at=frame["floorAt"], lamport=frame["lamport"],
                    durable_seq=frame["durable"],
                )  # fmt: skip
                self.outbox, self.ready = deque(again), True
                store._on_send = self.outbox.append
            case "msg":
                store.receive(frame["msg"])
            case "ack":
                store.ack(frame["id"], frame["seq"], frame["msg"])
            case "error":
                store.reject(frame["id"], VuerRefusal(frame["code"], "refused"))
            case "floor":
                store.settle(
                    floor_seq=frame["floor"], floor_at=frame["floorAt"],
                    durable_seq=frame["durable"],
                )  # fmt: skip


class Network:
    """A history: see `run`."""

    def __init__(self, seed: int, peers: int | None = None, *, faults: bool = True) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        every = self.random.choice([4, 8, 16, 1000])
        self.server = RoomServer(VuerDialect(snapshot_every=every, keep_tail=max(1, every // 4)))
        self.saved = self.server.copy()  # what object storage has
        self.clock = 0
        self.acked: set[str] = set()
        self.expired: set[str] = set()  # undos whose target was compacted before they came
        count = peers or self.random.randint(2, 5)
        self.peers = [Peer(f"s{i}", self) for i in range(count)]

    def tick(self) -> int:
        self.clock += 67
        return self.clock

    def chance(self, share: float) -> bool:
        return self.faults and self.random.random() < share

    # -- frames ------------------------------------------------------------------------------------

    def state(self, store: GraphStore) -> dict[str, Any]:
        header, server = self.server.header, self.server
        resume = store.epoch == str(server.epoch) and (
            header.floor <= store.confirmed_seq <= header.head
        )
        since = store.confirmed_seq if resume else header.floor
        snapshot = None
        if not resume:
            snapshot = json.loads(
                json.dumps({"graph": server.graph_at_floor(), "journalIndex": header.floor})
            )
        return {
            "kind": "state", "epoch": str(server.epoch), "snapshot": snapshot,
            "journal": server.messages(since), "floorAt": header.floor_at,
            "lamport": int(header.clock or 0), "durable": self.durable,
        }  # fmt: skip

    @property
    def durable(self) -> int:
        return self.saved.header.head

    def catch_up(self, peer: Peer, since: int) -> list[dict[str, Any]]:
        """The answer to `sync`."""
        header = self.server.header
        if not header.floor <= since <= header.head or peer.store.epoch != str(self.server.epoch):
            return [self.state(peer.store)]
        return [{"kind": "msg", "msg": message} for message in self.server.messages(since)]

    def deliver(self, peer: Peer, most: int = 3) -> None:
        """Take what a peer sent, as one batch."""
        if not peer.ready:
            return
        taken = [peer.outbox.popleft() for _ in range(min(most, len(peer.outbox)))]
        checked: list[Message] = []
        broken = False
        for message in taken:
            if self.chance(0.05):  # the line breaks: neither this nor what follows arrives
                broken = True
                break
            again = msgspec.json.decode(encode_message(message))
            checked += [check_message(again, session_id=peer.name)] * (2 if self.chance(0.1) else 1)
        outcomes = self.server.append([(message, False) for message in checked])
        for message, outcome in zip(checked, outcomes, strict=True):
            self._answer(peer, message, outcome)
        if broken:
            peer.leave()

    def _answer(self, peer: Peer, message: Message, outcome: Any) -> None:
        match outcome:
            case Appended(last=seq, outcome=rewritten):
                body = None if rewritten is None else json.loads(rewritten)
                self._send(peer, {"kind": "ack", "id": message.id, "seq": seq, "msg": body})
                sent = self.server.sent[seq]
                for other in self.peers:
                    if other is not peer:
                        self._send(other, {"kind": "msg", "msg": json.loads(sent)})
            case Duplicate(seq=seq):
                self._send(peer, {"kind": "ack", "id": message.id, "seq": seq, "msg": None})
            case Rejected(code=code):
                assert code != "internal", outcome
                if code == "undo_expired":
                    self.expired.add(message.id)
                self._send(peer, {"kind": "error", "id": message.id, "code": code})

    def _send(self, peer: Peer, frame: dict[str, Any]) -> None:
        if not peer.online or self.chance(0.1):
            return
        for _ in range(2 if self.chance(0.1) else 1):
            peer.inbox.append(frame)

    def hear(self, peer: Peer) -> None:
        """One frame, mostly the oldest."""
        if peer.inbox:
            at = self.random.randrange(len(peer.inbox)) if self.chance(0.2) else 0
            if peer.inbox[at]["kind"] == "state":
                at = 0
            frame = peer.inbox.pop(at)
            peer.hear(frame)
            if frame["kind"] == "ack":
                self.acked.add(frame["id"])

    # -- a whole history ---------------------------------------------------------------------------

    def run(self, steps: int, act: Any) -> None:
        """`act(network, peer)` lets a peer do something."""
        for peer in self.peers:
            peer.join()
        for _ in range(steps):
            peer, dice = self.random.choice(self.peers), self.random.random()
            if dice < 0.4:
                act(self, peer)
            elif dice < 0.6:
                if peer.online:
                    self.deliver(peer)
                    self.tell_floor(self.random.choice(self.peers))
            elif dice < 0.9:
                self.hear(peer)
            elif dice < 0.93:
                self.tell_floor(peer)
            elif dice < 0.96 and self.faults:
                (peer.leave if peer.online else peer.join)()
            elif dice < 0.98:
                self.saved = self.server.copy()
            elif self.chance(0.3):
                self.crash()
        self.settle()

    def tell_floor(self, peer: Peer) -> None:
        """As a heartbeat does; it may overtake messages."""
        header = self.server.header
        if peer.online and peer.store.epoch == str(self.server.epoch):
            frame = {"kind": "floor", "floor": header.floor, "floorAt": header.floor_at}
            peer.hear(frame | {"durable": self.durable})

    def crash(self) -> None:
        """Everything since the last save is gone, and every line is cut."""
        self.server.restored(self.saved)
        self.saved = self.server.copy()
        for peer in self.peers:
            peer.leave()

    def settle(self) -> None:
        """Faults end; everybody reconnects until nothing is left to say."""
        self.faults = False
        for peer in self.peers:
            peer.store.commit()
            peer.leave()
            peer.join()
        for _ in range(200):
            busy = False
            for peer in self.peers:
                while peer.inbox:
                    self.hear(peer)
                    busy = True
                if peer.outbox:
                    self.deliver(peer, 100)
                    busy = True
            if not busy:
                return
        raise AssertionError("the peers do not come to rest")


def disagreements(net: Network) -> list[str]:
    """Where a replica differs from the server, or the server from its own base and journal."""
    server = net.server
    wanted = server.hash()
    found = [] if server.refolded_hash() == wanted else ["server: base and journal"]
    found += [
        f"acknowledged and missing: {id}" for id in net.acked - net.expired - server.causes.keys()
    ]
    for peer in net.peers:
        store = peer.store
        if store.confirmed_seq != server.header.head:
            found.append(f"{peer.name}: at {store.confirmed_seq} of {server.header.head}")
        if store.pending:
            found.append(f"{peer.name}: {len(store.pending)} pending")
        refolded = store.base.scene()
        fold(refolded, store.tail, undone_at_end(store.tail))
        graphs: dict[str, Graph] = {
            "confirmed": store.confirmed, "view": store.graph,
            "base and tail": store.base.with_scene(refolded),
        }  # fmt: skip
        found += [f"{peer.name}: {name}" for name, g in graphs.items() if g.hash() != wanted]
    return found
