"""A peer as a child process on a data directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from bench.gen import meter
from bench.roster import ROOT, Peer

START_WAIT_S = 40.0
STOP_WAIT_S = 15.0


class Server:
    """Started empty, or with what an earlier start left."""

    def __init__(self, peer: Peer, work: Path) -> None:
        self.peer = peer
        self.directory = work / f"data-{peer.name}"
        self._log_path = work / f"{peer.name}.log"
        self.pid = self.port = 0

    def start(self, *, clean: bool = True) -> Server:
        """Start and wait until it listens. Raises RuntimeError with the end of its log."""
        bucket = self.directory.with_name(f"{self.directory.name}-bucket")
        for directory in (self.directory, bucket):
            if clean:
                shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        port, data = str(self.port), str(self.directory)
        env = {
            **os.environ,
            "PORT": port,
            "DIR": data,
            "HOLDFAST_PORT": port,
            "HOLDFAST_DATA_DIR": data,
            **{name: value.replace("{DIR}", data) for name, value in self.peer.env.items()},
        }
        self._log = self._log_path.open("wb")
        self._process = subprocess.Popen(
            self.peer.command(self.port), env=env, stdout=self._log, stderr=self._log, cwd=ROOT
        )
        self.pid = self._process.pid
        self._await_listening()
        time.sleep(self.peer.settle_s)
        return self

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to the whole tree where that takes too long."""
        if self._process.poll() is None:
            family = meter.tree(self.pid)
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                for pid in family:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                self._process.wait()
        self._log.close()

    def _await_listening(self) -> None:
        deadline = time.monotonic() + START_WAIT_S
        while True:
            if self._process.poll() is not None:
                tail = self._log_path.read_bytes()[-400:].decode(errors="replace")
                raise RuntimeError(f"{self.peer.name} exited: {tail}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.5).close()
                return
            except OSError:
                time.sleep(0.05)
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.peer.name} does not listen")


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
