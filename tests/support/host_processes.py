"""Several `holdfast serve --hosts` processes on this machine, and clients that outlive any of them.

A `Writer` publishes one envelope after the other and repeats what was not acknowledged, at another
host where its own has gone; a `Reader` follows and fails at the first gap or repeat. Both count how
often they were disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, WSMsgType

from actors.types import Address
from infra.stores.directory import DirectoryStore
from tests.support.app import SOCKET, patch
from tests.support.hosts import restored
from tests.support.ledgers import Checked
from tests.support.process import ServerProcess

KEY = "a link key of well over thirty-two bytes"
PATIENCE_S = 60.0
TTL_S = 3.0


class Cluster:
    """Use as `with`: all are started, and ended whatever happened."""

    def __init__(
        self, folder: Path, *names: str, ttl_s: float = TTL_S, options: Sequence[str] = (),
        engine: Sequence[str] = ("--hosts", "s3"), bucket: str = "", module: str = "edge.cli",
        instances: bool = False,
        **environ: str,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.objects = folder / "bucket"
        self.objects.mkdir(parents=True, exist_ok=True)
        bucket = bucket or f"file:{self.objects}"
        common = (
            *engine, "--hosts-ttl-s", str(ttl_s), "--bucket", bucket, "--put-interval-ms", "0",
            "--link-listen", "tcp:127.0.0.1:0", *options,
        )  # fmt: skip
        alone = {"HOLDFAST_EDGES": "0", "HOLDFAST_ACTORS": "0", "HOLDFAST_PLACEMENT": "hash"}
        environ = {"HOLDFAST_LINK_KEY": KEY, **alone, **environ}
        self.hosts: dict[str, ServerProcess] = {}
        for name in names:
            flags = ("serve", "--insecure", "--host-name", name, *common)
            if instances:
                flags += ("--host-instance", f"machine-{name}")
            self.hosts[name] = ServerProcess(folder / name, *flags, module=module, **environ)

    def __enter__(self) -> Cluster:
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(ServerProcess.start, self.hosts.values()))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for host in self.hosts.values():
            if host.alive:
                host.stop(signal.SIGKILL)

    def url(self, name: str) -> str:
        return self.hosts[name].url

    def log(self, name: str) -> str:
        return (self.folder / name / "server.log").read_text()

    async def get(self, name: str, path: str, method: str = "GET") -> Any:
        """JSON of one host."""
        url = self.url(name) + path
        async with ClientSession() as session, session.request(method, url) as answer:
            return json.loads(await answer.read())

    async def until(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until a host sees the others so; its hosts by name."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = (await self.get(name, "/v1/hosts"))["hosts"]
                by_name = {host["name"]: host for host in found}
                if wanted(by_name):
                    return by_name
                await asyncio.sleep(0.05)

    async def settled(self) -> None:
        """Wait until every host sees and reaches every other."""
        names = set(self.hosts)
        for name in names:
            await self.until(
                name,
                lambda found: set(found) == names and all(h["linked"] for h in found.values()),
            )  # fmt: skip

    def restored(self, scope: str) -> Checked:
        """The scope out of the bucket alone."""
        target, address = self._target(scope), Address("default", scope)
        return restored(DirectoryStore(self.objects), address, target)[1]

    def owners(self, scope: str) -> list[tuple[int, int]]:
        """(owner, TXID of its first batch) in the order of the batches."""
        self.restored(scope)
        with contextlib.closing(sqlite3.connect(self._target(scope))) as db:
            return db.execute("SELECT owner, txid FROM owners ORDER BY txid").fetchall()

    def _target(self, scope: str) -> Path:
        target = self.folder / "restored" / f"{scope.replace(':', '-')}.db"
        target.parent.mkdir(exist_ok=True)
        return target


class _Roamer:
    """A client with a list of hosts; it goes to the next where it is thrown out."""

    def __init__(self, urls: Sequence[str], scope: str) -> None:
        self.scope = scope
        self.disconnects = 0
        self.ended = False
        self._over = asyncio.Event()
        self._urls = itertools.cycle(urls)

    async def stop(self) -> None:
        """End once what is under way has been answered."""
        self.ended = True
        async with asyncio.timeout(PATIENCE_S):
            await self._over.wait()

    async def run(self) -> None:
        """Until `ended`, on one socket after another."""
        try:
            await self._run()
        finally:
            self._over.set()

    async def _run(self) -> None:
        async with ClientSession() as session:
            while not self.ended:
                with contextlib.suppress(ClientError, OSError, TimeoutError, EOFError):
                    url = next(self._urls) + SOCKET
                    async with asyncio.timeout(5):
                        socket = await session.ws_connect(url, max_msg_size=0)
                    try:
                        await self.live(socket)
                    finally:
                        socket._writer.transport.abort()
                if not self.ended:
                    self.disconnects += 1
                    await asyncio.sleep(0.05)

    async def live(self, socket: Any) -> None:
        raise NotImplementedError

    async def frame(self, socket: Any) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            message = await socket.receive()
        if message.type is not WSMsgType.TEXT:
            raise EOFError(message.data)
        frame: dict[str, Any] = json.loads(message.data)
        return frame


class Writer(_Roamer):
    """`acked` are the seqs by event id; `pauses_s` the times from one answer to the next."""

    def __init__(self, urls: Sequence[str], scope: str, pace_s: float = 0.0) -> None:
        super().__init__(urls, scope)
        self.acked: dict[str, int] = {}
        self.refused: list[str] = []
        self.pauses_s: list[float] = []
        self._number = 0
        self._pace_s = pace_s

    async def live(self, socket: Any) -> None:
        while not self.ended:
            event = f"{self.scope}/{self._number}"
            began = time.monotonic()
            frame = {
                "type": "publish", "id": event, "scope": self.scope,
                "envelopes": [patch("message:m1", event, n=self._number)],
            }  # fmt: skip
            while event not in self.acked:
                await socket.send_str(json.dumps(frame))
                answer: dict[str, Any] = {}
                while answer.get("type") != "published" or answer["id"] != event:
                    answer = await self.frame(socket)
                result = answer["results"][0]
                if "seq" in result:
                    self.acked[event] = result["seq"]
                else:
                    assert result["retryable"], result
                    self.refused.append(result["code"])
                    await asyncio.sleep(0.05)
            self.pauses_s.append(time.monotonic() - began)
            self._number += 1
            if self._pace_s:
                await asyncio.sleep(self._pace_s)

    async def until(self, count: int) -> None:
        """Wait for so many acknowledgements."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.acked) < count:
                await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        """Wait for so many further ones."""
        await self.until(len(self.acked) + count)


class Reader(_Roamer):
    """`seen` are the event ids by seq, from 1, without a gap."""

    def __init__(self, urls: Sequence[str], scope: str) -> None:
        super().__init__(urls, scope)
        self.seen: list[str] = []
        self.faults: list[Any] = []
        self.resets = 0

    async def live(self, socket: Any) -> None:
        await socket.send_str(
            json.dumps({"type": "sub", "scope": self.scope, "since": len(self.seen)})
        )
        while not self.ended:
            frame = await self.frame(socket)
            kind = frame["type"]
            if kind == "event":
                self._take(frame["envelope"])
            elif kind == "events":
                for envelope in frame["envelopes"]:
                    self._take(envelope)
            elif kind == "scopeError":
                self.resets += 1
                if not frame.get("retryable"):
                    self.faults.append(frame)
                return

    def _take(self, envelope: dict[str, Any]) -> None:
        if envelope["seq"] != len(self.seen) + 1:
            self.faults.append((len(self.seen), envelope["seq"]))
        self.seen.append(envelope["eventId"])

    async def until(self, count: int) -> None:
        """Wait for so many entries."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.seen) < count and not self.faults:
                await asyncio.sleep(0.01)


def check(cluster: Cluster, writers: Sequence[Writer], readers: Sequence[Reader]) -> None:
    """Nothing acknowledged is lost, in the bucket or to anybody who followed."""
    for reader in readers:
        assert not reader.faults, (reader.scope, reader.faults[:3])
    for writer in writers:
        found = cluster.restored(writer.scope)
        missing = {i: n for i, n in writer.acked.items() if found.causes.get(i) != n}
        assert not missing, (writer.scope, len(missing), list(missing.items())[:3])
        for reader in readers:
            if reader.scope == writer.scope:
                at = {event: seq for seq, event in enumerate(reader.seen, 1)}
                wrong = {i: n for i, n in writer.acked.items() if at.get(i) != n}
                assert not wrong, (reader.scope, list(wrong.items())[:3])
