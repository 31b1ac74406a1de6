"""The workloads: each is a coroutine over (server, adapter, options) that returns its columns.

Latencies end in `_ms`; `srv_cpu_s_per_M` is the server's CPU seconds per million operations, the
steadiest figure on a noisy machine.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bench.gen import lg, meter
from bench.process import Server

Row = dict[str, Any]
STEP_S = 0.1


@dataclass(frozen=True)
class Options:
    """Sizes of the workloads; the defaults are those of the figures."""

    secs: float = 5.0
    warm: float = 1.0
    inflight: int = 128
    rooms: int = 200
    rooms_inflight: int = 8
    backlog: int = 50_000
    subscribers: int = 500
    idle: int = 1000
    evict: float = 2.0
    cold: int = 30


async def _close(*sockets: lg.WS) -> None:
    for ws in sockets:
        ws.tr.close()
    await asyncio.sleep(0.05)


async def _until(done: Callable[[], bool], secs: float) -> None:
    end = time.perf_counter() + secs
    while not done() and time.perf_counter() < end:
        await asyncio.sleep(STEP_S)


def _ms(latencies_us: list[int], p: float) -> float | None:
    value = lg.percentile(latencies_us, p)
    return None if value is None else value / 1e3


def _per_million(m: meter.Meter, n: int) -> float | None:
    return m.server / n * 1e6 if n else None


async def w1(server: Server, ad: Any, o: Options, subscribers: int = 0) -> Row:
    """One scope, one writer, 128 in flight; with `subscribers` readers."""
    room = f"w1-{subscribers}"
    counters = [lg.Counter(ad.msg_marker) for _ in range(subscribers)]
    readers = [await lg.connect(ad, room, "s", n=i, on_chunk=c) for i, c in enumerate(counters)]
    writer = await lg.Writer(ad, room, o.inflight).start()
    writer.go()
    await asyncio.sleep(o.warm)
    acked, seen = writer.acked, sum(c.n for c in counters)
    writer.latencies_us.clear()
    with meter.Meter(server.pid) as m:
        await asyncio.sleep(o.secs)
        acked, seen = writer.acked - acked, sum(c.n for c in counters) - seen
    latencies = writer.latencies_us.copy()
    writer.stop = True
    await _until(lambda: writer.acked >= writer.sent, 3)
    row: Row = {
        "acks_s": acked / m.wall,
        "ack_p50_ms": _ms(latencies, 0.5),
        "ack_p99_ms": _ms(latencies, 0.99),
        "srv_cpu_s_per_M": _per_million(m, acked),
        **m.cores(),
    }
    if subscribers:
        row["deliv_s"] = seen / m.wall
        await _until(lambda: all(c.n >= writer.acked for c in counters), 3)
        row["deliv_missing"] = writer.acked - counters[0].n
    await _close(writer.ws, *readers)
    return row


async def w2(server: Server, ad: Any, o: Options) -> Row:
    """Many scopes, each with a writer (8 in flight) and a reader."""
    counters = [lg.Counter(ad.msg_marker) for _ in range(o.rooms)]
    readers, writers = [], []
    for i, counter in enumerate(counters):
        readers.append(await lg.connect(ad, f"w2-{i}", "s", on_chunk=counter))
        writers.append(await lg.Writer(ad, f"w2-{i}", o.rooms_inflight).start())
    for writer in writers:
        writer.go()
    await asyncio.sleep(o.warm)
    before, seen = [w.acked for w in writers], sum(c.n for c in counters)
    for writer in writers:
        writer.latencies_us.clear()
    with meter.Meter(server.pid) as m:
        await asyncio.sleep(o.secs)
        per_room = sorted(w.acked - a for w, a in zip(writers, before, strict=True))
        seen = sum(c.n for c in counters) - seen
    latencies = [x for w in writers for x in w.latencies_us]
    for writer in writers:
        writer.stop = True
    n = sum(per_room)
    await _until(lambda: all(w.acked >= w.sent for w in writers), 3)
    await _until(lambda: sum(c.n for c in counters) >= sum(w.acked for w in writers), 3)
    row: Row = {
        "acks_s": n / m.wall,
        "deliv_s": seen / m.wall,
        "deliv_missing": sum(w.acked for w in writers) - sum(c.n for c in counters),
        "ack_p50_ms": _ms(latencies, 0.5),
        "ack_p99_ms": _ms(latencies, 0.99),
        "room_min": per_room[0],
        "room_max": per_room[-1],
        "srv_cpu_s_per_M": _per_million(m, n),
        **m.per_million(n),
        **m.cores(),
    }
    await _close(*readers, *[w.ws for w in writers])
    return row


class _Paced:
    """A writer at a fixed rate; delivery and ack latencies are taken while `measuring`."""

    def __init__(self, ad: Any) -> None:
        self.ad = ad
        self.measuring = False
        self.sent_us: list[int] = []
        self.acked = 0
        self.deliveries_us: list[int] = []
        self.acks_us: list[int] = []

    def on_delivery(self, ws: lg.WS, op: int, data: bytes) -> None:
        if self.measuring:
            now = lg.now_us()
            self.deliveries_us += [now - t for t in self.ad.times(data)]

    def on_ack(self, ws: lg.WS, op: int, data: bytes) -> None:
        count = data.count(self.ad.ack_marker)
        if count and self.measuring:
            now = lg.now_us()
            self.acks_us += [now - t for t in self.sent_us[self.acked : self.acked + count]]
        self.acked += count

    async def pump(self, writer: lg.WS, encode: Any, rate: float, secs: float) -> int:
        start, total = time.perf_counter(), int(rate * secs)
        for k in range(total):
            wait = start + k / rate - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            t = lg.now_us()
            writer.send(encode(len(self.sent_us), lg.payload(t)), self.ad.op)
            self.sent_us.append(t)
        await asyncio.sleep(max(0.0, start + total / rate - time.perf_counter()))
        return total


async def paced(
    server: Server, ad: Any, o: Options, room: str, subscribers: int, rate: float
) -> Row:
    """One scope, many readers, a writer at a fixed rate: what a reader waits."""
    run = _Paced(ad)
    readers = [
        await lg.connect(ad, room, "s", n=i, on_frame=run.on_delivery) for i in range(subscribers)
    ]
    writer = await lg.connect(ad, room, "w", on_frame=run.on_ack)
    encode = writer.session.encoder()
    await run.pump(writer, encode, rate, o.warm)
    await asyncio.sleep(0.3)
    run.measuring = True
    with meter.Meter(server.pid) as m:
        sent = await run.pump(writer, encode, rate, o.secs)
    expected = sent * subscribers
    await _until(lambda: len(run.deliveries_us) >= expected, 4)
    run.measuring = False
    n = len(run.deliveries_us)
    row: Row = {
        "sent": sent,
        "deliv_missing": expected - n,
        "deliv_s": n / m.wall,
        "p50_ms": _ms(run.deliveries_us, 0.5),
        "p99_ms": _ms(run.deliveries_us, 0.99),
        "max_ms": _ms(run.deliveries_us, 1.0),
        "ack_p50_ms": _ms(run.acks_us, 0.5),
        "ack_p99_ms": _ms(run.acks_us, 0.99),
        "srv_cpu_s_per_Mdeliv": _per_million(m, n),
        **m.cores(),
    }
    await _close(writer, *readers)
    return row


async def w4x(server: Server, ad: Any, o: Options) -> Row:
    """The fan-out's ceiling: many readers, a writer with 8 in flight, no pacing."""
    counters = [lg.Counter(ad.msg_marker) for _ in range(o.subscribers)]
    readers = [await lg.connect(ad, "w4x", "s", n=i, on_chunk=c) for i, c in enumerate(counters)]
    writer = await lg.Writer(ad, "w4x", 8).start()
    writer.go()
    await asyncio.sleep(o.warm)
    before = sum(c.n for c in counters)
    with meter.Meter(server.pid) as m:
        await asyncio.sleep(o.secs)
        n = sum(c.n for c in counters) - before
    writer.stop = True
    await _until(lambda: writer.acked >= writer.sent, 3)
    await _until(lambda: all(c.n >= writer.acked for c in counters), 10)
    row: Row = {
        "deliv_s": n / m.wall,
        "msgs_s": n / m.wall / o.subscribers,
        "deliv_missing": writer.acked * o.subscribers - sum(c.n for c in counters),
        "srv_cpu_s_per_Mdeliv": _per_million(m, n),
        **m.cores(),
    }
    await _close(writer.ws, *readers)
    return row


async def fill(ad: Any, room: str, n: int, inflight: int) -> None:
    """Publish `n` messages and leave."""
    writer = await lg.Writer(ad, room, inflight, limit=n).start()
    writer.go()
    async with asyncio.timeout(300):
        await writer.done
    await _close(writer.ws)


async def _replay(ad: Any, room: str, n: int) -> tuple[float, float]:
    """(seconds to the n-th, seconds to the first) message of a replay from 0."""
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    start = time.perf_counter()
    first = 0.0

    def counted(ws: lg.WS, count: int) -> None:
        nonlocal first
        first = first or time.perf_counter() - start
        if counter.n >= n and not done.done():
            done.set_result(time.perf_counter() - start)

    counter = lg.Counter(ad.msg_marker, counted)
    ws = await lg.connect(ad, room, "s", cursor=0, on_chunk=counter)
    async with asyncio.timeout(120):
        total = await done
    await _close(ws)
    return total, first


async def w5(server: Server, ad: Any, o: Options) -> Row:
    """Catch up on a backlog; the median of three."""
    await fill(ad, "w5", o.backlog, 256)
    await asyncio.sleep(1)
    with meter.Meter(server.pid) as m:
        times = []
        for _ in range(3):
            times.append(await _replay(ad, "w5", o.backlog))
            await asyncio.sleep(0.2)
    total, first = sorted(times)[1]
    return {
        "total_ms": total * 1e3,
        "msgs_s": o.backlog / total,
        "first_ms": first * 1e3,
        "srv_cpu_s_per_M": _per_million(m, 3 * o.backlog),
        **m.cores(),
    }


async def w6c(server: Server, ad: Any, o: Options) -> Row:
    """Memory of idle connections, all on one scope."""
    one = await lg.connect(ad, "w6", "s")
    await asyncio.sleep(1.5)
    before = meter.rss_kib(server.pid)
    readers = [await lg.connect(ad, "w6", "s", n=i) for i in range(o.idle)]
    await asyncio.sleep(3)
    after = meter.rss_kib(server.pid)
    alive = sum(not ws.closed for ws in readers)
    await _close(one, *readers)
    return {
        "idle_rss_MiB": before[0] / 1024,
        "conn_KiB": (after[1] - before[1]) / o.idle,
        "alive": alive,
    }


async def w6r(server: Server, ad: Any, o: Options) -> Row:
    """Memory of scopes that were published to once and left."""
    await fill(ad, "w6r-warm", 50, 4)
    await asyncio.sleep(1)
    before = meter.rss_kib(server.pid)
    start = time.perf_counter()
    for i in range(o.idle):
        writer = await lg.Writer(ad, f"w6r-{i}", 1, limit=1).start()
        writer.go()
        async with asyncio.timeout(20):
            await writer.done
        writer.ws.tr.close()
        await asyncio.sleep(0)
    elapsed = time.perf_counter() - start
    await asyncio.sleep(1)
    after = meter.rss_kib(server.pid)
    files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in meter.tree(server.pid))
    await asyncio.sleep(o.evict)
    later = meter.rss_kib(server.pid)
    return {
        "room_KiB": (after[1] - before[1]) / o.idle,
        "room_KiB_after_wait": (later[1] - before[1]) / o.idle,
        "wait_s": o.evict,
        "touch_ms": elapsed * 1e3 / o.idle,
        "fds": files,
    }


async def w7_fill(server: Server, ad: Any, o: Options) -> Row:
    """What W7 finds on disk."""
    for i in range(o.cold):
        await fill(ad, f"w7-{i}", 1000, 64)
    await fill(ad, "w7-warm", 1000, 64)
    return {}


async def w7(server: Server, ad: Any, o: Options) -> Row:
    """Connect to the first entry of a scope on disk that is not open (cold) or is (warm)."""
    warm = [(await _replay(ad, "w7-warm", 1))[1] for _ in range(20)]
    cold = [(await _replay(ad, f"w7-{i}", 1))[1] for i in range(o.cold)]
    warm += [(await _replay(ad, "w7-warm", 1))[1] for _ in range(20)]
    return {
        "cold_p50_ms": lg.percentile(cold, 0.5) * 1e3,
        "cold_p99_ms": lg.percentile(cold, 0.99) * 1e3,
        "cold_first_ms": cold[0] * 1e3,
        "warm_p50_ms": lg.percentile(warm[10:], 0.5) * 1e3,
        "rooms": o.cold,
    }


Load = Callable[[Server, Any, Options], Awaitable[Row]]
LOADS: dict[str, Load] = {
    "W1": w1,
    "W1m": w1,
    "W1s": lambda s, a, o: w1(s, a, o, subscribers=1),
    "W2": w2,
    "W3": lambda s, a, o: paced(s, a, o, "w3", 10, 200),
    "W4": lambda s, a, o: paced(s, a, o, "w4", o.subscribers, 50),
    "W4x": w4x,
    "W5": w5,
    "W6c": w6c,
    "W6r": w6r,
    "W7": w7,
}
