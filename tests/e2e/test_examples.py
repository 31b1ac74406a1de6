"""The examples on real files and a real repository, against a real server process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples import follow, git_history
from holdfast import EntityStore, SyncClient, follow_scope

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A development server of its own."""
    data = tmp_path_factory.mktemp("data")
    command = [sys.executable, "-m", "edge.cli", "dev", "--json", "--port", "0"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
    process = subprocess.Popen(
        [*command, "--data-dir", str(data)], cwd=ROOT, env=environ, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_S)


def example(name: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run an example as a user would."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, args)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environ, timeout=WAIT_S
    )


# -- git_history


class Repo:
    """A git repository under construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *args: str) -> str:
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        plain = ["-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"]
        command = ["git", "-C", str(self.path), *identity, *plain, *args]
        done = subprocess.run(command, check=True, capture_output=True)
        return done.stdout.decode(errors="replace")

    def write(self, name: str | bytes, content: bytes) -> None:
        path = os.path.join(os.fsencode(self.path), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """Everything that makes a history hard to fold."""
    repo = Repo(tmp_path_factory.mktemp("git") / "hard")
    repo.write("readme.md", b"first\n")
    repo.write("old name.txt", b"to be renamed\n" * 20)
    repo.write("gone.txt", b"to be deleted\n")
    repo.write("tool.sh", b"#!/bin/sh\n")
    repo.commit("first")
    repo.git("mv", "old name.txt", "new name.txt")
    repo.git("rm", "-q", "gone.txt")
    (repo.path / "tool.sh").chmod(0o755)
    repo.commit("rename, delete, change a mode")
    repo.write("binary.bin", bytes(range(256)) * 20)
    repo.write("latin.txt", "caf\xe9\n".encode("latin-1"))
    repo.write("large.txt", b"0123456789abcde\n" * 200_000)
    repo.write("controls.txt", b"\x01" * 60_000)
    repo.write("empty", b"")
    repo.commit("content of all kinds")
    for name in (
        "日本語/ファイル.txt",
        "e\u0301 combining",
        "100%.txt",
        "tab\tand\nline",
        ":colon",
    ):
        repo.write(name, name.encode())
    repo.write(b"not-utf8-\xff\xfe", b"x")
    repo.write("/".join(["long" * 40] * 7) + "/a", b"a")
    repo.write("/".join(["long" * 40] * 7) + "/b", b"b")
    repo.commit("names of all kinds")
    os.symlink("readme.md", repo.path / "link")
    repo.commit("a symbolic link")
    repo.git("checkout", "-q", "-b", "side")
    repo.write("side.txt", b"side\n")
    repo.commit("on the side")
    repo.git("checkout", "-q", "main")
    repo.write("readme.md", b"second\n")
    repo.commit("on the main line")
    repo.git("merge", "-q", "--no-ff", "-m", "merge", "side")
    repo.commit("empty")
    for n in range(2300):
        repo.write(f"many/{n:04d}.txt", b"line of text\n" * (n % 40))
    repo.commit("more than one envelope holds")
    repo.git("rm", "-q", "-r", "many/00*")
    repo.git("rm", "-q", "link")
    repo.write("link/now a directory", b"x")
    repo.git("add", "-A")
    module = f"160000,{repo.git('rev-parse', 'HEAD~1').strip()},module"
    repo.git("update-index", "--add", "--cacheinfo", module)
    repo.git("commit", "-q", "-m", "a submodule, and a file that becomes a directory")
    return repo


@pytest.mark.parametrize("options", [(), ("--text",), ("--http",)], ids=" ".join)
def test_a_history_folds_to_the_tree_of_its_head(
    url: str, repo: Repo, options: tuple[str, ...]
) -> None:
    scope = f"git:hard{''.join(options)}"
    common = [repo.path, "--url", url, "--scope", scope, "--verify"]
    done = example("git_history.py", *common, *options)
    assert (done.returncode, done.stderr) == (0, "")
    files = len(repo.git("ls-tree", "-r", "-z", "HEAD").split("\0")) - 1
    assert f"verify: equal, {files} files in the tree, {files} entities" in done.stdout
    commits = repo.git("rev-list", "--first-parent", "--count", "HEAD").strip()
    counted = re.search(r"(\d+) commits .* (\d+) envelopes \((\d+) stored, 0 dup", done.stdout)
    assert counted is not None
    assert counted[1] == commits
    assert counted[2] == counted[3]
    assert int(counted[2]) > int(commits)  # one of them is too large for one envelope
    again = example("git_history.py", *common, *options)
    assert again.returncode == 0
    assert "(0 stored, " in again.stdout
    assert "verify: equal" in again.stdout


async def test_text_is_sent_where_it_is_small_and_text(url: str, repo: Repo) -> None:
    done = example("git_history.py", repo.path, "--url", url, "--scope", "git:t", "--text")
    assert done.returncode == 0, done.stderr
    async with SyncClient(url) as client:
        view = await client.fetch_view("git:t")
    values = {item["key"]: item["value"] for item in view.entities}
    assert values["file:readme.md"]["text"] == "second\n"
    assert values["file:empty"]["text"] == ""
    assert values["file:日本語/ファイル.txt"]["text"] == "日本語/ファイル.txt"
    assert values["file:tool.sh"]["mode"] == "100755"
    assert values["file:100%25.txt"]["path"] == "100%.txt"
    assert values["file:module"]["size"] is None
    assert values["file:large.txt"]["size"] == 3_200_000
    for name in ("binary.bin", "latin.txt", "large.txt", "controls.txt", "module"):
        assert "text" not in values[f"file:{name}"], name
    assert "file:not-utf8-%FF%FE" in values
    assert len([key for key in values if "%~" in key]) == 2
    assert "file:old name.txt" not in values


def test_a_run_that_was_cut_short_is_completed_by_the_next(url: str, repo: Repo) -> None:
    common = [repo.path, "--url", url, "--scope", "git:resumed"]
    first = example("git_history.py", *common, "--ref", "HEAD~4", "--verify")
    assert first.returncode == 0, first.stdout + first.stderr
    second = example("git_history.py", *common, "--verify")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "verify: equal" in second.stdout


async def test_verify_finds_what_differs(url: str, repo: Repo) -> None:
    common = [repo.path, "--url", url, "--scope", "git:tampered", "--verify"]
    assert example("git_history.py", *common).returncode == 0
    wrong = [
        {"key": "file:readme.md", "patches": [{"op": "set", "path": "/oid", "value": "0"}]},
        {"key": "file:tool.sh", "deleted": True},
        {"key": "file:stray", "value": {"mode": "100644", "oid": "0", "size": 0}},
    ]
    async with SyncClient(url) as client:
        (result,) = await client.publish("git:tampered", {"kind": "patch", "entities": wrong})
        assert result.ok
    done = example("git_history.py", *common)
    assert done.returncode == 6
    assert "1 missing, 1 extra, 1 different" in done.stdout
    assert "missing: file:tool.sh" in done.stderr


def test_this_repository_itself(url: str) -> None:
    asked = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        known = subprocess.run(asked, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if not known:
        pytest.skip("not a checkout with commits")
    done = example(
        "git_history.py", ROOT, "--url", url, "--scope", "git:self", "--text", "--verify"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verify: equal" in done.stdout


def test_what_is_no_commit_and_no_server_has_its_exit_code(url: str, repo: Repo) -> None:
    absent = example("git_history.py", repo.path, "--url", url, "--ref", "no-such-ref")
    assert absent.returncode == 3
    none = example("git_history.py", repo.path.parent, "--url", url)
    assert none.returncode == 3
    refused = example("git_history.py", repo.path, "--url", url, "--scope", "strata:x")
    assert refused.returncode == 1
    assert "bad_scope" in refused.stderr


def test_keys_are_valid_and_one_to_one() -> None:
    paths = [b"a", b"%61", b"\xff", b"%FF", b"\x7f", "\u0085".encode(), b"x" * 901, b"x" * 902]
    keys = [git_history.entity_key(path) for path in paths]
    assert len(set(keys)) == len(keys)
    assert all(len(key.encode()) <= 905 for key in keys)
    assert keys[:4] == ["file:a", "file:%2561", "file:%FF", "file:%25FF"]
    assert git_history.entity_key("é".encode() * 451).isprintable()


# -- follow


async def records(url: str, scope: str) -> list[dict[str, Any]]:
    async with SyncClient(url) as client:
        view = await client.fetch_view(scope)
    return [item["value"] for item in view.entities]


async def test_a_file_is_followed_over_restarts(url: str, tmp_path: Path) -> None:
    file = tmp_path / "a.log"

    def once() -> None:
        done = example("follow.py", file, "--url", url, "--scope", "log:a", "--once")
        assert (done.returncode, done.stderr) == (0, "")

    once()  # there is no file yet
    file.write_bytes("één\n".encode())
    once()
    once()
    with file.open("ab") as out:
        out.write(b"two \xff bad\n")
    once()
    (record,) = await records(url, "log:a")
    assert record["text"] == "één\ntwo \ufffd bad\n"
    assert record["offset"] == file.stat().st_size
    file.write_bytes(b"rewritten, and longer than it was before\n")
    once()
    file.write_bytes(b"cut\n")
    once()
    texts = [record["text"] for record in await records(url, "log:a")]
    assert texts[1:] == ["rewritten, and longer than it was before\n", "cut\n"]


async def test_a_large_file_goes_into_several_records(url: str, tmp_path: Path) -> None:
    file = tmp_path / "large.log"
    text = "".join(f"{n} \t \\ \x01 ü 語 𝄞\n" for n in range(90_000))
    file.write_text(text)
    done = example("follow.py", file, "--url", url, "--once")
    assert done.returncode == 0, done.stderr
    found = await records(url, "log:large.log")
    assert "".join(record["text"] for record in found) == text
    assert len(found) > 2
    kept = example("follow.py", file, "--url", url, "--scope", "log:k", "--once", "--keep", 2)
    assert kept.returncode == 0, kept.stderr
    assert await records(url, "log:k") == found[-2:]


async def test_a_live_reader_sees_growth_and_rotation(url: str, tmp_path: Path) -> None:
    file, scope = tmp_path / "live.log", "log:live"
    file.write_bytes(b"one\n")
    command = [sys.executable, str(ROOT / "examples" / "follow.py"), str(file), "--url", url]
    options = ["--scope", scope, "--poll", "0.02"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    store = EntityStore()
    changed = asyncio.Event()
    store.subscribe(scope, lambda update: changed.set())

    async def until(*texts: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while [value["text"] for _, value in store.items(scope)] != list(texts):
                changed.clear()
                await changed.wait()

    async with SyncClient(url) as client:
        await follow_scope(client, scope, store)
        process = subprocess.Popen([*command, *options], env=environ, stdout=subprocess.DEVNULL)
        try:
            await until("one\n")
            with file.open("ab") as old:
                old.write("ü".encode()[:1])
                old.flush()
                old.write("ü".encode()[1:] + b"\n")
                old.flush()
                await until("one\nü\n")
                file.rename(tmp_path / "live.log.1")
                old.write(b"late\n")
            file.write_bytes(b"new\n")
            await until("one\nü\nlate\n", "new\n")
        finally:
            process.terminate()
            assert process.wait(WAIT_S) == 0


def test_a_character_in_two_halves_waits_for_the_second(tmp_path: Path) -> None:
    file = tmp_path / "half"
    file.write_bytes("x語".encode()[:3])
    tail = follow.Tail(file, follow.Position())
    with contextlib.closing(tail):
        first = tail.read()
        assert first is not None
        assert (first.text, first.offset, first.fresh) == ("x", 1, True)
        assert tail.read() is None
        with file.open("ab") as out:
            out.write("語".encode()[2:])
        second = tail.read()
        assert second is not None
        assert (second.text, second.fresh) == ("語", False)


def test_a_replaced_file_that_begins_alike_is_another_file(tmp_path: Path) -> None:
    file = tmp_path / "alike"
    file.write_bytes(b"banner\n")
    tail = follow.Tail(file, follow.Position())
    with contextlib.closing(tail):
        assert tail.read() is not None
        other = tmp_path / "other"
        other.write_bytes(b"banner\nmore\n")
        other.rename(file)
        assert tail.read() is None  # once more, for what may come late
        chunk = tail.read()
        assert chunk is not None
        assert (chunk.text, chunk.fresh) == ("banner\nmore\n", True)


# -- votes


def test_votes_reach_a_service_over_a_real_nats_server() -> None:
    done = example("votes.py")
    assert done.returncode == 0, done.stderr
    said = [re.split(r"\s{2,}|(?<=back)\s+|(?<=killed)\s+|(?<=late)\s+", line)[-1]
            for line in done.stdout.splitlines()]  # fmt: skip
    assert said == [
        "she sees {'soup': 1} at once",
        "hears {'soup': 1} over NATS",
        "the server is away; he sees {'bread': 1, 'soup': 1}",
        "ann sees {'bread': 1, 'soup': 1}",
        "the service has {'bread': 2} again",
        "closed: this poll is closed; he sees {'bread': 2}",
        "sequence 5, one for each change",
    ]
