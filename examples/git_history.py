#!/usr/bin/env python3
"""Publish the history of a git repository into a scope: a commit is an envelope, a file an entity.

    python examples/git_history.py path/to/repository --url http://127.0.0.1:8420 --verify

The commits on the first-parent line of --ref are published in order, a merge as what it changed
against its first parent, so the fold of all envelopes is the tree of the head. An entity
`file:<path>` has the value `{path, mode, oid, size, commit}`, with --text also `text` where the
file is small UTF-8. Bytes of other files are never sent. A rename is a deletion and a creation. A
commit too large for one envelope becomes several with one `cause`, the commit's id.

Event ids are made of commit and part, so a second run stores nothing twice, and a run that was
interrupted is completed by the next. One scope takes one line of history: after a rewrite
(amend, rebase) publish into a new scope.

--verify follows the scope from cursor 0 (from its view where the server has dropped old entries)
and compares every entity with `git ls-tree` of the head. Exit codes: 0 done, 1 refused, 2 usage,
3 no such ref, 6 the scope and the tree differ, 7 git or the server failed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from holdfast import EntityStore, SyncClient, SyncError, create_scope_key, follow_scope

TEXT_BYTES_MAX = 64 << 10
ENVELOPE_BYTES_MAX = 200_000  # below the server's 262,144, which count the frame around it too
ENTITIES_MAX = 1000
BATCH_ENVELOPES_MAX = 512
BATCH_BYTES_MAX = 230_000
KEY_BYTES_MAX = 900
SUBJECT_CHARS_MAX = 200
BUSY_ATTEMPTS_MAX = 10
SUBMODULE = "160000"

Entry = dict[str, Any]
File = tuple[str, str, int | None]  # mode, oid, size (None for a submodule)


class Failed(Exception):
    """Ends the program with an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# -- reading git


@dataclass
class Change:
    """One file in one commit; `mode` is "000000" where it was deleted."""

    path: bytes
    mode: str
    oid: str


@dataclass
class Commit:
    """A commit of the first-parent line with its changes against the one before."""

    oid: str
    changes: list[Change] = field(default_factory=list)


class Repository:
    """git plumbing of one repository; use as `with`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._sizes: subprocess.Popen[bytes] | None = None
        self._contents: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def run(self, *args: str) -> bytes:
        """Output of a git command. Raises Failed 7."""
        done = subprocess.run(
            ["git", "-C", str(self._path), *args], check=False, capture_output=True
        )
        if done.returncode:
            raise Failed(7, f"git {args[0]}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def head(self, ref: str) -> str:
        """Commit id of a ref. Raises Failed 3."""
        try:
            return (
                self.run("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").decode().strip()
            )
        except Failed as error:
            raise Failed(3, f"{self._path}: no commit {ref!r} {error}") from error

    def line(self, head: str) -> list[list[str]]:
        """[commit, first parent if any], oldest first."""
        found = self.run("rev-list", "--first-parent", "--reverse", "--parents", head)
        return [row.split()[:2] for row in found.decode().splitlines()]

    def commits(self, line: list[list[str]]) -> Iterator[Commit]:
        """The changes of each commit of `line`, in order, empty commits included."""
        with tempfile.TemporaryFile() as asked:  # a pipe could fill while we do not read
            asked.write("".join(" ".join(row) + "\n" for row in line).encode())
            asked.seek(0)
            options = ["--stdin", "-r", "-z", "--raw", "--no-renames", "--root", "--always"]
            command = ["git", "-C", str(self._path), "diff-tree", *options]
            process = subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE)
            self._stack.callback(_end, process)
            assert process.stdout is not None
            yield from _parse_raw(_fields(process.stdout))
            if process.wait():
                raise Failed(7, f"git diff-tree ended with {process.returncode}")

    def sizes(self, oids: list[str]) -> dict[str, int]:
        """Bytes of each object that is present."""
        if self._sizes is None:
            self._sizes = self._cat_file("--batch-check")
        assert self._sizes.stdin is not None and self._sizes.stdout is not None
        found = {}
        for start in range(0, len(oids), 256):  # few enough to fit the pipes both ways
            part = oids[start : start + 256]
            self._sizes.stdin.write("".join(f"{oid}\n" for oid in part).encode())
            self._sizes.stdin.flush()
            for oid in part:
                answer = self._sizes.stdout.readline().split()
                if len(answer) == 3:  # else `<oid> missing`
                    found[oid] = int(answer[2])
        return found

    def content(self, oid: str) -> bytes:
        """An object's bytes."""
        if self._contents is None:
            self._contents = self._cat_file("--batch")
        assert self._contents.stdin is not None and self._contents.stdout is not None
        self._contents.stdin.write(f"{oid}\n".encode())
        self._contents.stdin.flush()
        size = int(self._contents.stdout.readline().split()[2])
        return self._contents.stdout.read(size + 1)[:-1]

    def tree(self, head: str) -> dict[str, File]:
        """Every file of a commit by entity key."""
        files: dict[str, File] = {}
        for row in self.run("ls-tree", "-r", "-z", "-l", "--full-tree", head).split(b"\0"):
            if row:
                about, path = row.split(b"\t", 1)
                mode, _, oid, size = about.decode().split()
                files[entity_key(path)] = (mode, oid, None if size == "-" else int(size))
        return files

    def _cat_file(self, how: str) -> subprocess.Popen[bytes]:
        command = ["git", "-C", str(self._path), "cat-file", how]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._stack.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.kill()
    process.wait()


def _fields(stream: Any) -> Iterator[bytes]:
    """The NUL-terminated fields of a stream."""
    rest = b""
    while chunk := stream.read(1 << 16):
        *fields, rest = (rest + chunk).split(b"\0")
        yield from fields


def _parse_raw(fields: Iterator[bytes]) -> Iterator[Commit]:
    commit: Commit | None = None
    for text in fields:
        if text.startswith(b":"):
            _, mode, _, oid, _ = text[1:].decode().split()
            assert commit is not None
            commit.changes.append(Change(next(fields), mode, oid))
        else:
            if commit is not None:
                yield commit
            commit = Commit(text.decode())
    if commit is not None:
        yield commit


# -- making envelopes


def escape(path: bytes) -> str:
    """A path as text that an entity key may hold, one to one: %XX for what is not UTF-8, for
    control characters and for `%`."""
    out = []
    for char in path.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
            out.append(f"%{code - 0xDC00:02X}")
        elif code < 0x20 or 0x7F <= code < 0xA0 or char == "%":
            out.append("".join(f"%{byte:02X}" for byte in char.encode()))
        else:
            out.append(char)
    return "".join(out)


def entity_key(path: bytes) -> str:
    """`file:<path>`; a path too long for a key keeps its beginning and ends in a hash."""
    text = escape(path)
    if len(text.encode()) > KEY_BYTES_MAX:
        tail = "%~" + hashlib.sha256(path).hexdigest()[:32]  # `%~` is in no escaped path
        text = text.encode()[: KEY_BYTES_MAX - len(tail)].decode(errors="ignore") + tail
    return f"file:{text}"


def file_text(content: bytes) -> str | None:
    """The content as text, None where it is binary."""
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def entries_of(repository: Repository, commit: Commit, with_text: bool) -> Iterator[Entry]:
    """An entity entry for each change."""
    blobs = [c.oid for c in commit.changes if c.mode not in ("000000", SUBMODULE)]
    sizes = repository.sizes(blobs)
    for change in commit.changes:
        key = entity_key(change.path)
        if change.mode == "000000":
            yield {"key": key, "deleted": True}
            continue
        size = sizes.get(change.oid)
        value = {"path": path_text(change.path), "mode": change.mode, "oid": change.oid}
        entry: Entry = {"key": key, "value": {**value, "size": size, "commit": commit.oid}}
        if with_text and size is not None and size <= TEXT_BYTES_MAX:
            text = file_text(repository.content(change.oid))
            # Control characters take six bytes each in JSON: what is small may grow.
            if text is not None and len(json.dumps(text)) <= ENVELOPE_BYTES_MAX // 2:
                entry["value"]["text"] = text
        yield entry


def path_text(path: bytes) -> str:
    """The path itself where it is UTF-8, else escaped."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return escape(path)


def envelopes_of(
    commit: Commit, about: dict[str, Any], entries: Iterable[Entry]
) -> Iterator[Entry]:
    """The commit as one envelope, or as several within the server's limits."""
    held: list[Entry] = []
    part = size = 0
    for entry in entries:
        entry_bytes = len(json.dumps(entry, ensure_ascii=False).encode()) + 1
        if held and (size + entry_bytes > ENVELOPE_BYTES_MAX or len(held) == ENTITIES_MAX):
            yield _envelope(commit, part, held, about)
            part, held, size = part + 1, [], 0
        held.append(entry)
        size += entry_bytes
    yield _envelope(commit, part, held, about)


def _envelope(commit: Commit, part: int, held: list[Entry], about: dict[str, Any]) -> Entry:
    return {
        "eventId": f"{commit.oid}-{part}",
        "kind": "patch",
        "entities": held,
        "cause": commit.oid,
        "git": about,  # an extra member: stored and delivered as it is
    }


def about_commit(repository: Repository, oid: str) -> dict[str, Any]:
    """Author, time and subject for whoever looks at the scope."""
    head, _, message = repository.content(oid).partition(b"\n\n")
    about: dict[str, Any] = {"commit": oid}
    for row in head.split(b"\n"):
        if row.startswith(b"author "):
            name, _, rest = row[7:].decode("utf-8", "replace").partition(" <")
            about["author"] = name
            when = rest.rpartition("> ")[2].split()
            about["time"] = int(when[0]) if when and when[0].isdecimal() else 0
    subject = message.decode("utf-8", "replace").strip().partition("\n")[0]
    about["subject"] = subject[:SUBJECT_CHARS_MAX]
    return about


# -- publishing


@dataclass
class Counts:
    """What a run did."""

    commits: int = 0
    envelopes: int = 0
    stored: int = 0
    duplicates: int = 0
    entities: int = 0


class Progress:
    """A bar on stderr, where that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total = max(total, 1)
        self._shown_at = 0.0
        self._on = sys.stderr.isatty()

    def show(self, done: int, *, last: bool = False) -> None:
        """At most ten times a second."""
        now = time.monotonic()
        if self._on and (last or now - self._shown_at > 0.1):
            self._shown_at = now
            filled = 30 * done // self._total
            bar = "#" * filled + "." * (30 - filled)
            end = "\n" if last else ""
            print(f"\r[{bar}] {done}/{self._total} commits", end=end, file=sys.stderr, flush=True)


def batches(
    repository: Repository, line: list[list[str]], with_text: bool, counts: Counts
) -> Iterator[list[Entry]]:
    """Envelopes in order, gathered into batches that fit a publish frame."""
    batch: list[Entry] = []
    size = 0
    for commit in repository.commits(line):
        about = about_commit(repository, commit.oid)
        for envelope in envelopes_of(commit, about, entries_of(repository, commit, with_text)):
            envelope_bytes = len(json.dumps(envelope, ensure_ascii=False).encode())
            if batch and (
                size + envelope_bytes > BATCH_BYTES_MAX or len(batch) == BATCH_ENVELOPES_MAX
            ):
                yield batch
                batch, size = [], 0
            batch.append(envelope)
            size += envelope_bytes
            counts.envelopes += 1
            counts.entities += len(envelope["entities"])
        counts.commits += 1
    if batch:
        yield batch


async def publish_socket(
    client: SyncClient, scope: str, source: Iterator[list[Entry]], counts: Counts, bar: Progress
) -> None:
    """One batch is under way while git is read for the next.

    Never two: a batch that the server puts off must not be overtaken by a later one.
    """
    loop = asyncio.get_running_loop()
    batch = await loop.run_in_executor(None, next, source, None)
    while batch:
        following = loop.run_in_executor(None, next, source, None)
        try:
            results = await client.publish(scope, *batch)
        finally:
            batch = await following
        for result in results:
            if not result.ok:
                raise Failed(1, f"{result.event_id}: {result.code}: {result.message}")
            counts.duplicates += result.duplicate
            counts.stored += not result.duplicate
        bar.show(counts.commits)


async def publish_http(
    url: str,
    token: str | None,
    scope: str,
    source: Iterator[list[Entry]],
    counts: Counts,
    bar: Progress,
) -> None:
    """One request for each envelope: slower, and all that some networks allow."""
    import aiohttp

    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        while batch := await asyncio.to_thread(next, source, None):
            for envelope in batch:
                body = {"scope": scope, "envelope": envelope}
                duplicate = await _post(session, f"{url}/publish", body)
                counts.duplicates += duplicate
                counts.stored += not duplicate
            bar.show(counts.commits)


async def _post(session: Any, url: str, body: dict[str, Any]) -> bool:
    """Whether the envelope had been stored before. Waits where the server is busy."""
    for _ in range(BUSY_ATTEMPTS_MAX):
        async with session.post(url, json=body) as response:
            answer = await response.json(content_type=None)
        if response.status == 200:
            return bool(answer["duplicate"])
        if response.status not in (429, 503):
            break
        await asyncio.sleep((answer.get("retry_after_ms") or 200) / 1000)
    raise Failed(1, f"HTTP {response.status}: {answer.get('code')}: {answer.get('detail')}")


# -- verifying


async def verify(client: SyncClient, scope: str, tree: dict[str, File]) -> bool:
    """Rebuild the entities with the client and compare them with the tree."""
    store = EntityStore()
    stop = await follow_scope(client, scope, store)
    stop()
    seq = store.cursors.scope_last_seq(scope)
    held: dict[str, File] = {
        key: (value["mode"], value["oid"], value["size"])
        for key, value in store.items(scope, "file")
    }
    missing = sorted(tree.keys() - held.keys())
    extra = sorted(held.keys() - tree.keys())
    other = sorted(key for key in tree.keys() & held.keys() if tree[key] != held[key])
    view = await client.fetch_view(scope)
    diverged = view.seq == seq and view.hash != store.snapshot_hash(scope)
    for word, keys in (("missing", missing), ("extra", extra), ("different", other)):
        for key in keys[:10]:
            print(f"{word}: {key}", file=sys.stderr)
    if diverged:
        print(f"hash of the server's view differs at seq {seq}", file=sys.stderr)
    equal = not (missing or extra or other or diverged)
    print(
        f"verify: {'equal' if equal else 'DIFFERENT'}, {len(tree)} files in the tree, "
        f"{len(held)} entities at seq {seq}, {len(missing)} missing, {len(extra)} extra, "
        f"{len(other)} different"
    )
    return equal


# -- the program


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    about, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path, nargs="?", default=Path())
    parser.add_argument("--ref", default="HEAD", help="branch, tag or commit (default: HEAD)")
    parser.add_argument("--scope", help="default: git:<name of the directory>")
    default_url = os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8420")
    parser.add_argument("--url", default=default_url, help=f"default: {default_url}")
    parser.add_argument("--token", default=os.environ.get("HOLDFAST_TOKEN"), help="writer's token")
    parser.add_argument("--http", action="store_true", help="publish by HTTP, not by the socket")
    parser.add_argument("--text", action="store_true", help="send the text of small UTF-8 files")
    parser.add_argument("--verify", action="store_true", help="compare the scope with the tree")
    return parser.parse_args(argv)


async def run(args: argparse.Namespace) -> int:
    """Publish, then verify where asked."""
    scope = args.scope or create_scope_key("git", args.repository.resolve().name)
    counts, started = Counts(), time.monotonic()
    # A window of one frame keeps the order of commits whatever the server puts off.
    with Repository(args.repository) as repository:
        head = repository.head(args.ref)
        line = repository.line(head)
        async with SyncClient(args.url, args.token, window_frames=1) as client:
            source, bar = batches(repository, line, args.text, counts), Progress(len(line))
            if args.http:
                await publish_http(client.url, args.token, scope, source, counts, bar)
            else:
                await publish_socket(client, scope, source, counts, bar)
            bar.show(counts.commits, last=True)
            print(
                f"{scope}: {counts.commits} commits to {head[:12]}, {counts.envelopes} envelopes "
                f"({counts.stored} stored, {counts.duplicates} duplicates), "
                f"{counts.entities} changes in {time.monotonic() - started:.1f} s"
            )
            if args.verify and not await verify(client, scope, repository.tree(head)):
                return 6
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit code."""
    args = parse_args(argv)
    try:
        return asyncio.run(run(args))
    except Failed as error:
        print(f"git_history: {error}", file=sys.stderr)
        return error.code
    except (SyncError, OSError) as error:
        print(f"git_history: {error}", file=sys.stderr)
        return 7


if __name__ == "__main__":
    sys.exit(main())
