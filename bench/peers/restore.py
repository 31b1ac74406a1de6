"""One restore in a process of its own: what it took, as JSON. With `pure` it does without the
optional packages. Usage: python -m bench.peers.restore URL SCOPE_PREFIX TARGET [pure]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bench.peers.slow_store import without_optional


def _peak_kib() -> int:
    # Not getrusage: its maximum begins with that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def main() -> None:
    """Restore, and say how long that took without the start of Python."""
    url, prefix, target, *options = sys.argv[1:]
    if "pure" in options:
        without_optional()
    from infra.objects import open_store
    from infra.restore import restore_to

    store = open_store(url)
    cpu, wall = time.process_time(), time.perf_counter()
    restored = restore_to(store, prefix, Path(target))
    row = {
        "restore_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "rss_MiB": _peak_kib() / 1024,
        "files": restored.files_read,
        "MB_read": restored.bytes_read / 1e6,
        "MB": restored.page_size * restored.commit / 1e6,
        "txid": restored.txid,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
