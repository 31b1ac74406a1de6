"""Parse mode: what the marker counters of a benchmark cannot prove.

Acks come in order with contiguous seqs, deliveries are contiguous and complete, and a replay from 0
gives every entry once and in order. That acks wait for the disk is shown elsewhere (tests/e2e).
Usage: python -m bench.verify [PEER...]
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gen import lg
from bench.gen.loop import run
from bench.process import Server
from bench.roster import BASELINE, PEERS

MESSAGES = 3000
BURST = 50
WAIT_S = 10.0


async def check(ad: Any) -> dict[str, bool]:
    """Publish in bursts to one scope with a live reader, then replay it."""
    acks: list[tuple[int, int]] = []
    live: list[int] = []
    replay: list[int] = []
    reader = await lg.connect(ad, "v", "s", on_frame=lambda ws, op, d: live.extend(ad.seqs(d)))
    writer = await lg.connect(ad, "v", "w", on_frame=lambda ws, op, d: acks.extend(ad.acks(d)))
    encode = writer.session.encoder()
    for first in range(0, MESSAGES, BURST):
        body = lg.payload(lg.now_us())
        frames = [lg.frame(encode(i, body)) for i in range(first, first + BURST)]
        writer.tr.write(b"".join(frames))
        await _until(lambda first=first: len(acks) > first)  # type: ignore[misc]
    await _until(lambda: len(acks) >= MESSAGES and len(live) >= MESSAGES)
    again = await lg.connect(
        ad, "v", "s", cursor=0, on_frame=lambda ws, op, d: replay.extend(ad.seqs(d))
    )
    await _until(lambda: len(replay) >= MESSAGES)
    await asyncio.sleep(0.2)  # time for anything that should not come
    for ws in (reader, writer, again):
        ws.tr.close()
    want = list(range(1, MESSAGES + 1))
    return {
        "acks": acks == [(1000000000 + i, i + 1) for i in range(MESSAGES)],
        "live": live == want,
        "replay": replay == want,
    }


async def _until(done: Callable[[], bool]) -> None:
    end = asyncio.get_running_loop().time() + WAIT_S
    while not done() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.001)


def main(names: list[str]) -> int:
    """Check peers by name; 6 where one fails, as for any verification."""
    failed = False
    for name in names or ["holdfast", BASELINE]:
        with tempfile.TemporaryDirectory() as work:
            server = Server(PEERS[name], Path(work)).start()
            try:
                result = run(check(server.peer.adapter(server.port, "verify")))
            finally:
                server.stop()
        print(json.dumps({"peer": name, **result}), flush=True)
        failed |= not all(result.values())
    return 6 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
