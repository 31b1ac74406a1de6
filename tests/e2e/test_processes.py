"""Edges and actor processes: what happens to clients when one of them dies, ends or is started
anew. Whatever is killed, no acknowledged write is lost and no subscriber sees a gap or a repeat.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from edge.application import Alarm, Application
from edge.config import Config
from infra import clock
from tests.support.app import Client, patch
from tests.support.process import ServerProcess, children_of, role_of
from tests.support.processes import ProcessesServer, several

HASH = {"HOLDFAST_PLACEMENT": "hash"}  # whatever the other tests run with
SCOPES = [f"run:{name}" for name in "abcdef"]


async def written(client: Client, scope: str, count: int, done: list[int]) -> None:
    """Publish one after the other; the seqs that were acknowledged. A refusal is tried again."""
    for number in range(count):
        envelope = patch("message:m1", f"{scope}/{number}", n=number)
        while True:
            answer = (await client.publish(scope, envelope))["results"][0]
            if "seq" in answer:
                done.append(answer["seq"])
                break
            assert answer.get("retryable", True), answer


async def follow(server: ProcessesServer, scope: str) -> Client:
    client = await Client.connect(server)
    await client.send({"type": "sub", "scope": scope, "since": 0})
    return client


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_actors_die_under_load_and_no_client_notices(tmp_path: Path, how: str) -> None:
    config = Config(port=0, data_dir=str(tmp_path), drain_timeout_s=2.0)
    count = 150
    async with several(config, Application(), "dev") as server:
        readers = [await follow(server, scope) for scope in SCOPES]
        writers = [await Client.connect(server) for _ in SCOPES]
        done: list[list[int]] = [[] for _ in SCOPES]
        async with asyncio.TaskGroup() as group:
            for writer, scope, seqs in zip(writers, SCOPES, done, strict=True):
                group.create_task(written(writer, scope, count, seqs))
            seen = [group.create_task(reader.seqs(count)) for reader in readers]
            for at, actor in enumerate(server.actors):
                while len(done[0]) < (at + 1) * count // 4:
                    await asyncio.sleep(0)
                await (actor.kill() if how == "kill" else actor.stop())
                await actor.start()
        for seqs, task in zip(done, seen, strict=True):
            assert seqs == list(range(1, count + 1)), "each was written once, in order"
            assert task.result() == list(range(1, count + 1)), "no gap and no repeat"
        for client in (*readers, *writers):
            assert not client.socket.closed
            await client.close()


async def test_reads_wait_for_a_process_that_is_away(tmp_path: Path) -> None:
    config = Config(port=0, data_dir=str(tmp_path), drain_timeout_s=2.0)
    async with several(config, Application(), "dev") as server, await Client.connect(server) as one:
        await one.publish("run:a", patch(n=1))
        for actor in server.actors:
            await actor.kill()
        reader = await follow(server, "run:a")
        published = asyncio.ensure_future(one.publish("run:a", patch(n=2)))
        for actor in server.actors:
            await actor.start()
        assert await reader.seqs(2) == [1, 2]
        assert (await published)["results"][0]["seq"] == 2
        await reader.close()


async def test_alarms_ring_where_the_application_lives(tmp_path: Path) -> None:
    app, rung = Application(), asyncio.Queue[Alarm]()
    attempts = 0

    @app.on_alarm("wake")
    async def wake(alarm: Alarm) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise RuntimeError("not yet")
        published = await app.publish(alarm.scope, lambda seq: patch(n=seq))
        assert published.envelope is not None
        rung.put_nowait(alarm)

    config = Config(port=0, data_dir=str(tmp_path), drain_timeout_s=2.0)
    async with several(config, app, "dev") as server:
        await app.alarm("run:a", "wake", at_ms=clock.now_ms(), payload={"x": 1})
        async with asyncio.timeout(20):
            alarm = await rung.get()
        assert (alarm.payload, alarm.attempt, alarm.scope) == ({"x": 1}, 2, "run:a")
        assert server.remote is not None


async def test_factories_of_two_writers_take_turns(tmp_path: Path) -> None:
    app = Application()
    config = Config(port=0, data_dir=str(tmp_path), drain_timeout_s=2.0)

    def make(seq: int) -> dict[str, Any]:
        return {**patch(n=seq), "seq": seq}

    async with several(config, app, "dev"):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(app.publish("run:a", make)) for _ in range(4)]
        seqs = [dict(task.result().envelope or {})["seq"] for task in tasks]
        assert sorted(seqs) == [1, 2, 3, 4]

        def bad(seq: int) -> dict[str, Any]:
            raise LookupError("of the caller")

        with pytest.raises(LookupError):
            await app.publish("run:a", bad)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def until_listening(url: str) -> None:
    """An edge may be killed before the one that was killed earlier is back."""
    deadline = time.monotonic() + 30
    while True:
        try:
            get(url + "/v1/scopes")  # 503 while the process of some is on its way
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def test_a_supervised_server_survives_every_process_of_its(tmp_path: Path) -> None:
    flags = ("dev", "--edges", "2", "--actors", "2")
    draw = random.Random(7)
    with ServerProcess(tmp_path, *flags, **HASH) as server:
        seqs = []
        for turn in range(4):
            until_listening(server.url)
            seqs += [server.publish(scope, "message:m1", {"n": turn}) for scope in SCOPES]
            children = children_of(server.pid)
            assert len(children) == 4
            victim = draw.choice(
                [pid for pid in children if (role_of(pid) == "actor") is (turn % 2 == 0)]
            )
            os.kill(victim, signal.SIGKILL)
            while victim in children_of(server.pid) or len(children_of(server.pid)) < 4:
                time.sleep(0.01)  # the supervisor is about to see it
        assert seqs == [turn + 1 for turn in range(4) for _ in SCOPES]
        until_listening(server.url)
        assert len(get(server.url + "/v1/scopes")["scopes"]) == len(SCOPES)
        assert server.stop() == 0
    # The files are where one process looks for them, and any other number of processes.
    one = {"HOLDFAST_EDGES": "0", "HOLDFAST_ACTORS": "0", **HASH}
    for more, environ in (((), one), (("--actors", "3"), HASH), ((), one)):
        with ServerProcess(tmp_path, "dev", *more, **environ) as server:
            assert len(get(server.url + "/v1/scopes")["scopes"]) == len(SCOPES)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_client_is_refused_while_the_only_edge_is_away(tmp_path: Path, number: int) -> None:
    with ServerProcess(tmp_path, "dev", "--edges", "1", "--actors", "1") as server:
        (edge,) = server.children("edge")
        os.kill(edge, number)
        while edge in children_of(server.pid):
            time.sleep(0.001)  # the supervisor is about to see it
        assert get(server.url + "/healthz")  # once, and it is answered by the next
        assert server.children("edge") != [edge]
        assert server.stop() == 0
        with pytest.raises(OSError):
            get(server.url + "/healthz")


def test_a_killed_supervisor_takes_its_processes_along(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "dev", "--edges", "1", "--actors", "2", **HASH) as server:
        assert server.publish("run:a", "message:m1", {"n": 1}) == 1
        server.stop_alone(signal.SIGKILL)
        server.start()
        assert server.publish("run:a", "message:m1", {"n": 2}) == 2


def test_a_kill_of_the_server_is_one_of_all_its_processes(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "dev", "--edges", "2", "--actors", "2", **HASH) as server:
        assert server.publish("run:a", "message:m1", {"n": 1}) == 1
        children = server.children()
        assert (len(children), len(server.children("edge"))) == (4, 2)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        assert all(role_of(pid) == "" for pid in children), "none of them goes on"
        server.start()
        assert server.publish("run:a", "message:m1", {"n": 2}) == 2


async def test_metrics_are_those_of_every_edge(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "dev", "--edges", "2", "--actors", "1", **HASH) as server:
        async with ClientSession() as session:
            url = server.url.replace("http", "ws") + "/api/sync/socket"
            # The system spreads them over both; one that nobody holds would be closed.
            sockets = [await session.ws_connect(url) for _ in range(16)]
            for _ in range(8):  # whichever of the two answers
                deadline = time.monotonic() + 60  # an edge that is slow to answer is left out
                while True:
                    metrics = server.url + "/metrics"
                    async with ClientSession() as scrape, scrape.get(metrics) as answer:
                        text = await answer.text()
                    connected = f"holdfast_connections {len(sockets)}.0"
                    if "holdfast_edges 2.0" in text and connected in text:
                        break
                    assert time.monotonic() < deadline, text
