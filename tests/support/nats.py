"""A real `nats-server`: alone on a free port of loopback, or a cluster on a network of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.namespaces import Node
from tests.support.s3 import _free_port, _script

START_S = 30
_CLIENTS_PORT = 4222
_ROUTES_PORT = 6222
_MONITOR_PORT = 8222


class NatsServer:
    """One process; `start` after `stop` keeps port and store. `prefix` runs it somewhere else, in a
    network namespace, say.
    """

    def __init__(
        self, folder: Path, *, address: str = "127.0.0.1", port: int = 0, name: str = "n1",
        prefix: tuple[str, ...] = (), cluster: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.name = name
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


class NatsCluster:
    """Servers that share their streams, each on a node of a network. Ask it from a node that
    reaches them all.
    """

    def __init__(self, folder: Path, nodes: Sequence[Node]) -> None:
        routes = ",".join(f"nats://{node.address}:{_ROUTES_PORT}" for node in nodes)
        self.nodes = list(nodes)
        self.servers = [
            NatsServer(
                folder, address=node.address, port=_CLIENTS_PORT, name=node.name,
                prefix=node.prefix,
                cluster=("--cluster_name", "test", "--routes", routes, "-m", str(_MONITOR_PORT),
                         "--cluster", f"nats://{node.address}:{_ROUTES_PORT}"),
            )
            for node in nodes
        ]  # fmt: skip

    @property
    def urls(self) -> list[str]:
        """For clients."""
        return [server.url for server in self.servers]

    def start(self) -> None:
        """All of them; returns once they have agreed on a leader and so can keep records."""
        for server in self.servers:
            server.start(wait=False)
        self.until_led()

    def until_led(self) -> NatsServer:
        """The server that leads JetStream, by its own word and that of a majority."""
        end = time.monotonic() + START_S
        while (leader := self._leader()) is None:
            assert time.monotonic() < end, [self._led_by(server) for server in self.servers]
            time.sleep(0.05)
        return leader

    def leader_of(self, stream: str) -> NatsServer:
        """The server that leads the stream. It has to exist."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            for server in self._live():
                with contextlib.suppress(OSError, KeyError, IndexError):
                    found = _asked(server, "/jsz?accounts=true&streams=true")
                    streams = found["account_details"][0]["stream_detail"]
                    by_name = {each["name"]: each["cluster"]["leader"] for each in streams}
                    return next(s for s in self._live() if s.name == by_name[stream])
            time.sleep(0.05)
        raise AssertionError(f"nobody leads {stream}")

    def kill(self) -> None:
        """All of them, at once."""
        for server in self.servers:
            server.kill()

    def _live(self) -> list[NatsServer]:
        return [s for s in self.servers if s.process is not None and s.process.poll() is None]

    def _leader(self) -> NatsServer | None:
        words = [self._led_by(server) for server in self._live()]
        for server in self._live():
            if 2 * words.count(server.name) > len(self.servers):
                return server
        return None

    def _led_by(self, server: NatsServer) -> str:
        with contextlib.suppress(OSError, KeyError):
            name: str = _asked(server, "/jsz")["meta_cluster"]["leader"]
            return name
        return ""


def _asked(server: NatsServer, path: str) -> Any:
    address = server.url.removeprefix("nats://").rpartition(":")[0]
    with urllib.request.urlopen(f"http://{address}:{_MONITOR_PORT}{path}", timeout=2) as answer:
        return json.load(answer)


@contextlib.contextmanager
def nats_cluster(folder: Path, nodes: Sequence[Node]) -> Iterator[NatsCluster]:
    """One that runs, and ends with the block."""
    cluster = NatsCluster(folder, nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()
