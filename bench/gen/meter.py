"""CPU time and memory of a process tree, from /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                children = Path(f"/proc/{one}/task/{task}/children").read_text()
                todo += [int(child) for child in children.split()]
        except OSError:
            continue  # it ended meanwhile
    return sorted(set(found))


def cpu_s(pid: int) -> float:
    """User and system seconds of the tree so far."""
    return sum(cpu_by_role(pid).values())


def cpu_by_role(pid: int) -> dict[str, float]:
    """The same of each kind of process: `edge`, `actor`, and `server` for whatever is neither."""
    found: dict[str, float] = {}
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            words = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        last = words[-2].decode(errors="replace") if len(words) > 1 else ""
        role = last if last in ("edge", "actor") else "server"
        found[role] = found.get(role, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS
    return found


def rss_kib(pid: int) -> tuple[int, int]:
    """(RSS, PSS) of the tree in KiB."""
    rss = pss = 0
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("Rss:"):
                rss += int(line.split()[1])
            elif line.startswith("Pss:"):
                pss += int(line.split()[1])
    return rss, pss


def busy_s() -> float:
    """Seconds all cores together have worked since boot."""
    with open("/proc/stat") as file:
        fields = [int(x) for x in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


class Meter:
    """`with Meter(pid) as m:` then `m.wall`, `m.server`, `m.generator` (s), `m.other` (cores)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.wall = self.server = self.generator = self.other = 0.0
        self.roles: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._cpu, self._wall = cpu_by_role(self.pid), time.perf_counter()
        self._own, self._busy = time.process_time(), busy_s()
        return self

    def __exit__(self, *exc: object) -> None:
        self.wall = time.perf_counter() - self._wall
        now = cpu_by_role(self.pid)
        self.roles = {role: now[role] - self._cpu.get(role, 0.0) for role in now}
        self.server = sum(self.roles.values())
        self.generator = time.process_time() - self._own
        # What anything else on the machine used, kernel work not charged to us included.
        rest = busy_s() - self._busy - self.server - self.generator
        self.other = max(0.0, rest / self.wall)

    def per_million(self, count: int) -> dict[str, float]:
        """CPU seconds of edges and of actor processes for a million of what was counted."""
        if not count or "edge" not in self.roles:
            return {}
        return {
            f"{role}_cpu_s_per_M": self.roles[role] / count * 1e6
            for role in ("edge", "actor")
            if role in self.roles
        }

    def cores(self) -> dict[str, float]:
        """The columns every record carries."""
        return {
            "srv_cores": self.server / self.wall,
            "gen_cores": self.generator / self.wall,
            "other_cores": self.other,
        }
