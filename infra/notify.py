"""Tells the service manager that started this process how it is: systemd's notification protocol.

Datagrams of `NAME=value` lines to the Unix socket that NOTIFY_SOCKET names (sd_notify(3)). Without
one, nothing is done. A message that cannot be sent is logged and no reason to stop serving.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("holdfast.notify")


class Notifier:
    """`watchdog_s`: how often the manager wants to hear from us, half of its patience; 0 is never.

    From the environment of this process: WATCHDOG_USEC counts only for the process of WATCHDOG_PID.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = 0.0
        if self._address is not None and environ.get("WATCHDOG_PID", str(pid)) == str(pid):
            text = environ.get("WATCHDOG_USEC", "")
            self.watchdog_s = int(text) / 2_000_000 if text.isdecimal() else 0.0

    @classmethod
    def of_this_process(cls) -> Notifier:
        """By this process's own environment."""
        return cls(os.environ, os.getpid())

    def ready(self, status: str) -> None:
        """Start-up has finished; `status` is a line for `systemctl status`."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self, within_s: float) -> None:
        """The end has begun and takes up to so many seconds more."""
        self._send(f"STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    async def watch(self) -> None:
        """Say that the loop still turns, for as long as it does. Returns where nobody asks."""
        while self.watchdog_s > 0:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s)

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("the service manager was not told error=%s", error)


def _address(text: str) -> str | None:
    """A path, or `@name` for the abstract namespace; nothing else is a Unix socket."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None
