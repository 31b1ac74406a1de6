"""`holdfast publish`: send envelopes, one JSON object a line, from a file or a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from edge.cli.exits import Exit
from edge.cli.output import emit, json_option, progress
from edge.cli.remote import check_reachable, remote_options
from edge.client import PublishResult, SyncClient
from edge.client.outbox import Level
from infra.errors import HoldfastError

READ_BYTES: Final = 1 << 18
LINE_BYTES_MAX: Final = 4 << 20
BATCH_ENVELOPES: Final = 512
BATCH_WAIT_S: Final = 60
REFUSED_SHOWN_MAX: Final = 100

Line = tuple[int, dict[str, Any]]


class _Tally(msgspec.Struct):
    """What became of everything sent; it is printed as it stands."""

    scope: str
    published: int = 0
    duplicates: int = 0
    refused: int = 0
    head: int | None = None
    refusals: list[dict[str, Any]] = msgspec.field(default_factory=list)

    def add(self, line: int, result: PublishResult) -> None:
        """Count one result; the first refusals are kept with the line they came from."""
        if not result.ok:
            self.refused += 1
            if self.refused <= REFUSED_SHOWN_MAX:
                self.refusals.append({"line": line, "code": result.code, "message": result.message})
            return
        self.published += not result.duplicate
        self.duplicates += result.duplicate
        self.head = max(self.head or 0, result.seq or 0)


@click.command("publish")
@click.argument("scope")
@click.argument("source", required=False, default="-", metavar="[FILE|-]")
@click.option(
    "--level", type=click.Choice(["local", "replicated"]), default="local", show_default=True,
    help="What to wait for, at least: the server's disk, or the bucket.",
)  # fmt: skip
@remote_options
@json_option
def command(
    scope: str, source: str, level: Level, url: str, token: str | None, as_json: bool
) -> Exit:
    """Publish envelopes to SCOPE, one JSON object per line of FILE or standard input.

    Lines are sent as they come, so a pipe may stay open. Without `eventId` a line gets a new one;
    with it, repeating the command stores nothing twice. Exits with 1 where one was refused.
    """
    check_reachable(url)
    tally = _Tally(scope)
    client = SyncClient(url, token=token)
    # The loop runs only while something is under way: waiting for input must leave Ctrl-C alone.
    with asyncio.Runner() as runner, progress("publishing", None) as advance:
        try:
            for batch in _batches(source):
                for line, result in zip(
                    batch, _send(runner, client, scope, batch, level), strict=True
                ):
                    tally.add(line[0], result)
                advance(len(batch))
        finally:
            runner.run(client.close())
    _report(tally, as_json=as_json)
    if any(refusal["code"] == "forbidden" for refusal in tally.refusals):
        return Exit.AUTH
    return Exit.FAILURE if tally.refused else Exit.OK


def _send(
    runner: asyncio.Runner, client: SyncClient, scope: str, batch: list[Line], level: Level
) -> list[PublishResult]:
    async def send() -> list[PublishResult]:
        async with asyncio.timeout(BATCH_WAIT_S):
            envelopes = [envelope for _, envelope in batch]
            return await client.publish(scope, *envelopes, level=level)

    try:
        return runner.run(send())
    except TimeoutError as error:
        message = f"no answer for {BATCH_WAIT_S} s at line {batch[0][0]}"
        raise HoldfastError(message, code="unreachable") from error


def _report(tally: _Tally, *, as_json: bool) -> None:
    if not as_json:
        for refusal in tally.refusals:
            click.echo("line {line}: {code}: {message}".format(**refusal), err=True)
    text = f"{tally.published} published to {tally.scope}"
    if tally.duplicates:
        text += f", {tally.duplicates} were there already"
    if tally.refused:
        text += f", {tally.refused} refused"
    if tally.head is not None:
        text += f", up to seq {tally.head}"
    emit(tally, text, as_json=as_json)


def _batches(source: str) -> Iterator[list[Line]]:
    """Lines in batches of what one read brought, so that a slow pipe is not held back."""
    descriptor = sys.stdin.fileno() if source == "-" else os.open(Path(source), os.O_RDONLY)
    number, rest = 0, b""
    try:
        while chunk := os.read(descriptor, READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                message = f"line {number + len(lines) + 1} has more than {LINE_BYTES_MAX} bytes"
                raise HoldfastError(message, code="too_large")
            yield from _parsed(lines, number)
            number += len(lines)
        yield from _parsed([rest], number)
    finally:
        if source != "-":
            os.close(descriptor)


def _parsed(lines: list[bytes], before: int) -> Iterator[list[Line]]:
    batch: list[Line] = []
    for number, line in enumerate(lines, start=before + 1):
        if not line.strip():
            continue
        batch.append((number, _envelope(number, line)))
        if len(batch) == BATCH_ENVELOPES:
            yield batch
            batch = []
    if batch:
        yield batch


def _envelope(number: int, line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"line {number} is not one JSON object: {error}"
        raise HoldfastError(message, code="bad_json") from error
