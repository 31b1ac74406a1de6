"""A process for each tenant: started when wanted, asleep while its clients' sockets stay open."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.app import Client, patch
from tests.support.process import ServerProcess, children_of, role_of

THREADED = """
import threading
from holdfast import Application
threading.Thread(target=threading.Event().wait, daemon=True).start()
app = Application()
"""


class _At:
    """What Client.connect needs of a server."""

    def __init__(self, url: str) -> None:
        self.info = self
        self.url = url


APP = """
import asyncio, pathlib, time
from holdfast import Application

HERE = pathlib.Path(__file__).parent
app = Application()

async def later(ms):
    at_ms = int(time.time() * 1000) + ms
    await app.alarm("run:a", "wake", at_ms=at_ms, payload=ms)

@app.on_start
async def start():
    await later(1500)

@app.on_alarm("wake")
async def wake(alarm):
    (HERE / "rung").touch()
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    (HERE / "go").unlink()
    await app.publish(alarm.scope, {
        "kind": "patch", "eventId": f"rung-{alarm.payload}",
        "entities": [{"key": "message:m1", "value": {"n": 1}}],
    })
    if not (HERE / "enough").exists():
        await later(2 * alarm.payload)
"""


def said(server: ServerProcess, path: str = "") -> Any:
    with urllib.request.urlopen(server.url + "/v1/actors" + path, timeout=20) as answer:
        return json.load(answer)


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


PATHS = ("--tenant-from", "token,path", "--tenant-path", "/t/{tenant}")


def is_forked(pid: int) -> bool:
    """Whether it was forked; a program of its own has the name of its interpreter."""
    comm = Path(f"/proc/{pid}/comm")
    return comm.exists() and comm.read_text() == "holdfast-tenant\n"


def fork_server_of(server: ServerProcess) -> int:
    """Its pid; 0 where there is none."""
    for pid in children_of(server.pid):
        if b"\0forkserver\0" in cmdline(pid) and role_of(pid) == "":
            return pid
    return 0


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def write(server: ServerProcess, tenant: str, n: int) -> tuple[int, int]:
    """(the seq, the pid of the one process that has come or been there)."""
    envelope = {
        "eventId": f"e{n}",
        "kind": "patch",
        "entities": [{"key": "message:m1", "value": {"n": n}}],
    }
    body = {"scope": "run:a", "envelope": envelope}
    before = set(server.children("actor"))
    seq = server.post(f"/t/{tenant}/api/sync/publish", body)["seq"]
    new = set(server.children("actor")) - before
    return seq, new.pop() if new else 0


def test_processes_of_tenants_are_forked_and_live_apart(tmp_path: Path) -> None:
    flags = ("dev", "--placement", "tenant", "--idle-s", "3600", *PATHS)
    with ServerProcess(tmp_path, *flags) as server:
        for number in range(60):  # the fork server is still starting
            first = f"t{number}"
            keeps = write(server, first, 1)[1]
            if is_forked(keeps):
                break
        seq, second = write(server, "second", 1)
        assert (seq, is_forked(second)) == (1, True)
        forks = fork_server_of(server)
        assert {forks, second} <= set(children_of(server.pid)), "the supervisor is its parent"
        # One that is killed is started anew; the other goes on.
        os.kill(second, signal.SIGKILL)
        assert write(server, first, 2)[0] == 2 and keeps in children_of(server.pid)
        while second in children_of(server.pid):
            time.sleep(0.01)
        while write(server, "second", 2)[0] != 2:
            pass
        # So is the fork server; until then each process is started by itself.
        os.kill(forks, signal.SIGKILL)
        while fork_server_of(server) == forks:
            time.sleep(0.01)
        assert write(server, "third", 1)[0] == 1
        assert write(server, first, 3)[0] == 3 and keeps in children_of(server.pid)
        while not fork_server_of(server):
            time.sleep(0.01)
        family = children_of(server.pid)
        assert server.stop() == 0
        assert not [pid for pid in family if cmdline(pid)], "all have ended"


def test_their_fork_server_ends_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    flags = ("dev", "--placement", "tenant", "--edges", "1", "--idle-s", "3600", *PATHS)
    with ServerProcess(tmp_path, *flags) as server:
        write(server, "a", 1)
        family = children_of(server.pid)
        assert len(family) == 3
        server.stop_alone(signal.SIGKILL)
        while [pid for pid in family if cmdline(pid)]:
            time.sleep(0.01)


def test_an_application_with_threads_is_not_forked(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(THREADED)
    flags = ("serve", "threaded:app", "--insecure", "--placement", "tenant", *PATHS)
    with ServerProcess(tmp_path, *flags, "--idle-s", "3600") as server:
        while (
            fork_server_of(server) or "no fork server" not in (tmp_path / "server.log").read_text()
        ):
            time.sleep(0.01)
        seq, pid = write(server, "a", 1)
        assert (seq, is_forked(pid)) == (1, False)
        assert server.stop() == 0


async def test_an_alarm_wakes_a_tenant_and_heartbeats_do_not(tmp_path: Path) -> None:
    (tmp_path / "waker.py").write_text(APP)
    flags = ("--placement", "tenant", "--edges", "1", "--tenant-idle-s", "0", "--idle-s", "0")
    rung, go = tmp_path / "rung", tmp_path / "go"
    with ServerProcess(tmp_path, "dev", "waker:app", *flags) as server:
        at: Any = _At(server.url)
        async with await Client.connect(at) as reader, asyncio.timeout(120):
            await reader.send({"type": "sub", "scope": "run:a", "since": 0})
            seen, slept = 0, False
            while not slept:
                while not rung.exists():
                    await reader.send({"type": "ping", "t": 1})
                    await reader.until("pong")
                    await asyncio.sleep(0.01)  # a socket may send 200 control frames a second
                found = await asyncio.to_thread(said, server, "/default/run:a")
                assert found["state"] == "awake" and "alarm" in found["kept_by"]
                (process,) = (await asyncio.to_thread(said, server))["processes"]
                assert (process["tenant"], process["kept_by"]) == ("default", ["scopes"])
                # Else it had not slept yet when the alarm was due: the next one is later.
                slept = (found["woken_by"], process["woken_by"]) == ("alarm", "alarm")
                rung.unlink()
                if slept:
                    (tmp_path / "enough").touch()
                go.touch()
                seen += 1
                assert await reader.seqs(seen) == [seen], "under the same socket"
            while server.children("actor"):
                await reader.send({"type": "ping", "t": 1})
                await reader.until("pong")
                await asyncio.sleep(0.01)
            found = await asyncio.to_thread(said, server, "/default/run:a")
            assert (found["state"], found["process"]) == ("asleep", None)
            assert (await asyncio.to_thread(said, server))["processes"] == []
            assert server.children("actor") == [], "to ask wakes nobody"
            assert not reader.socket.closed
