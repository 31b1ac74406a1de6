"""What stands under deploy/ names commands, keys and paths that exist."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from edge.cli.program import COMMANDS
from edge.cli.serve import command as serve
from edge.config_sources import load_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KEYS = "k1:0123456789abcdef0123456789abcdef"
FILES = [path for path in sorted(DEPLOY.rglob("*")) if path.is_file()]


def settings(environ: dict[str, Any]) -> dict[str, str]:
    """What of a process's environment is ours, with the token keys that a secret holds."""
    ours = {name: str(value) for name, value in environ.items() if name.startswith("HOLDFAST_")}
    return {**ours, "HOLDFAST_TOKEN_KEYS": KEYS}


def test_the_image_copies_what_exists_and_the_context_lets_it_through() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
    assert len(copied) == 5
    for line in copied:
        for path in line.split()[:-1]:
            assert (ROOT / path).exists(), path
            assert any(f"!{path}".startswith(rule) for rule in allowed if rule[0] == "!"), path
    assert {f"!{name}" for name in ("infra", "actors", "edge")} <= set(allowed)
    for script in ("trim", "rootfs"):
        assert os.access(DEPLOY / "image" / script, os.X_OK)


def test_the_image_runs_as_nobody_and_knows_its_settings() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    final = text.split("\nFROM scratch")[1]
    assert "USER 65532:65532" in final and re.search(r'^CMD \["serve"\]$', final, re.MULTILINE)
    config = load_config({}, settings(dict(re.findall(r"(HOLDFAST_\w+)=(\S+)", final))), None)
    assert (config.host, config.port, config.data_dir) == ("0.0.0.0", 8420, "/data")


def test_compose() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    service = compose["services"]["holdfast"]
    config = load_config({}, settings(service["environment"]), None)
    assert config.bucket.startswith("s3://holdfast/") and config.durability == "replicated"
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    assert set(service["depends_on"]) <= set(compose["services"])
    named = {volume.split(":")[0] for part in compose["services"].values()
             for volume in part.get("volumes", [])}  # fmt: skip
    assert named == set(compose["volumes"])


def test_fly() -> None:
    fly = tomllib.loads((DEPLOY / "fly.toml").read_text())
    config = load_config({}, settings(fly["env"]), None)
    assert config.port == fly["http_service"]["internal_port"]
    assert config.connections_max >= fly["http_service"]["concurrency"]["hard_limit"]
    assert (DEPLOY / fly["build"]["dockerfile"]).exists()
    assert f"{int(config.drain_timeout_s) * 2}s" == fly["kill_timeout"]
    source = (ROOT / "edge/app.py").read_text()
    assert all(f'"{check["path"]}"' in source for check in fly["http_service"]["checks"])


def test_the_unit() -> None:
    text = (DEPLOY / "systemd/holdfast.service").read_text()
    [line] = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    assert line.split()[1] in COMMANDS and line.split()[0].endswith("/bin/holdfast")
    known = {option for parameter in serve.params for option in parameter.opts}
    assert {word for word in line.split() if word.startswith("--")} <= known
    assert "Type=notify" in text and "WatchdogSec=" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_stands_there(path: Path) -> None:
    assert not re.search(r"k1:[0-9a-f]{32}", path.read_text())
