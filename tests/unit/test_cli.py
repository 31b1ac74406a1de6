"""Commands that need no server: exit codes, what goes to which stream, and JSON everywhere."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from edge.cli.exits import Exit, exit_for
from edge.cli.output import table
from edge.cli.program import COMMANDS, program, run
from edge.cli.publish import LINE_BYTES_MAX, _batches
from edge.version import VERSION
from infra.errors import AuthError, ConfigError, HoldfastError, StorageError

ROOT = Path(__file__).parents[2]
KEYS = "k1:" + "1" * 32 + ",k2:" + "2" * 32


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("HOLDFAST_") or name in ("PORT", "HOST", "NO_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class Outcome:
    """What one command line did."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *argv: str) -> None:
        capsys.readouterr()
        self.exit = run(argv)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def leaves(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name in command.list_commands(click.Context(command)):
        child = command.get_command(click.Context(command), name)
        assert child is not None
        yield from leaves(child, (*path, name))


def test_every_command_has_help_and_json() -> None:
    for path, command in leaves(program):
        assert command.help, path
        assert any("--json" in option.opts for option in command.params), path


def test_design_names_every_command() -> None:
    assert COMMANDS == (
        "dev", "serve", "edge", "actor", "forkserver", "store", "publish", "events", "scope",
        "actors", "hosts", "restore", "fork", "verify", "export", "import", "config", "token",
        "doctor", "version",
    )  # fmt: skip


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    outcome = Outcome(capsys, "version", "--json")
    assert (outcome.exit, outcome.json["holdfast"]) == (Exit.OK, VERSION)


@pytest.mark.parametrize(
    ("argv", "exit_code"),
    [
        ((), Exit.USAGE),
        (("nonsense",), Exit.USAGE),
        (("serve", "--nonsense"), Exit.USAGE),
        (("serve",), Exit.USAGE),
        (("serve", "--insecure", "hf_absent:app"), Exit.USAGE),
        (("dev", "--host", "0.0.0.0"), Exit.USAGE),
        (("dev", "--host", "example.org"), Exit.USAGE),
        (("config", "check", "--port", "x"), Exit.USAGE),
        (("config", "check", "--config", "absent.toml"), Exit.USAGE),
        (("token", "new", "--read", "*"), Exit.USAGE),
        (("token", "inspect", "x"), Exit.AUTH),
        (("scope", "ls", "--url", "http://127.0.0.1:1"), Exit.UNAVAILABLE),
        (("scope", "ls", "--url", "ftp://x"), Exit.USAGE),
        (("publish", "run:a", "--url", "http://127.0.0.1:1"), Exit.UNAVAILABLE),
        (("events", "run:a", "--url", "http://127.0.0.1:1"), Exit.UNAVAILABLE),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], exit_code: Exit
) -> None:
    outcome = Outcome(capsys, *argv)
    assert outcome.exit == exit_code
    assert outcome.out == ""
    assert outcome.err


def test_errors_are_json_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (("serve", "--json"), ("config", "check", "--port", "x", "--json")):
        outcome = Outcome(capsys, *argv)
        assert outcome.out == ""
        assert set(json.loads(outcome.err)["error"]) == {"code", "message"}
    assert json.loads(Outcome(capsys, "nonsense", "--json").err)["error"]["code"] == "usage"


def test_keyboard_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**anything: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.cli.version.command.callback", interrupt)
    assert run(["version"]) == 130


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (HoldfastError("x", code="not_found"), Exit.NOT_FOUND),
        (HoldfastError("x", code="fenced"), Exit.CONFLICT),
        (HoldfastError("x", code="forbidden"), Exit.AUTH),
        (HoldfastError("x", code="something_new"), Exit.FAILURE),
        (AuthError("x", code="token_expired"), Exit.AUTH),
        (ConfigError("x", code="bad_key"), Exit.USAGE),
        (StorageError("x"), Exit.UNAVAILABLE),
    ],
)
def test_errors_map_to_exit_codes(error: HoldfastError, exit_code: Exit) -> None:
    assert exit_for(error) is exit_code


def test_token_round_trip(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_TOKEN_KEYS", KEYS)
    new = Outcome(
        capsys, "token", "new", "-s", "ada", "-r", "doc:*", "-w", "doc:ada", "--ttl", "8h"
    )
    assert new.exit == Exit.OK
    token = new.out.strip()
    found = Outcome(capsys, "token", "inspect", token, "--json")
    assert found.exit == Exit.OK
    assert found.json["verdict"] == "valid"
    assert found.json["key_id"] == "k1"
    claims = found.json["claims"]
    assert claims["exp"] - claims["iat"] == 8 * 3600
    assert [grant["access"] for grant in claims["scopes"]] == ["read", "write"]
    monkeypatch.setenv("HOLDFAST_TOKEN_KEYS", "k1:" + "x" * 32)
    assert Outcome(capsys, "token", "inspect", token).exit == Exit.AUTH
    monkeypatch.delenv("HOLDFAST_TOKEN_KEYS")
    unchecked = Outcome(capsys, "token", "inspect", token, "--json")
    assert (unchecked.exit, unchecked.json["verdict"]) == (Exit.OK, "unchecked")


@pytest.mark.parametrize(
    ("options", "publish"),
    [
        (("--publish-rate", "unlimited"), "unlimited"),
        (("--publish-rate", "5"), {"envelopes_per_s": 5, "bytes_per_s": 0}),
        (("--publish-bytes", "9"), {"envelopes_per_s": 0, "bytes_per_s": 9}),
        ((), None),
    ],
)
def test_token_limits(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    publish: object,
) -> None:
    monkeypatch.setenv("HOLDFAST_TOKEN_KEYS", KEYS)
    new = Outcome(capsys, "token", "new", "--admin", "--key", "k2", "--json", *options)
    found = Outcome(capsys, "token", "inspect", new.json["token"], "--json")
    assert found.json["claims"].get("publish") == publish
    assert found.json["key_id"] == "k2"


@pytest.mark.parametrize(
    "options",
    [("--ttl", "5"), ("--ttl", "0s"), ("--publish-rate", "x"), ("--key", "k9"), ("-r", "")],
)
def test_token_new_refuses_nonsense(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HOLDFAST_TOKEN_KEYS", KEYS)
    assert Outcome(capsys, "token", "new", "--admin", *options).exit == Exit.USAGE


def test_token_that_allows_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_TOKEN_KEYS", KEYS)
    assert Outcome(capsys, "token", "new").exit == Exit.USAGE


def test_config_show_says_where_and_hides_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "holdfast.toml").write_text("retain = 7\n")
    monkeypatch.setenv("HOLDFAST_TOKEN_KEYS", KEYS)
    outcome = Outcome(capsys, "config", "show", "--no-compression", "--json")
    assert outcome.json["retain"] == {"value": 7, "source": "holdfast.toml: retain"}
    assert outcome.json["compression"] == {"value": False, "source": "--compression"}
    assert outcome.json["port"]["source"] == "default"
    assert "1" * 32 not in outcome.out + Outcome(capsys, "config", "show").out


def test_config_check_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = Outcome(capsys, "config", "check", "--data-dir", str(tmp_path / "new"), "--json")
    assert outcome.json == {"ok": True, "set": ["data_dir"]}
    assert not (tmp_path / "new").exists()


def test_config_docs_prints_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    written = (ROOT / "docs/configuration.md").read_text()
    assert Outcome(capsys, "config", "docs").out == written
    assert Outcome(capsys, "config", "docs", "--json").json == {"markdown": written}


def test_doctor_leaves_nothing_behind(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = Outcome(capsys, "doctor", "--data-dir", str(tmp_path / "new"), "--json")
    assert outcome.exit == Exit.OK
    states = {check["name"]: check["state"] for check in outcome.json["checks"]}
    assert states["data_dir"] == states["sqlite"] == states["config"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = Outcome(capsys, "doctor", "--data-dir", str(tmp_path / "file" / "x"))
    assert outcome.exit == Exit.FAILURE
    assert Outcome(capsys, "doctor", "--port", "x").exit == Exit.FAILURE


def test_lines_are_read_in_batches_with_their_numbers(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text("\n".join(f'{{"n":{n}}}' if n % 2 else "" for n in range(1, 1301)))
    batches = list(_batches(str(source)))
    lines = [line for batch in batches for line in batch]
    assert [(number, body["n"]) for number, body in lines] == [(n, n) for n in range(1, 1300, 2)]
    assert max(map(len, batches)) == 512


@pytest.mark.parametrize("text", ["[1]", "x", '{"a":1}{"b":2}', "1"])
def test_line_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    source = tmp_path / "in"
    source.write_text('{"ok":1}\n' + text + "\n")
    with pytest.raises(HoldfastError, match="line 2"):
        list(_batches(str(source)))


def test_line_without_end_is_bounded(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"x" * (LINE_BYTES_MAX + (1 << 19)))
    with pytest.raises(HoldfastError, match="line 1"):
        list(_batches(str(source)))


def test_table_aligns_numbers_to_the_right() -> None:
    assert table(("name", "n"), [("a", 5), ("bb", 10)]) == "name   n\na      5\nbb    10"
    assert table(("name", "n"), []) == "name  n"


def test_token_inspect_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("no token\n"))
    assert Outcome(capsys, "token", "inspect").exit == Exit.AUTH


def test_serve_starts_without_what_only_others_need() -> None:
    code = (
        "import edge.cli.program, edge.cli.serve, edge.config_sources, sys;"
        "print(*sorted({'rich', 'jwt', 'boto3', 'uvloop', 'aiohttp'} & set(sys.modules)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == ""
