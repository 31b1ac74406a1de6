"""StrataSync figures of one server process: `python -m bench.strata [--rows N]`.

A real `holdfast serve` on a directory of its own, a client in this process over loopback. Prints a
line a measure: writes one at a time and by fifty, by one client and by sixteen; the time from a
request to its live delta at another socket; bootstrap of N rows, with the server's memory and the
latency of writes meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from tests.support.process import ServerProcess
from tests.support.strata import NAME, tx

APP = """
from tests.support.strata import Calls, make_app
calls = Calls()
calls.groups = {"ann": [f"ws{n}" for n in range(20)]}
app = make_app(calls)
"""
HEADERS = {"Authorization": "Bearer ann", "Content-Type": "application/json"}


class Bench:
    """One server and one client session."""

    def __init__(self, server: ServerProcess, session: ClientSession) -> None:
        self.server = server
        self.session = session
        self.base = f"{server.url}/strata/{NAME}/sync"
        self.count = 0

    async def mutate(self, size: int, group: str = "ws1") -> None:
        batch = []
        for _ in range(size):
            self.count += 1
            payload = {"title": "a task of some words", "workspaceId": group}
            batch.append(tx("INSERT", "Task", f"t{self.count:08}", payload))
        body = json.dumps({"batchId": "b", "transactions": batch}).encode()
        async with self.session.post(f"{self.base}/mutate", data=body, headers=HEADERS) as answer:
            found = await answer.json()
            assert found["success"], found

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
        async with self.session.ws_connect(f"{self.base}/ws?token=ann") as socket:
            ask = {"type": "subscribe", "token": "ann", "afterSyncId": str(10**12)}
            await socket.send_json(ask)
            while (await socket.receive_json())["type"] != "subscribed":
                pass
        async with self.session.ws_connect(f"{self.base}/ws?token=ann", max_msg_size=0) as socket:
            await socket.send_json({"type": "subscribe", "token": "ann"})
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


async def measure(server: ServerProcess, rows: int, seconds: float) -> None:
    async with ClientSession() as session:
        bench = Bench(server, session)
        await bench.mutate(1)
        for size, writers in ((1, 1), (50, 1), (1, 16), (50, 16)):
            value = await bench.rate(seconds, size, writers)
            show(f"mutations, batches of {size}, {writers} writers", value, "/s")
        found = await bench.deltas(500)
        show("request to live delta, p50", statistics.median(found), "ms")
        show("request to live delta, p99", found[int(len(found) * 0.99)], "ms")
        await bench.fill(rows)
        before = server.rss_kib()
        count, spent = await bench.bootstrap()
        show(f"bootstrap of {count:,} rows", count / spent, "rows/s")
        waits: list[float] = []
        task: asyncio.Task[Any] = asyncio.create_task(bench.bootstrap())
        peak = before
        while not task.done():
            begin = time.perf_counter()
            await bench.mutate(1)
            waits.append((time.perf_counter() - begin) * 1000)
            peak = max(peak, server.rss_kib())
        show("writes during a bootstrap, p99", sorted(waits)[int(len(waits) * 0.99)], "ms")
        show("memory of the server, more at a bootstrap", (peak - before) / 1024, "MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.py").write_text(APP)
        with ServerProcess(Path(directory), "serve", "app:app") as server:
            asyncio.run(measure(server, args.rows, args.seconds))


if __name__ == "__main__":
    main()
