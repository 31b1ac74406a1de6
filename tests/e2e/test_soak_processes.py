"""Edges, actor processes and the whole server killed or stopped, and scopes moved, under load, for
HOLDFAST_SOAK_PROCESSES_S (ten minutes in `make soak`), and then the accounts: no acknowledged
write is lost, no subscriber has seen a gap or a repeat. HOLDFAST_SEED repeats the draws.

Writers repeat what they have no answer to; readers take the frames of their sockets as they are.
The last test takes away a write that was acknowledged: the accounts must see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from infra.clock import monotonic
from infra.paths import ledger_path
from tests.e2e.test_soak import HOT, SEED, Reader, Soak, check_accounts
from tests.support.process import WAIT_S, ServerProcess, role_of, state_of
from tests.support.strata import NAME, Socket, ids_of, tx

pytestmark = [pytest.mark.e2e]

SECS = float(os.environ.get("HOLDFAST_SOAK_PROCESSES_S", "600"))
SHORT_S = 6.0
PAUSE_S = 0.3  # between two blows
GROWN_S = 2.0  # a younger process is left alone: one that never gets to serve shows nothing
STOP_S, LONG_STOP_S = 1.5, 16.5  # the long one is more silence than a link puts up with
FLAGS = (
    "dev", "app:app", "--edges", "2", "--actors", "2", "--placement", "hash", "--idle-s", "0.5",
    "--retain", "100000000",
)  # fmt: skip
APP = """
from tests.support.strata import Calls, make_app
calls = Calls()
calls.groups = {"ann": ["ws1"]}
app = make_app(calls)
"""
ANN = {"Authorization": "Bearer ann"}


class StrataReader:
    """One user of the StrataSync database over as many sockets as it takes."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.cursor = 0
        self.ids: dict[int, str] = {}

    async def read(self, enough: Callable[[], bool]) -> None:
        """Until there is enough, through every loss of the connection."""
        url = f"{self.server.url}/strata/{NAME}/sync/ws?token=ann"
        async with aiohttp.ClientSession() as session:
            while not enough():
                try:
                    async with session.ws_connect(url, max_msg_size=0) as ws:
                        await Socket(ws, "ann").ask(self.cursor)
                        await self._take(ws, enough)
                except (aiohttp.ClientError, OSError):
                    await asyncio.sleep(0.05)

    async def _take(self, ws: aiohttp.ClientWebSocketResponse, enough: Callable[[], bool]) -> None:
        while not enough():
            try:
                message = await ws.receive(timeout=0.2)
            except TimeoutError:
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            frame = message.json()
            if frame["type"] == "error":
                return
            if frame["type"] != "delta":
                assert frame["type"] == "subscribed", frame
                continue
            for seq, action in zip(ids_of(frame), frame["packet"]["actions"], strict=True):
                assert seq == self.cursor + 1, f"strata: {seq} after {self.cursor}"
                self.ids[seq] = action["modelId"]
                self.cursor = seq


class ProcessSoak(Soak):
    """Everybody who takes part, and who strikes."""

    def __init__(self, server: ServerProcess, secs: float, *, whole: bool = True) -> None:
        super().__init__(server)
        self.ends_at = monotonic() + secs
        self.blows: dict[str, int] = {}
        self.tasks: set[asyncio.Future[None]] = set()
        self.strata: dict[str, int] = {}
        self.strata_readers = [StrataReader(server) for _ in range(2)]
        self._whole = whole  # the supervisor is struck as well

    async def write_strata(self, name: str) -> None:
        """One client of the database; a transaction is repeated until it is confirmed."""
        url = f"{self.server.url}/strata/{NAME}/sync/mutate"
        wait = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(headers=ANN, timeout=wait) as session:
            for number in itertools.count():
                if self.over():
                    return
                task = f"{name}-{number}"
                write = tx("INSERT", "Task", task, {"workspaceId": "ws1", "title": "x"}, key=task)
                while task not in self.strata:
                    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                        body = {"batchId": "b", "transactions": [write]}
                        async with session.post(url, json=body) as answer:
                            if answer.status == 200:
                                (result,) = (await answer.json())["results"]
                                assert result["success"], result
                                self.strata[task] = int(result["syncId"])
                    await asyncio.sleep(0.02)

    async def strike(self) -> None:
        """One process after the other; all are started again by their supervisor."""
        draw = random.Random(SEED)
        while not self.over():
            await asyncio.sleep(draw.uniform(0.2, 2) * PAUSE_S)
            if self._whole and draw.random() < 0.02:
                await self._strike_all(draw)
                continue
            if draw.random() < 0.15:
                self.tasks.add(asyncio.ensure_future(self._move(draw.choice(HOT), draw)))
            children = await asyncio.to_thread(self.server.children)
            living = [pid for pid in children if role_of(pid) and age_s(pid) > GROWN_S]
            if living:
                await self._strike(draw.choice(living), draw)

    async def _move(self, scope: str, draw: random.Random) -> None:
        """Give a scope to some process, while others are struck."""
        url = f"{self.server.url}/v1/actors/default/{scope}/move"
        query = {"process": f"actor-{draw.randrange(2)}"}
        wait = aiohttp.ClientTimeout(total=60)
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=wait) as session,
                session.post(url, params=query) as answer,
            ):
                self._count("moves" if answer.status == 200 else "moves refused")

    async def _strike(self, pid: int, draw: random.Random) -> None:
        role = role_of(pid)
        with contextlib.suppress(ProcessLookupError):
            if draw.random() < 0.7:
                os.kill(pid, signal.SIGKILL)
                self._count(f"{role} killed")
                return
            os.kill(pid, signal.SIGSTOP)
            try:
                long = draw.random() < 0.05 and self.ends_at - monotonic() > 2 * LONG_STOP_S
                await asyncio.sleep(LONG_STOP_S if long else draw.random() * STOP_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            self._count(f"{role} stopped" + (" for long" if long else ""))

    async def _strike_all(self, draw: random.Random) -> None:
        server = self.server
        if draw.random() < 0.5:
            await asyncio.to_thread(server.stop, signal.SIGKILL)
        else:  # the others notice, and end
            children = server.children()
            await asyncio.to_thread(server.stop_alone, signal.SIGKILL)
            async with asyncio.timeout(WAIT_S):
                while any(state_of(pid) not in "ZX" for pid in children):
                    await asyncio.sleep(0.02)
        await asyncio.to_thread(server.start)
        self._count("server killed")

    def _count(self, what: str) -> None:
        self.blows[what] = self.blows.get(what, 0) + 1

    async def run(self) -> None:
        self.finished = []
        staying = [Reader(self.server, scope, self.account) for scope in HOT * 2]
        async with asyncio.TaskGroup() as group:
            for n in range(3):
                group.create_task(self.publish(f"hot{n}", HOT, 0.02, 80))
            for n in range(2):
                group.create_task(self.write_strata(f"strata{n}"))
            for reader in staying:
                group.create_task(self.stay(reader))
            for one in self.strata_readers:
                group.create_task(one.read(self.over))
            for _ in range(2):
                group.create_task(self.come_and_go())
            group.create_task(self.strike())
        if self.tasks:
            await asyncio.wait(self.tasks)
        async with asyncio.timeout(2 * WAIT_S), asyncio.TaskGroup() as group:
            for reader in self.finished:
                head = self.account.head(reader.scope)
                group.create_task(reader.read(next(self.draws), partial(reader.has, head)))
            last = max(self.strata.values(), default=0)
            for one in self.strata_readers:
                group.create_task(one.read(lambda one=one: one.cursor >= last))  # type: ignore[misc]

    def check(self, data_dir: Path) -> str:
        """The accounts; a line that tells of them."""
        acks = check_accounts(self, data_dir)
        told = {seq: task for task, seq in self.strata.items()}
        assert len(told) == len(self.strata), "two transactions with one syncId"
        for reader in self.strata_readers:
            assert reader.ids == told, "StrataSync: not what was confirmed"
        blows = ", ".join(f"{count} {what}" for what, count in sorted(self.blows.items()))
        return f"{acks} acks, {len(told)} transactions, {self.account.visits} visits; {blows}"


async def soaked(tmp_path: Path, secs: float, *, whole: bool = True) -> ProcessSoak:
    (tmp_path / "app.py").write_text(APP)
    print(f"HOLDFAST_SEED={SEED} HOLDFAST_SOAK_PROCESSES_S={secs:g}")
    with ServerProcess(tmp_path, *FLAGS) as server:
        soak = ProcessSoak(server, secs, whole=whole)
        await soak.run()
        assert await asyncio.to_thread(server.stop) == 0
    return soak


def age_s(pid: int) -> float:
    """How long ago it was started; 0 for one that has ended."""
    try:
        started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0
    return up_s - started / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.soak
async def test_soak_processes(tmp_path: Path) -> None:
    soak = await soaked(tmp_path, SECS)
    print(soak.check(tmp_path / "data"))
    assert sum(soak.blows.values()) > SECS / 20, "it was left in peace"
    assert all(soak.account.acked[scope] for scope in HOT) and soak.strata


async def test_processes_are_killed_and_a_loss_would_be_seen(tmp_path: Path) -> None:
    soak = await soaked(tmp_path, SHORT_S, whole=False)
    print(soak.check(tmp_path / "data"))
    assert soak.blows and soak.account.acked and soak.strata
    path = ledger_path(tmp_path / "data", "default", HOT[0])
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        head = soak.account.head(HOT[0])
        db.execute("DELETE FROM entries WHERE seq=?", (head,))
        db.execute("DELETE FROM dedupe WHERE seq=?", (head,))
        db.execute("UPDATE scope SET head=head-1")
    with pytest.raises(AssertionError):
        soak.check(tmp_path / "data")
