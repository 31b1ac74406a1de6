"""From result records to tables: median (least-most) per peer, and its ratio to the baseline's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

from bench.roster import BASELINE

Record = dict[str, Any]
COLUMNS = {
    "W1": ["acks_s", "ack_p50_ms", "ack_p99_ms", "srv_cpu_s_per_M"],
    "W1m": ["acks_s", "ack_p50_ms", "ack_p99_ms", "srv_cpu_s_per_M"],
    "W1s": ["acks_s", "deliv_s", "deliv_missing", "ack_p50_ms", "srv_cpu_s_per_M"],
    "W2": [
        "acks_s",
        "ack_p50_ms",
        "ack_p99_ms",
        "deliv_missing",
        "srv_cpu_s_per_M",
        "edge_cpu_s_per_M",
        "actor_cpu_s_per_M",
    ],
    "W3": ["p50_ms", "p99_ms", "ack_p50_ms", "deliv_missing", "srv_cpu_s_per_Mdeliv"],
    "W4": ["srv_cpu_s_per_Mdeliv", "p50_ms", "p99_ms", "deliv_missing"],
    "W4x": ["deliv_s", "msgs_s", "deliv_missing", "srv_cpu_s_per_Mdeliv"],
    "W5": ["total_ms", "msgs_s", "first_ms", "srv_cpu_s_per_M"],
    "W6c": ["idle_rss_MiB", "conn_KiB", "alive"],
    "W6r": ["room_KiB", "room_KiB_after_wait", "touch_ms", "fds"],
    "W7": ["cold_p50_ms", "cold_p99_ms", "cold_first_ms", "warm_p50_ms"],
}
_NO_RATIO = {"deliv_missing", "alive", "fds"}


def tables(records: Iterable[Record], baseline: str = BASELINE) -> Iterator[str]:
    """One Markdown table per workload, in the order of COLUMNS."""
    by_load: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_load[record["load"]][record["peer"]].append(record)
    for load, columns in COLUMNS.items():
        if load in by_load:
            yield "\n".join(_table(load, columns, by_load[load], baseline))


def ratios(records: Iterable[Record], baseline: str = BASELINE) -> Iterator[Record]:
    """One record per workload and peer: medians, and each column's ratio to the baseline."""
    runs: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if "error" not in record:
            runs[record["load"], record["peer"]].append(record)
    for (load, peer), found in runs.items():
        columns = COLUMNS[load]
        medians = {c: m for c in columns if (m := _median(found, c)) is not None}
        base = runs.get((load, baseline), [])
        against = {c: _ratio(found, base, c) for c in medians}
        yield {
            "summary": load,
            "peer": peer,
            "runs": len(found),
            "median": {c: round(m, 3) for c, m in medians.items()},
            "ratio": {c: round(r, 3) for c, r in against.items() if r is not None},
        }


def _table(
    load: str, columns: list[str], peers: dict[str, list[Record]], baseline: str
) -> Iterator[str]:
    yield f"### {load}"
    yield ""
    yield "| peer | runs | " + " | ".join(columns) + " | other cores |"
    yield "|" + "---|" * (len(columns) + 3)
    base = [record for record in peers.get(baseline, []) if "error" not in record]
    for peer, found in peers.items():
        good = [record for record in found if "error" not in record]
        if not good:
            yield f"| {peer} | 0 | {found[0]['error'][:120]} |"
            continue
        cells = [_cell(good, [] if peer == baseline else base, column) for column in columns]
        others = _median(good, "other_cores")
        cells.append("-" if others is None else _number(others))
        yield f"| {peer} | {len(good)} | " + " | ".join(cells) + " |"
    yield ""


def _cell(records: list[Record], base: list[Record], column: str) -> str:
    values = [record[column] for record in records if record.get(column) is not None]
    if not values:
        return "-"
    text = _number(median(values))
    if min(values) != max(values):
        text += f" ({_number(min(values))}-{_number(max(values))})"
    ratio = _ratio(records, base, column)
    return text if ratio is None else f"{text} **{_number(ratio)}x**"


def _ratio(records: list[Record], base: list[Record], column: str) -> float | None:
    mine, theirs = _median(records, column), _median(base, column)
    if column in _NO_RATIO or mine is None or not theirs:
        return None
    return mine / theirs


def _median(records: list[Record], column: str) -> float | None:
    values = [record[column] for record in records if record.get(column) is not None]
    return median(values) if values else None


def _number(x: float) -> str:
    size = abs(x)
    digits = 0 if size >= 100 or x == int(x) else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{x:,.{digits}f}"
