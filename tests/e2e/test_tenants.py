"""A process for each tenant: started when wanted, asleep while its clients' sockets stay open."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.app import Client, patch
from tests.support.process import ServerProcess


class _At:
    """What Client.connect needs of a server."""

    def __init__(self, url: str) -> None:
        self.info = self
        self.url = url


async def test_a_tenant_sleeps_and_wakes_under_its_clients(tmp_path: Path) -> None:
    flags = ("dev", "--placement", "tenant", "--tenant-idle-s", "0", "--idle-s", "0")
    with ServerProcess(tmp_path, *flags) as server:
        assert server.children("actor") == [], "nobody wanted anything yet"
        at: Any = _At(server.url)
        async with await Client.connect(at) as reader, await Client.connect(at) as writer:
            await reader.send({"type": "sub", "scope": "run:a", "since": 0})
            for number in range(1, 4):
                published = await writer.publish("run:a", patch(n=number))
                assert published["results"][0]["seq"] == number
                assert await reader.seqs(number) == [number], "no gap, no repeat"
                while server.children("actor"):  # it is about to end
                    await asyncio.sleep(0.01)
            assert not reader.socket.closed
        with urllib.request.urlopen(server.url + "/v1/scopes", timeout=20) as answer:
            assert [one["scope"] for one in json.load(answer)["scopes"]] == ["run:a"]
        assert server.stop() == 0
    with ServerProcess(tmp_path, "dev", HOLDFAST_PLACEMENT="hash") as server:
        assert server.publish("run:a", "message:m1", {"n": 4}) == 4, "one process finds the file"
