"""`python -m bench`: run workloads over peers in turn, print tables, keep JSON lines.

Run 1 of every peer, then run 2 of every peer, and so on; each run starts its peer on an empty
directory. Ratios count only inside one invocation. Tables go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.gen import meter
from bench.gen.loop import run
from bench.loads import LOADS, Options, Row, w7_fill
from bench.process import Server
from bench.report import ratios, tables
from bench.roster import BASELINE, PEERS, Peer

HERE = Path(__file__).resolve().parent
MEMORY_FILESYSTEMS = {"tmpfs", "ramfs"}


def parse_args() -> argparse.Namespace:
    """Options of a run and of the workloads."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--peers", default=f"holdfast,{BASELINE},null", help=", ".join(PEERS))
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--baseline", default=BASELINE, help="the peer ratios are to")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one run of two seconds each")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of tables")
    parser.add_argument("--out", type=Path, help="file for JSON lines (default: results/)")
    parser.add_argument("--work", type=Path, help="data directories; on a disk, not in memory")
    parser.add_argument(
        "--quiet", type=float, default=0.35, help="cores others may use, else wait and repeat"
    )
    parser.add_argument("--wait", type=float, default=8, help="longest wait for quiet, seconds")
    parser.add_argument("--retries", type=int, default=1, help="repeats of a disturbed run")
    for field in dataclasses.fields(Options):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    args = parser.parse_args()
    for names, known in ((args.peers, PEERS), (args.loads, LOADS)):
        if unknown := set(names.split(",")) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if args.quick:
        args.runs, args.secs, args.warm = 1, 2.0, 0.5
    return args


def run_one(peer: Peer, load: str, options: Options, work: Path) -> Row:
    """One workload on one freshly started peer."""
    server = Server(peer, work).start()
    try:
        if load == "W7":
            run(w7_fill(server, peer.adapter(server.port, load), options))
            server.stop()
            server.start(clean=False)
        adapter = peer.adapter(server.port, load)
        return run(_awaited(LOADS[load](server, adapter, options)))
    finally:
        server.stop()


async def _awaited(work: Any) -> Row:
    row: Row = await work
    return row


def wait_for_quiet(limit_cores: float, secs: float) -> None:
    """Until the rest of the machine uses less than `limit_cores`, at most `secs` seconds."""
    end = time.monotonic() + secs
    while time.monotonic() < end:
        busy, start = meter.busy_s(), time.perf_counter()
        time.sleep(0.5)
        if (meter.busy_s() - busy) / (time.perf_counter() - start) < limit_cores:
            return


def measure(peer: Peer, load: str, args: argparse.Namespace, options: Options) -> Row:
    """`run_one`, again where others used too much of the machine; errors become a row."""
    row: Row = {}
    for _ in range(args.retries + 1):
        wait_for_quiet(args.quiet, args.wait)
        try:
            row = run_one(peer, load, options, args.work)
        except (OSError, RuntimeError, TimeoutError) as error:
            return {"error": f"{type(error).__name__}: {error}"[:400]}
        if row.get("other_cores", 0) <= args.quiet:
            break
    return row


def on_memory(directory: Path) -> bool:
    """Whether a sync of this directory would be free, and the figures worthless."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found = line.split()[:3]
        inside = str(directory.resolve()).startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind in MEMORY_FILESYSTEMS


def main() -> int:
    """Run everything that was asked for."""
    args = parse_args()
    args.work = args.work or Path(os.environ.get("BENCH_WORK", HERE / "results" / "work"))
    args.work.mkdir(parents=True, exist_ok=True)
    if on_memory(args.work):
        print(f"bench: {args.work} is in memory: syncs cost nothing there", file=sys.stderr)
    out = args.out or HERE / "results" / time.strftime("%Y%m%d-%H%M%S.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    fields = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: getattr(args, name) for name in fields})
    records: list[Row] = []
    with out.open("a") as file:
        for load in args.loads.split(","):
            for number in range(args.runs):
                for peer in [PEERS[name] for name in args.peers.split(",")]:
                    if load in peer.skip:
                        continue
                    row = measure(peer, load, args, options)
                    record = {"peer": peer.name, "load": load, "run": number, **_rounded(row)}
                    records.append(record)
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    print(json.dumps(record), file=sys.stderr, flush=True)
        summaries = list(ratios(records, args.baseline))
        file.writelines(json.dumps(summary) + "\n" for summary in summaries)
    if args.json:
        print("\n".join(json.dumps(one) for one in (*records, *summaries)))
    else:
        print("\n".join(tables(records, args.baseline)))
    print(f"bench: JSON lines in {out}", file=sys.stderr)
    return 1 if any("error" in record for record in records) else 0


def _rounded(row: Row) -> Row:
    return {key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}


if __name__ == "__main__":
    sys.exit(main())
