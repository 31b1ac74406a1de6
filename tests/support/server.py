"""A real server in a process of its own, and a publisher that keeps account of every answer."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from infra.paths import ledger_path
from tests.support.ledgers import Checked, check_file

ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, "-c", "from edge.cli import main; main()", "serve"]
WAIT_S = 30


class Server:
    """`holdfast serve` over one directory; `kill` and enter again as often as you like."""

    def __init__(self, data_dir: Path, *options: str, command: list[str] | None = None) -> None:
        self.data_dir = data_dir
        self._argv = [
            *(command or SERVE), "--insecure", "--json", "--port", "0", "--data-dir", str(data_dir),
            "--publish-envelopes-per-s", "0", "--publish-bytes-per-s", "0", *options,
        ]  # fmt: skip
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        ours = ("HOLDFAST_", "PORT", "HOST")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.process = subprocess.Popen(
            self._argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"no ready line, exit {self.process.wait(WAIT_S)}"
        self.url = json.loads(line)["url"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.kill()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Harmless when it has ended."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(WAIT_S)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


class Publisher:
    """Publishes to several scopes without waiting, `window` frames each; knows what was acknowledged."""

    def __init__(self, scopes: list[str], *, window: int, name: str = "p") -> None:
        self.scopes = scopes
        self.acked: dict[str, dict[str, int]] = {scope: {} for scope in scopes}
        self.refused: list[dict[str, Any]] = []
        self._window = window
        self._name = name
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[str, list[str]]] = {}

    async def run(self, url: str, acks: int) -> aiohttp.ClientWebSocketResponse:
        """Publish until `acks` more envelopes were acknowledged; the socket is left full of work."""
        session = aiohttp.ClientSession()
        try:
            socket = await session.ws_connect(f"{url}/api/sync/socket", max_msg_size=0)
            self._asked.clear()
            for _, scope in itertools.product(range(self._window), self.scopes):
                await socket.send_str(self._frame(scope))
            wanted = self.count + acks
            while self.count < wanted:
                scope = self._hear(json.loads(await socket.receive_str(timeout=WAIT_S)))
                await socket.send_str(self._frame(scope))
        except BaseException:
            await session.close()
            raise
        self._session = session
        return socket

    async def drain(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Hear the answers that had left the server before it ended: they count as well."""
        try:
            while (message := await socket.receive(timeout=WAIT_S)).type is aiohttp.WSMsgType.TEXT:
                self._hear(json.loads(message.data))
        finally:
            await self._session.close()

    @property
    def count(self) -> int:
        return sum(map(len, self.acked.values()))

    def _frame(self, scope: str) -> str:
        number = next(self._numbers)
        ids = [f"{self._name}{number}.{part}" for part in range(1 + number % 3)]
        acked = self.acked[scope]
        if number % 11 == 0 and acked:
            ids[0] = next(iter(acked))  # an old one again: a duplicate with its first seq
        self._asked[number] = (scope, ids)
        envelopes = [_envelope(event_id, number) for event_id in ids]
        return json.dumps(
            {"type": "publish", "id": number, "scope": scope, "envelopes": envelopes}
        )

    def _hear(self, frame: dict[str, Any]) -> str:
        assert frame["type"] == "published", frame
        scope, ids = self._asked.pop(frame["id"])
        for event_id, result in zip(ids, frame["results"], strict=True):
            if "seq" in result:
                known = self.acked[scope].setdefault(event_id, result["seq"])
                assert known == result["seq"], "one cause, two seqs"
            else:
                self.refused.append(result)
        return scope

    def missing(self, data_dir: Path) -> dict[str, int]:
        """Check every ledger and name the acknowledged envelopes that are not where they should be."""
        lost = {}
        for scope in self.scopes:
            causes = self.checked(data_dir, scope).causes if self.acked[scope] else {}
            lost.update({i: seq for i, seq in self.acked[scope].items() if causes.get(i) != seq})
        return lost

    def checked(self, data_dir: Path, scope: str) -> Checked:
        return check_file(ledger_path(data_dir, "default", scope))


def _envelope(event_id: str, number: int) -> dict[str, Any]:
    key = f"item:{number % 7}"
    if number % 13 == 0:
        text = {"op": "appendText", "path": "/text", "delta": "long " * 900}
        return {"eventId": event_id, "kind": "patch", "entities": [{"key": "doc:1", "patches": [text]}]}
    if number % 29 == 0:
        return {"eventId": event_id, "kind": "patch", "entities": [{"key": key, "deleted": True}]}
    count = {"op": "increment", "path": "/count"}
    if number % 17 == 0:
        count = {"op": "increment", "path": ""}  # refused: the record is no number
    last = {"op": "set", "path": "/last", "value": event_id}
    return {"eventId": event_id, "kind": "patch", "entities": [{"key": key, "patches": [last, count]}]}
