"""S3 on loopback, and the official `litestream`. All of it comes with the development packages."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.process import free_port
from bench.roster import ROOT
from infra.objects import parse_url

INSTALL = "it is a development package: pip install -e '.[dev]'"
START_S = 60
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "holdfast",
    "AWS_SECRET_ACCESS_KEY": "holdfast-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
REGION = "us-east-1"


class Endpoint:
    """One that runs. `folder`: where its buckets are, if they are folders."""

    def __init__(self, port: int, folder: Path | None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder

    def bucket(self, name: str) -> str:
        """The URL of a bucket, made where it is not there."""
        if self._folder is not None:
            (self._folder / name).mkdir(exist_ok=True)
        else:
            request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
            request.add_header("Authorization", f"AWS4-HMAC-SHA256 Credential=a/b/{REGION}/s3/c")
            urllib.request.urlopen(request, timeout=START_S).close()
        return f"s3://{name}?endpoint={self.url}&region={REGION}"


def environment() -> dict[str, str]:
    """This process's, with dummies for credentials and nothing else of AWS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    files = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {**kept, **files, **CREDENTIALS}


@contextlib.contextmanager
def moto() -> Iterator[Endpoint]:
    """Its buckets are in memory; it honours If-None-Match. Raises RuntimeError."""
    if importlib.util.find_spec("moto") is None:
        raise RuntimeError(f"moto is missing: {INSTALL}")
    command = [sys.executable, "-m", "bench.peers.s3"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("moto ended at once; its message is above")
            yield Endpoint(int(line), None)
        finally:
            process.terminate()


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Endpoint]:
    """Over a folder of buckets. Fit to read from: it ignores If-None-Match. Raises RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    key = f"{CREDENTIALS['AWS_ACCESS_KEY_ID']},{CREDENTIALS['AWS_SECRET_ACCESS_KEY']}"
    command = [script("rclone"), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", key, "--config", os.devnull, "--log-level", "ERROR"]
    with subprocess.Popen(command, env=environment()) as process:
        try:
            endpoint = Endpoint(port, folder)
            _wait_for(endpoint, process)
            yield endpoint
        finally:
            process.terminate()


def _wait_for(endpoint: Endpoint, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError("rclone ended at once; its message is above")
        try:
            urllib.request.urlopen(endpoint.url, timeout=1).close()
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("rclone does not listen")


def script(name: str) -> str:
    """A program of the development packages. Raises RuntimeError where it is missing."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: {INSTALL}")
    return found


def litestream_restore(url: str, prefix: str, out: Path) -> float:
    """Restore with the official tool; the seconds its process took. Raises RuntimeError."""
    for end in ("", "-wal", "-shm", "-txid"):
        Path(f"{out}{end}").unlink(missing_ok=True)
    parsed = parse_url(url)
    place = f"s3://{parsed.bucket}/{prefix}"
    place += f"?endpoint={parsed.endpoint}&region={parsed.region}&forcePathStyle=true"
    command = [script("litestream"), "restore", "-o", str(out), place]
    began = time.perf_counter()
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"litestream: {done.stderr[-400:]}")
    return took
