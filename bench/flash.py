"""`python -m bench.flash`: what small commits cost a flash card, in bytes written to the device.

The data directory lies on an ext4 image behind a loop device of its own, whose counter of sectors
says what reached it: pages of ledgers and logs, the file system's journal, its inodes. Envelopes of
about 100 bytes are published on one socket, 50 a second or each after the answer to the one before,
so each is a commit and a sync; then the server is stopped and the file system synced. Needs root
and loop devices. With a bucket, its directory lies elsewhere, and what it holds is counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

from bench.process import Server
from bench.roster import Peer

IMAGE_BYTES = 256 << 20
SECTOR_BYTES = 512
MOUNTS = {"defaults": "defaults", "noatime,commit=60": "noatime,commit=60"}
# name -> (settings, commits a second; 0 is as fast as they are answered)
CASES: dict[str, tuple[dict[str, str], int]] = {
    "no bucket, at once": ({}, 0),
    "no bucket, 50/s": ({}, 50),
    "no bucket, not materialised, at once": ({"HOLDFAST_MATERIALIZE": "false"}, 0),
    "bucket, local, 50/s": ({"HOLDFAST_BUCKET": "file:{BUCKET}"}, 50),
    "bucket, replicated, put_interval_ms 100, 50/s": (
        {"HOLDFAST_BUCKET": "file:{BUCKET}", "HOLDFAST_DURABILITY": "replicated"}, 50,
    ),
    "bucket, replicated, put_interval_ms 1000, 50/s": (
        {
            "HOLDFAST_BUCKET": "file:{BUCKET}", "HOLDFAST_DURABILITY": "replicated",
            "HOLDFAST_PUT_INTERVAL_MS": "1000",
        }, 50,
    ),
}  # fmt: skip


def call(*argv: str | Path) -> str:
    done = subprocess.run([*map(str, argv)], check=True, capture_output=True, text=True)
    return done.stdout


@contextlib.contextmanager
def mounted(work: Path, options: str) -> Iterator[tuple[Path, str]]:
    """(an empty ext4, the name of its loop device)."""
    image, place = work / "disk.img", work / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    # No lazy initialisation: it would write for minutes.
    call("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    place.mkdir()
    call("mount", "-o", f"loop,{options}", image, place)
    try:
        source = call("findmnt", "-n", "-o", "SOURCE", place).strip()
        yield place, source.removeprefix("/dev/")
    finally:
        call("umount", place)
        image.unlink()
        place.rmdir()


def written(device: str) -> int:
    """Bytes written to the device since it is there."""
    return int(Path(f"/sys/block/{device}/stat").read_text().split()[6]) * SECTOR_BYTES


async def publish(port: int, count: int, per_s: int) -> float:
    """One envelope after the other; the seconds it took."""
    began = time.perf_counter()
    async with ClientSession() as session:
        url = f"http://127.0.0.1:{port}/api/sync/socket"
        async with session.ws_connect(url, max_msg_size=0) as socket:
            for number in range(count):
                if per_s:
                    await asyncio.sleep(max(0, began + number / per_s - time.perf_counter()))
                change = {"op": "set", "path": "/text", "value": f"{number:06d} " + "x" * 60}
                entity = {"key": f"note:{number % 100}", "patches": [change]}
                envelope = {"eventId": f"e{number}", "kind": "patch", "entities": [entity]}
                frame = {
                    "type": "publish", "id": f"{number}", "scope": "run:a", "envelopes": [envelope],
                }  # fmt: skip
                await socket.send_json(frame)
                if not per_s:
                    await _answered(socket, 1)
            if per_s:
                await _answered(socket, count)
    return time.perf_counter() - began


async def _answered(socket: ClientWebSocketResponse, count: int) -> None:
    for _ in range(count):
        answer = await socket.receive_json()
        assert answer["type"] == "published", answer


def measure(work: Path, name: str, mount: str, count: int) -> dict[str, Any]:
    """One row."""
    settings, per_s = CASES[name]
    bucket = work / "bucket"
    bucket.mkdir()
    env = {key: value.replace("{BUCKET}", str(bucket)) for key, value in settings.items()}
    env |= {"HOLDFAST_PUBLISH_ENVELOPES_PER_S": "0", "HOLDFAST_INSECURE": "true"}
    peer = Peer("flash", lambda _: [sys.executable, "-m", "edge.cli", "serve"], _no_load, env=env)
    with mounted(work, MOUNTS[mount]) as (disk, device):
        server = Server(peer, disk).start()
        rss = int(Path(f"/proc/{server.pid}/status").read_text().split("VmRSS:")[1].split()[0])
        call("sync", "-f", disk)
        before = written(device)
        took_s = asyncio.run(publish(server.port, count, per_s))
        server.stop()
        call("sync", "-f", disk)
        size = written(device) - before
    objects = [path.stat().st_size for path in bucket.rglob("*") if path.is_file()]
    for path in sorted(bucket.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    bucket.rmdir()
    return {
        "case": name, "mount": mount, "kib_per_commit": round(size / count / 1024, 1),
        "mib_per_1000": round(size / count * 1000 / (1 << 20), 1), "seconds": round(took_s, 1),
        "objects": len(objects), "objects_kib": sum(objects) // 1024,
        "idle_rss_mib": round(rss / 1024, 1),
    }  # fmt: skip


def _no_load(port: int, load: str) -> Any:
    raise NotImplementedError("this peer runs none of the workloads")


def main() -> int:
    """Print a row for each case and mount."""
    parser = argparse.ArgumentParser(prog="python -m bench.flash", description=__doc__)
    parser.add_argument("--commits", type=int, default=1000)
    parser.add_argument("--mounts", default=";".join(MOUNTS), help="between semicolons")
    args = parser.parse_args()
    for mount in args.mounts.split(";"):
        for name in CASES:
            with TemporaryDirectory() as place:
                print(json.dumps(measure(Path(place), name, mount, args.commits)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
