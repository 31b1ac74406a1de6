"""A server to be killed, and a publisher that keeps account of every answer it got."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from infra.paths import ledger_path
from tests.support.ledgers import Checked, check_file

ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, "-c", "from edge.cli import main; main()", "serve"]
WAIT_S = 30
RESEND_MAX = 100
RESENDS_MAX = 200


class Server:
    """`holdfast serve` over one directory; `kill` and enter again as often as you like."""

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        command: list[str] | None = None,
        environ: dict[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self._environ = environ or {}
        self._argv = [
            *(command or SERVE), "--insecure", "--json", "--port", "0", "--data-dir", str(data_dir),
            "--publish-envelopes-per-s", "0", "--publish-bytes-per-s", "0", *options,
        ]  # fmt: skip
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        ours = ("HOLDFAST_", "PORT", "HOST")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._argv, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**environ, "PYTHONPATH": str(ROOT), **self._environ},
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"no ready line, exit {self.process.wait(WAIT_S)}: {self.log.read_text()}"
        self.url = json.loads(line)["url"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
    """Publishes to several scopes, `window` frames ahead in each; knows what was acknowledged.

    With `durable` it asks how far the bucket is: the greatest seq it was told, by scope. `epochs`
    are all that it met.
    """

    def __init__(self, scopes: list[str], *, window: int, durable: bool = False) -> None:
        self.scopes = scopes
        self.durable: dict[str, int] = {}
        self.epochs: set[str] = set()
        self.acked: dict[str, dict[str, int]] = {scope: {} for scope in scopes}
        self.refused: list[dict[str, Any]] = []
        self._window = window
        self._asks_durable = durable
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[str, list[str]]] = {}

    async def run(
        self, url: str, acks: int, *, until: Callable[[], bool] = lambda: True
    ) -> aiohttp.ClientWebSocketResponse:
        """Publish until `acks` more envelopes were acknowledged, and `until` holds; leaves work in
        the socket.
        """
        session = aiohttp.ClientSession()
        try:
            socket = await session.ws_connect(f"{url}/api/sync/socket", max_msg_size=0)
            self._asked.clear()
            for _, scope in itertools.product(range(self._window), self.scopes):
                await socket.send_str(self._frame(scope))
            wanted = self.count + acks
            while self.count < wanted or not until():
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

    async def resend(self, url: str, scope: str, event_ids: list[str]) -> None:
        """Publish these again, as they were, as often as it takes until all are acknowledged."""
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}/api/sync/socket", max_msg_size=0) as socket,
        ):
            for _ in range(RESENDS_MAX):
                left = [i for i in event_ids if i not in self.acked[scope]]
                if not left:
                    return
                for at in range(0, len(left), RESEND_MAX):
                    part = left[at : at + RESEND_MAX]
                    envelopes = [_envelope(i, int(i[1:].partition(".")[0])) for i in part]
                    await socket.send_str(self._text(at, scope, part, envelopes))
                    self._hear(json.loads(await socket.receive_str(timeout=WAIT_S)))
        raise AssertionError(f"not taken: {self.refused[-1]}")

    @property
    def count(self) -> int:
        return sum(map(len, self.acked.values()))

    def _frame(self, scope: str) -> str:
        number = next(self._numbers)
        ids = [f"p{number}.{part}" for part in range(1 + number % 3)]
        acked = self.acked[scope]
        if number % 11 == 0 and acked:
            ids[0] = next(iter(acked))  # an old one again: a duplicate with its first seq
        return self._text(number, scope, ids, [_envelope(i, number) for i in ids])

    def _text(self, number: int, scope: str, ids: list[str], envelopes: list[Any]) -> str:
        self._asked[number] = (scope, ids)
        frame = {"type": "publish", "id": number, "scope": scope, "envelopes": envelopes}
        if self._asks_durable:
            frame["durable"] = True
        return json.dumps(frame)

    def _hear(self, frame: dict[str, Any]) -> str:
        assert frame["type"] == "published", frame
        scope, ids = self._asked.pop(frame["id"])
        self.epochs |= {frame["epoch"]} - {""}
        self.durable[scope] = max(self.durable.get(scope, 0), frame.get("durableSeq", 0))
        for event_id, result in zip(ids, frame["results"], strict=True):
            if "seq" in result:
                known = self.acked[scope].setdefault(event_id, result["seq"])
                assert known == result["seq"], "one cause, two seqs"
            else:
                self.refused.append(result)
        return scope

    def missing(self, data_dir: Path, *, damage_is_loss: bool = False) -> dict[str, int]:
        """Check every ledger; the acknowledged envelopes that are not where they should be."""
        lost = {}
        for scope in self.scopes:
            try:
                causes = self.checked(data_dir, scope).causes if self.acked[scope] else {}
            except (sqlite3.Error, AssertionError):
                if not damage_is_loss:
                    raise
                causes = {}
            lost.update({i: seq for i, seq in self.acked[scope].items() if causes.get(i) != seq})
        return lost

    def checked(self, data_dir: Path, scope: str) -> Checked:
        return check_file(ledger_path(data_dir, "default", scope))


def _envelope(event_id: str, number: int) -> dict[str, Any]:
    entity: dict[str, Any] = {"key": f"item:{number % 7}"}
    if number % 13 == 0:
        text = {"op": "appendText", "path": "/text", "delta": "long " * 900}
        entity = {"key": "doc:1", "patches": [text]}
    elif number % 29 == 0:
        entity["deleted"] = True
    else:
        # Every seventeenth is refused: a record is no number.
        count = {"op": "increment", "path": "" if number % 17 == 0 else "/count"}
        entity["patches"] = [{"op": "set", "path": "/last", "value": event_id}, count]
    return {"eventId": event_id, "kind": "patch", "entities": [entity]}
