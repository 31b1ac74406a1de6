"""The server with a bucket that fails, stalls, loses replies and lands writes late.

FAULTS_OF_THE_BUCKET (JSON, `Trouble`) says how; it is read here and nowhere in the product.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

import actors.replication
import infra.pacing
import infra.replica_files
from edge.cli import main
from infra.layout import LEVEL_CHANGES
from infra.objects import ObjectStore, open_store
from tests.support.faulty_store import Faults
from tests.support.lingering_store import LingeringStore

VARIABLE = "FAULTS_OF_THE_BUCKET"
_BATCHES = f"/{LEVEL_CHANGES:04x}/"


class Trouble(msgspec.Struct, kw_only=True):
    """`late_folder` is shared by all processes of a test. `snapshot_files`: level 0 files after
    which the state is written whole, `local_ms`: the pause between batches of a `local` scope. Both
    are set low, so that within seconds there is something to lose, and something to retain.
    `careless`: batches overwrite what stands at their key, as in a bucket that ignores
    If-None-Match and that nobody has probed.
    """

    late_folder: str
    faults: dict[str, Any] = {}
    seed: int = 0
    drop: bool = False
    snapshot_files: int | None = None
    local_ms: int | None = None
    careless: bool = False


class Careless:
    """See `Trouble.careless`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, key: str, body: Any, *, if_absent: bool = False, **more: Any) -> None:
        self._store.put(key, body, if_absent=if_absent and _BATCHES not in key, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def environment(trouble: Trouble) -> dict[str, str]:
    """What to start the server with."""
    return {VARIABLE: msgspec.json.encode(trouble).decode()}


def open_faulty(url: str) -> ObjectStore:
    """The store of the URL behind the trouble that the environment asks for."""
    trouble = msgspec.json.decode(os.environ[VARIABLE], type=Trouble)
    store: Any = open_store(url)
    return LingeringStore(
        Careless(store) if trouble.careless else store, Path(trouble.late_folder),
        Faults(**trouble.faults), seed=trouble.seed, drop=trouble.drop,
    )  # fmt: skip


def install() -> None:
    """Have hosts of this process use it."""
    trouble = msgspec.json.decode(os.environ[VARIABLE], type=Trouble)
    actors.replication.open_store = open_faulty  # type: ignore[attr-defined]
    if trouble.snapshot_files is not None:
        infra.replica_files.SNAPSHOT_FILES = trouble.snapshot_files
    if trouble.local_ms is not None:
        infra.pacing.LOCAL_FIRST_MS = infra.pacing.LOCAL_MAX_MS = trouble.local_ms


if __name__ == "__main__":
    install()
    main()
