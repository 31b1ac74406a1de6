"""Real HTTP endpoints that speak S3, each a process of its own on a free port of loopback.

moto honours conditional writes, `rclone serve s3` ignores them. Credentials are dummies
that `CREDENTIALS` holds; a test gives them to the processes it starts, or to its own environment
with the fixture `s3_credentials`. Every bucket has a name of its own, so tests share an endpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S = 60
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "holdfast",
    "AWS_SECRET_ACCESS_KEY": "holdfast-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
REGION = "us-east-1"
_OURS = "AWS_"


class S3Server:
    """An endpoint under way. `bucket_url` names a bucket of it; `url` is the endpoint."""

    def __init__(
        self, port: int, process: subprocess.Popen[bytes], folder: Path | None,
        address: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        self.url = f"http://{address}:{port}"
        self._process = process
        self._folder = folder  # of rclone: buckets are folders
        self._names = itertools.count(1)

    def new_bucket(self) -> str:
        """Make a bucket; its name."""
        name = f"bucket-{next(self._names)}"
        if self._folder is not None:
            (self._folder / name).mkdir()
        else:
            request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
            request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=a/b/us-east-1/s3/c")
            urllib.request.urlopen(request, timeout=START_S).close()
        return name

    def bucket_url(self, prefix: str = "", *, bucket: str | None = None) -> str:
        """The `s3://` URL of a new bucket, or of the one named."""
        place = "/".join(part for part in (bucket or self.new_bucket(), prefix) if part)
        return f"s3://{place}?endpoint={self.url}&region={REGION}"

    def stop(self) -> None:
        """End the process early; the buckets of moto go with it."""
        self._process.terminate()
        self._process.wait(START_S)


def environment() -> dict[str, str]:
    """This process's environment with the dummies and nothing else of AWS, for another process.

    The official `litestream` needs it so: it cannot connect at all where AWS_CA_BUNDLE is set.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, **CREDENTIALS}


@contextlib.contextmanager
def moto(
    log: Path, *, address: str = "127.0.0.1", prefix: tuple[str, ...] = ()
) -> Iterator[S3Server]:
    """An endpoint that keeps its buckets in memory and honours If-None-Match. `prefix` in front of
    its command runs it somewhere else.
    """
    command = [*prefix, sys.executable, "-m", "tests.support.moto_process", address]
    with _running(command, log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"it ended at once: {log.read_text()[-2000:]}"
        yield S3Server(int(line), process, None, address)


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    """An endpoint over `folder` that ignores If-None-Match."""
    port = _free_port()
    root = folder / "buckets"
    root.mkdir(parents=True)
    key = f"{CREDENTIALS['AWS_ACCESS_KEY_ID']},{CREDENTIALS['AWS_SECRET_ACCESS_KEY']}"
    command = [_script("rclone"), "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", key, "--config", str(folder / "none.conf")]
    command += ["--dir-cache-time", "1ms"]  # a bucket made later is seen at once
    log = folder / "rclone.log"
    with _running(command, log) as process:
        _wait_for_port(process, port, log)
        yield S3Server(port, process, root)


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for all tests."""
    with moto(tmp_path_factory.mktemp("moto") / "moto.log") as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for all tests."""
    with rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dummies, and nothing else of AWS, in this process's environment."""
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    # A profile of whoever runs the tests must not count either.
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@contextlib.contextmanager
def _running(
    command: list[str], log: Path, stdout: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**environment(), "PYTHONPATH": str(ROOT)},
            stdout=stdout or output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=START_S)


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    # rclone does not say when it listens in a form to rely on, so the port is asked.
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, f"it ended at once: {log.read_text()[-2000:]}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _script(name: str) -> str:
    """A program that came with the development packages."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is missing: {sys.executable} -m pip install -e '.[dev]'"
    return found
