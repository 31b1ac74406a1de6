"""StrataSync figures of one server process: `python -m bench.strata [--rows N]`.

A real `holdfast serve` on a directory of its own, a client in this process over loopback. Prints a
line a measure: writes one at a time and by fifty, by one client and by sixteen; the time from a
request to its live delta at another socket; bootstrap of N rows, with the server's memory and the
latency of writes meanwhile.

With `--against BASE` another server that runs already takes turns with it, in short rounds: what
else the machine does then burdens both, and the median of the rounds' ratios says how they compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientSession

from tests.support.process import ServerProcess
from tests.support.strata import NAME, tx

APP = """
from tests.support.strata import Calls, make_app
calls = Calls()
calls.groups = {"ann": [f"ws{n}" for n in range(20)]}
app = make_app(calls)
"""
LOADS = ((1, 1), (50, 1), (1, 16), (50, 16))  # transactions in a request, clients
HEADERS = {"Authorization": "Bearer ann", "Content-Type": "application/json"}


class Bench:
    """One server and one client session. `base` ends in `/sync`."""

    def __init__(self, base: str, session: ClientSession) -> None:
        self.session = session
        self.base = base
        self.count = 0
        self.last = 0  # the newest syncId
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def mutate(self, size: int, group: str = "ws1") -> None:
        batch = []
        for _ in range(size):
            self.count += 1
            payload = {"title": "a task of some words", "workspaceId": group}
            batch.append(tx("INSERT", "Task", f"t{self.count:08}", payload))
        body = json.dumps({"batchId": "b", "transactions": batch}).encode()
        found = json.loads(await self._post(body))
        assert found["success"], found
        self.last = int(found["lastSyncId"])

    async def _post(self, body: bytes) -> bytes:
        """A mutate request over a bare stream: a library would cost as much as the server."""
        address = urlsplit(self.base)
        pair = self._idle.pop() if self._idle else None
        reader, writer = pair or await asyncio.open_connection(address.hostname, address.port)
        writer.write(
            f"POST {address.path}/mutate HTTP/1.1\r\nHost: {address.netloc}\r\n"
            "Authorization: Bearer ann\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        answer = await reader.readexactly(size)
        self._idle.append((reader, writer))
        return answer

    async def rate(self, seconds: float, size: int, writers: int) -> float:
        end, done = time.perf_counter() + seconds, 0

        async def write(number: int) -> None:
            nonlocal done
            while time.perf_counter() < end:
                await self.mutate(size, f"ws{number}")
                done += size

        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(writers):
                group.create_task(write(number))
        return done / (time.perf_counter() - begin)

    async def deltas(self, count: int) -> list[float]:
        """Milliseconds from the request to the delta at another socket."""
        await self.mutate(1)
        async with self.session.ws_connect(f"{self.base}/ws?token=ann", max_msg_size=0) as socket:
            ask = {"type": "subscribe", "token": "ann", "afterSyncId": str(self.last)}
            await socket.send_json(ask)
            while (await socket.receive_json())["type"] != "subscribed":
                pass
            found = []
            for _ in range(count):
                begin = time.perf_counter()
                request = asyncio.create_task(self.mutate(1))
                await socket.receive()
                found.append((time.perf_counter() - begin) * 1000)
                await request
            return sorted(found)

    async def bootstrap(self) -> tuple[int, float]:
        """(rows, seconds)."""
        begin, lines = time.perf_counter(), 0
        async with self.session.get(f"{self.base}/bootstrap", headers=HEADERS) as answer:
            async for chunk in answer.content.iter_any():
                lines += chunk.count(b"\n")
        return lines - 1, time.perf_counter() - begin

    async def fill(self, rows: int) -> None:
        while self.count < rows:
            await self.mutate(min(100, rows - self.count))


def show(name: str, value: float, unit: str) -> None:
    print(f"{name:<46} {value:>12,.1f} {unit}", flush=True)


async def measure(base: str, memory: Callable[[], int], rows: int, seconds: float) -> None:
    async with ClientSession() as session:
        bench = Bench(base, session)
        await bench.mutate(1)
        for size, writers in LOADS:
            value = await bench.rate(seconds, size, writers)
            show(f"mutations, batches of {size}, {writers} writers", value, "/s")
        found = await bench.deltas(500)
        show("request to live delta, p50", statistics.median(found), "ms")
        show("request to live delta, p99", found[int(len(found) * 0.99)], "ms")
        await bench.fill(rows)
        before = memory()
        count, spent = await bench.bootstrap()
        show(f"bootstrap of {count:,} rows", count / spent, "rows/s")
        waits: list[float] = []
        task: asyncio.Task[Any] = asyncio.create_task(bench.bootstrap())
        peak = before
        while not task.done():
            begin = time.perf_counter()
            await bench.mutate(1)
            waits.append((time.perf_counter() - begin) * 1000)
            peak = max(peak, memory())
        show("writes during a bootstrap, p99", sorted(waits)[int(len(waits) * 0.99)], "ms")
        show("memory of the server, more at a bootstrap", (peak - before) / 1024, "MiB")


async def compare(base: str, other: str, rounds: int, seconds: float) -> None:
    """Writes and deltas of two servers in turns: our median, theirs, the median of the ratios."""
    found: dict[str, list[tuple[float, float]]] = {}
    async with ClientSession() as session:
        pair = (Bench(base, session), Bench(other, session))
        for bench in pair:
            bench.count = time.time_ns() // 10_000  # ids that no earlier run has used
            await bench.rate(seconds, 1, 1)
        for number in range(rounds):
            turns = (0, 1) if number % 2 else (1, 0)
            for size, writers in LOADS:
                rates = {turn: await pair[turn].rate(seconds, size, writers) for turn in turns}
                name = f"mutations, batches of {size}, {writers} writers, /s"
                found.setdefault(name, []).append((rates[0], rates[1]))
            waits = {turn: await pair[turn].deltas(100) for turn in turns}
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                ours, theirs = (waits[turn][int(100 * share)] for turn in (0, 1))
                found.setdefault(f"request to live delta, {name}, ms", []).append((ours, theirs))
    for name, values in found.items():
        ours, theirs = (statistics.median(value[turn] for value in values) for turn in (0, 1))
        ratio = statistics.median(value[0] / value[1] for value in values)
        print(f"{name:<46} {ours:>12,.1f} {theirs:>12,.1f} {ratio:>8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--base", help="measure a server that runs already, ending in /sync")
    parser.add_argument("--against", help="compare with a server that runs already, in turns")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each server")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    if args.base:
        asyncio.run(measure(args.base, lambda: 0, args.rows, args.seconds))
        return
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.py").write_text(APP)
        with ServerProcess(Path(directory), "serve", "app:app") as server:
            base = f"{server.url}/strata/{NAME}/sync"
            if args.against:
                asyncio.run(compare(base, args.against, args.rounds, args.seconds))
                return
            asyncio.run(measure(base, server.rss_kib, args.rows, args.seconds))


if __name__ == "__main__":
    main()
