"""Starkeep's figures: idle polls by the size of a space, a bulk push by the Python engine, a large
file up and down.

    python bench/starkeep.py [--records 50000] [--push 10000] [--file-mb 1024]

The server is a process of its own on a fresh directory; what is printed is measured by the client,
on one connection, unless it says otherwise. Memory is the server's resident set and its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from holdfast import starkeep

ROOT = Path(__file__).resolve().parents[1]
PIECE = os.urandom(1 << 20)


def record(number: int) -> dict[str, Any]:
    """A record as clients of version 0.2 send it."""
    stamp = {"wallTime": 1_700_000_000_000 + number, "counter": 0, "nodeId": "bench"}
    return {
        "id": f"{number:026d}", "kind": "data", "type": "image/jpeg", "createdAt": stamp,
        "updatedAt": stamp, "deletedAt": None, "version": 1, "contentHash": "0" * 64,
        "objectStorageKey": "", "mimeType": "image/jpeg", "sizeBytes": 123_456,
        "originalFilename": f"IMG_{number:05d}.jpg", "originAppId": "photos", "parentId": None,
        "label": None,
    }  # fmt: skip


def memory(pid: int) -> tuple[int, int]:
    """(resident, peak) KiB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = [int(status.split(name)[1].split()[0]) for name in ("VmRSS:", "VmHWM:")]
    return found[0], found[1]


async def polls(session: aiohttp.ClientSession, base: str, seen: dict[str, Any]) -> float:
    """Median milliseconds of an idle poll."""
    body = json.dumps({"watermarks": seen, "limit": 1000}).encode()
    took = []
    for _ in range(300):
        start = time.perf_counter()
        async with session.post(f"{base}/sync/exchange", data=body) as answer:
            await answer.read()
        took.append((time.perf_counter() - start) * 1000)
    return statistics.median(took)


async def fill(session: aiohttp.ClientSession, base: str, first: int, last: int) -> dict[str, Any]:
    """Records first..last-1 into the space; watermarks that are past them."""
    seen: dict[str, Any] = {"bench": record(last)["updatedAt"]}
    for start in range(first, last, 1000):
        records = [record(n) for n in range(start, min(last, start + 1000))]
        body = json.dumps({"watermarks": seen, "records": records}).encode()
        async with session.post(f"{base}/sync/exchange", data=body) as answer:
            assert answer.status == 200, await answer.text()
            found = json.loads(await answer.read())
    assert not found["records"]
    return seen


async def idle(url: str, most: int) -> None:
    """Polls that find nothing, at growing sizes."""
    async with aiohttp.ClientSession() as session:
        held = 0
        for wanted in (2000, 10_000, most):
            seen = await fill(session, f"{url}/keep/idle", held, wanted)
            held = wanted
            took_ms = await polls(session, f"{url}/keep/idle", seen)
            print(f"idle poll, {held:>7} records held: {took_ms:.2f} ms")
        took = []
        for number in range(most, most + 200):
            start = time.perf_counter()
            await fill(session, f"{url}/keep/idle", number, number + 1)
            took.append((time.perf_counter() - start) * 1000)
        print(f"one write, {most:>7} records held: {statistics.median(took):.2f} ms")


async def push(url: str, count: int, folder: Path) -> None:
    """A device sends `count` records to an empty space; a second one takes them."""
    peer = starkeep.HttpPeer(f"{url}/keep/push")
    for name in ("push", "pull"):
        node = starkeep.LocalNode(folder / f"{name}.db", name, starkeep.MemoryObjectStorage())
        if name == "push":
            with node.file.transaction():
                for n in range(count):
                    await node.create_record(
                        "image/jpeg", origin_app_id="photos", original_filename=f"IMG_{n:05d}.jpg"
                    )
        engine = starkeep.SyncEngine(
            local_database_adapter=node.records, local_object_storage=node.objects,
            remote_object_storage=starkeep.HttpObjectStorage(peer),
            transport=starkeep.HttpSyncTransport(peer), clock=node.clock, sync_state=node.state,
        )  # fmt: skip
        start = time.perf_counter()
        result = await engine.drain()
        took = time.perf_counter() - start
        moved = result.shipped if name == "push" else result.applied
        assert moved == count, result
        print(f"{name} of {count} records: {took:.2f} s, {count / took:,.0f} records/s")
        node.close()
    await peer.aclose()


async def file(url: str, pid: int, size_mb: int) -> None:
    """One file up and down, and what it costs the server in memory."""
    storage = starkeep.HttpObjectStorage(f"{url}/keep/file")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size_mb):
            yield PIECE

    before, _ = memory(pid)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from here
    start = time.perf_counter()
    await storage.write("big", pieces())
    up = time.perf_counter() - start
    start = time.perf_counter()
    size = 0
    async for piece in storage.read("big"):
        size += len(piece)
    down = time.perf_counter() - start
    assert size == size_mb << 20
    peak = memory(pid)[1]
    print(
        f"{size_mb} MiB: up {size_mb / up:,.0f} MiB/s, down {size_mb / down:,.0f} MiB/s, "
        f"server {(peak - before) / 1024:.1f} MiB above idle"
    )
    await storage.close()


def main() -> None:
    """Start a server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--push", type=int, default=10_000)
    parser.add_argument("--file-mb", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "edge.cli", "dev", "--port", "0", "--json"]
        server = subprocess.Popen(
            [*command, "--data-dir", f"{folder}/data"], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            asyncio.run(idle(url, options.records))
            asyncio.run(push(url, options.push, Path(folder)))
            asyncio.run(file(url, server.pid, options.file_mb))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
