"""`holdfast doctor`: can this machine run a server, and what would hold it back."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec

from edge.cli.exits import Exit
from edge.cli.options import config_options, read_config
from edge.cli.output import emit, json_option, table
from edge.config import Config
from infra.clock import monotonic, now_ms
from infra.deployment import read_marker
from infra.errors import ConfigError, HoldfastError
from infra.objects import open_store, probe_conditional_writes, store_prefix

SQLITE_MIN: Final = (3, 40, 0)
FREE_BYTES_MIN: Final = 1 << 30
FSYNC_SLOW_MS: Final = 50.0
FILES_PER_SCOPE: Final = 3  # database, write-ahead log, shared memory
FILES_PER_REPLICA: Final = 2  # database and log once more, to read changed pages
FILES_SPARE: Final = 64
YEAR_2025_MS: Final = 1_735_689_600_000


class Check(msgspec.Struct, frozen=True):
    """One finding. `warn` costs speed or comfort, `fail` keeps the server from working."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str


@click.command("doctor")
@config_options()
@json_option
def command(as_json: bool, **flags: Any) -> Exit:
    """Check Python, SQLite, disk, bucket, limits, clock and settings; exits with 1 on a failure."""
    found: list[Check] = [_python(), _sqlite(), _clock()]
    try:
        config = read_config(flags)
        found.append(Check("config", "ok", "every key is good"))
    except ConfigError as error:
        found.append(Check("config", "fail", str(error)))
        config = Config()
    found += [_uvloop(config), _codecs(config), _open_files(config)]
    found += [*_disk(Path(config.data_dir)), *_bucket(config)]
    failed = any(check.state == "fail" for check in found)
    rows = [(check.state, check.name, check.detail) for check in found]
    emit({"ok": not failed, "checks": found}, table(("", "check", "found"), rows), as_json=as_json)
    return Exit.FAILURE if failed else Exit.OK


def _python() -> Check:
    state: Literal["ok", "fail"] = "ok" if sys.version_info >= (3, 11) else "fail"
    return Check("python", state, f"{platform.python_version()}, 3.11 or newer is needed")


def _sqlite() -> Check:
    state: Literal["ok", "fail"] = "ok" if sqlite3.sqlite_version_info >= SQLITE_MIN else "fail"
    return Check("sqlite", state, f"{sqlite3.sqlite_version}, 3.40 or newer is needed")


def _clock() -> Check:
    if now_ms() < YEAR_2025_MS:
        return Check("clock", "fail", "the clock is years behind; tokens and ages would be wrong")
    return Check("clock", "ok", "plausible")


def _uvloop(config: Config) -> Check:
    if config.uvloop == "off":
        return Check("uvloop", "ok", "turned off by configuration")
    if find_spec("uvloop") is not None:
        return Check("uvloop", "ok", "installed")
    if config.uvloop == "on":
        return Check("uvloop", "fail", "uvloop = on, but it is not installed")
    return Check("uvloop", "warn", "not installed: single messages take longer")


def _codecs(config: Config) -> Check:
    missing = [name for name in ("lz4", "fastcrc") if find_spec(name) is None]
    if missing and config.bucket:
        detail = f"{' and '.join(missing)} not installed: replication takes more of the processor"
        return Check("codecs", "warn", detail)
    return Check("codecs", "ok", "installed" if not missing else "not needed without a bucket")


def _bucket(config: Config) -> Iterator[Check]:
    """Reachable, allowed, and a store that honours conditional writes."""
    if not config.bucket:
        return
    try:
        store = open_store(config.bucket)
        with contextlib.closing(store):
            prefix = store_prefix(config.bucket)
            owner = read_marker(store, prefix)
            probe_conditional_writes(store, prefix)
    except HoldfastError as error:
        yield Check("bucket", "fail", str(error))
        return
    whose = "nobody's yet" if owner is None else f"deployment {owner}"
    yield Check("bucket", "ok", f"{store.url}: {whose}; honours conditional writes")


def _open_files(config: Config) -> Check:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    per_scope = FILES_PER_SCOPE + (FILES_PER_REPLICA if config.bucket else 0)
    needed = config.connections_max + per_scope * config.open_scopes_max + FILES_SPARE
    detail = f"ulimit -n is {limit}; connections_max and open_scopes_max may need {needed}"
    return Check("open files", "ok" if limit >= needed or limit < 0 else "warn", detail)


def _disk(directory: Path) -> Iterator[Check]:
    """The data directory: writable, with room, and on a disk whose sync works.

    Where it does not exist yet, its nearest existing parent is looked at and nothing is made.
    """
    place = directory.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield Check("data_dir", "fail", f"{place} is not a directory")
        return
    free = shutil.disk_usage(place).free
    state: Literal["ok", "warn"] = "ok" if free >= FREE_BYTES_MIN else "warn"
    yield Check("free disk", state, f"{free >> 20} MiB at {place}")
    try:
        took_ms = _sync_ms(place)
    except OSError as error:
        yield Check("data_dir", "fail", f"cannot write and sync in {place}: {error.strerror}")
        return
    yield Check("data_dir", "ok", f"{directory} is writable")
    slow: Literal["ok", "warn"] = "ok" if took_ms < FSYNC_SLOW_MS else "warn"
    yield Check(
        "fsync", slow, f"{took_ms:.1f} ms for 4 KiB; every acknowledged write waits for one"
    )


def _sync_ms(place: Path) -> float:
    """Milliseconds of the fastest of three writes with fsync. Raises OSError."""
    best = float("inf")
    handle, name = tempfile.mkstemp(prefix=".holdfast-doctor-", dir=place)
    try:
        for _ in range(3):
            begin = monotonic()
            os.write(handle, bytes(4096))
            os.fsync(handle)
            best = min(best, (monotonic() - begin) * 1000)
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(name)
    return best
