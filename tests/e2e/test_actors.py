"""Scopes sleep and wake beneath open sockets, and the server says why, in whatever mode it runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from edge.application import Alarm, Application
from edge.server import Server
from infra import clock
from tests.support.app import Client, patch, running, url_of
from tests.support.process import ServerProcess, run_cli
from tests.support.rtc import ROOM, Peer, insert

SCOPE = "run:a"


async def ask(server: Server, verb: str = "", scope: str = SCOPE) -> dict[str, Any]:
    """What the server says of the scope, after it was told to sleep or wake if `verb` says so."""
    path = url_of(server, f"/v1/actors/default/{scope}")
    async with ClientSession() as session:
        request = session.post(f"{path}/{verb}") if verb else session.get(path)
        async with request as answer:
            found: dict[str, Any] = await answer.json()
            assert answer.status == 200, found
            return found


async def until_asleep(server: Server, scope: str = SCOPE) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while (found := await ask(server, scope=scope))["state"] != "asleep":
            await asyncio.sleep(0.02)
    return found


async def processes(server: Server) -> list[dict[str, Any]]:
    async with ClientSession() as session, session.get(url_of(server, "/v1/actors")) as answer:
        found: dict[str, Any] = await answer.json()
        listed: list[dict[str, Any]] = found["processes"]
        return listed


async def wakes(server: Server) -> int:
    return sum(sum(process["wakes"].values()) for process in await processes(server))


async def test_heartbeats_neither_wake_a_scope_nor_keep_it_awake(tmp_path: Path) -> None:
    async with (
        running(tmp_path, idle_s=0.3) as server,
        await Client.connect(server) as reader,
        await Client.connect(server) as writer,
    ):
        await reader.send({"type": "sub", "scope": SCOPE, "since": 0})
        await writer.publish(SCOPE, patch(n=1))
        assert await reader.seqs(1) == [1]
        found = await ask(server)
        assert found["woken_by"] in ("command", "replay", "subscribe"), found
        assert found["state"] == "asleep" or found["awake_since"] <= clock.now_ms()
        beating = True

        async def beat() -> None:
            while beating:
                for client in (reader, writer):
                    await client.socket.ping()
                    await client.send({"type": "ping", "t": 1})
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            group.create_task(beat())
            slept = await until_asleep(server)
            before = await wakes(server)
            pongs = 0
            while pongs < 200:
                pongs += (await writer.frame())["type"] == "pong"
            beating = False
        assert (await ask(server))["state"] == "asleep", "its sockets are open, and busy"
        assert await wakes(server) == before
        assert slept["slept_at"] is None or slept["slept_at"] >= slept["awake_since"]
        await writer.publish(SCOPE, patch(n=2))
        assert await reader.seqs(2) == [2], "no gap, no repeat"
        assert (await ask(server))["woken_by"] == "command"
        assert await wakes(server) == before + 1
        assert not reader.socket.closed and not writer.socket.closed


async def test_presence_neither_wakes_a_room_nor_keeps_it_awake(tmp_path: Path) -> None:
    room = f"rtc:{ROOM}"
    async with (
        running(tmp_path, idle_s=0.3) as server,
        await Peer.joined(server, "ann") as ann,
        await Peer.joined(server, "bob") as bob,
    ):
        await ann.write(insert("n"))
        await bob.heard(1)
        there, before, count = False, 0, 0
        async with asyncio.timeout(60):
            while count < 20:  # of them while it sleeps
                count += 1
                await ann.send({"mtype": "presence", "state": count})
                await bob.until("presence")
                await bob.ask({"mtype": "heartbeat"}, "heartbeat")
                await asyncio.sleep(0.05)  # within what a session may send
                if not there:
                    count = 0
                    there = (await ask(server, scope=room))["state"] == "asleep"
                    before = await wakes(server)
        assert (await ask(server, scope=room))["state"] == "asleep"
        assert await wakes(server) == before
        await bob.write(insert("m"))
        assert [m["serverSeq"] for m in await ann.heard(2)] == [2]
        assert (await ask(server, scope=room))["state"] == "awake"


async def test_an_alarm_wakes_a_scope_that_sleeps_under_its_sockets(tmp_path: Path) -> None:
    app = Application()
    rung, go_on = asyncio.Event(), asyncio.Event()

    @app.on_alarm("wake")
    async def wake(alarm: Alarm) -> None:
        rung.set()
        await go_on.wait()
        await app.publish(alarm.scope, patch(n=2))

    async with (
        running(tmp_path, app=app, idle_s=0.1) as server,
        await Client.connect(server) as reader,
    ):
        await reader.send({"type": "sub", "scope": SCOPE, "since": 0})
        await reader.publish(SCOPE, patch(n=1))
        delay_ms = 1500
        while True:
            await app.alarm(SCOPE, "wake", at_ms=clock.now_ms() + delay_ms)
            await ask(server, "sleep")
            if not rung.is_set():
                break  # else this machine was too slow for it: allow it more time
            go_on.set()
            await reader.seqs(2)
            rung.clear()
            go_on.clear()
            delay_ms *= 2
        async with asyncio.timeout(60):
            await rung.wait()
        found = await ask(server)
        assert (found["state"], found["woken_by"]) == ("awake", "alarm")
        assert "alarm" in found["kept_by"] and found["sleeps_at"] is None
        go_on.set()
        await reader.until("event")
        assert not reader.socket.closed
        await until_asleep(server)


def holdfast(server: ServerProcess, *argv: str) -> tuple[int, dict[str, Any]]:
    done = run_cli("actors", *argv, "--json", "--url", server.url)
    text = done.stdout if done.returncode == 0 else done.stderr
    found: dict[str, Any] = json.loads(text)
    return done.returncode, found


def test_the_commands(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "dev") as server:
        server.publish(SCOPE, "message:m1", {"n": 1})
        server.publish("run:b", "message:m1", {"n": 1})
        code, found = holdfast(server, "ls", "--prefix", "run:")
        assert code == 0 and [one["scope"] for one in found["scopes"]] == [SCOPE, "run:b"]
        assert {one["woken_by"] for one in found["scopes"]} == {"command"}
        code, found = holdfast(server, "sleep", SCOPE)
        assert (code, found["state"]) == (0, "asleep")
        code, found = holdfast(server, "ls")
        assert [one["scope"] for one in found["scopes"]] == ["run:b"]
        code, found = holdfast(server, "show", SCOPE)
        assert (code, found["state"], found["woken_by"]) == (0, "asleep", "command")
        code, found = holdfast(server, "wake", SCOPE)
        assert (code, found["state"], found["woken_by"]) == (0, "awake", "admin")
        assert server.publish(SCOPE, "message:m1", {"n": 2}) == 2
        for verb in ("show", "sleep", "wake"):
            code, found = holdfast(server, verb, "run:none")
            assert (code, found["error"]["code"]) == (3, "not_found"), verb
        text = run_cli("actors", "ls", "--processes", "--url", server.url).stdout.decode()
        assert text.startswith("process") and "scopes" in text
