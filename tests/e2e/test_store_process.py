"""One process speaks to the bucket for all that have scopes; killed, it costs nothing but time."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
from pathlib import Path

import pytest

from infra import ids
from tests.support.process import ServerProcess, children_of
from tests.support.s3 import S3Server, environment

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("s3_credentials")]

WRITES = 12
MODES = {
    "tenant": ("--edges", "1", "--placement", "tenant"),
    "hash": ("--edges", "1", "--actors", "2"),
}


def store_of(server: ServerProcess) -> int:
    """The pid of its store process; 0 while there is none."""
    for pid in children_of(server.pid):
        try:
            if b"\0store\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:  # it has just ended
            continue
    return 0


def write(server: ServerProcess, number: int) -> int:
    """One replicated write, repeated with the same id until it is answered; its seq."""
    entities = [{"key": f"note:{number}", "value": {"n": number}}]
    envelope = {"eventId": f"e{number}", "kind": "patch", "entities": entities}
    body = {"scope": f"run:{number % 2}", "level": "replicated", "envelope": envelope}
    while True:
        try:
            seq: int = server.post("/api/sync/publish", body)["seq"]
            return seq
        except urllib.error.HTTPError as error:
            assert json.load(error)["retryable"], error


def has_sdk(pid: int) -> bool:
    """Whether the process speaks to the network: only the store process does."""
    sockets = {one.readlink().name for one in Path(f"/proc/{pid}/fd").iterdir()}
    tcp = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(f"socket:[{line.split()[9]}]" in sockets for line in tcp)


@pytest.mark.parametrize("mode", ["tenant", pytest.param("hash", marks=pytest.mark.soak)])
def test_a_killed_store_process_loses_nothing(
    tmp_path: Path, moto_server: S3Server, mode: str
) -> None:
    bucket = moto_server.bucket_url(ids.new_id())
    flags = ("dev", *MODES[mode], "--bucket", bucket, "--durability", "replicated")
    with ServerProcess(tmp_path / "first", *flags, **environment()) as server:
        seqs = []
        for number in range(WRITES):
            if number % 6 == 2:
                killed = store_of(server)
                os.kill(killed, signal.SIGKILL)
            seqs.append(write(server, number))
        assert seqs == [number // 2 + 1 for number in range(WRITES)], "each write counts once"
        while store_of(server) in (0, killed):
            time.sleep(0.01)
        assert not any(has_sdk(pid) for pid in server.children("actor"))
        assert server.children("actor")
        assert server.stop() == 0
    # Another machine finds all of it.
    alone = {"HOLDFAST_EDGES": "0", "HOLDFAST_ACTORS": "0", "HOLDFAST_PLACEMENT": "hash"}
    at = ("dev", "--bucket", bucket, "--durability", "replicated")
    with ServerProcess(tmp_path / "second", *at, **environment(), **alone) as server:
        assert write(server, WRITES) == WRITES // 2 + 1
        assert write(server, WRITES + 1) == WRITES // 2 + 1
        assert write(server, 3) == 2, "and knows it again"
