"""Which processes share a data directory. Ledger files lie in one tree whoever has them (see
infra/paths.py), so none moves when the number of processes changes; but each process has an index
of its own, and what it says of the scopes it owns is only good for the split it was made under.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

STAMP: Final = "processes"


def claim_layout(directory: Path, layout: str) -> None:
    """Have the directory used under this split; call while its lock is held.

    `layout` is "" for one process, their number for several, `tenant` for one each. Under another
    than before every index goes: each process makes its own anew from the ledger files.
    """
    stamp = directory / STAMP
    try:
        before = stamp.read_text()
    except FileNotFoundError:
        before = ""
    if before == layout:
        return
    for place in (directory, *directory.glob("actor-*"), *directory.glob("tenants/*")):
        for index in place.glob("index.db*"):
            index.unlink()
    made = stamp.with_suffix(".new")
    made.write_text(layout)
    made.replace(stamp)
