"""A power cut under load: what was acknowledged is on the disk, not only in the page cache.

The ledgers lie on an ext4 image behind a loop device. The server is stopped in the middle of its
work and the image is copied: it then holds what had reached the device, as after a power cut. A
server without its barrier must lose acknowledged writes by the same procedure, or the test proves
nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.publisher import Publisher, Server

IMAGE_BYTES = 96 << 20
COMMAND_S = 60
WITHOUT_BARRIER = [sys.executable, "-m", "tests.support.serve_without_barrier", "serve"]
CUTS = (20, 150, 600)  # acknowledged envelopes before the cut


def why_not() -> str:
    """Why no image can be mounted here; empty where it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return "" if Path("/dev/loop-control").exists() else "needs loop devices"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]


def call(*argv: str | Path) -> None:
    subprocess.run([*map(str, argv)], check=True, capture_output=True, timeout=COMMAND_S)


@contextlib.contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """The image's file system; unmounted, and its loop device freed, whatever happens."""
    place.mkdir()
    try:
        call("mount", "-o", "loop", image, place)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"mount: {error.stderr.decode().strip()}")
    try:
        yield place
    finally:
        call("umount", place)


async def cut(
    tmp_path: Path, acks: int, command: list[str] | None
) -> tuple[Publisher, dict[str, int]]:
    """Run, stop, copy, and read the copy: the publisher, and what it misses there."""
    image, copy = tmp_path / "disk.img", tmp_path / "copy.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    call("mkfs.ext4", "-q", "-F", image)
    publisher = Publisher([f"run:{n}" for n in range(12)], window=6)
    disk = tmp_path / "disk"
    with mounted(image, disk), Server(disk / "data", command=command) as server:
        socket = await publisher.run(server.url, acks)
        server.signal(signal.SIGSTOP)
        call("cp", "--sparse=always", image, copy)
        server.kill()
        await publisher.drain(socket)  # answers that had left before the stop count too
    with mounted(copy, tmp_path / "copy") as found:
        lost = publisher.missing(found / "data", damage_is_loss=command is not None)
    return publisher, lost


@pytest.mark.parametrize("acks", CUTS)
async def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path, acks: int) -> None:
    publisher, lost = await cut(tmp_path, acks, None)
    assert publisher.count >= acks
    assert lost == {}


async def test_without_the_barrier_a_power_cut_loses_writes(tmp_path: Path) -> None:
    publisher, lost = await cut(tmp_path, CUTS[-1], WITHOUT_BARRIER)
    assert publisher.count >= CUTS[-1]
    assert lost, "the procedure does not show what it should"
