"""`python -m bench.stuck`: what readers that never read cost the others.

One scope, a writer at a fixed rate, 1,000 subscribers. In every second run 100 of them stop reading
before the server has sent them more than the system's socket buffers hold, so that the server
itself must hold them off while the figures are taken; in the others these 100 leave. Runs come in
pairs, one with and one without, each on a fresh server, the order swapped in every second pair; the
ratio is the median of the pairs' ratios. Exit code 1 where the others' p99 moves up by more than
`--bar` or a stuck reader costs the server more memory than one connection's queue.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.__main__ import wait_for_quiet
from bench.gen import lg, meter
from bench.gen.loop import run
from bench.loads import Row, _close, _ms, _Paced, _until
from bench.process import Server
from bench.roster import PEERS
from infra.limits import EVENTS_BYTES_MAX, QUEUE_BYTES_MAX

HERE = Path(__file__).resolve().parent
ROOM = "stuck"
ESTABLISHED = "01"  # in /proc/net/tcp
BALLAST_MESSAGES, BALLAST_BYTES = 80, 100_000  # more than two socket buffers of Linux hold
SMALL_BUFFER_BYTES = 4096
STUCK_KIB_MAX = (
    QUEUE_BYTES_MAX + EVENTS_BYTES_MAX
) / 1024  # the queue, and the frame that fills it
QUIET_CORES, QUIET_WAIT_S = 0.35, 4.0
REPEAT_UNTIL_S = 50.0  # of the whole, so that it ends within three minutes
FRESH_S = 20.0  # well before the server cuts off who accepts nothing


@dataclass(frozen=True)
class Sizes:
    """Of one run."""

    subscribers: int
    stuck: int
    rate: float
    secs: float


class _Writing(_Paced):
    """An answer is not enough: it must not be a refusal."""

    refused = b""

    def on_ack(self, ws: lg.WS, op: int, data: bytes) -> None:
        if b'"code"' in data:
            self.refused = bytes(data)
        super().on_ack(ws, op, data)


class Slow:
    """The subscribers that may stop: counted bytes."""

    def __init__(self, readers: list[lg.WS]) -> None:
        self._readers = readers
        self.bytes = [0] * len(readers)
        for i, ws in enumerate(readers):
            ws.set_chunk(self._counter(i))

    def _counter(self, i: int) -> lg.OnChunk:
        def count(ws: lg.WS, data: bytes) -> None:
            self.bytes[i] += len(data)

        return count

    def stop_reading(self) -> None:
        """From now on, for good, and without the system reading ahead for them."""
        for ws in self._readers:
            ws.tr.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES
            )
            ws.tr.pause_reading()

    def all_have(self, size: int) -> bool:
        """Whether each has taken so many bytes."""
        return min(self.bytes) >= size


def held_back(port: int, ballast: int) -> int:
    """Connections of which the server could not even hand the ballast to the system."""
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues = line.split()[:5]
        unsent = int(queues.partition(":")[0], 16)
        if (
            state == ESTABLISHED
            and int(local.partition(":")[2], 16) == port
            and 0 < unsent < ballast
        ):
            count += 1
    return count


async def _acked(paced: _Writing, count: int) -> None:
    async with asyncio.timeout(10):
        while paced.acked < count:
            await asyncio.sleep(0.001)
    if paced.refused:
        raise RuntimeError(f"refused: {paced.refused[:300].decode()}")


async def measure(server: Server, ad: Any, sizes: Sizes, *, stuck: bool) -> Row:
    """One run: what the readers that read wait for, and what the server's memory does."""
    paced = _Writing(ad)
    slow_ones = [await lg.connect(ad, ROOM, "s", n=i) for i in range(sizes.stuck)]
    slow = Slow(slow_ones)
    readers = [
        await lg.connect(ad, ROOM, "s", n=i, on_frame=paced.on_delivery)
        for i in range(sizes.subscribers - sizes.stuck)
    ]
    writer = await lg.connect(ad, ROOM, "w", on_frame=paced.on_ack)
    encode = writer.session.encoder()
    await asyncio.sleep(1)
    before = meter.rss_kib(server.pid)[0]
    if stuck:
        slow.stop_reading()
    # Nobody is measured meanwhile: the readers get the ballast as well.
    began = time.perf_counter()
    for i in range(BALLAST_MESSAGES):
        writer.send(encode(i, b'"%b"' % (b"x" * BALLAST_BYTES)), ad.op)
        paced.sent_us.append(lg.now_us())
        await _acked(paced, i + 1)
    ballast = BALLAST_MESSAGES * BALLAST_BYTES
    if not stuck:
        async with asyncio.timeout(30):
            while not slow.all_have(ballast):
                await asyncio.sleep(0.01)
        # Nor may they cost anything here, or being stuck would look like a relief.
        await _close(*slow_ones)
    await paced.pump(writer, encode, sizes.rate, 1.0)
    await asyncio.sleep(0.3)
    paced.measuring = True
    with meter.Meter(server.pid) as m:
        sent = await paced.pump(writer, encode, sizes.rate, sizes.secs)
    expected = sent * len(readers)
    await _until(lambda: len(paced.deliveries_us) >= expected, 4)
    paced.measuring = False
    if paced.refused:
        raise RuntimeError(f"refused: {paced.refused[:300].decode()}")
    if stuck and time.perf_counter() - began > FRESH_S:
        raise RuntimeError("too slow: the stuck may have been cut off already")
    row = {
        "stuck": sizes.stuck if stuck else 0,
        "held_back": held_back(server.port, ballast),
        "p50_ms": _ms(paced.deliveries_us, 0.5),
        "p99_ms": _ms(paced.deliveries_us, 0.99),
        "max_ms": _ms(paced.deliveries_us, 1.0),
        "deliv_missing": expected - len(paced.deliveries_us),
        "rss_grew_MiB": (meter.rss_kib(server.pid)[0] - before) / 1024,
        **m.cores(),
    }
    await _close(writer, *readers, *slow_ones)
    return {key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}


def one_run(sizes: Sizes, work: Path, *, stuck: bool) -> Row:
    """`measure` on a server of its own."""
    peer = PEERS["holdfast"]
    server = Server(peer, work).start()
    try:
        return run(measure(server, peer.adapter(server.port, "W4"), sizes, stuck=stuck))
    finally:
        server.stop()


def summary(pairs: list[tuple[Row, Row]], sizes: Sizes) -> Row:
    """Medians over pairs of (without, with)."""

    def middle(which: int, column: str) -> float:
        return float(median(pair[which][column] for pair in pairs))

    grew = [full["rss_grew_MiB"] - base["rss_grew_MiB"] for base, full in pairs]
    return {
        "pairs": len(pairs),
        "p99_ms_without": middle(0, "p99_ms"),
        "p99_ms_with": middle(1, "p99_ms"),
        "p99_ratio": round(median(full["p99_ms"] / base["p99_ms"] for base, full in pairs), 3),
        "p50_ratio": round(median(full["p50_ms"] / base["p50_ms"] for base, full in pairs), 3),
        "rss_grew_MiB_without": middle(0, "rss_grew_MiB"),
        "rss_grew_MiB_with": middle(1, "rss_grew_MiB"),
        "KiB_per_stuck": round(median(grew) * 1024 / sizes.stuck, 1),
        "held_back_min": min(full["held_back"] for _, full in pairs),
        "deliv_missing": sum(row["deliv_missing"] for pair in pairs for row in pair),
    }


def main() -> int:
    """Run the pairs, print each run and the summary as JSON lines."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.stuck", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--stuck", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0, help="messages/s")
    parser.add_argument("--secs", type=float, default=5.0, help="measured, per run")
    parser.add_argument("--runs", type=int, default=5, help="pairs")
    parser.add_argument("--bar", type=float, default=1.25, help="largest ratio of the p99s")
    parser.add_argument("--work", type=Path, help="data directories; on a disk, not in memory")
    args = parser.parse_args()
    sizes = Sizes(args.subscribers, args.stuck, args.rate, args.secs)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    work = args.work or Path(os.environ.get("BENCH_WORK", HERE / "results" / "work"))
    work.mkdir(parents=True, exist_ok=True)
    pairs: list[tuple[Row, Row]] = []
    began = time.perf_counter()
    for number in range(args.runs):
        rows: dict[bool, Row] = {}
        for stuck in (True, False) if number % 2 else (False, True):
            for _ in range(2):  # again where others used too much of the machine, while time is
                wait_for_quiet(QUIET_CORES, QUIET_WAIT_S)
                rows[stuck] = one_run(sizes, work, stuck=stuck)
                print(json.dumps({"pair": number, **rows[stuck]}), file=sys.stderr, flush=True)
                late = time.perf_counter() - began > REPEAT_UNTIL_S
                if late or rows[stuck]["other_cores"] <= QUIET_CORES:
                    break
        pairs.append((rows[False], rows[True]))
    found = summary(pairs, sizes)
    print(json.dumps(found))
    if found["held_back_min"] < sizes.stuck:
        print("bench: not every stuck reader was held back: the figures mean little")
        return 1
    good = found["p99_ratio"] <= args.bar and found["KiB_per_stuck"] <= STUCK_KIB_MAX
    return 0 if good and found["deliv_missing"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
