"""A process that is a host for its placement alone, and tells what it believes of the others.

`python -m tests.support.watcher NAME TTL_S URL...`: the URLs are `nats://` ones of one cluster, or
an `s3://` or `file:` one of a bucket. Each change of belief is a line of JSON on stdout, see
`Seen`; a line on stdin drains the host, the end of stdin ends it in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from infra import ids
from infra.objects import open_store, store_prefix
from infra.placement.hosts import HostInfo
from infra.placement.nats import NatsEngine
from infra.placement.renewing import Engine, RenewingPlacement
from infra.placement.s3 import BucketEngine
from tests.support.namespaces import Node
from tests.support.s3 import ROOT, environment

WAIT_S = 60
ASK_S = 0.05


class Seen(NamedTuple):
    """The view's hosts as `name:state`, whether it is fresh, and whether scopes may be claimed."""

    hosts: list[str]
    fresh: bool
    claims: bool


class Watcher:
    """One such process on a node; everything that it has told."""

    def __init__(self, node: Node, ttl_s: float, urls: Sequence[str]) -> None:
        self.name = node.name
        self.seen: list[Seen] = []
        command = [*node.prefix, sys.executable, "-m", "tests.support.watcher", node.name]
        self.process = subprocess.Popen(
            [*command, str(ttl_s), *urls], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment(), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(Seen(*json.loads(line)))

    @property
    def now(self) -> Seen:
        """The last that it told."""
        return self.seen[-1] if self.seen else Seen([], False, False)

    def until(self, holds: Callable[[Seen], bool]) -> None:
        """Wait for a belief."""
        end = time.monotonic() + WAIT_S
        while not holds(self.now):
            assert self.process.poll() is None and time.monotonic() < end, (self.name, self.seen)
            time.sleep(ASK_S)

    def until_sees(self, *hosts: str, fresh: bool = True, claims: bool = True) -> None:
        """Wait for exactly these hosts."""
        self.until(lambda seen: seen == Seen(list(hosts), fresh, claims))

    def drain(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("drain\n")
        self.process.stdin.flush()

    def stop(self, *, kill: bool = False) -> None:
        """In order, or not."""
        if kill:
            self.process.kill()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self._reader.join(WAIT_S)
            assert self.process.stdout is not None
            self.process.stdout.close()


@contextlib.contextmanager
def watchers(nodes: Sequence[Node], ttl_s: float, urls: Sequence[str]) -> Iterator[list[Watcher]]:
    """One on each node, until the block ends."""
    made: list[Watcher] = []
    try:
        made += [Watcher(node, ttl_s, urls) for node in nodes]
        yield made
    finally:
        for watcher in made:
            watcher.stop(kill=True)


def _engine(urls: Sequence[str], ttl_s: float) -> Engine:
    if urls[0].startswith("nats:"):
        return NatsEngine(urls, bucket="holdfast-test", ttl_s=ttl_s)
    return BucketEngine(open_store(urls[0]), store_prefix(urls[0]))


async def _main(name: str, ttl_s: float, urls: Sequence[str]) -> None:
    host = HostInfo(name=name, link=f"tcp:{name}:1", life=ids.new_id())
    placement = RenewingPlacement(_engine(urls, ttl_s), host, ttl_s=ttl_s)
    commands: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, lambda: commands.put_nowait(sys.stdin.readline()))
    await placement.start()
    told: Seen | None = None
    while True:
        view = placement.view
        seen = Seen([f"{h.name}:{h.state}" for h in view.hosts], view.fresh, placement.may_claim())
        if seen != told:
            told = seen
            print(json.dumps(seen), flush=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_S):
                if not await commands.get():
                    break
                await placement.drain()
    await placement.aclose()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
