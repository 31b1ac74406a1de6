"""A real `holdfast` process on a directory of its own, and the few HTTP calls tests make of it.

`start` returns once the server has said that it listens; `stop` sends a signal and waits for the
end. A process that is started again keeps directory and port, so whoever follows it can come back.
Edges and actor processes of a supervised server die with it where it is killed: what a test kills
is the server, in whatever mode it runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from edge.tokens import TokenKey, mint
from infra import clock, ids

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60
KEY = TokenKey("k1", "0123456789abcdef0123456789abcdef")
_OURS = ("HOLDFAST_", "PORT", "HOST")
MODE = os.environ.get("HOLDFAST_TEST_MODE", "")
_SEVERAL = {
    "processes": {"HOLDFAST_EDGES": "2", "HOLDFAST_ACTORS": "2"},
    "tenant": {"HOLDFAST_EDGES": "1", "HOLDFAST_PLACEMENT": "tenant"},
}


class ServerProcess:
    """`command` is `dev` or `serve` with its flags; the environment's own settings do not count."""

    def __init__(
        self, directory: Path, *command: str, module: str = "edge.cli", **environ: str
    ) -> None:
        self.directory = directory
        self.port = 0
        self.url = ""
        self._command = (module, *command)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        several = _SEVERAL.get(MODE, {})
        self._environ = {**kept, "PYTHONPATH": str(ROOT), **several, **environ}
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def with_tokens(cls, directory: Path, *flags: str) -> Self:
        """`serve` with the key of `admin_token` and nothing else."""
        key = f"{KEY.id}:{KEY.secret}"
        return cls(directory, "serve", *flags, HOLDFAST_TOKEN_KEYS=key)

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start and wait for the ready line. Raises AssertionError with the end of the log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        place = ["--port", str(self.port), "--data-dir", str(self.directory / "data"), "--json"]
        command = [sys.executable, "-m", *self._command, *place]
        log_path = self.directory / "server.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.directory, env=self._environ, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it did not start: {log_path.read_text()[-2000:]}"
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit code. SIGKILL goes to all of its processes."""
        assert self._process is not None
        if number == signal.SIGKILL:
            self._kill_children()
        return self.stop_alone(number)

    def stop_alone(self, number: int) -> int:
        """Send the signal to the first process only, and wait for that; the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.communicate(timeout=WAIT_S)
        return self._process.returncode

    def children(self, role: str = "") -> list[int]:
        """The process ids of its edges and actor processes, or of those in one role."""
        found = children_of(self.pid)
        return [pid for pid in found if not role or role_of(pid) == role]

    def _kill_children(self) -> None:
        """All at one moment: the supervisor, which must start none anew meanwhile, is stopped."""
        if self._process is None or self._process.poll() is not None:
            return
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + WAIT_S
        while state_of(self.pid) not in "TtZX":  # it may be starting one just now
            assert time.monotonic() < deadline
            time.sleep(0.001)
        children = children_of(self.pid)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        while any(state_of(pid) not in "ZX" for pid in children):  # nobody has reaped them yet
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()

    def publish(self, scope: str, key: str, value: Any, token: str | None = None) -> int:
        """Replace one record by POST; the seq."""
        envelope = {
            "eventId": ids.new_id(),
            "kind": "patch",
            "entities": [{"key": key, "value": value}],
        }
        answer = self.post("/api/sync/publish", {"scope": scope, "envelope": envelope}, token)
        seq: int = answer["seq"]
        return seq

    def post(self, path: str, body: Any, token: str | None = None) -> Any:
        """A JSON answer. Raises urllib.error.HTTPError."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            return json.load(response)

    def open_files(self) -> int:
        """File descriptors the process holds."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss_kib(self) -> int:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])


def children_of(pid: int) -> list[int]:
    """The processes that one has started, and that have not been reaped."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(one) for one in text.split()]


def role_of(pid: int) -> str:
    """`edge` or `actor`; "" for any other process, and for one that has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if Path(f"/proc/{pid}/comm").read_text() == "holdfast-tenant\n":  # forked
            return "actor"
    except OSError:
        return ""
    return next((word.decode() for word in words if word in (b"edge", b"actor")), "")


def state_of(pid: int) -> str:
    """One letter, as /proc has it; X for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def sockets_held(pid: int) -> int:
    """How many sockets a process has open."""
    held = [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return sum("socket:" in link for link in held)


def admin_token(ttl_s: int = 600) -> str:
    """Opens everything of a `ServerProcess.with_tokens`."""
    return mint(KEY, subject="ops", now_ms=clock.now_ms(), ttl_s=ttl_s, scopes=[], admin=True)


def run_cli(
    *argv: str, stdin: bytes = b"", cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """One `holdfast` command, with nothing of this environment's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return subprocess.run(
        [sys.executable, "-m", "edge.cli", *argv],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **environ},
        timeout=WAIT_S,
        check=False,
    )
