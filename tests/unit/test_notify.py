"""What the service manager is told, over a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.ids import new_id
from infra.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        yield listener


def told(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


async def test_ready_watchdog_and_stopping(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "20000"}
    notifier = Notifier(environ, 7)
    assert notifier.watchdog_s == 0.01
    notifier.ready("listening")
    assert told(manager) == ["READY=1", "STATUS=listening"]
    task = asyncio.get_running_loop().create_task(notifier.watch())
    for _ in range(2):
        assert await asyncio.to_thread(told, manager) == ["WATCHDOG=1"]
    task.cancel()
    await asyncio.wait([task])
    manager.setblocking(False)
    while True:  # what it said before it was ended
        try:
            manager.recv(4096)
        except BlockingIOError:
            break
    notifier.stopping(1.5)
    manager.settimeout(30)
    assert told(manager) == ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=1500000"]


def test_a_name_in_the_abstract_namespace() -> None:
    name = f"holdfast-test-{new_id()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(30)
        Notifier({"NOTIFY_SOCKET": "@" + name}, 7).ready("x")
        assert told(listener)[0] == "READY=1"


@pytest.mark.parametrize(
    "environ",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"WATCHDOG_USEC": "20000"}],
)
async def test_nobody_asked(environ: dict[str, str]) -> None:
    notifier = Notifier(environ, 7)
    notifier.ready("x")
    await notifier.watch()


@pytest.mark.parametrize(
    ("usec", "pid", "wanted"),
    [("30000000", "7", 15.0), ("30000000", "8", 0.0), ("", "7", 0.0), ("soon", "7", 0.0)],
)
def test_whose_watchdog_it_is(usec: str, pid: str, wanted: float) -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert Notifier(environ, 7).watchdog_s == wanted


def test_a_manager_that_is_gone_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}, 7).ready("x")
    assert "was not told" in caplog.text
