"""Packages from npm, installed as pinned, and a Node process that runs what a test sends it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.process import ROOT

INSTALL_S = 300
WAIT_S = 60


def npm_install(directory: Path) -> None:
    """`npm ci`, where what is installed is not what the lock file says.

    Skips the test where there is no npm at all; fails where npm does.
    """
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on the path")
    lock = (directory / "package-lock.json").read_text("utf-8")
    stamp = directory / "node_modules" / ".holdfast-lock"
    if stamp.exists() and stamp.read_text("utf-8") == lock:
        return
    command = [npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, timeout=INSTALL_S
    )
    assert done.returncode == 0, done.stderr[-4000:]
    stamp.write_text(lock, "utf-8")


class Driver:
    """`tests/interop/driver.mjs` in a process of its own."""

    def __init__(self) -> None:
        directory = ROOT / "tests" / "interop"
        npm_install(directory)
        node = shutil.which("node")
        assert node is not None
        self._process = subprocess.Popen(
            [node, "driver.mjs"], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def run(self, code: str, **args: Any) -> Any:
        """What the JavaScript returns. AssertionError where it throws."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"code": code, "args": args}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the driver has ended"
        answer = json.loads(line)
        assert "error" not in answer, f"{answer['error']}\nin {code}"
        return answer["value"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=WAIT_S)
