"""SIGKILL of a server with a bucket, and its disk gone: what it acknowledged to devices is there
again, records, rows and bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra import clock
from tests.support.process import ServerProcess
from tests.support.starkeep import NOTES, record_json

pytestmark = pytest.mark.e2e

SPACES = ["den", "shed", "größe 4"]
WRITERS = 3  # of each space
KILLS = 3


class Device:
    """One author: it writes until the server is gone, and remembers what was acknowledged."""

    def __init__(self, space: str, node_id: str) -> None:
        self.path = f"/keep/{space}"
        self.node_id = node_id
        self.records: list[dict[str, Any]] = []
        self.rows: dict[str, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.exchanges = 0
        self._at = clock.now_ms() - 3_600_000

    async def run(self, session: aiohttp.ClientSession, url: str) -> None:
        """Returns when a request fails for want of a server."""
        try:
            while True:
                await self._step(session, url + self.path)
        except aiohttp.ClientError:
            return

    async def _step(self, session: aiohttp.ClientSession, base: str) -> None:
        self._at += 1
        data = f"{self.node_id} {self._at}".encode() * 100
        digest = hashlib.sha256(data).hexdigest()
        key = f"shared/image/{digest[:2]}/{digest}"
        async with session.put(f"{base}/files/{key}", data=data) as answer:
            assert answer.status == 200, await answer.text()
        self.blobs[key] = data
        item = record_json(self._at, self.node_id, key=key, content_hash=digest)
        id = f"{self.node_id}-{self._at % 7}"
        row = {
            "timestamp": {"wallTime": self._at, "counter": 1, "nodeId": self.node_id},
            "appId": "notes", "table": "note", "op": "insert", "row": {"id": id, "at": self._at},
        }  # fmt: skip
        seen = {self.node_id: {"wallTime": self._at, "counter": 1, "nodeId": self.node_id}}
        body = {"watermarks": seen, "records": [item], "appSyncableRows": [row], "limit": 1}
        async with session.post(f"{base}/sync/exchange", json=body) as answer:
            found = await answer.json()
            assert answer.status == 200, found
        assert found["responderWatermarks"][self.node_id]["wallTime"] == self._at
        self.records.append(item)
        self.rows[id] = self._at
        self.exchanges += 1


async def test_a_killed_server_whose_disk_is_gone_comes_back_whole(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    directory = tmp_path / "server"
    server = ServerProcess(directory, "dev", "--bucket", f"file:{tmp_path / 'bucket'}")
    devices = [Device(space, f"{space}-{n}") for space in SPACES for n in range(WRITERS)]
    tables = json.dumps({"tables": [{"name": "note", "pkColumns": ["id"]}]})
    for kill in range(KILLS):
        with server:
            async with aiohttp.ClientSession() as session:
                if kill == 0:
                    for space in SPACES:
                        where = f"{server.url}/keep/{space}/sync/namespaces/{NOTES.app_id}"
                        async with session.put(where, data=tables) as answer:
                            assert answer.status == 200
                before = sum(device.exchanges for device in devices)
                async with asyncio.TaskGroup() as tasks:
                    for device in devices:
                        tasks.create_task(device.run(session, server.url))
                    while sum(device.exchanges for device in devices) < before + 30:
                        await asyncio.sleep(0)
                    server.stop(signal.SIGKILL)
        shutil.rmtree(directory / "data")
    with server:
        async with aiohttp.ClientSession() as session:
            for device in devices:
                await check(session, server.url, device)


async def check(session: aiohttp.ClientSession, url: str, device: Device) -> None:
    """Everything acknowledged is there; more may be."""
    base = url + device.path
    held: dict[str, Any] = {}
    rows: dict[str, int] = {}
    seen: dict[str, Any] = {}
    while True:
        body = {"watermarks": seen, "limit": 50}
        async with session.post(f"{base}/sync/exchange", json=body) as answer:
            found = await answer.json()
        held.update((item["id"], item) for item in found["records"])
        rows.update((row["row"]["id"], row["row"]["at"]) for row in found["appSyncableRows"])
        stamps = [item["updatedAt"] for item in found["records"]]
        stamps += [row["timestamp"] for row in found["appSyncableRows"]]
        for stamp in sorted(stamps, key=lambda s: (s["wallTime"], s["counter"])):
            seen[stamp["nodeId"]] = stamp
        if not found["hasMore"]:
            break
    for item in device.records:
        assert held[item["id"]] == item
    for id, at in device.rows.items():
        assert rows[id] >= at
    for key, data in device.blobs.items():
        async with session.get(f"{base}/files/{key}") as answer:
            assert answer.status == 200
            assert await answer.read() == data
