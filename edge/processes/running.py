"""What the processes of a supervisor share: how they are told to stop, and how they say that they
are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import msgspec

Work = Callable[[asyncio.Event], Awaitable[None]]


def announce(**members: object) -> None:
    """One line on standard output. Lost where the supervisor has gone."""
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(msgspec.json.encode(members) + b"\n")
        sys.stdout.buffer.flush()


async def until_stopped(work: Work) -> None:
    """Run the work, whose event is set by SIGTERM, or when the supervisor has gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal sends it to all of us

    def heard() -> None:
        if not os.read(0, 4096):  # its end of the pipe is closed: it has died
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, heard)
    await work(stop)
