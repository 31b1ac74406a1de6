"""The process that tenants' processes are forked from: it has everything imported, the user's
application too, so that a fork serves within milliseconds and shares those pages.

It has one thread and no event loop, as a fork takes the calling thread only: what another held
would stay locked for ever. An application that starts threads or opens files when it is imported
therefore cannot be forked from; the supervisor then starts each process by itself. Random numbers
come from the system (infra/ids.py), and Python seeds its own generator anew in every fork.

Its standard input is a Unix socket: a line with the boot comes first (edge/processes/boot.py); it
answers one byte, READY or UNFIT. Then each byte brings two descriptors, the standard input and
output of a process to be, and is answered by that one's pid.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from edge.processes.boot import Boot
from infra.process import name_process

READY: Final = b"r"
UNFIT: Final = b"u"
FORK: Final = b"f"
PID_BYTES: Final = 8
NAME: Final = "holdfast-tenant"  # as `ps` and `top` show it

# What an actor process imports late, because not every one needs it or it must be chosen.
LATE: Final = ("uvloop", "lz4.block", "fastcrc", "resource", "sqlite3", "edge.processes.actor")


def serve_forks(boot: Boot, live: Callable[[], int]) -> None:
    """Until the supervisor has gone. `live` is a fork's whole life; it gives the exit code."""
    control = socket.socket(fileno=os.dup(0))
    for name in LATE:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    before = _open_files()
    boot.application()
    if len(os.listdir("/proc/self/task")) > 1 or _open_files() - before:
        control.sendall(UNFIT)
        return
    # What is there now is never collected, so no fork writes to its pages for that.
    gc.collect()
    gc.freeze()
    gc.disable()
    control.sendall(READY)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not data:
            return
        pid = _fork_orphan(descriptors, control, live)
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(pid.to_bytes(PID_BYTES, "big"))


def _open_files() -> set[str]:
    """Descriptors above the three, and what they are of."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                found.add(f"{name} {Path('/proc/self/fd', name).readlink()}")
            except OSError:  # of this listing itself
                continue
    return found


def _fork_orphan(descriptors: list[int], control: socket.socket, live: Callable[[], int]) -> int:
    """The pid of a new process whose parent is the supervisor: ours has ended at once, and the
    supervisor takes its orphans (infra.process.adopt_orphans).
    """
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            if pid := os.fork():
                os.write(write, pid.to_bytes(PID_BYTES, "big"))
                os._exit(0)
            os.close(read)
            os.close(write)
            control.close()
            _become(descriptors, live)
        except BaseException:
            os._exit(1)
    os.close(write)
    said = os.read(read, PID_BYTES)
    os.close(read)
    os.waitpid(middle, 0)
    if len(said) < PID_BYTES:
        raise OSError("no process could be forked")
    return int.from_bytes(said, "big")


def _become(descriptors: list[int], live: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        name_process(NAME)
        gc.enable()
        code = live()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing of the forking process runs again
