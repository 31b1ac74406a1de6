"""Figures of one vuer-rtc room behind a real server: `python -m bench.vuer_room [--seconds 10]`.

A `holdfast dev` process on a directory of its own, clients in this process over loopback. Prints a
line a measure, and a target where there is one; the exit code is 1 where one is missed.

    drag        10 clients, 60 messages/s each: from a client's send to its receipt by each other
                one, commit included
    saturation  the same 10 send all that a burst allows at once: messages/s until each of the
                others has all of them
    join        a room of 10,000 nodes with a full journal: from `join` to the whole `state`
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import ClientSession, ClientWebSocketResponse

from tests.support.process import ServerProcess
from tests.support.rtc import insert, message, op

CLIENTS, PER_S, BURST = 10, 60, 550
NODES, NODES_A_MESSAGE, JOURNAL = 10_000, 250, 999
DRAG_P50_MS, DRAG_P99_MS, JOIN_MS = 5.0, 25.0, 150.0
_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Client:
    """A socket that notes when each message of others reached it."""

    def __init__(self, name: str, socket: ClientWebSocketResponse) -> None:
        self.name = name
        self.heard: dict[str, float] = {}
        self.acks = 0
        self._socket = socket

    @classmethod
    async def joined(cls, session: ClientSession, url: str, room: str, name: str) -> Client:
        address = f"{url}/rtc/{room}?sessionId={name}"
        client = cls(name, await session.ws_connect(address, max_msg_size=0, compress=0))
        await client.send({"mtype": "join"})
        while (await client.frame())["mtype"] != "state":
            pass
        return client

    async def send(self, frame: dict[str, Any]) -> None:
        await self._socket.send_str(_encode(frame).decode())

    async def write(self, number: int, *ops: dict[str, Any]) -> None:
        await self.send({"mtype": "crdt", "msg": message(self.name, number, *ops)})

    async def frame(self) -> dict[str, Any]:
        found: dict[str, Any] = _decode(await self._socket.receive_str())
        return found

    async def listen(self, count: int) -> None:
        """Until that many messages of others and answers to own ones have come."""
        while len(self.heard) + self.acks < count:
            text = await self._socket.receive_str()
            now = time.perf_counter()
            frame = _decode(text)
            if frame["mtype"] == "ack":
                self.acks += 1
            elif frame["mtype"] == "broadcast":
                for msg in frame.get("msgs") or [frame["msg"]]:
                    self.heard[msg["id"]] = now
            elif frame["mtype"] == "error":
                raise RuntimeError(frame)

    async def close(self) -> None:
        await self._socket.close()


def moved(name: str, number: int) -> dict[str, Any]:
    """What a drag sends."""
    return op("vector3.set", f"cube-{name}", "position", [number / 7, 0.5, -number / 3])


async def together(session: ClientSession, url: str, room: str) -> list[Client]:
    """Ten clients, each with a cube of its own."""
    clients = [await Client.joined(session, url, room, f"c{n}") for n in range(CLIENTS)]
    for client in clients:
        await client.write(1, insert(f"cube-{client.name}"))
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.listen(CLIENTS))
    for client in clients:
        client.heard, client.acks = {}, 0
    return clients


async def drag(session: ClientSession, url: str, seconds: float) -> list[float]:
    """Milliseconds, of each message at each other client, sorted."""
    clients = await together(session, url, "drag")
    count = int(PER_S * seconds)
    sent: dict[str, float] = {}
    start = time.perf_counter() + 0.1

    async def write(index: int, client: Client) -> None:
        for number in range(2, count + 2):
            # Spread over the interval: people do not move in step.
            due = start + (number - 2 + index / CLIENTS) / PER_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent[f"{client.name}:{number}"] = time.perf_counter()
            await client.write(number, moved(client.name, number))

    async with asyncio.TaskGroup() as group:
        for index, client in enumerate(clients):
            group.create_task(write(index, client))
            group.create_task(client.listen(count * CLIENTS))
    for client in clients:
        await client.close()
    return sorted(
        (at - sent[id]) * 1000 for client in clients for id, at in client.heard.items()
    )  # fmt: skip


async def saturation(session: ClientSession, url: str) -> float:
    """Messages per second."""
    clients = await together(session, url, "burst")
    begin = time.perf_counter()

    async def write(client: Client) -> None:
        for number in range(2, BURST + 2):
            await client.write(number, moved(client.name, number))

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(write(client))
            group.create_task(client.listen(BURST * CLIENTS))
    spent = time.perf_counter() - begin
    for client in clients:
        await client.close()
    return BURST * CLIENTS / spent


async def fill(session: ClientSession, url: str) -> None:
    """10,000 nodes, then so many messages that the journal is full."""
    writes: list[list[dict[str, Any]]] = [[insert("root")]]
    for start in range(0, NODES - 1, NODES_A_MESSAGE):
        keys = range(start, min(start + NODES_A_MESSAGE, NODES - 1))
        writes.append([insert(f"n{key}", "root", position=[key, 0, 0]) for key in keys])
    # The floor moves at 1,000 messages, to 100 below the head of the batch that made them so many.
    head, floor = await fill_with(session, url, writes + [[moved_node(n)] for n in range(1000)])
    lacking = floor + JOURNAL - head
    head, floor = await fill_with(session, url, [[moved_node(n)] for n in range(lacking)])
    assert head - floor == JOURNAL, (head, floor)


async def fill_with(
    session: ClientSession, url: str, writes: list[list[dict[str, Any]]]
) -> tuple[int, int]:
    """Write messages by as many sessions as their bursts need; (head, floor)."""
    sent = 0
    while True:
        client = await Client.joined(session, url, "big", f"w{time.perf_counter_ns()}")
        part = writes[sent : sent + BURST]
        for number, ops in enumerate(part, 1):
            await client.write(number, *ops)
        while client.acks < len(part):
            frame = await client.frame()
            if frame["mtype"] == "error":
                raise RuntimeError(frame)
            client.acks += frame["mtype"] == "ack"
        sent += len(part)
        await client.send({"mtype": "heartbeat"})
        while (beat := await client.frame())["mtype"] != "heartbeat":
            pass
        await client.close()
        if sent >= len(writes):
            return beat["serverSeq"], beat["floorSeq"]


def moved_node(number: int) -> dict[str, Any]:
    return op("vector3.set", f"n{number % (NODES - 1)}", "position", [number, 1, 2])


async def join(session: ClientSession, url: str, count: int) -> tuple[list[float], int, int]:
    """(milliseconds, sorted; bytes of the frame; messages in it)."""
    found, size, kept = [], 0, 0
    for number in range(count):
        address = f"{url}/rtc/big?sessionId=j{number}"
        async with session.ws_connect(address, max_msg_size=0, compress=0) as socket:
            begin = time.perf_counter()
            await socket.send_str('{"mtype":"join"}')
            text = await socket.receive_str()
            found.append((time.perf_counter() - begin) * 1000)
            state = _decode(text)
            assert state["mtype"] == "state", state
            size, kept = len(text), len(state["journal"])
            await socket.send_str('{"mtype":"leave"}')
    return sorted(found), size, kept


class Report:
    """Lines, and whether each target was met."""

    def __init__(self) -> None:
        self.missed = 0

    def line(self, name: str, value: float, unit: str, target: float | None = None) -> None:
        said = "" if target is None else f"   target {target:g}"
        if target is not None and value > target:
            self.missed += 1
            said += "  MISSED"
        print(f"{name:<48} {value:>10,.2f} {unit}{said}", flush=True)


def cpu_s(pid: int) -> float:
    """CPU seconds of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(url: str, pid: int, seconds: float) -> int:
    report = Report()
    async with ClientSession() as session:
        cpu, mine, began = cpu_s(pid), time.process_time(), time.perf_counter()
        found = await drag(session, url, seconds)
        wall = time.perf_counter() - began
        report.line("drag, cores used by the server", (cpu_s(pid) - cpu) / wall, "")
        report.line("drag, cores used by the ten clients", (time.process_time() - mine) / wall, "")
        report.line(f"drag, {len(found):,} deliveries, p50", statistics.median(found), "ms",
                    DRAG_P50_MS)  # fmt: skip
        report.line("drag, p99", found[int(len(found) * 0.99)], "ms", DRAG_P99_MS)
        report.line("saturation, 10 clients", await saturation(session, url), "messages/s")
        await fill(session, url)
        times, size, kept = await join(session, url, 20)
        report.line(f"join, {size / 1e6:.1f} MB, {kept} messages, p50", statistics.median(times),
                    "ms", JOIN_MS)  # fmt: skip
        report.line("join, slowest of 20", times[-1], "ms")
    return report.missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        ServerProcess(Path(directory), "dev") as server,
    ):
        sys.exit(1 if asyncio.run(measure(server.url, server.pid, args.seconds)) else 0)


if __name__ == "__main__":
    main()
