"""Three uncoordinated writers on one bucket, paused at any moment: nothing acknowledged is lost.

Real processes, so that SIGSTOP is a real pause; some last longer than the retention of ordinary
level 0 files. The store loses replies and lands writes late. The control is the same store without
conditions, as a server behaves that ignores If-None-Match: there, something must be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from actors.types import Address
from infra.clock import monotonic
from infra.errors import HoldfastError
from infra.layout import LEVEL_CHANGES, NoBackup
from infra.ltx import decode_header
from infra.restore import list_replica
from infra.stores.directory import DirectoryStore
from tests.support.faulty_store import Faults, FaultyStore
from tests.support.hosts import A, codes, host_at, prefix_of, put, restored, running
from tests.support.ledgers import envelope
from tests.support.lingering_store import LingeringStore
from tests.support.memory_store import MemoryStore
from tests.support.publisher import Server
from tests.support.serve_faulty import Trouble, environment

pytestmark = pytest.mark.e2e

SEED = int(os.environ.get("HOLDFAST_SEED", "11"))
SERVE = [sys.executable, "-m", "tests.support.serve_faulty", "serve"]
FAULTS = {"lost_reply": 0.05, "late": 0.02}
SCOPES = ["run:1", "run:2"]
WRITERS = 3
IN_FLIGHT = 3  # of each writer in each scope
HISTORY_S = 0.2  # ordinary files live this long once a snapshot covers them
PAUSE_S = (0.05, 1.2)
ANSWER_S = 15
AGAIN = frozenset({"fenced", "try_later", "unavailable", "busy", "closed", "storage"})
REST_S = 0.01


class Writer:
    """One client of one server: publishes, repeats what it was told to repeat, keeps account."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.server = server
        self.acked: dict[str, dict[str, int]] = {scope: {} for scope in SCOPES}
        self.refusals: dict[str, int] = {}
        self._number = 0

    async def run(self, session: aiohttp.ClientSession, end: float) -> None:
        async with asyncio.TaskGroup() as group:
            for scope in SCOPES * IN_FLIGHT:
                group.create_task(self._publish(session, scope, end))

    async def _publish(self, session: aiohttp.ClientSession, scope: str, end: float) -> None:
        while monotonic() < end:
            self._number += 1
            event_id = f"{self.name}.{self._number}"
            body = {"scope": scope, "envelope": envelope(event_id, key=f"item:{self._number % 5}")}
            seq = await self._until_taken(session, body)
            self.acked[scope][event_id] = seq

    async def _until_taken(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> int:
        give_up = monotonic() + ANSWER_S
        while True:
            url = f"{self.server.url}/api/sync/publish"
            async with session.post(url, json=body) as answer:
                found = await answer.json()
            if answer.status == 200:
                seq: int = found["seq"]
                return seq
            assert found["code"] in AGAIN and monotonic() < give_up, found
            self.refusals[found["code"]] = self.refusals.get(found["code"], 0) + 1
            await asyncio.sleep(REST_S)


async def pauses(servers: list[Server], draw: random.Random, end: float) -> int:
    """Stop one server after another, at times two at once; how many pauses outlasted retention."""
    long = 0
    while monotonic() < end:
        stopped = draw.sample(servers, draw.choice((1, 1, 2)))
        for server in stopped:
            server.signal(signal.SIGSTOP)
        pause = draw.uniform(*PAUSE_S)
        long += pause > 2 * HISTORY_S
        await asyncio.sleep(pause)
        for server in stopped:
            server.signal(signal.SIGCONT)
        await asyncio.sleep(draw.uniform(0.02, 0.3))
    return long


def lost(store: DirectoryStore, acked: dict[str, int], scope: str, target: Path) -> dict[str, int]:
    """What the bucket lacks; I1 to I5 hold in what it has."""
    _, checked = restored(store, Address("default", scope), target)
    return {i: seq for i, seq in acked.items() if checked.causes.get(i) != seq}


def owners_of(store: DirectoryStore, scope: str) -> set[int]:
    """The nonces of the files that stand in the bucket."""
    found = list_replica(store, prefix_of(Address("default", scope)))
    heads = [decode_header(store.get(f.key, end=100)) for f in found if f.level == LEVEL_CHANGES]
    return {head.salt1 << 32 | head.salt2 for head in heads}


async def contend(tmp_path: Path, seconds: float) -> tuple[list[Writer], int]:
    """Let the writers contend for so long; then kill them all."""
    for folder in ("objects", "late"):
        (tmp_path / folder).mkdir()
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(WRITERS):
            trouble = Trouble(
                late_folder=str(tmp_path / "late"), faults=FAULTS, seed=SEED * 10 + number,
                snapshot_files=6,
            )  # fmt: skip
            server = Server(
                tmp_path / f"data{number}", "--bucket", f"file:{tmp_path / 'objects'}",
                "--shared-bucket", "--put-interval-ms", "0", "--bucket-history-s", str(HISTORY_S),
                "--max-stall-s", "2", command=SERVE, environ=environment(trouble),
            )  # fmt: skip
            servers.append(stack.enter_context(server))
        writers = [Writer(f"w{number}", server) for number, server in enumerate(servers)]
        end = monotonic() + seconds
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.run(session, end))
            paused = group.create_task(pauses(servers, random.Random(SEED), end))
    return writers, paused.result()


@pytest.mark.parametrize("seconds", [8, pytest.param(30, marks=pytest.mark.soak)])
async def test_three_writers_with_pauses_lose_nothing(tmp_path: Path, seconds: int) -> None:
    writers, long = await contend(tmp_path, seconds)
    store = DirectoryStore(tmp_path / "objects")
    LingeringStore(store, tmp_path / "late", Faults()).land()
    for scope in SCOPES:
        acked = {i: seq for writer in writers for i, seq in writer.acked[scope].items()}
        assert len(acked) == len(set(acked.values())), "one seq was given twice"
        assert lost(store, acked, scope, tmp_path / "restored.db") == {}
        assert len(owners_of(store, scope)) == WRITERS, "nobody was fenced"
    # The procedure has done what it is for: every writer got through, and was fenced, and slept.
    assert long > seconds // 4
    assert all(len(writer.acked[scope]) > 5 for writer in writers for scope in SCOPES)
    assert sum(writer.refusals.get("fenced", 0) for writer in writers) > 0


@pytest.mark.parametrize("plain", [False, True], ids=["conditional", "plain"])
async def test_without_conditions_the_same_writers_lose(tmp_path: Path, plain: bool) -> None:
    memory = MemoryStore()
    acked: dict[str, int] = {}
    stores = [FaultyStore(memory) for _ in range(2)]
    hosts = [host_at(tmp_path / f"h{n}", store, shared=True) for n, store in enumerate(stores)]
    async with running(hosts[0]) as one, running(hosts[1]) as two:
        for store in stores:  # only now: a start would have noticed
            store.faults = Faults(plain_put=plain)
        for host, event_id in [(one, "a"), (two, "b"), (one, "c"), (two, "d"), (one, "e")]:
            with contextlib.suppress(HoldfastError):
                (outcome,) = await put(host, A, event_id)
                if codes([outcome]) == ["ok"]:
                    acked[event_id] = getattr(outcome, "first", 0)
    assert {"a", "b"} <= set(acked)
    try:
        found = restored(memory, A, tmp_path / "restored.db")[1].causes
    except (HoldfastError, AssertionError) as error:
        assert plain and not isinstance(error, NoBackup)
        return
    missing = {i for i, seq in acked.items() if found.get(i) != seq}
    assert bool(missing) is plain
