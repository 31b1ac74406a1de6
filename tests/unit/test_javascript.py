"""The JavaScript modules, run in Node over the vectors that the Python code is tested with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge.version import VERSION

NODE = shutil.which("node")
TESTS = Path(__file__).parents[1] / "js"
NODE_MAJOR_MIN = 20
RUN = ("vectors", "store", "client", "para", "rtc_vectors", "rtc_store", "rtc_client")


def node_version() -> int:
    """The major version of the node on the path, 0 where there is none."""
    if NODE is None:
        return 0
    shown = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=False).stdout
    return int(shown.removeprefix("v").partition(".")[0] or 0)


pytestmark = pytest.mark.skipif(
    node_version() < NODE_MAJOR_MIN, reason=f"no node {NODE_MAJOR_MIN} or newer on the path"
)


def test_it_carries_the_version_of_the_distribution() -> None:
    module = TESTS.parents[1] / "edge" / "web" / "holdfast.js"
    assert f'export const VERSION = "{VERSION}";' in module.read_text("utf-8")


def test_all_files_are_run() -> None:
    helpers = {"support", "rtc_support", "rtc_fold"}
    assert {path.stem for path in TESTS.glob("*.mjs")} == {*RUN, *helpers}


@pytest.mark.parametrize("name", RUN)
def test_javascript(name: str) -> None:
    assert NODE is not None
    command = [NODE, "--test-reporter=tap", str(TESTS / f"{name}.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    failed = [line for line in done.stdout.splitlines() if line.lstrip().startswith("not ok")]
    assert not failed, done.stdout[-8000:]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "# pass 0" not in done.stdout
