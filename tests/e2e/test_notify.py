"""A served process tells its service manager that it is ready, alive, and going."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.process import ServerProcess


@pytest.mark.e2e
def test_a_server_tells_how_it_is(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with ServerProcess(tmp_path, "dev", **environ) as server:
            first = manager.recv(4096).decode()
            assert first == f"READY=1\nSTATUS=listening on {server.url}"
            assert {manager.recv(4096) for _ in range(3)} == {b"WATCHDOG=1"}
            server.stop()
            while (last := manager.recv(4096)) == b"WATCHDOG=1":
                pass
            assert last.startswith(b"STOPPING=1\n")
