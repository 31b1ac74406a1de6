"""restore, fork, verify, export, import: each command against a real server and a real bucket."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from infra.layout import parse_key, scope_prefix
from infra.stores.directory import DirectoryStore
from tests.support.ledgers import check_file
from tests.support.litestream import official_restore, official_url
from tests.support.process import ROOT, ServerProcess, admin_token, run_cli
from tests.support.s3 import S3Server, environment, moto_server, s3_credentials

__all__ = ["moto_server", "s3_credentials"]

pytestmark = pytest.mark.e2e
A, B, C = "run:a", "run:b", "run:c"


class Site:
    """A server over a bucket, and commands that know both."""

    def __init__(self, directory: Path, bucket: str, *flags: str, **environ: str) -> None:
        self.directory = directory
        self.bucket = bucket
        self.environ = environ
        more = ("--bucket", bucket, "--durability", "replicated") if bucket else ()
        self.server = ServerProcess(directory, "dev", *more, "--put-interval-ms", "0", *flags,
                                    **environ)  # fmt: skip

    def run(self, *argv: str, exit_code: int = 0, stdin: bytes = b"") -> Any:
        """The JSON of the command, or of its error."""
        told = run_cli(
            *argv, "--json", stdin=stdin, cwd=self.directory, HOLDFAST_URL=self.server.url,
            **({"HOLDFAST_BUCKET": self.bucket} if self.bucket else {}), **self.environ,
        )  # fmt: skip
        assert told.returncode == exit_code, (told.stdout, told.stderr)
        return json.loads(told.stdout or told.stderr)

    def publish(self, scope: str, *batches: int) -> None:
        """Envelopes e1, e2, …; each batch is answered, and so in the bucket, before the next."""
        number = 0
        for count in batches:
            lines = []
            for _ in range(count):
                number += 1
                patch = {"op": "set", "path": "/n", "value": number}
                entity = {"key": f"item:{number % 5}", "patches": [patch]}
                lines.append({"eventId": f"e{number}", "kind": "patch", "entities": [entity]})
            text = "".join(json.dumps(line) + "\n" for line in lines).encode()
            told = self.run("publish", scope, stdin=text)
            assert told["published"] + told["duplicates"] == count


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "bucket").mkdir()
    site = Site(tmp_path, f"file:{tmp_path / 'bucket'}")
    with site.server:
        yield site


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Site]:
    """Without a bucket."""
    site = Site(tmp_path, "")
    with site.server:
        yield site


def content(path: Path) -> dict[str, Any]:
    """Tables whose rows are the history, and how far it goes."""
    with closing(sqlite3.connect(path)) as db:
        found: dict[str, Any] = {
            table: db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("entries", "rows", "unfolded", "dedupe", "alarms")
        }
        found["scope"] = db.execute(
            "SELECT dialect, head, floor, floor_at, jump, bytes, body_max, materialize FROM scope"
        ).fetchall()
        return found


# -- restore ---------------------------------------------------------------------------------------


def test_restore_as_it_was(site: Site, tmp_path: Path) -> None:
    site.publish(A, 1, 2, 3)
    told = site.run("restore", A, "-o", "now.db")
    assert (told["head"], told["txid"], told["scope"], told["file"]) == (6, 3, A, "now.db")
    assert check_file(tmp_path / "now.db").header["head"] == 6
    for at, head in (("seq:1", 1), ("2", 3), ("seq:3", 3), ("txid:2", 3), (told["at"], 3)):
        found = site.run("restore", A, "--at", at, "-o", "old.db", "--force")
        assert found["head"] == head, at
        assert check_file(tmp_path / "old.db").header["head"] == head
    assert site.run("restore", A, "-o", "old.db", exit_code=4)["error"]["code"] == "conflict"
    assert check_file(tmp_path / "old.db").header["head"] == 3
    site.run("restore", A, "-o", "no.db", "--at", "seq:7", exit_code=3)
    site.run("restore", A, "-o", "no.db", "--at", "-1h", exit_code=3)
    site.run("restore", "run:none", "-o", "no.db", exit_code=3)
    site.run("restore", A, "--tenant", "other", "-o", "no.db", exit_code=3)
    site.run("restore", A, "-o", "no.db", "--at", "soon", exit_code=2)
    site.run("restore", "-o", "no.db", exit_code=2)
    assert list(tmp_path.glob("no.db*")) == []


def test_restore_needs_no_server_and_says_what_is_wrong(site: Site, tmp_path: Path) -> None:
    site.publish(A, 3)
    site.server.stop()
    assert site.run("restore", A, "-o", "now.db")["head"] == 3
    bucket, site.bucket = site.bucket, ""
    assert "no bucket" in site.run("restore", A, "-o", "x.db", exit_code=2)["error"]["message"]
    missing = f"file:{tmp_path / 'nowhere'}"
    assert site.run("restore", A, "--bucket", missing, "-o", "x.db", exit_code=7)["error"]["code"]
    assert site.run("restore", A, "--bucket", bucket, "-o", "x.db")["head"] == 3
    damage(tmp_path / "bucket", A)
    found = site.run("restore", A, "--bucket", bucket, "-o", "y.db", exit_code=6)
    assert found["error"]["code"] == "corrupt"
    assert list(tmp_path.glob("y.db*")) == []


def damage(bucket: Path, scope: str) -> None:
    """Turn one byte of the newest file."""
    store = DirectoryStore(str(bucket))
    prefix = scope_prefix("", "default", scope)
    keys = [info.key for info in store.list(prefix + "/").objects]
    key = max(key for key in keys if parse_key(prefix, key, 0, 0) is not None and "/0000/" in key)
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


def test_restore_of_any_litestream_replica(site: Site, tmp_path: Path) -> None:
    vectors = ROOT / "tests/vectors/litestream/0.5.17"
    expected = json.loads((vectors.parent / "restored.json").read_text())
    assert expected
    told = site.run("restore", "--from", f"file:{vectors}", "-o", "any.db")
    assert told["txid"] == 10 and "scope" not in told
    with closing(sqlite3.connect(tmp_path / "any.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    older = site.run("restore", "--from", f"file:{vectors}", "--at", "txid:6", "-o", "6.db")
    assert older["txid"] == 6
    site.run("restore", "--from", f"file:{vectors}", "--at", "seq:6", "-o", "x.db", exit_code=2)
    site.run("restore", A, "--from", f"file:{vectors}", "-o", "x.db", exit_code=2)
    site.run("restore", "--from", f"file:{tmp_path / 'bucket'}", "-o", "x.db", exit_code=3)


# -- fork ------------------------------------------------------------------------------------------


def test_fork_now_and_then(site: Site, tmp_path: Path) -> None:
    site.publish(A, 2, 2, 2)
    now = site.run("fork", A, B)
    then = site.run("fork", A, C, "--at", "seq:3")
    assert (now["head"], then["head"]) == (6, 4)
    assert len({now["epoch"], then["epoch"], site.run("scope", "show", A)["epoch"]}) == 3
    site.publish(C, 5)
    assert site.run("scope", "show", C)["head"] == 5  # e1 to e4 are known
    assert site.run("scope", "show", A)["head"] == 6
    for scope, head in ((B, 6), (C, 5)):  # and both are in the bucket
        assert site.run("restore", scope, "-o", f"{scope[4:]}.db")["head"] == head
        check_file(tmp_path / f"{scope[4:]}.db")
    for argv, code in (
        ((A, B), 4), ((A, A), 4), (("run:none", "run:d"), 3), ((A, "keep:d"), 2),
        ((A, "run:d", "--at", "seq:99"), 3), ((A, "run:d", "--at", "whenever"), 2),
    ):  # fmt: skip
        site.run("fork", *argv, exit_code=code)
    assert site.run("scope", "show", "run:d", exit_code=3)


def test_fork_without_a_bucket(plain: Site) -> None:
    plain.publish(A, 3)
    refused = plain.run("fork", A, B, "--at", "seq:1", exit_code=2)["error"]
    assert refused["code"] == "no_bucket"
    assert plain.run("fork", A, B)["head"] == 3
    plain.publish(B, 3, 1)
    assert plain.run("scope", "show", B)["head"] == 4


# -- verify ----------------------------------------------------------------------------------------


def test_verify_finds_what_is_damaged(site: Site, tmp_path: Path) -> None:
    for scope in (A, B, C):
        site.publish(scope, 3, 2)
    site.run("fork", A, "run:odd/name ü")
    told = site.run("verify", "--all")
    assert (told["checked"], told["failed"]) == (4, 0)
    assert {found["scope"] for found in told["scopes"]} == {A, B, C, "run:odd/name ü"}
    assert all(found["refolded"] and found["head"] == 5 for found in told["scopes"])
    assert site.run("verify", A)["scopes"][0]["txid"] == 2
    assert site.run("verify", "--all", "--tenant", "other")["checked"] == 0
    site.run("verify", "run:none", exit_code=3)
    site.run("verify", exit_code=2)
    site.run("verify", A, "--all", exit_code=2)
    damage(tmp_path / "bucket", B)
    told = site.run("verify", "--all", exit_code=6)
    assert (told["checked"], told["failed"]) == (4, 1)
    (bad,) = (found for found in told["scopes"] if found["problems"])
    assert bad["place"] == scope_prefix("", "default", B)
    site.run("verify", B, exit_code=6)
    lines = run_cli("verify", "--all", "--bucket", site.bucket).stdout.decode().splitlines()
    assert [line.split()[0] for line in lines].count("FAILED") == 1
    assert lines[-1] == "4 checked, 1 failed"


def test_verify_notices_objects_of_another_scope(site: Site, tmp_path: Path) -> None:
    site.publish(A, 3)
    base = tmp_path / "bucket" / "default"
    (base / "run~3aa").rename(base / "run~3az")
    problems = site.run("verify", "--all", exit_code=6)["scopes"][0]["problems"]
    assert problems == ["it holds default/run:a: objects were moved"]
    found = site.run("restore", "run:z", "-o", "z.db", exit_code=6)
    assert found["error"]["code"] == "verification_failed"


def test_verify_reads_the_disk_where_there_is_no_bucket(plain: Site, tmp_path: Path) -> None:
    plain.publish(A, 3)
    plain.publish(B, 400)
    data = ("--data-dir", "data")
    assert plain.run("verify", "--all", *data)["checked"] == 2  # beside the server
    plain.publish(A, 4)
    plain.server.stop()
    before = sorted(path.name for path in (tmp_path / "data").rglob("*"))
    assert plain.run("verify", A, *data)["scopes"][0]["head"] == 4
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == before
    plain.run("verify", C, *data, exit_code=3)
    plain.run("verify", A, "--data-dir", "elsewhere", exit_code=2)
    (path,) = (tmp_path / "data").glob("*/*/run-b-*.db")
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM entries WHERE seq=7")
        db.commit()
    told = plain.run("verify", "--all", *data, exit_code=6)
    assert [found["ok"] for found in told["scopes"]].count(False) == 1
    path.write_bytes(b"gone" * 3000)
    assert plain.run("verify", "--all", *data, exit_code=6)["failed"] == 1


# -- export and import -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ndjson", "sqlite"])
def test_a_scope_leaves_and_comes_back(site: Site, tmp_path: Path, form: str) -> None:
    site.publish(A, 30, 1)
    told = site.run("export", A, "-o", "a.out", "--format", form)
    assert told["head"] == 31 and told["bytes"] == (tmp_path / "a.out").stat().st_size
    site.run("export", A, "-o", "a.out", "--format", form, exit_code=4)
    site.run("export", "run:none", "-o", "none.out", exit_code=3)
    assert list(tmp_path.glob("none.out*")) == []
    site.run("import", "a.out", A, exit_code=4)
    site.run("restore", A, "-o", "before.db")

    there = Site(tmp_path / "there", "")
    with there.server:
        file = str(tmp_path / "a.out")
        made = there.run("import", file, A, "--keep-epoch")
        assert made["head"] == 31
        assert made["epoch"] == site.run("scope", "show", A)["epoch"]
        assert there.run("import", file, B)["epoch"] != made["epoch"]
        there.publish(A, 32)
        assert there.run("scope", "show", A)["head"] == 32
        there.run("export", B, "-o", "b.db", "--format", "sqlite")
    assert check_file(tmp_path / "there/b.db").header["scope"] == B
    there.run("import", file, C, exit_code=7)

    elsewhere = Site(tmp_path / "elsewhere", "")
    with elsewhere.server:
        elsewhere.run("import", file, A)
        elsewhere.run("export", A, "-o", "a.db", "--format", "sqlite")
    assert content(tmp_path / "elsewhere/a.db") == content(tmp_path / "before.db")


def test_lines_go_through_a_pipe(site: Site) -> None:
    site.publish(A, 3)
    told = run_cli("export", A, "--url", site.server.url)
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert lines[0]["scope"] == A and lines[-1]["line"] == "end" and told.returncode == 0
    assert site.run("export", A, exit_code=2)["error"]["code"] == "usage"


def test_bad_input_is_named_and_makes_nothing(site: Site, tmp_path: Path) -> None:
    site.publish(A, 3)
    site.run("export", A, "-o", "a.out")
    text = (tmp_path / "a.out").read_bytes()
    (tmp_path / "short").write_bytes(text[: len(text) // 2])
    (tmp_path / "changed").write_bytes(text.replace(b'"n":3', b'"n":4'))
    (tmp_path / "junk").write_bytes(b"hello")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE t(a)")
    for name in ("short", "changed", "junk", "other.db"):
        assert site.run("import", name, B, exit_code=6)["error"]["code"] == "bad_import", name
    site.run("import", "nothing", B, exit_code=2)
    site.run("scope", "show", B, exit_code=3)
    assert [path for path in (tmp_path / "data").iterdir() if "transfer" in path.name] == []
    assert site.run("verify", "--all")["checked"] == 1


def test_a_copy_with_its_log_is_imported_whole(site: Site, tmp_path: Path) -> None:
    site.publish(A, 2)
    site.run("restore", A, "-o", "a.db")
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute("INSERT INTO alarms VALUES ('late', 9, NULL, 0, 1)")
        db.commit()
        assert (tmp_path / "a.db-wal").stat().st_size > 0
        site.run("import", "a.db", B)
    assert [alarm["name"] for alarm in site.run("scope", "show", B)["alarms"]] == ["late"]


def test_only_admins_may(tmp_path: Path) -> None:
    server = ServerProcess.with_tokens(tmp_path)
    with server:
        for path, method in (
            ("export", "GET"), ("import", "POST"), ("fork", "POST"),
        ):  # fmt: skip
            url = f"{server.url}/v1/scopes/default/run%3Aa/{path}"
            request = urllib.request.Request(url, data=b"{}" if method == "POST" else None)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=30)
            assert caught.value.code == 401
            caught.value.close()
        token = admin_token()
        assert run_cli("export", A, "--url", server.url, "--token", token).returncode == 3


def test_pages_of_other_origins_may_not(site: Site) -> None:
    site.publish(A, 1)
    url = f"{site.server.url}/v1/scopes/default/run%3Ab/fork"
    body = json.dumps({"from": A}).encode()
    request = urllib.request.Request(url, data=body, headers={"Origin": "https://example.org"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 403
    caught.value.close()


# -- what the bucket costs, and how it is --------------------------------------------------------


def test_scope_show_and_metrics_tell_of_the_bucket(site: Site) -> None:
    site.publish(A, 2, 1)
    told = site.run("scope", "show", A)
    replica, bucket = told["replica"], told["bucket"]
    assert (replica["level"], replica["txid"], replica["durable_seq"]) == ("replicated", 2, 3)
    assert (replica["pending"], replica["error"]) == (False, None)
    assert replica["requests"]["put"] == 2
    assert bucket["url"] == site.bucket and bucket["requests"]["put"] >= 2
    assert bucket["monthly_cost"] > 0 and bucket["bytes_up"] > 0
    text = run_cli("scope", "show", A, "--url", site.server.url).stdout.decode()
    assert "replica.durable_seq" in text and "bucket.requests.put" in text
    with urllib.request.urlopen(f"{site.server.url}/metrics", timeout=30) as answer:
        metrics = answer.read().decode()
    assert 'holdfast_bucket_requests_total{kind="put"}' in metrics
    for name in (
        "bucket_bytes_up_total", "bucket_bytes_down_total", "bucket_monthly_cost",
        "replicas_pending 0.0", "restores_total 0.0", "fenced_total 0.0",
    ):  # fmt: skip
        assert f"\nholdfast_{name}" in metrics


def test_without_a_bucket_there_is_nothing_to_tell(plain: Site) -> None:
    plain.publish(A, 1)
    told = plain.run("scope", "show", A)
    assert told["replica"] is None and told["bucket"] is None
    with urllib.request.urlopen(f"{plain.server.url}/metrics", timeout=30) as answer:
        assert b"holdfast_bucket" not in answer.read()
    refused = plain.run("publish", A, "--level", "replicated", exit_code=1, stdin=b'{"kind":'
                        b'"patch","entities":[{"key":"a:1","value":{}}]}')  # fmt: skip
    assert refused["refusals"][0]["code"] == "no_bucket"


def test_a_publish_may_ask_for_the_bucket(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    site = Site(tmp_path, f"file:{tmp_path / 'bucket'}", "--durability", "local")
    with site.server:
        line = b'{"eventId":"e1","kind":"patch","entities":[{"key":"a:1","value":{}}]}'
        site.run("publish", A, "--level", "replicated", stdin=line)
        assert site.run("restore", A, "-o", "a.db")["head"] == 1


# -- progress --------------------------------------------------------------------------------------


def test_a_bar_appears_on_a_terminal_only(site: Site, tmp_path: Path) -> None:
    site.publish(A, 100)
    quiet = run_cli("restore", A, "--bucket", site.bucket, "-o", str(tmp_path / "1.db"))
    assert quiet.stderr == b""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edge.cli", "restore", A, "--bucket", site.bucket]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "2.db")], stdout=subprocess.PIPE, stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 1 << 16):
                shown += piece
        except OSError:  # the other end is closed
            pass
        assert process.stdout is not None
        told = process.stdout.read()
        assert process.wait(30) == 0
    os.close(ours)
    assert b"restoring" in shown and b"bytes" in shown
    assert b"restoring" not in told and b"txid" in told


# -- S3, and the official tool ---------------------------------------------------------------------


@pytest.mark.usefixtures("s3_credentials")
def test_all_of_it_over_s3(tmp_path: Path, moto_server: S3Server) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED")
    credentials = {name: environment()[name] for name in names}
    site = Site(tmp_path, moto_server.bucket_url("deep/prefix"), **credentials)
    with site.server:
        site.publish(A, 3, 3)
        assert site.run("fork", A, B, "--at", "seq:2")["head"] == 3
        assert site.run("restore", A, "--at", "txid:1", "-o", "1.db")["head"] == 3
        assert site.run("verify", "--all")["checked"] == 2
    official = tmp_path / "official.db"
    prefix = scope_prefix("deep/prefix", "default", A)
    official_restore(official_url(site.bucket, prefix), official)
    there = Site(tmp_path / "there", "")
    with there.server:
        assert there.run("import", str(official), A)["head"] == 6
    assert check_file(official).header["head"] == 6
