#!/usr/bin/env python3
"""Follow a growing file into a scope, as `tail -F` would, for everyone who watches the scope.

    python examples/follow.py /var/log/syslog --url http://127.0.0.1:8420

examples/follow.html shows the text in a browser, live; docs/examples.md says how to serve it.

The text goes into entities `log:<name>/<number>`, appended as it comes; where a record nears the
server's limit the next number begins. Each record says how far the file was read, so after a
restart the program asks the scope and goes on from there, without a state file of its own.

A file that was truncated, replaced (rotated) or rewritten begins a new number; what was left in a
replaced file is read first. Bytes that are not UTF-8 become U+FFFD; a character that is written in
two halves waits for the second. One follower per file and scope.

Exit codes: 0 end (--once, or interrupted), 1 refused, 2 usage, 7 the server failed.
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import hashlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from holdfast import SyncClient, SyncError, create_entity_key, create_scope_key

CHUNK_BYTES = 32 << 10  # in JSON at most six times as much, within an envelope's 262,144
BATCH_CHUNKS_MAX = 16
RECORD_BYTES_MAX = 768 << 10  # one chunk more still fits the server's 1 MiB
HEAD_BYTES = 1024  # by which a file is known again


class Refused(Exception):
    """The server will not take what was published."""


@dataclass
class Chunk:
    """Text that was read, and where the file stands after it."""

    text: str
    fresh: bool  # first of a file that is not the one before
    offset: int
    head: str
    head_bytes: int


@dataclass
class Position:
    """What the newest record in the scope says."""

    number: int = 0
    record_bytes: int = 0
    offset: int = 0
    head: str = ""
    head_bytes: int = 0


def decode(data: bytes, *, final: bool) -> tuple[str, int]:
    """Text of `data` and how many bytes it took: an unfinished last character is left, if not
    `final`."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final)
    return text, len(data) - len(decoder.getstate()[0])


class Tail:
    """Reads a path from a position on, through truncation and replacement. Blocking, briefly."""

    def __init__(self, path: Path, position: Position) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._offset = position.offset
        self._head, self._head_bytes = position.head, position.head_bytes
        self._fresh = position.number == 0
        # A writer may go on for a moment in a file that was moved away: its end is seen twice.
        self._drained = False

    def read(self, *, final: bool = False) -> Chunk | None:
        """The next text, None where there is none now. `final`: no more is to come."""
        if self._file is None and not self._open():
            return None
        assert self._file is not None
        if not self._same_file():
            self._begin()
        self._file.seek(self._offset)
        data = self._file.read(CHUNK_BYTES)
        replaced = self._is_replaced()
        # Nothing follows in a file that was replaced: half a character is all there will be.
        text, taken = decode(data, final=(final or replaced) and len(data) < CHUNK_BYTES)
        if not taken:
            if replaced and (final or self._drained):
                return self._next_file(final)
            self._drained = replaced
            return None
        self._drained = False
        self._offset += taken
        self._remember_head()
        chunk = Chunk(text, self._fresh, self._offset, self._head, self._head_bytes)
        self._fresh = False
        return chunk

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> bool:
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            return False
        return True

    def _next_file(self, final: bool) -> Chunk | None:
        assert self._file is not None
        self._file.close()
        self._file, self._drained = None, False
        self._begin()
        return self.read(final=final)

    def _same_file(self) -> bool:
        """Whether what was read is still what the file begins with."""
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._offset:
            return False
        self._file.seek(0)
        return _digest(self._file.read(self._head_bytes)) == (self._head or _digest(b""))

    def _begin(self) -> None:
        self._offset, self._head, self._head_bytes, self._fresh = 0, "", 0, True

    def _remember_head(self) -> None:
        if self._head_bytes < HEAD_BYTES:
            assert self._file is not None
            self._head_bytes = min(HEAD_BYTES, self._offset)
            self._file.seek(0)
            self._head = _digest(self._file.read(self._head_bytes))

    def _is_replaced(self) -> bool:
        assert self._file is not None
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False  # moved away, and the new one is not there yet


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def json_bytes(text: str) -> int:
    """Bytes of a text as JSON."""
    return len(json.dumps(text, ensure_ascii=False).encode())


class Log:
    """Makes envelopes of chunks: which record they go to, and when the next one begins."""

    def __init__(self, name: str, position: Position, keep: int) -> None:
        self._name = name
        self._position = position
        self._keep = keep

    def envelope(self, chunk: Chunk) -> dict[str, Any]:
        """One chunk as an envelope; the position moves with it."""
        at = self._position
        size = json_bytes(chunk.text)
        entries: list[dict[str, Any]] = []
        if at.number == 0 or chunk.fresh or at.record_bytes + size > RECORD_BYTES_MAX:
            at.number, at.record_bytes = at.number + 1, 0
            if self._keep and at.number > self._keep:
                entries.append({"key": self.key(at.number - self._keep), "deleted": True})
        at.record_bytes += size
        at.offset = chunk.offset
        about = {
            "name": self._name,
            "number": at.number,
            "offset": chunk.offset,
            "head": chunk.head,
            "headBytes": chunk.head_bytes,
        }
        patches = [
            {"op": "appendText", "path": "/text", "delta": chunk.text},
            {"op": "merge", "path": "", "value": about},
        ]
        entries.append({"key": self.key(at.number), "patches": patches})
        return {"kind": "patch", "entities": entries}

    def key(self, number: int) -> str:
        """Entity key of a record."""
        return create_entity_key("log", f"{self._name}/{number:08d}")


async def find_position(client: SyncClient, scope: str, name: str) -> Position:
    """Where an earlier run ended, by the scope itself."""
    view = await client.fetch_view(scope)
    records = [item["value"] for item in view.entities if item["value"].get("name") == name]
    if not records:
        return Position()
    newest = max(records, key=lambda record: int(record["number"]))
    return Position(
        number=newest["number"],
        record_bytes=json_bytes(newest["text"]),
        offset=newest["offset"],
        head=newest["head"],
        head_bytes=newest["headBytes"],
    )


async def follow(args: argparse.Namespace, client: SyncClient, stop: asyncio.Event) -> int:
    """Publish until stopped; with --once until the end of the file. Returns characters sent."""
    name = args.name or args.file.name
    scope = args.scope or create_scope_key("log", name)
    position = await find_position(client, scope, name)
    tail, log = Tail(args.file, position), Log(name, position, args.keep)
    sent = 0
    try:
        while not stop.is_set():
            chunks: list[Chunk] = []
            while len(chunks) < BATCH_CHUNKS_MAX and (chunk := tail.read(final=args.once)):
                chunks.append(chunk)
            if chunks:
                await publish(client, scope, [log.envelope(chunk) for chunk in chunks])
                sent += sum(len(chunk.text) for chunk in chunks)
            elif args.once:
                break
            else:
                await _pause(stop, args.poll)
    finally:
        tail.close()
    print(f"{scope}: {sent} characters, record {position.number}, offset {position.offset}")
    return sent


async def publish(client: SyncClient, scope: str, envelopes: list[dict[str, Any]]) -> None:
    """All of them, or Refused."""
    for result in await client.publish(scope, *envelopes):
        if not result.ok:
            raise Refused(f"{result.code}: {result.message}")


async def _pause(stop: asyncio.Event, secs: float) -> None:
    try:
        async with asyncio.timeout(secs):
            await stop.wait()
    except TimeoutError:
        return


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    about, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--name", help="in keys and records (default: the file's name)")
    parser.add_argument("--scope", help="default: log:<name>")
    default_url = os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8420")
    parser.add_argument("--url", default=default_url, help=f"default: {default_url}")
    parser.add_argument("--token", default=os.environ.get("HOLDFAST_TOKEN"), help="writer's token")
    parser.add_argument("--keep", type=int, default=0, help="newest records kept (default: all)")
    parser.add_argument("--poll", type=float, default=0.2, help="seconds between looks at the file")
    parser.add_argument("--once", action="store_true", help="end where the file ends")
    return parser.parse_args(argv)


async def run(args: argparse.Namespace) -> None:
    """Follow until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # One frame at a time: text must arrive in the order of the file whatever the server puts off.
    async with SyncClient(args.url, args.token, window_frames=1) as client:
        await follow(args, client, stop)


def main(argv: list[str] | None = None) -> int:
    """Exit code."""
    args = parse_args(argv)
    try:
        asyncio.run(run(args))
    except Refused as error:
        print(f"follow: {error}", file=sys.stderr)
        return 1
    except (SyncError, OSError) as error:
        print(f"follow: {error}", file=sys.stderr)
        return 7
    return 0


if __name__ == "__main__":
    sys.exit(main())
