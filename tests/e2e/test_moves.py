"""Scopes move between the actor processes of one server: with sockets open, under load, and with
either process killed in the middle. No gap, no repeat, no disconnect, no acknowledged write lost;
at no time do two processes have the file open.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.paths import ledger_path
from tests.support.app import Client, patch
from tests.support.process import ServerProcess, run_cli

pytestmark = pytest.mark.e2e

FLAGS = ("dev", "--edges", "1", "--actors", "2", "--placement", "hash", "--idle-s", "60")
SCOPE = "run:a"


class _At:
    """What Client.connect needs of a server."""

    def __init__(self, url: str) -> None:
        self.info = self
        self.url = url


def said(server: ServerProcess, verb: str = "", method: str = "GET") -> dict[str, Any]:
    url = f"{server.url}/v1/actors/default/{SCOPE}{verb}"
    request = urllib.request.Request(url, b"" if method == "POST" else None, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def move(server: ServerProcess, process: str) -> str:
    """Where it is then; the code of the error where it was refused."""
    try:
        return str(said(server, f"/move?process={process}", "POST")["process"])
    except urllib.error.HTTPError as error:
        with error:
            return str(json.load(error)["code"])


def other(process: str) -> str:
    return {"actor-0": "actor-1", "actor-1": "actor-0"}[process]


def holders(server: ServerProcess, path: Path) -> list[int]:
    """The processes that have the ledger open."""
    found = []
    for pid in server.children("actor"):
        try:
            held = [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:  # it has just ended
            continue
        if str(path) in held:
            found.append(pid)
    return found


def pid_of(server: ServerProcess, process: str) -> int:
    with urllib.request.urlopen(f"{server.url}/v1/actors", timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["processes"]
    return next(int(one["pid"]) for one in found if one["process"] == process)


class Load:
    """One reader and two writers, one of which has many publishes under way, of one scope."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.over = False
        self.acked: dict[str, int] = {}
        self.order: list[str] = []  # of the writer with many under way, as they were sent
        self.seen: list[tuple[int, str]] = []
        self.doubles = 0
        self.writing = 2

    @property
    def at(self) -> Any:
        return _At(self.server.url)

    async def write(self) -> None:
        async with await Client.connect(self.at) as client:
            number = 0
            while not self.over:
                number += 1
                event = f"one-{number}"
                while event not in self.acked:
                    answer = await client.publish(SCOPE, patch(event=event, n=number))
                    (result,) = answer["results"]
                    if "seq" in result:
                        self.acked[event] = result["seq"]
                    else:
                        assert result["retryable"], result
            assert not client.socket.closed
            self.writing -= 1

    async def pipeline(self) -> None:
        """Ten at a time, unanswered: their order must stay."""
        async with await Client.connect(self.at) as client:
            number = 0
            while not self.over:
                events = [f"many-{number + n}" for n in range(10)]
                number += 10
                for event in events:
                    self.order.append(event)
                    frame = {"type": "publish", "id": event, "scope": SCOPE}
                    await client.send({**frame, "envelopes": [patch(event=event, n=number)]})
                left = set(events)
                while left:
                    answer = await client.until("published")
                    (result,) = answer["results"]
                    assert "seq" in result, result
                    self.acked[answer["id"]] = result["seq"]
                    left.discard(answer["id"])
            assert not client.socket.closed
            self.writing -= 1

    async def read(self) -> None:
        async with await Client.connect(self.at) as client:
            await client.send({"type": "sub", "scope": SCOPE, "since": 0})
            while self.writing or len(self.seen) < len(self.acked):
                try:
                    async with asyncio.timeout(0.2):  # else it would wait when nothing comes
                        message = await client.socket.receive()
                except TimeoutError:
                    continue
                frame = json.loads(message.data)
                if frame["type"] in ("event", "events"):
                    for one in frame.get("envelopes") or [frame["envelope"]]:
                        self.seen.append((one["seq"], one["eventId"]))
                assert frame["type"] not in ("closed", "scopeError"), frame

    async def watch(self, path: Path) -> None:
        """Who has the file open, again and again."""
        while not self.over:
            self.doubles += len(await asyncio.to_thread(holders, self.server, path)) > 1
            await asyncio.sleep(0.01)

    def check(self) -> None:
        assert [seq for seq, _ in self.seen] == list(range(1, len(self.seen) + 1)), "gap or repeat"
        assert {event: seq for seq, event in self.seen} == self.acked
        many = [event for _, event in self.seen if event.startswith("many-")]
        assert many == self.order, "what one client sent has changed its order"
        assert not self.doubles, "two processes had the file open"


@asynccontextmanager
async def loaded(tmp_path: Path) -> AsyncIterator[Load]:
    path = ledger_path(tmp_path / "data", "default", SCOPE)
    with ServerProcess(tmp_path, *FLAGS) as server:
        load = Load(server)
        async with asyncio.timeout(240), asyncio.TaskGroup() as group:
            for work in (load.write(), load.pipeline(), load.read(), load.watch(path)):
                group.create_task(work)
            while len(load.acked) < 20:
                await asyncio.sleep(0.01)
            try:
                yield load
            finally:
                load.over = True
        load.check()
        process = await asyncio.to_thread(lambda: said(server)["process"])
        assert await asyncio.to_thread(server.stop) == 0
    # It stays where it is, and whoever has it has its alarms and its place in the index.
    with ServerProcess(tmp_path, *FLAGS) as server:
        assert (await asyncio.to_thread(said, server))["process"] == process
        assert (
            await asyncio.to_thread(server.publish, SCOPE, "message:m1", {"n": 0})
            == len(load.seen) + 1
        )
        with urllib.request.urlopen(server.url + "/v1/scopes", timeout=20) as answer:
            assert [one["scope"] for one in json.load(answer)["scopes"]] == [SCOPE]


async def goes_on(load: Load) -> None:
    """Until something was written since."""
    count = len(load.acked)
    while len(load.acked) < count + 20:
        await asyncio.sleep(0.01)


async def test_a_scope_moves_under_load_and_nobody_notices(tmp_path: Path) -> None:
    async with loaded(tmp_path) as load:
        server = load.server
        first = (await asyncio.to_thread(said, server))["process"]
        for process in (other(first), first, other(first)):
            assert await asyncio.to_thread(move, server, process) == process
            await goes_on(load)
        assert await asyncio.to_thread(move, server, process) == process, "it is there already"
        assert await asyncio.to_thread(move, server, "actor-7") == "bad_params"
        told = await asyncio.to_thread(
            run_cli, "actors", "move", SCOPE, first, "--json", "--url", server.url
        )
        assert told.returncode == 0 and json.loads(told.stdout)["process"] == first
        told = await asyncio.to_thread(
            run_cli, "actors", "move", "run:none", first, "--url", server.url
        )
        assert told.returncode in (0, 3)  # 0 where its hash names the process anyway


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("which", ["old", "new"])
async def test_a_process_dies_in_the_middle_of_a_move(tmp_path: Path, which: str) -> None:
    async with loaded(tmp_path) as load:
        server = load.server
        for delay_s in (0.0, 0.02, 0.06):
            old = (await asyncio.to_thread(said, server))["process"]
            victim = await asyncio.to_thread(pid_of, server, old if which == "old" else other(old))
            moving = asyncio.ensure_future(asyncio.to_thread(move, server, other(old)))
            await asyncio.sleep(delay_s)
            os.kill(victim, signal.SIGKILL)
            assert await moving in ("actor-0", "actor-1", "link_lost", "try_later", "closed")
            await goes_on(load)
