"""Processes as their supervisor has them: started by themselves, or forked from one that is
prepared (edge/processes/forkserver.py). Both are told one line and say one, are signalled and
waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import Final, Protocol

from edge.processes.forkserver import FORK, PID_BYTES, READY, UNFIT
from infra.process import adopt_orphans

log = logging.getLogger("holdfast.supervisor")

LINE_BYTES_MAX: Final = 1 << 20
FORK_WAIT_S: Final = 10.0
AGAIN_S: Final = 5.0  # until a fork server that died is started anew


class Process(Protocol):
    """One that runs, or has ended with `returncode`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def greet(self, told: bytes) -> bytes:
        """Tell it one line, and hear the one it says when it is ready; b"" where it ends first."""

    async def wait(self) -> int:
        """Its exit code."""

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...


class Spawned:
    """A program of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.wait = process.wait
        self.send_signal = process.send_signal
        self.kill = process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def greet(self, told: bytes) -> bytes:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(told)
        await process.stdin.drain()
        return await process.stdout.readline()

    async def hear(self) -> bytes:
        """The next line it says; b"" at its end."""
        assert self._process.stdout is not None
        return await self._process.stdout.readline()


async def spawn(role: str, held: tuple[int, ...]) -> Spawned:
    """`holdfast ROLE`, which keeps the descriptors `held`."""
    process = await asyncio.create_subprocess_exec(
        *_command(role), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        pass_fds=held, start_new_session=True, env=_environ(),
    )  # fmt: skip
    return Spawned(process)


def _command(role: str) -> list[str]:
    return [sys.executable, "-m", "edge.cli", role]


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Forked:
    """A fork, adopted: its end is seen through a descriptor of the process, so that no signal ever
    goes to another one that has got its number.
    """

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._stdin, self._stdout = stdin, stdout
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        try:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        except ChildProcessError:  # somebody else has taken it
            self.returncode = -1
        for descriptor in (self._pidfd, self._stdin):
            os.close(descriptor)
        self._ended.set_result(self.returncode)

    async def greet(self, told: bytes) -> bytes:
        reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        transport, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._stdout, "rb", 0)
        )
        try:
            # Longer than a pipe holds, perhaps; and it reads at once.
            await self._loop.run_in_executor(None, _write_all, self._stdin, told)
            return await reader.readline()
        finally:
            transport.close()

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class ForkServer:
    """The prepared process, kept running; `fork` gives None while there is none."""

    def __init__(self, boot: bytes, held: tuple[int, ...]) -> None:
        self._boot = boot
        self._held = held
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def keep(self) -> None:
        """Have it there until cancelled, unless the application or the system does not allow it."""
        if not (hasattr(os, "pidfd_open") and adopt_orphans()):
            return
        while await self._live():
            log.warning("fork server died again_in_s=%g", AGAIN_S)
            await asyncio.sleep(AGAIN_S)

    async def _live(self) -> bool:
        """Run it to its end; whether another one is worth while."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *_command("forkserver"), stdin=theirs.fileno(), env=_environ(),
                    stdout=asyncio.subprocess.DEVNULL, pass_fds=self._held, start_new_session=True,
                )  # fmt: skip
            try:
                self._process = process
                ours.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(ours, self._boot)
                said = await loop.sock_recv(ours, 1)
                if said == UNFIT:
                    log.warning(
                        "no fork server: the application starts threads or opens files when it is"
                        " imported; processes of tenants start more slowly"
                    )
                    return False
                if said == READY:
                    self._control = ours
                await process.wait()
                return True
            finally:
                self._control = None
                self._end()
                await process.wait()

    def _end(self) -> None:
        """It has nothing to save, and may be busy with an import."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def fork(self) -> Forked | None:
        """A new process; None where one has to be started by itself."""
        async with self._turn:
            control = self._control
            if control is None:
                return None
            their_stdin, stdin = os.pipe()
            stdout, their_stdout = os.pipe()
            try:
                socket.send_fds(control, [FORK], [their_stdin, their_stdout])
                async with asyncio.timeout(FORK_WAIT_S):
                    said = await asyncio.get_running_loop().sock_recv(control, PID_BYTES)
                if len(said) == PID_BYTES:
                    return Forked(int.from_bytes(said, "big"), stdin, stdout)
            except (OSError, TimeoutError) as error:
                log.warning("fork server failed error=%s", error)
                self._control = None
                self._end()  # an answer that comes late must not be taken for the next
            finally:
                os.close(their_stdin)
                os.close(their_stdout)
            os.close(stdin)
            os.close(stdout)
            return None
