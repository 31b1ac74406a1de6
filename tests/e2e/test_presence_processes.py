"""Who is there, on all edges: real edge and actor processes, sockets that the kernel has spread
over the edges, one that leaves, and an edge that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.support.app import PATIENCE_S
from tests.support.para import Feed, Json
from tests.support.process import ServerProcess, sockets_held
from tests.support.rtc import Peer

pytestmark = pytest.mark.e2e

PARA = "from tests.support.para import make_app\napp = make_app()\n"
SOCKETS = 16


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """Two edges; the parameter is the placement."""
    (tmp_path / "app.py").write_text(PARA)
    what = "app:app" if "para" in request.node.name else "--insecure"
    placement = getattr(request, "param", "hash")
    actors = ("--actors", "2") if placement == "hash" else ()
    flags = ("serve", what, "--edges", "2", *actors)
    with ServerProcess(tmp_path, *flags, HOLDFAST_PLACEMENT=placement) as server:
        yield server


class Peers:
    """One socket, and which peers it has been told of."""

    def __init__(self, feed: Feed, name: str) -> None:
        self.feed = feed
        self.name = name
        self.present: set[str] = set()

    async def until(self, peers: set[str]) -> None:
        """Read on until these are there, apart from itself."""
        while self.present != peers - {self.name}:
            self._hear(await self.feed.until("presence"))

    async def alive(self) -> bool:
        """Whether its edge still answers."""
        with contextlib.suppress(ConnectionError):
            await self.feed.send("ping", t="alive")
        while (frame := await self.feed.frame())["type"] not in ("pong", "closed"):
            self._hear(frame)
        return bool(frame["type"] == "pong")

    def _hear(self, frame: Json) -> None:
        assert frame["type"] == "presence", frame
        if frame.get("leave"):
            self.present.discard(frame["peerId"])
        else:
            self.present.add(frame["peerId"])


@pytest.mark.parametrize("server", ["hash", "tenant"], indirect=True)
async def test_para_peers_of_all_edges(server: ServerProcess) -> None:
    edges = server.children("edge")
    before = {edge: sockets_held(edge) for edge in edges}
    async with ClientSession() as session, asyncio.timeout(4 * PATIENCE_S):
        everybody: list[Peers] = []
        for number in range(SOCKETS):
            url = f"{server.url}/para/main/objectfeed?token=u{number}"
            peers = Peers(Feed(await session.ws_connect(url), False), f"p{number}")
            everybody.append(peers)
            value = {"x": number}
            await peers.feed.send("presence", channel="room:1", watch=True)
            await peers.feed.send("presence", channel="room:1", peerId=peers.name, value=value)
        assert all(sockets_held(edge) > held for edge, held in before.items())
        names = {peers.name for peers in everybody}
        for peers in everybody:
            await peers.until(names)

        first = everybody.pop()
        await first.feed.send("presence", channel="room:1", leave=True, peerId=first.name)
        last = everybody.pop()
        await last.feed.socket.close()
        names -= {first.name, last.name}
        for peers in (first, *everybody):
            await peers.until(names)

        os.kill(edges[0], signal.SIGKILL)
        dead = {peers for peers in everybody if not await peers.alive()}
        names -= {peers.name for peers in dead}
        assert 0 < len(dead) < len(everybody)
        for peers in everybody:
            if peers not in dead:
                await peers.until(names)


class Member:
    """One session of a room, and which others it has been told of, with what they point at."""

    def __init__(self, peer: Peer, state: Json) -> None:
        self.peer = peer
        self.ignored = ""
        self.others = {one["sessionId"]: one["presence"] for one in state["members"]}
        self.others.pop(peer.session)

    async def until(self, others: Json) -> None:
        """Read on until these are there, pointing at these, apart from itself."""
        others = {name: state for name, state in others.items() if name != self.peer.session}
        while {n: state for n, state in self.others.items() if n != self.ignored} != others:
            frame = await self.peer.frame()
            assert frame["mtype"] in ("members", "presence"), frame
            self._hear(frame)

    async def alive(self) -> bool:
        """Whether its edge still answers."""
        with contextlib.suppress(ConnectionError):
            await self.peer.send({"mtype": "heartbeat"})
        while (frame := await self.peer.frame())["mtype"] not in ("heartbeat", "closed"):
            self._hear(frame)
        return bool(frame["mtype"] == "heartbeat")

    def _hear(self, frame: Json) -> None:
        if frame["mtype"] == "presence":
            self.others[frame["sessionId"]] = frame["state"]
            return
        for one in frame["joined"]:
            self.others[one["sessionId"]] = None
        for session in frame["left"]:
            del self.others[session]


async def test_members_of_a_room_on_all_edges(server: ServerProcess) -> None:
    edges = server.children("edge")
    before = {edge: sockets_held(edge) for edge in edges}
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(4 * PATIENCE_S):
        everybody: list[Member] = []
        points: Json = {}
        for number in range(SOCKETS):
            peer = await Peer.connect(server.url, f"s{number}")
            await stack.enter_async_context(peer)
            points[peer.session] = {"at": number}
            state = await peer.join(presence=points[peer.session])
            assert {one["sessionId"] for one in state["members"]} == set(points), "all at once"
            everybody.append(Member(peer, state))
        assert all(sockets_held(edge) > held for edge, held in before.items())
        for member in everybody:
            await member.until(points)

        gone = everybody.pop()
        await gone.peer.send({"mtype": "leave"})
        del points[gone.peer.session]
        lost = everybody.pop()
        await lost.peer.socket.close()
        points[lost.peer.session] = None
        for member in everybody:
            await member.until(points)

        os.kill(edges[0], signal.SIGKILL)
        dead = {member for member in everybody if not await member.alive()}
        assert 0 < len(dead) < len(everybody)
        for session in (lost.peer.session, *(member.peer.session for member in dead)):
            del points[session]
        for member in everybody:
            if member not in dead:
                member.ignored = lost.peer.session  # its edge may be the one, or not
                await member.until(points)
