"""`python -m bench.tenants`: how long a sleeping tenant's process takes to wake, and what an idle
one costs in memory, without a bucket, with a directory as one, and with S3 (moto on loopback).

A wake is one HTTP request on an open connection (a view of a scope of one entity) to a tenant whose
process has ended; beside it stands the same request while the process is there. Memory is read from
/proc/PID/smaps_rollup once every scope is closed: RSS counts a page shared with the supervisor's
other processes in full, PSS by its share. The exit code is 1 where the median wake or the largest
RSS misses its bar.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.__main__ import wait_for_quiet
from bench.endpoints import environment, moto
from bench.gen import meter
from bench.process import Server
from bench.roster import Peer

WAKE_P50_MS_MAX = 400.0
RSS_MIB_MAX = 45.0
VIEW = "/api/sync/views/scope?p=eyJzY29wZSI6InJ1bjpyMSJ9"  # of run:r1
WAIT_S = 60.0


def peer(bucket: str, idle_s: float) -> Peer:
    """One edge, and a process for each tenant that ends (`idle_s` 0) or stays."""
    env = {
        "HOLDFAST_PLACEMENT": "tenant", "HOLDFAST_TENANT_FROM": "token,path",
        "HOLDFAST_TENANT_PATH": "/t/{tenant}", "HOLDFAST_INSECURE": "true",
        "HOLDFAST_TENANT_IDLE_S": f"{idle_s}", "HOLDFAST_IDLE_S": "0.2", "HOLDFAST_BUCKET": bucket,
    }  # fmt: skip
    command = [sys.executable, "-m", "edge.cli", "serve"]
    return Peer("tenants", lambda _: command, _no_load, {**environment(), **env})


def _no_load(port: int, load: str) -> Any:
    raise NotImplementedError("this peer runs none of the workloads")


class Tenants:
    """Requests of `count` tenants to a started server, on one connection."""

    def __init__(self, server: Server, count: int) -> None:
        self._server = server
        self._http = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        self.names = [f"t{number}" for number in range(count)]

    def fill(self) -> None:
        """One entity each."""
        for name in self.names:
            entities = [{"key": "note:1", "value": {"n": 1}}]
            envelope = {"eventId": f"e-{name}", "kind": "patch", "entities": entities}
            body = json.dumps({"scope": "run:r1", "envelope": envelope})
            self._ask("POST", f"/t/{name}/api/sync/publish", body)

    def view_ms(self, name: str) -> float:
        """How long one view takes."""
        began = time.perf_counter()
        found = self._ask("GET", f"/t/{name}{VIEW}")
        took = (time.perf_counter() - began) * 1000
        assert len(found["entities"]) == 1, found
        return took

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        self._http.request(method, path, body, {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {data[:200]!r}")
        return json.loads(data)

    def pids(self) -> list[int]:
        """Processes of tenants that there are: each holds the lock file of its folder open."""
        return [pid for pid in meter.tree(self._server.pid) if _is_tenant(pid)]

    def until_asleep(self) -> None:
        """Return once no process of a tenant is left."""
        end = time.monotonic() + WAIT_S
        while self.pids():
            if time.monotonic() > end:
                raise RuntimeError("a tenant's process does not end")
            time.sleep(0.02)


def _is_tenant(pid: int) -> bool:
    try:
        links = [one.readlink() for one in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(link.name == "lock" and link.parent.parent.name == "tenants" for link in links)


def memory_mib(pid: int) -> tuple[float, float]:
    """(RSS, PSS) of a process."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        found[name] = int(value) / 1024
    return found["Rss:"], found["Pss:"]


@contextmanager
def started(work: Path, bucket: str, idle_s: float, *, clean: bool) -> Iterator[Server]:
    server = Server(peer(bucket, idle_s), work).start(clean=clean)
    try:
        yield server
    finally:
        server.stop()


def measure(work: Path, kind: str, bucket: str, count: int, rounds: int) -> dict[str, Any]:
    """One row."""
    row: dict[str, Any] = {"bucket": kind, "tenants": count}
    with started(work, bucket, 0, clean=True) as server:
        tenants = Tenants(server, count)
        tenants.fill()
        woken = []
        for _ in range(rounds):
            for name in tenants.names:
                tenants.until_asleep()
                wait_for_quiet(0.35, 1)
                woken.append(tenants.view_ms(name))
        row["wakes"] = len(woken)
        row["wake_p50_ms"] = statistics.median(woken)
        row["wake_p95_ms"] = sorted(woken)[int(len(woken) * 0.95)]
    with started(work, bucket, 3600, clean=False) as server:
        tenants = Tenants(server, count)
        for name in tenants.names:
            tenants.view_ms(name)
        row["awake_p50_ms"] = statistics.median(tenants.view_ms(name) for name in tenants.names)
        time.sleep(3)  # scopes close after 0.2 s, looked at every second
        found = [memory_mib(pid) for pid in tenants.pids()]
        if len(found) != count:
            raise RuntimeError(f"{len(found)} processes of {count} tenants")
        row["rss_mib_max"] = max(rss for rss, _ in found)
        row["pss_mib_p50"] = statistics.median(pss for _, pss in found)
        others = [pid for pid in meter.tree(server.pid) if pid not in tenants.pids()]
        row["others_pss_mib"] = sum(memory_mib(pid)[1] for pid in others)
    return row


def main() -> int:
    """Print a row for each kind of bucket."""
    parser = argparse.ArgumentParser(prog="python -m bench.tenants", description=__doc__)
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="wakes of each tenant")
    parser.add_argument("--buckets", default="none,directory,s3")
    args = parser.parse_args()
    rows = []
    for kind in args.buckets.split(","):
        with TemporaryDirectory() as place, moto() if kind == "s3" else nullcontext() as s3:
            work = Path(place)
            (work / "bucket").mkdir()
            urls = {"none": "", "directory": f"file:{work / 'bucket'}"}
            bucket = s3.bucket("tenants") if s3 is not None else urls[kind]
            row = measure(work, kind, bucket, args.tenants, args.rounds)
            rows.append(
                {name: round(x, 1) if isinstance(x, float) else x for name, x in row.items()}
            )
            print(json.dumps(rows[-1]), flush=True)
    missed = any(
        row["wake_p50_ms"] > WAKE_P50_MS_MAX or row["rss_mib_max"] > RSS_MIB_MAX for row in rows
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
