"""Figures of the vuer-rtc core, without a network: what one message costs a store at 1,000 and at
100,000 nodes, 20,000 insertions into a text, and what a join of 10,000 nodes reads of the file.

    python -m bench.vuer_core [--rounds 5]

Times are the best of the rounds, wall clock and this thread's CPU time side by side, so that a busy
machine shows. The targets are those of docs/benchmarks.md; the exit code is 1 where one is missed
in CPU time.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.dialects.vuer.graph import Graph, graph_from_json
from actors.dialects.vuer.message import Message
from actors.dialects.vuer.node import Node
from actors.dialects.vuer.plan import VuerDialect, message_draft
from actors.dialects.vuer.snapshot import read_hash, read_room
from actors.dialects.vuer.tables import Blocks, Table
from actors.dialects.vuer.text import Text
from actors.dialects.vuer.validate import check_message
from actors.ledger import Ledger
from actors.mailbox import Request
from actors.scan import Reader, take_scan
from actors.scope import Scope
from actors.types import Address, ScopePolicy
from edge.client.vuer.store import GraphStore
from tests.support.ledgers import FakeReply, FakeShell
from tests.support.works import Doing

ROOM = Address("default", "rtc:bench")
Timing = tuple[float, float]  # seconds: wall, CPU


def timed(work: Callable[[], Any]) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def best(rounds: int, work: Callable[[], Timing]) -> Timing:
    found = [work() for _ in range(rounds)]
    return min(wall for wall, _ in found), min(cpu for _, cpu in found)


def scene(count: int) -> dict[str, Any]:
    """A flat scene: every node below the root, as most are."""
    keys = [f"k{number}" for number in range(count)]
    props = {"position": [0, 0, 0], "color": "#ff0000"}
    nodes = [Node(key=key, parent="root", ins=(0, "s"), props=props) for key in keys]
    nodes.append(Node(key="root", ins=(0, "s"), children=Blocks(keys)))
    return Graph(Table((node.key, node) for node in nodes), "root").to_json()


def drag(key: str, seq: int) -> dict[str, Any]:
    return {"otype": "vector3.set", "key": key, "path": "position", "value": [seq, 1, 2]}


def store_costs(count: int, messages: int = 5000) -> tuple[Timing, Timing, Timing]:
    """A `receive` alone, with one message pending, and an `edit`, each per call."""
    store = GraphStore("me")
    store.load({"graph": scene(count), "journalIndex": 0}, [], epoch="e")
    rng = random.Random(1)

    def others(first: int) -> list[Message]:
        return [
            Message(
                server_seq=seq, id=f"m{seq}", session_id="o", clock={"o": seq}, lamport=seq,
                timestamp=0, ops=[drag(f"k{rng.randrange(count)}", seq)],
            )
            for seq in range(first, first + messages)
        ]  # fmt: skip

    def hear(wanted: list[Message]) -> None:
        for message in wanted:
            store.receive(message)

    def edits() -> None:
        for seq in range(messages):
            store.edit(drag(f"k{seq % 7}", seq))

    plain = others(1)
    received = timed(lambda: hear(plain))
    edited = timed(edits)
    store.commit()
    more = others(messages + 1)
    rebased = timed(lambda: hear(more))
    per = [(wall / messages, cpu / messages) for wall, cpu in (received, rebased, edited)]
    return per[0], per[1], per[2]


def text_cost(inserts: int = 20_000) -> None:
    rng = random.Random(1)
    text = Text()
    for number in range(inserts):
        text = text.insert("a", number, "x", text.anchor_at(rng.randint(0, number)))
    assert len(text) == inserts


TEXT_JS = """
import { Text } from %s;
let seed = 1;
const below = (n) => (seed = (seed * 1103515245 + 12345) %% 2147483648) %% n;
for (let round = 0; round < 5; round++) {
  let text = new Text();
  const [wall, cpu] = [performance.now(), process.cpuUsage()];
  for (let n = 0; n < 20000; n++) text = text.insert("a", n, "x", text.anchorAt(below(n + 1)));
  const used = process.cpuUsage(cpu);
  console.log((performance.now() - wall) / 1e3, (used.user + used.system) / 1e6);
}
"""


def text_cost_javascript() -> Timing | None:
    """The same in Node, all threads counted; None where there is none."""
    node = shutil.which("node")
    if node is None:
        return None
    module = Path(__file__).resolve().parents[1] / "edge" / "web" / "vuer" / "text.js"
    script = TEXT_JS % json.dumps(module.as_uri())
    command = [node, "--input-type=module", "-e", script]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    found = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    return min(wall for wall, _ in found), min(cpu for _, cpu in found)


class Room:
    """A room of `count` nodes on a file, with a full journal."""

    def __init__(self, directory: Path, count: int) -> None:
        self.path = directory / "room.db"
        shell = FakeShell()
        ledger = Ledger.create(
            self.path, ROOM, dialect="vuer-rtc", epoch="e", at=1, materialize=True
        )
        self.scope = Scope(ROOM, ledger, ScopePolicy(), shell, [])
        self.sent = 0
        self.shell = shell
        self.say([{
            "otype": "node.insert", "key": "root", "path": "-", "value": {"key": "u"},
        }])  # fmt: skip
        for at in range(0, count, 250):
            self.say([
                {
                    "otype": "node.insert", "key": f"k{number}", "path": "-", "parent": "root",
                    "value": {"key": f"u{number}", "position": [0, 0, 0], "color": "#ff0000"},
                }
                for number in range(at, min(count, at + 250))
            ])  # fmt: skip

    def say(self, *messages: list[dict[str, Any]]) -> None:
        drafts = []
        for ops in messages:
            self.sent += 1
            drafts.append(message_draft(check_message({
                "id": f"m{self.sent}", "sessionId": "a", "clock": {"a": self.sent},
                "lamportTime": self.sent, "timestamp": 0, "ops": ops,
            })))  # fmt: skip
        self.scope.append(Request(drafts, FakeReply(), None))
        self.shell.settle()

    def join(self) -> bytes:
        """The text of a `state` frame's snapshot and journal."""
        found = self.read(lambda reader: read_room(reader, at_head=False))
        text: str = found.text + ",".join(entry.body for entry in found.entries)
        return text.encode()

    def hash(self) -> None:
        self.read(read_hash)

    def read(self, work: Callable[[Reader], Any]) -> Any:
        spool = take_scan(self.path, ROOM, Doing(work), self.path.parent, VuerDialect())
        spool.close()
        return spool.result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows: list[tuple[str, Timing, float]] = []
    for count in (1_000, 100_000):
        found = [store_costs(count) for _ in range(max(1, rounds // 2))]
        for at, name in enumerate(("receive", "receive, one pending", "edit")):
            timings = [one[at] for one in found]
            figure = min(w for w, _ in timings), min(c for _, c in timings)
            rows.append((f"{name}, {count:,} nodes", figure, 0.0002))
    rows.append(("20,000 random inserts", best(rounds, lambda: timed(text_cost)), 0.5))
    if (in_node := text_cost_javascript()) is not None:
        rows.append(("20,000 random inserts, JavaScript", in_node, 0.5))
    with tempfile.TemporaryDirectory() as name:
        room = Room(Path(name), 10_000)
        batch = [[drag(f"k{number}", number)] for number in range(250)]
        while room.scope.ledger.header.floor == 0:
            room.say(*batch)
        while (kept := room.scope.head - room.scope.ledger.header.floor) < 990:
            room.say(*batch[: 990 - kept])
        label = f"join, 10,000 nodes, {len(room.join()) >> 10:,} KiB"
        rows.append((label, best(rounds, lambda: timed(room.join)), 0.15))
        snapshot = json.loads(_graph_of(room))
        figure = best(rounds, lambda: timed(lambda: graph_from_json(snapshot)))
        rows.append(("the same, read by a Python client", figure, 0.15))
        rows.append(("state hash, 10,000 nodes", best(rounds, lambda: timed(room.hash)), 1.0))
        undo = {"otype": "meta.undo", "targetMsgId": f"m{room.sent}"}
        head = room.scope.head
        rows.append(("undo over a tail of 990", timed(lambda: room.say([undo])), 0.1))
        assert room.scope.head == head + 1
        room.scope.ledger.close()
    print(f"{'':44} {'wall':>12} {'CPU':>12} {'target':>12}")
    missed = False
    for label, (wall, cpu), target in rows:
        missed = missed or cpu > target
        print(f"{label:44} {_ms(wall)} {_ms(cpu)} {_ms(target)}")
    return int(missed)


def _graph_of(room: Room) -> str:
    found = room.read(lambda reader: read_room(reader, at_head=True))
    graph: str = json.dumps(json.loads(found.text)["graph"])
    return graph


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:9.3f} ms"


if __name__ == "__main__":
    sys.exit(main())
