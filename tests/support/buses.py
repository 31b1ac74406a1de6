"""Real `nats-server` and `redis-server` processes, and fixtures that start one a session."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

WAIT_S = 60


class BusServer:
    """A process on a port that it keeps over restarts. Settings are the program's own words."""

    program = ""
    ready = ""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.port = _free_port()
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None

    @classmethod
    def path(cls) -> str:
        """The program. Skips the test where there is none."""
        inside = Path(sysconfig.get_path("scripts")) / cls.program
        found = str(inside) if inside.exists() else shutil.which(cls.program)
        if found is None:
            pytest.skip(f"no {cls.program} on the path")
        return found

    def command(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start and wait until it says that it is ready."""
        self._process = subprocess.Popen(
            self.command(), cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        ready = threading.Event()
        lines: list[str] = []
        reader = threading.Thread(target=self._read, args=(self._process, ready, lines))
        reader.start()
        assert ready.wait(WAIT_S) and self._process.poll() is None, "".join(lines[-20:])
        return self

    def _read(self, process: Any, ready: threading.Event, lines: list[str]) -> None:
        for line in process.stdout:
            lines.append(line)
            del lines[:-200]
            if self.ready in line:
                ready.set()
        ready.set()  # it has ended
        process.stdout.close()

    def kill(self) -> None:
        """End it without a word to its clients, but for what the kernel says."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(WAIT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.kill()


class NatsServer(BusServer):
    """`settings` are lines of its configuration file."""

    program = "nats-server"
    ready = "Server is ready"

    @property
    def url(self) -> str:
        """For clients."""
        return f"nats://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """With a configuration file of its own."""
        config = self.directory / "nats.conf"
        config.write_text("".join(f"{name}: {value}\n" for name, value in self._settings.items()))
        return [self.path(), "-a", "127.0.0.1", "-p", str(self.port), "-c", str(config)]


class RedisServer(BusServer):
    """`settings` are its options."""

    program = "redis-server"
    ready = "Ready to accept connections"

    @property
    def url(self) -> str:
        """For clients."""
        return f"redis://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Nothing is saved."""
        options = {"save": "", "appendonly": "no", **self._settings}
        given = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [self.path(), "--bind", "127.0.0.1", "--port", str(self.port), *given]


class NatsSocket:
    """A publisher that blocks whoever calls it, the event loop above all."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self._file = self._socket.makefile("rb")
        self._file.readline()  # INFO
        self._socket.sendall(b'CONNECT {"verbose":false}\r\n')

    def publish(self, subject: str, payload: bytes) -> None:
        """Send a message."""
        self._socket.sendall(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload))

    def close(self) -> None:
        """Return once the server has taken everything."""
        self._socket.sendall(b"PING\r\n")
        while not re.match(rb"PONG", self._file.readline()):
            pass
        self._file.close()
        self._socket.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
