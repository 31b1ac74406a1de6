"""A real `nats-server`, alone or as a cluster of processes on free ports of loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.s3 import _free_port, _script

START_S = 30


class NatsServer:
    """One process; `start` after `stop` keeps port and store. `prefix` runs it somewhere else, in a
    network namespace, say.
    """

    def __init__(
        self, folder: Path, *, address: str = "127.0.0.1", port: int = 0, name: str = "n1",
        prefix: tuple[str, ...] = (), cluster: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.port = port or _free_port()
        self.url = f"nats://{address}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self._address = address
        self._command = [*prefix, _script("nats-server"), "-js", "-sd", str(self._folder / "js"),
                         "-a", address, "-p", str(self.port), "-n", name,
                         "-l", str(self._folder / "nats.log"), *cluster]  # fmt: skip

    def start(self, *, wait: bool = True) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)  # fmt: skip
        end = time.monotonic() + START_S
        while wait and time.monotonic() < end:
            assert self.process.poll() is None, (self._folder / "nats.log").read_text()[-2000:]
            with contextlib.suppress(OSError):
                socket.create_connection((self._address, self.port), 1).close()
                return
            time.sleep(0.02)

    def kill(self) -> None:
        """As SIGKILL does; what was stored stays."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(START_S)


@contextlib.contextmanager
def nats_server(folder: Path) -> Iterator[NatsServer]:
    """One that runs, and ends with the block."""
    server = NatsServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
