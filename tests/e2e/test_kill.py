"""SIGKILL under load: nothing acknowledged is lost, and the files are whole (I1-I5)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.support.publisher import Publisher, Server

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("HOLDFAST_KILLS", "30"))
SEED = int(os.environ.get("HOLDFAST_SEED", "7"))
SCOPES = ["run:1", "run:2", "run:3", "größe: 4", "../run:5"]
ROUNDS = 5  # kills of one directory; then a fresh one, so that checking stays quick


async def test_kill_under_load(tmp_path: Path) -> None:
    draw = random.Random(SEED)  # picks the moments; a failure repeats with the same seed, nearly
    acked = 0
    for kills in range(0, KILLS, ROUNDS):
        data_dir = tmp_path / f"data{kills}"
        publisher = Publisher(SCOPES, window=12)
        # A short retention in every second directory: trimming is killed as well.
        options = ("--retain", "100") if kills % 2 else ()
        server = Server(data_dir, *options)
        for _ in range(min(ROUNDS, KILLS - kills)):
            with server:
                socket = await publisher.run(server.url, draw.randrange(1, 400))
                server.kill()
                await publisher.drain(socket)
            assert publisher.missing(data_dir) == {}
        assert {result["code"] for result in publisher.refused} <= {"patch_failed"}
        acked += publisher.count
    assert acked > KILLS * 20


async def test_kill_while_scopes_are_being_made(tmp_path: Path) -> None:
    # A file may be left half made: nobody was told of it, and the next write finishes it.
    draw = random.Random(SEED)
    scopes = [f"new:{n}" for n in range(60)]
    publisher = Publisher(scopes, window=1)
    server = Server(tmp_path / "data")
    for _ in range(3):
        with server:
            socket = await publisher.run(server.url, draw.randrange(1, 30))
            server.kill()
            await publisher.drain(socket)
        assert publisher.missing(server.data_dir) == {}
    with server:
        socket = await publisher.run(server.url, 300)
        server.kill()
        await publisher.drain(socket)
    assert publisher.missing(server.data_dir) == {}
    assert {result["code"] for result in publisher.refused} <= {"patch_failed"}
