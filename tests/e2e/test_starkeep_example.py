"""examples/notes_device.py as a user runs it, and `holdfast scope gc` over what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import ROOT, WAIT_S, ServerProcess

pytestmark = pytest.mark.e2e


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "server", "dev") as process:
        yield process


def example(server: ServerProcess, *args: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / "notes_device.py"), *map(str, args)]
    done = subprocess.run(
        [*command, "--url", f"{server.url}/keep/notes"], check=False, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=WAIT_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def gc(server: ServerProcess, *args: str) -> Any:
    command = [sys.executable, "-m", "edge.cli", "scope", "gc", "keep:notes", *args]
    done = subprocess.run(
        [*command, "--url", server.url, "--json"], check=True, capture_output=True, text=True,
        cwd=ROOT, timeout=WAIT_S,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_two_devices_have_the_same_after_a_day(server: ServerProcess) -> None:
    said = example(server)
    assert "phone: gift='a book', shopping='milk, tea'" in said
    assert "photos: {'phone.jpg': 300000, 'laptop.jpg': 2000000}" in said
    assert said.endswith("both devices have the same\n")


def test_one_device_goes_on_where_it_was(server: ServerProcess, tmp_path: Path) -> None:
    photo = tmp_path / "cat.jpg"
    photo.write_bytes(b"\xff\xd8" * 5000)
    first = example(server, "--folder", tmp_path / "a", "--add", "one", "--photo", photo)
    assert "photos: {'cat.jpg': 10000}" in first
    example(server, "--folder", tmp_path / "b", "--add", "two")
    third = example(server, "--folder", tmp_path / "a")
    assert "'one'" in third
    assert "'two'" in third


def test_gc_takes_only_what_nothing_refers_to(server: ServerProcess, tmp_path: Path) -> None:
    photo = tmp_path / "cat.jpg"
    photo.write_bytes(b"x" * 1000)
    example(server, "--folder", tmp_path / "a", "--photo", photo)
    import urllib.request

    request = urllib.request.Request(f"{server.url}/keep/notes/files/stray", b"stray", method="PUT")
    urllib.request.urlopen(request, timeout=WAIT_S).close()
    assert gc(server)["keys"] == []  # both are young
    dry = gc(server, "--dry-run", "--grace", "0")
    assert (dry["keys"], dry["bytes"], dry["deleted"]) == (["stray"], 5, False)
    assert gc(server, "--grace", "0")["deleted"]
    assert gc(server, "--dry-run", "--grace", "0") == {
        "keys": [], "contents": [], "bytes": 0, "deleted": False,
    }  # fmt: skip
    assert "photos: {'cat.jpg': 1000}" in example(server, "--folder", tmp_path / "b")
