"""`python -m bench.edges`: the edges of a server are restarted under 1,000 clients.

Clients follow scopes that are written all the time. Once all are live, every edge process gets
SIGTERM, or SIGKILL; the supervisor starts it again, and the clients come back as clients do: after
the `retry_after_ms` of the close frame where the server could say one, else after the delay of
edge/client, which grows while nobody answers. A client is live again with the `caughtUp` of its
scope. Exit code 1 where the last one takes more than `--bar` seconds, or where any client saw a gap
or a repeat, over all that was written before, during and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bench.gen import lg, meter
from bench.gen.loop import run
from bench.loads import Row, _until
from bench.process import Server
from bench.roster import PEERS
from edge.client.subscriptions import reconnect_delay
from infra import ids

HERE = Path(__file__).resolve().parent
WAIT_S = 60.0
_HINT = re.compile(rb"retry_after_ms=(\d+)")


class _Socket(lg.WS):
    """Also tells of the end, and of what the close frame said."""

    __slots__ = ("ended", "reason")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ended = asyncio.Event()
        self.reason = b""

    def _frame(self, op: int, body: bytes) -> None:
        if op == 8:
            self.reason = bytes(body[2:])
            self.tr.write(lg.frame(body[:2], 8))
        super()._frame(op, body)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.ended.set()


class Client:
    """One that keeps its connection, whatever it takes."""

    def __init__(self, ad: Any, room: str) -> None:
        self.ad, self.room = ad, room
        self.live_at: float | None = None
        self.hinted = self.attempts = 0
        self._attempt = 0
        self._socket: _Socket | None = None

    async def keep(self) -> None:
        """Connect, and again after each end."""
        while True:
            self.attempts += 1
            try:
                self._socket = await self._connect()
                self.greet(self._socket)
                await self._socket.ended.wait()
                hint = _HINT.search(self._socket.reason)
            except (OSError, RuntimeError):
                hint = None
            self.live_at = self._socket = None
            if hint is not None:
                self.hinted += 1
                await asyncio.sleep(int(hint[1]) / 1000)
            else:
                await asyncio.sleep(reconnect_delay(self._attempt, ids.random()))
                self._attempt += 1

    def live(self) -> None:
        """The connection is of use."""
        self._attempt = 0
        self.live_at = self.live_at or time.perf_counter()

    def send(self, frame: dict[str, Any]) -> None:
        """Lost where there is no connection."""
        if self._socket is not None and not self._socket.tr.is_closing():
            self._socket.send(json.dumps(frame).encode())

    def greet(self, socket: _Socket) -> None:
        """It is open."""

    def heard(self, ws: lg.WS, op: int, data: bytes) -> None:
        """A frame came."""

    async def _connect(self) -> _Socket:
        session = self.ad.session(self.room, "w", None, 0)
        ws = _Socket(self.ad.host, session.path, session.headers, self.heard)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            await loop.create_connection(lambda: ws, self.ad.ip, self.ad.port)
            await ws.opened
        return ws


class Reader(Client):
    """Follows a scope from its cursor on and looks at every seq."""

    def __init__(self, ad: Any, room: str) -> None:
        super().__init__(ad, room)
        self.scope = f"{ad.kind}:{room}"
        self.seen = self.gaps = self.repeats = 0

    def greet(self, socket: _Socket) -> None:
        self.send({"type": "sub", "scope": self.scope, "batch": True, "since": self.seen})

    def heard(self, ws: lg.WS, op: int, data: bytes) -> None:
        frame = json.loads(data)
        if frame["type"] == "caughtUp":
            self.live()
        elif frame["type"] in ("error", "scopeError"):
            self.send({"type": "sub", "scope": self.scope, "batch": True, "since": self.seen})
        for envelope in frame.get("envelopes", ()):
            seq = envelope["seq"]
            self.gaps += seq > self.seen + 1
            self.repeats += seq <= self.seen
            self.seen = max(self.seen, seq)


class Writer(Client):
    """Writes to the scopes in turn, each envelope until it is acknowledged."""

    def __init__(self, ad: Any, rooms: list[str], rate: float) -> None:
        super().__init__(ad, rooms[0])
        self.heads = dict.fromkeys((f"{ad.kind}:{room}" for room in rooms), 0)
        self.stop = False
        self._rate = rate
        self._acked = asyncio.Event()
        self._unique = secrets.token_hex(6)

    async def write(self) -> None:
        """Until told to stop."""
        scopes, number = list(self.heads), 0
        while not self.stop:
            began = time.perf_counter()
            self._acked.clear()
            scope = scopes[number % len(scopes)]
            while not self._acked.is_set():
                self._publish(number, scope)
                try:
                    async with asyncio.timeout(0.5):
                        await self._acked.wait()
                except TimeoutError:
                    continue  # the same again, under the same eventId
            number += 1
            await asyncio.sleep(max(0.0, began + 1 / self._rate - time.perf_counter()))

    def _publish(self, number: int, scope: str) -> None:
        entity = {"key": "e:1", "patches": [{"op": "set", "path": "/v", "value": number}]}
        event = {"eventId": f"{self._unique}-{number}", "kind": "patch", "entities": [entity]}
        self.send({"type": "publish", "id": number, "scope": scope, "envelopes": [event]})

    def heard(self, ws: lg.WS, op: int, data: bytes) -> None:
        frame = json.loads(data)
        if frame["type"] == "published" and "seq" in (result := frame["results"][0]):
            scope = frame["scope"]
            self.heads[scope] = max(self.heads[scope], result["seq"])
            self._acked.set()


def edges_of(server: Server) -> list[int]:
    """The edge processes."""
    found = []
    for pid in meter.tree(server.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[-2:-1] == [b"edge"]:
            found.append(pid)
    return found


async def measure(server: Server, ad: Any, clients: int, rooms: int, rate: float, how: str) -> Row:
    """One restart of all edges."""
    names = [f"edges-{number}" for number in range(rooms)]
    readers = [Reader(ad, names[number % rooms]) for number in range(clients)]
    writer = Writer(ad, names, rate)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(writer.keep())]
        writing = group.create_task(writer.write())
        for reader in readers:
            tasks.append(group.create_task(reader.keep()))
            await asyncio.sleep(0)
        await _until(lambda: all(r.live_at for r in readers), WAIT_S)
        await asyncio.sleep(2)
        if not all(reader.live_at for reader in readers):
            raise RuntimeError("not all clients were live before the restart")
        attempts = sum(reader.attempts for reader in readers)
        began = time.perf_counter()
        for pid in edges_of(server):
            os.kill(pid, signal.SIGTERM if how == "term" else signal.SIGKILL)

        def back() -> list[float]:
            return sorted(r.live_at for r in readers if r.live_at and r.live_at > began)

        await _until(lambda: len(back()) == clients, WAIT_S)
        times = [at - began for at in back()]
        await asyncio.sleep(2)
        writer.stop = True
        await writing
        heads = writer.heads
        await _until(lambda: all(r.seen == heads[r.scope] for r in readers), 20)
        for task in tasks:
            task.cancel()
    return {
        "clients": clients,
        "live_again": len(times),
        "first_s": times[0],
        "p50_s": times[len(times) // 2],
        "last_s": times[-1],
        "hinted": sum(reader.hinted for reader in readers),
        "attempts": sum(reader.attempts for reader in readers) - attempts,
        "written": sum(heads.values()),
        "behind": sum(reader.seen != heads[reader.scope] for reader in readers),
        "gaps": sum(reader.gaps for reader in readers),
        "repeats": sum(reader.repeats for reader in readers),
    }


def one_run(peer: str, how: str, args: argparse.Namespace, work: Path) -> Row:
    """`measure` on a server of its own."""
    server = Server(PEERS[peer], work).start()
    try:
        ad = PEERS[peer].adapter(server.port, "W4")
        row = run(measure(server, ad, args.clients, args.scopes, args.rate, how))
    finally:
        server.stop()
    rounded = {key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}
    return {"peer": peer, "how": how, **rounded}


def main() -> int:
    """Print each run as a JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.edges", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--peers", default="holdfast-e1a1,holdfast-e2a1")
    parser.add_argument("--how", default="term,kill")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--scopes", type=int, default=50)
    parser.add_argument("--rate", type=float, default=100.0, help="messages/s over all scopes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--bar", type=float, default=10.0, help="seconds until the last is live")
    parser.add_argument("--work", type=Path, help="data directories")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    work = args.work or Path(os.environ.get("BENCH_WORK", HERE / "results" / "work"))
    work.mkdir(parents=True, exist_ok=True)
    good = True
    for number in range(args.runs):
        for peer in args.peers.split(","):
            for how in args.how.split(","):
                row = one_run(peer, how, args, work)
                print(json.dumps({"run": number, **row}), flush=True)
                wrong = row["behind"] + row["gaps"] + row["repeats"]
                good &= row["live_again"] == args.clients and row["last_s"] <= args.bar
                good &= not wrong
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
