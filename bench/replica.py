"""`python -m bench.replica`: what replication to object storage costs, and what waking takes.

    acks     writers of one `replicated` scope wait for a store that takes 25 ms for each PUT
    wake     first frame of a scope that only a loopback S3 has, and `litestream restore` of it
    restore  a database of 107 MB out of a loopback S3, beside `litestream restore`
    busy     W1 and W1m with every ledger replicated to a directory, beside the same without
    pace     PUTs of scopes that are written without pause, for a minute

A table for each part and a JSON line for each row go to stdout, the lines to bench/results/ as
well. Exit code 1 where a figure misses its bar. Ratios count only inside one invocation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.__main__ import measure, on_memory, wait_for_quiet
from bench.cold import restore, wake
from bench.endpoints import environment
from bench.gen import lg, meter
from bench.gen.loop import run
from bench.loads import Options, Row, _close, _ms, _per_million, _until
from bench.process import Server
from bench.replicated import QUIET_CORES, QUIET_WAIT_S, Sizes, peer, requests
from bench.report import _number
from bench.roster import PEERS

HERE = Path(__file__).resolve().parent
PUT_MS = 25.0
ACKS_MIN, ACK_P50_MS_MAX = 8_000, 60.0  # with WRITERS_BAR of them
WRITERS, WRITERS_BAR = (1, 10, 100, 500), 500
REPLICATED_PUT_S_MAX, LOCAL_PUT_S_MAX = 10.0, 0.25
REPEAT_S = 60.0  # so that the whole ends within five minutes
BUSY_RATIO_MIN = 0.85
BUSY = ("holdfast", "holdfast-bucket")


@dataclass(frozen=True)
class Pause:
    """How a scope of part `pace` is written: `rate` publishes a second, or `inflight` at once."""

    level: str
    room: str
    inflight: int = 1
    rate: float = 0.0
    puts_s_max: float = 0.0


PACES = {
    "replicated, 100 in flight": Pause("replicated", "pace-r", 100, 0, REPLICATED_PUT_S_MAX),
    "local, 50 a second": Pause("local", "pace-slow", 1, 50, LOCAL_PUT_S_MAX),
    "local, 1 in flight": Pause("local", "pace-one", 1, 0, LOCAL_PUT_S_MAX),
    "local, 128 in flight": Pause("local", "pace-full", 128),  # batches end by size
}


class Careful(lg.Writer):
    """An answer is not enough: it must not be a refusal."""

    refused = b""

    async def start(self) -> Careful:
        self.ws = await lg.connect(self.ad, self.room, "w", on_chunk=self.look)
        self.encode = self.ws.session.encoder()
        return self

    def publish(self) -> None:
        """One message more than the window allows."""
        t = lg.now_us()
        self.ws.send(self.encode(self.sent, lg.payload(t)), self.ad.op)
        self.sent += 1
        self.queue.append([1, t])

    def look(self, ws: lg.WS, data: bytes) -> None:
        """Note refusals, count answers."""
        if b'"code"' in data:
            self.refused = bytes(data)
        self.counter(ws, data)


def _refusals(writers: list[Careful]) -> None:
    for writer in writers:
        if writer.refused:
            raise RuntimeError(f"refused: {writer.refused[:300].decode()}")


# -- acks --------------------------------------------------------------------------------------


async def closed_loop(server: Server, ad: Any, sizes: Sizes, count: int, log: Path) -> Row:
    """`count` sockets with one publish in flight each, all on one scope."""
    room = f"acks-{count}"
    writers = [await Careful(ad, room, 1).start() for _ in range(count)]
    for writer in writers:
        writer.go()
    await asyncio.sleep(sizes.warm)
    for writer in writers:
        writer.latencies_us.clear()
    acked, asked = sum(w.acked for w in writers), requests(log)
    with meter.Meter(server.pid) as m:
        await asyncio.sleep(sizes.secs)
        acked = sum(w.acked for w in writers) - acked
    asked = requests(log) - asked
    latencies = [us for w in writers for us in w.latencies_us]
    for writer in writers:
        writer.stop = True
    await _until(lambda: all(w.acked >= w.sent for w in writers), 3)
    await _close(*[w.ws for w in writers])
    _refusals(writers)
    return {
        "writers": count,
        "acks_s": acked / m.wall,
        "p50_ms": _ms(latencies, 0.5),
        "p99_ms": _ms(latencies, 0.99),
        "puts_s": asked["put 0000"] / m.wall,
        "snapshots_s": asked["put 0009"] / m.wall,
        "KiB_per_put": asked["bytes 0000"] / 1024 / max(1, asked["put 0000"]),
        "srv_cpu_s_per_M": _per_million(m, acked),
        **m.cores(),
    }


def acks(sizes: Sizes, work: Path) -> Iterator[Row]:
    """Every number of writers, on scopes that are materialised and on such that are not."""
    for load in ("W1", "W1m"):
        one = peer("acks", work, put_ms=PUT_MS, put_interval_ms=0)
        for count in WRITERS if load == "W1" else (WRITERS_BAR,):
            rows: list[Row] = []
            while len(rows) < 2:  # once more where others used too much of the machine
                wait_for_quiet(QUIET_CORES, QUIET_WAIT_S)
                server = Server(one.peer, work).start()
                try:
                    adapter = one.peer.adapter(server.port, load)
                    rows.append(run(closed_loop(server, adapter, sizes, count, one.log)))
                finally:
                    server.stop()
                if rows[-1]["other_cores"] <= QUIET_CORES or not sizes.may_repeat():
                    break
            row = min(rows, key=lambda row: row["other_cores"])
            row = {"entities": "on" if load == "W1m" else "off", **row}
            if count == WRITERS_BAR:
                row["bar"] = f">= {ACKS_MIN} acks/s, p50 <= {ACK_P50_MS_MAX:.0f} ms"
                row["met"] = row["acks_s"] >= ACKS_MIN and row["p50_ms"] <= ACK_P50_MS_MAX
            yield row


# -- pace --------------------------------------------------------------------------------------


async def without_pause(ads: dict[str, Any], sizes: Sizes, logs: Path) -> list[Row]:
    """Scopes written side by side, and what each cost in a minute from its first write on."""
    writers = {}
    for name, pause in PACES.items():
        writers[name] = await Careful(ads[pause.level], pause.room, pause.inflight).start()
    pumps = []
    began = time.perf_counter()
    for name, pause in PACES.items():
        if pause.rate:
            pumps.append(asyncio.create_task(_pump(writers[name], pause.rate, sizes.pace_secs)))
        else:
            writers[name].go()
    await asyncio.sleep(sizes.pace_secs)
    wall = time.perf_counter() - began
    asked = {name: requests(logs, pause.room) for name, pause in PACES.items()}
    for writer in writers.values():
        writer.stop = True
    for pump in pumps:
        await pump
    await _until(lambda: all(w.acked >= w.sent for w in writers.values()), 3)
    await _close(*[w.ws for w in writers.values()])
    _refusals(list(writers.values()))
    return [_cost(name, writers[name].acked / wall, asked[name], wall) for name in PACES]


async def _pump(writer: Careful, rate: float, secs: float) -> None:
    writer.stop = True  # answers make it publish nothing
    start = time.perf_counter()
    for number in range(int(rate * secs)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        writer.publish()


def _cost(name: str, acks_s: float, asked: Counter[str], wall: float) -> Row:
    pause = PACES[name]
    puts_s = (asked["put 0000"] + asked["put 0009"]) / wall
    row: Row = {
        "scope": name,
        "acks_s": acks_s,
        "batches": asked["put 0000"],
        "snapshots": asked["put 0009"],
        "others": sum(asked[kind] for kind in ("put", "list", "get", "delete")),
        "MB": (asked["bytes 0000"] + asked["bytes 0009"]) / 1e6,
        "puts_s": puts_s,
    }
    if pause.puts_s_max:
        row |= {"bar": f"<= {pause.puts_s_max} PUT/s", "met": puts_s <= pause.puts_s_max}
    return row


def pace(sizes: Sizes, work: Path) -> Iterator[Row]:
    """With the intervals as they come."""
    one = peer("pace", work)
    wait_for_quiet(QUIET_CORES, QUIET_WAIT_S)
    server = Server(one.peer, work).start()
    try:
        ads = {level: one.adapter(server.port, level) for level in ("replicated", "local")}
        yield from run(without_pause(ads, sizes, one.log))
    finally:
        server.stop()


# -- busy --------------------------------------------------------------------------------------


def busy(sizes: Sizes, work: Path) -> Iterator[Row]:
    """Pairs of runs, the order swapped in every second; the ratio is the median of the pairs'."""
    options = Options(secs=sizes.busy_secs, warm=1.0)
    args = argparse.Namespace(quiet=QUIET_CORES, wait=QUIET_WAIT_S, work=work)
    for load in ("W1", "W1m"):
        pairs: list[tuple[Row, Row]] = []
        for number in range(sizes.pairs):
            args.retries = 1 if sizes.may_repeat() else 0
            rows: dict[str, Row] = {}
            for name in reversed(BUSY) if number % 2 else BUSY:
                rows[name] = measure(PEERS[name], load, args, options)
                if "error" in rows[name]:
                    raise RuntimeError(f"{name}: {rows[name]['error']}")
            pairs.append((rows[BUSY[0]], rows[BUSY[1]]))

        def middle(of: Callable[[Row, Row], float], pairs: list[tuple[Row, Row]] = pairs) -> float:
            return median(of(without, bucket) for without, bucket in pairs)

        ratio = middle(lambda a, b: b["acks_s"] / a["acks_s"])
        yield {
            "load": load,
            "pairs": len(pairs),
            "acks_s": middle(lambda a, b: a["acks_s"]),
            "acks_s_bucket": middle(lambda a, b: b["acks_s"]),
            "ratio": ratio,
            "ratio_min": min(b["acks_s"] / a["acks_s"] for a, b in pairs),
            "ratio_max": max(b["acks_s"] / a["acks_s"] for a, b in pairs),
            "p50_ms": middle(lambda a, b: a["ack_p50_ms"]),
            "p50_ms_bucket": middle(lambda a, b: b["ack_p50_ms"]),
            "cpu_ratio": middle(lambda a, b: b["srv_cpu_s_per_M"] / a["srv_cpu_s_per_M"]),
            "other_cores": max(max(a["other_cores"], b["other_cores"]) for a, b in pairs),
            "bar": f"ratio >= {BUSY_RATIO_MIN}",
            "met": ratio >= BUSY_RATIO_MIN,
        }


# -- the command -------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Sizes, Path], Iterator[Row]]] = {
    "acks": acks,
    "wake": wake,
    "restore": restore,
    "busy": busy,
    "pace": pace,
}


@dataclass
class Report:
    """Rows as JSON lines at once, and as a table when their part is over."""

    out: Path
    missed: bool = False

    def part(self, name: str, rows: Iterator[Row]) -> None:
        """Run it. An error is a row, so that the other parts still run."""
        found: list[Row] = []
        try:
            for row in rows:
                self._line({"part": name, **_rounded(row)})
                found.append(row)
        except (OSError, RuntimeError, TimeoutError) as error:
            self._line({"part": name, "error": f"{type(error).__name__}: {error}"[:600]})
            self.missed = True
        self.missed = self.missed or not all(row.get("met", True) for row in found)
        print(f"### {name}\n\n{table(found)}\n", flush=True)

    def _line(self, record: Row) -> None:
        text = json.dumps(record)
        print(text, flush=True)
        with self.out.open("a") as file:
            file.write(text + "\n")


def table(rows: list[Row]) -> str:
    """Markdown, a column for each key of any row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return _number(value) if isinstance(value, int | float) else str(value)


def _rounded(row: Row) -> Row:
    return {key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.replica", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--work", type=Path, help="data directories; on a disk, not in memory")
    parser.add_argument("--out", type=Path, help="file for JSON lines (default: results/)")
    parser.add_argument(
        "--repeat-for", type=float, default=REPEAT_S, metavar="SECONDS",
        help="runs that others disturbed are repeated, for so long",
    )  # fmt: skip
    args = parser.parse_args()
    names = args.parts.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    work = args.work or Path(os.environ.get("BENCH_WORK", HERE / "results" / "work"))
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(environment())  # of S3 there are only dummies here
    if on_memory(work):
        print(f"bench: {work} is in memory: syncs cost nothing there", file=sys.stderr)
    out = args.out or HERE / "results" / time.strftime("replica-%Y%m%d-%H%M%S.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    report = Report(out)
    sizes = Sizes(repeat_until=time.perf_counter() + args.repeat_for)
    for name in names:
        report.part(name, PARTS[name](sizes, work))
    print(f"bench: JSON lines in {out}", file=sys.stderr)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
