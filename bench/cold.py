"""Parts `wake` and `restore` of `bench.replica`: scopes of which only an S3 on loopback has a copy.

Both are measured beside `litestream restore` of the same objects, in turn. `litestream` is a
process for each restore; how long such a process takes for nothing is in the rows too.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.__main__ import wait_for_quiet
from bench.endpoints import Endpoint, environment, litestream_restore, moto, rclone
from bench.gen import lg
from bench.gen.loop import run
from bench.loads import Row, _close, fill
from bench.process import Server
from bench.replicated import QUIET_CORES, QUIET_WAIT_S, Replicating, Sizes, peer, requests
from bench.roster import ROOT
from infra.objects import open_store

WAKE_P50_MS_MAX = 60.0
# Replica -> options of bench.peers.restore, and the most that may take beside `litestream`.
NAMES: dict[str, list[str]] = {"restore": [], "restore-pure": ["pure"]}
RESTORE_RATIO_MAX = {"restore": 1.0, "restore-pure": 1.3}
SCOPE_ENTRIES = 13  # make a file of some 36 KiB
SCOPE_BATCHES = {"files": 7, "snapshot": 12}  # below and above what makes a snapshot at rest
FILL_AHEAD = 2000
WAIT_S = 20

# -- wake --------------------------------------------------------------------------------------

SORTS = {
    # sort of scope -> (level, batches)
    "replicated, snapshot": ("replicated", SCOPE_BATCHES["snapshot"]),
    "replicated, 7 batches": ("replicated", SCOPE_BATCHES["files"]),
    "local": ("local", SCOPE_BATCHES["snapshot"]),
}
# A restored `local` scope has a new epoch, whose numbers begin here (docs/durability.md).
SINCE = {"replicated": 0, "local": 2**32}


def wake(sizes: Sizes, work: Path) -> Iterator[Row]:
    """Scopes made by one server, woken by another on an empty directory."""
    with moto() as s3:
        url = s3.bucket("wake")
        maker = peer("wake-made", work, bucket=url, put_interval_ms=0)
        server = Server(maker.peer, work).start()
        try:
            run(_make_scopes(maker, server.port, sizes))
        finally:
            server.stop()  # ships what there is, and snapshots where there are batches enough
        prefixes = scope_prefixes(url)
        waker = peer("wake", work, bucket=url)
        wait_for_quiet(QUIET_CORES, QUIET_WAIT_S)
        server = Server(waker.peer, work).start()
        try:
            for sort, (level, _) in SORTS.items():
                yield run(_wake_all(waker, server.port, sort, level, sizes, url, prefixes, work))
        finally:
            server.stop()


def _room(sort: str, number: int) -> str:
    return f"{''.join(c for c in sort if c.isalnum())}-{number}"


async def _make_scopes(maker: Replicating, port: int, sizes: Sizes) -> None:
    """Each later publish of a `replicated` scope is a batch of its own: it is waited for."""
    for sort, (level, batches) in SORTS.items():
        adapter = maker.adapter(port, level)
        for number in range(sizes.scopes):
            room = _room(sort, number)
            first = SCOPE_ENTRIES - batches + 1
            await fill(adapter, room, first, first)
            await fill(adapter, room, batches - 1, 1)


def scope_prefixes(url: str) -> dict[str, str]:
    """Where the replica of each scope lies, by the end of its name."""
    store, found, after = open_store(url), {}, ""
    while True:
        listing = store.list("", after=after)
        for info in listing.objects:
            if info.key.endswith(".ltx"):
                prefix = "/".join(info.key.split("/")[:-2])
                found[prefix.rpartition("~3a")[2]] = prefix
        if not listing.truncated:
            store.close()
            return found
        after = listing.objects[-1].key


async def _wake_all(
    waker: Replicating, port: int, sort: str, level: str, sizes: Sizes, url: str,
    prefixes: dict[str, str], work: Path,
) -> Row:  # fmt: skip
    adapter = waker.adapter(port, level)
    times: list[tuple[float, float]] = []
    official: list[float] = []
    out = work / "litestream.db"
    before = requests(waker.log)
    for number in range(sizes.scopes):
        room = _room(sort, number)
        times.append(await _first_frames(adapter, room, SINCE[level]))
        official.append(await asyncio.to_thread(litestream_restore, url, prefixes[room], out))
    asked = requests(waker.log) - before
    subscribed = sorted(first for first, _ in times)
    events = sorted(event for _, event in times)
    theirs = median(official) * 1e3
    p50 = median(subscribed)
    return {
        "scopes": sort,
        "KB": out.stat().st_size / 1e3,
        "subscribed_p50_ms": p50,
        "event_p50_ms": median(events),
        "event_max_ms": events[-1],
        "first_ms": times[0][1],
        "litestream_p50_ms": theirs,
        "ratio": median(events) / theirs,
        "lists": asked["list"] / sizes.scopes,
        "gets": asked["get"] / sizes.scopes,
        "puts": asked["put 0000"] / sizes.scopes,
        "bar": f"<= {WAKE_P50_MS_MAX:.0f} ms",
        "met": p50 <= WAKE_P50_MS_MAX and median(events) <= WAKE_P50_MS_MAX,
    }


async def _first_frames(adapter: Any, room: str, since: int) -> tuple[float, float]:
    """Milliseconds from `sub` on an open connection to `subscribed` and to the first `event`."""
    loop = asyncio.get_running_loop()
    subscribed: asyncio.Future[float] = loop.create_future()
    event: asyncio.Future[float] = loop.create_future()

    def look(ws: lg.WS, op: int, data: bytes) -> None:
        now = time.perf_counter()
        if b'"code"' in data and not event.done():
            for future in (subscribed, event):
                future.cancel(data[:300].decode())
        if b'"type":"subscribed"' in data and not subscribed.done():
            subscribed.set_result(now)
        if b'"type":"event"' in data and not event.done():
            event.set_result(now)

    ws = await lg.connect(adapter, room, "w", on_frame=look)
    await asyncio.sleep(0.02)  # the handshake has left both processes
    scope = f"{adapter.kind}:{room}"
    frame = json.dumps({"type": "sub", "scope": scope, "since": since}).encode()
    began = time.perf_counter()
    ws.send(frame)
    try:
        async with asyncio.timeout(WAIT_S):
            found = ((await subscribed - began) * 1e3, (await event - began) * 1e3)
    except asyncio.CancelledError as error:
        raise RuntimeError(f"refused: {error}") from None
    await _close(ws)
    return found


# -- restore -----------------------------------------------------------------------------------


def restore(sizes: Sizes, work: Path) -> Iterator[Row]:
    """Two replicas of the same writes, the second made without the optional packages."""
    folder = work / "buckets"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in NAMES:
        _make_large(name, folder, sizes, work)
    with rclone(folder) as endpoint:  # moto would take longer than who reads from it
        yield from _restore_all(endpoint, sizes, work)
    shutil.rmtree(folder, ignore_errors=True)


def _make_large(name: str, folder: Path, sizes: Sizes, work: Path) -> None:
    """A snapshot of all of it but for the last batches."""
    (folder / name).mkdir()
    maker = peer(
        name, work, bucket=f"file:{folder.resolve() / name}", put_interval_ms=0,
        pure="pure" in NAMES[name],
    )  # fmt: skip
    server = Server(maker.peer, work).start()
    try:
        run(_write_large(maker, server, sizes))
    finally:
        server.stop()
    server.start(clean=False)
    try:
        run(fill(maker.adapter(server.port, "replicated"), "large", SCOPE_BATCHES["files"], 1))
    finally:
        server.stop()
    shutil.rmtree(server.directory, ignore_errors=True)


async def _write_large(maker: Replicating, server: Server, sizes: Sizes) -> None:
    await fill(maker.adapter(server.port, "replicated"), "large", sizes.restore_entries, FILL_AHEAD)


def _restore_all(endpoint: Endpoint, sizes: Sizes, work: Path) -> Iterator[Row]:
    """Each way in turn, so that all of them meet the same machine."""
    urls = {name: f"s3://{name}?endpoint={endpoint.url}" for name in NAMES}
    prefixes = {name: scope_prefixes(url)["large"] for name, url in urls.items()}
    ours: dict[str, list[Row]] = {name: [] for name in NAMES}
    theirs: dict[str, list[float]] = {name: [] for name in NAMES}
    target = work / "restored.db"
    wait_for_quiet(QUIET_CORES, QUIET_WAIT_S)
    for _ in range(sizes.restores):
        for name, options in NAMES.items():
            ours[name].append(_restore_once(urls[name], prefixes[name], target, *options))
            theirs[name].append(litestream_restore(urls[name], prefixes[name], target))
    target.unlink()
    for name, options in NAMES.items():
        found = {key: median(row[key] for row in ours[name]) for key in ours[name][0]}
        official = median(theirs[name])
        ratio = median(a["restore_s"] / b for a, b in zip(ours[name], theirs[name], strict=True))
        most = RESTORE_RATIO_MAX[name]
        yield {
            "written_and_read": "pure Python" if options else "lz4, fastcrc",
            **found,
            "litestream_s": official,
            "ratio": ratio,
            "process_ratio": median(
                a["process_s"] / b for a, b in zip(ours[name], theirs[name], strict=True)
            ),
            "bar": f"ratio <= {most}",
            "met": ratio <= most,
        }


def _restore_once(url: str, prefix: str, target: Path, *options: str) -> Row:
    """In a process of its own. Raises RuntimeError."""
    command = [sys.executable, "-m", "bench.peers.restore", url, prefix, str(target), *options]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"restore: {done.stderr[-400:]}")
    row: Row = {"process_s": took, **json.loads(done.stdout)}
    return row
