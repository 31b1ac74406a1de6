"""The commands that need a server, each against a real process."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.cli.dev import _welcome

ROOT = Path(__file__).parents[2]
HOLDFAST = [sys.executable, "-c", "from edge.cli import main; main()"]
KEYS = "k1:" + "1" * 32
WAIT_S = 30

pytestmark = pytest.mark.e2e

Start = Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]


def environ(**changes: str) -> dict[str, str]:
    ours = ("HOLDFAST_", "PORT", "HOST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def holdfast(*argv: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HOLDFAST, *argv],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env=environ(**env),
        check=False,
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server and returns it with its ready line; all are ended and waited for."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(*argv: str, **env: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        options = ["--port", "0", "--data-dir", str(tmp_path / "data"), "--json"]
        process = subprocess.Popen(
            [*HOLDFAST, *argv, *options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environ(**env),
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"no ready line, exit {process.wait(WAIT_S)}"
        return process, json.loads(line)

    yield start_one
    for process in processes:
        process.terminate()
        process.wait(WAIT_S)
        assert process.stdout is not None
        process.stdout.close()


def envelopes(count: int) -> str:
    lines = [
        {
            "eventId": f"e{n}",
            "kind": "patch",
            "entities": [{"key": "item:1", "patches": [{"op": "set", "path": "/n", "value": n}]}],
        }
        for n in range(1, count + 1)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_publish_then_events_then_scope(start: Start) -> None:
    process, ready = start("dev")
    url = ready["url"]
    assert ready["console"] == f"{url}/console"
    first = holdfast("publish", "run:a", "--url", url, "--json", stdin=envelopes(600))
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert (told["published"], told["duplicates"], told["refused"], told["head"]) == (
        600,
        0,
        0,
        600,
    )

    again = json.loads(
        holdfast("publish", "run:a", "--url", url, "--json", stdin=envelopes(2)).stdout
    )
    assert (again["published"], again["duplicates"]) == (0, 2)

    events = holdfast("events", "run:a", "--since", "598", "--no-follow", "--url", url)
    assert [json.loads(line)["seq"] for line in events.stdout.splitlines()] == [599, 600]

    listed = json.loads(holdfast("scope", "ls", "--url", url, "--json").stdout)
    assert [item["scope"] for item in listed["scopes"]] == ["run:a"]
    shown = json.loads(holdfast("scope", "show", "run:a", "--url", url, "--json").stdout)
    assert shown["head"] == 600
    assert holdfast("scope", "show", "run:none", "--url", url).returncode == 3

    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0


def test_refused_line_is_named_and_the_others_are_stored(start: Start) -> None:
    _, ready = start("dev")
    bad = '{"kind":"patch","entities":[{"key":"nonsense","value":{}}]}\n'
    lines = envelopes(2).splitlines(keepends=True)
    outcome = holdfast(
        "publish", "run:a", "--url", ready["url"], "--json", stdin=lines[0] + bad + lines[1]
    )
    assert outcome.returncode == 1
    told = json.loads(outcome.stdout)
    assert (told["published"], told["refused"]) == (2, 1)
    assert [(item["line"], item["code"]) for item in told["refusals"]] == [(2, "bad_envelope")]


def test_events_ahead_of_the_scope_are_refused(start: Start) -> None:
    _, ready = start("dev")
    outcome = holdfast("events", "run:a", "--since", "9", "--no-follow", "--url", ready["url"])
    assert outcome.returncode == 1
    assert "ahead_of_head" in outcome.stderr


def test_serve_takes_tokens_and_nothing_else(start: Start) -> None:
    _, ready = start("serve", HOLDFAST_TOKEN_KEYS=KEYS)
    url = ready["url"]

    def token(*options: str) -> str:
        return holdfast("token", "new", *options, HOLDFAST_TOKEN_KEYS=KEYS).stdout.strip()

    reader, writer = token("--read", "run:*"), token("--write", "run:*")
    send = ("publish", "run:a", "--url", url)
    assert holdfast(*send, stdin=envelopes(1)).returncode == 5
    assert holdfast(*send, stdin=envelopes(1), HOLDFAST_TOKEN="nonsense").returncode == 5
    assert holdfast(*send, stdin=envelopes(1), HOLDFAST_TOKEN=reader).returncode == 5
    assert holdfast(*send, stdin=envelopes(1), HOLDFAST_TOKEN=writer).returncode == 0
    events = ("events", "run:a", "--no-follow", "--url", url)
    assert len(holdfast(*events, HOLDFAST_TOKEN=reader).stdout.splitlines()) == 1
    other = ("events", "doc:a", "--no-follow", "--url", url)
    assert holdfast(*other, HOLDFAST_TOKEN=reader).returncode == 5
    assert holdfast("scope", "ls", "--url", url, HOLDFAST_TOKEN=writer).returncode == 5
    admin = token("--admin")
    assert holdfast("scope", "ls", "--url", url, HOLDFAST_TOKEN=admin).returncode == 0


def test_interrupted_follower_exits_130(start: Start) -> None:
    _, ready = start("dev")
    holdfast("publish", "run:a", "--url", ready["url"], stdin=envelopes(1))
    with subprocess.Popen(
        [*HOLDFAST, "events", "run:a", "--url", ready["url"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ(),
    ) as follower:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["seq"] == 1
        follower.send_signal(signal.SIGINT)
        assert follower.wait(WAIT_S) == 130


def test_user_application_decides(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(
        "from holdfast import Application, Principal\n"
        "app = Application()\n\n"
        "@app.authenticate\n"
        "def authenticate(credentials):\n"
        "    return Principal(id=credentials.token) if credentials.token else None\n\n"
        "@app.authorize\n"
        "async def authorize(principal, scope, action, resource):\n"
        "    return scope.endswith(principal.id)\n"
    )
    _, ready = start("serve", "hooks:app")
    send = ("publish", "--url", ready["url"])
    assert holdfast(*send, "doc:ada", stdin=envelopes(1), HOLDFAST_TOKEN="ada").returncode == 0
    assert holdfast(*send, "doc:bob", stdin=envelopes(1), HOLDFAST_TOKEN="ada").returncode == 5
    assert holdfast(*send, "doc:ada", stdin=envelopes(1)).returncode == 5


def test_line_that_dev_prints_works_as_it_stands(start: Start) -> None:
    _, ready = start("dev")
    command = next(
        line.removeprefix("  try      ")
        for line in _welcome(ready["url"]).splitlines()
        if line.startswith("  try")
    )
    words = shlex.split(command)
    assert words[:2] == ["curl", "-s"]
    assert words[3] == "-d"
    # Sent by hand, as curl would: its content type for -d is that of a form.
    request = urllib.request.Request(words[2], data=words[4].encode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        assert json.loads(answer.read())["seq"] == 1
