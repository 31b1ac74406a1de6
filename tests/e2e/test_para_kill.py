"""SIGKILL under load: what was confirmed is there, nothing was done twice, everybody catches up."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from actors.check import check_ledger
from edge.client.para import PASSTHROUGH, ObjectFeedClient, synced
from infra.paths import ledger_path
from tests.support.process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
APP = """
from holdfast import Application, para

app = Application()
counter = app.synced("counter", para.PASSTHROUGH)


@counter.intent("add")
def add(current, given, user):
    return {"n": (current or {"n": 0})["n"] + given}
"""
ROUNDS = 2
INTENTS = 60


async def test_kill_and_restart(tmp_path: Path) -> None:
    tmp_path.joinpath("app.py").write_text(APP)
    process = ServerProcess(tmp_path, "dev", "app:app")
    with process:
        url = f"{process.url}/para/main/objectfeed"
        async with ObjectFeedClient(url) as writer, ObjectFeedClient(url) as reader:
            held, seen = synced("counter:1", PASSTHROUGH, writer), []
            watched = synced("counter:1", PASSTHROUGH, reader)
            watched.subscribe(lambda value: seen.append(value["n"]))
            confirmed: list[dict[str, int]] = []

            async def confirm(ticket: Any) -> None:
                confirmed.append(await ticket)

            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                for _ in range(ROUNDS):
                    for _ in range(INTENTS):
                        group.create_task(confirm(held.intent("add", 1)))
                    base = len(confirmed)
                    while len(confirmed) < base + 5:
                        await asyncio.sleep(0.001)
                    await asyncio.to_thread(process.stop, signal.SIGKILL)
                    await asyncio.to_thread(process.start)
            total = ROUNDS * INTENTS
            async with asyncio.timeout(30):
                while watched.get() != {"n": total} or held.get() != {"n": total}:
                    await asyncio.sleep(0.01)
            assert sorted(c["counter:1"] for c in confirmed) == list(range(1, total + 1))
            assert seen == sorted(seen), "a reader never goes back"
            assert watched.meta().sequence == total
    found = check_ledger(ledger_path(tmp_path / "data", "default", "para:main"))
    assert found.problems == [] and found.head == total
