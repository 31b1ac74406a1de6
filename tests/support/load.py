"""Clients under load that keep account: writers that repeat until acknowledged, and followers.

Every client has a socket of its own to one of the edges and goes to the next edge when it ends, as
client libraries do. What they were told is judged by tests/support/verdicts.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from actors.types import Address
from infra.clock import monotonic
from infra.layout import LEVEL_CHANGES, parse_key
from infra.ltx import decode_header
from infra.ltx.header import HEADER_BYTES
from infra.objects import ObjectStore
from tests.support.hosts import prefix_of, restored
from tests.support.ledgers import envelope
from tests.support.verdicts import Acked, Batch, Shown, Verdict, judge, percentile

CONNECT_S = 5
ANSWER_S = 15  # above what a server may take (`max_stall_s`)
HEARTBEAT_S = 20
WAIT_S = 120
REST_S = 0.02
AGAIN_S = 0.2
_GONE = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED,
         aiohttp.WSMsgType.ERROR)  # fmt: skip


class SocketEnded(Exception):
    """It was closed, or did not answer in time."""


class Client:
    """One socket at a time, to `urls` in turn from `turn` on."""

    def __init__(self, load: Load, name: str, turn: int) -> None:
        self.name = name
        self._load = load
        self._turn = turn
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    @property
    def edge(self) -> str:
        return self._load.urls[self._turn % len(self._load.urls)]

    async def connected(self) -> bool:
        """Connect where there is no socket; True where it is a new one."""
        if self._socket is not None:
            return False
        while True:
            try:
                async with asyncio.timeout(CONNECT_S):
                    self._socket = await self._load.session.ws_connect(
                        f"{self.edge}/api/sync/socket", max_msg_size=0, heartbeat=HEARTBEAT_S
                    )
                return True
            except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
                self._turn += 1
                await asyncio.sleep(AGAIN_S)

    async def send(self, frame: dict[str, Any]) -> None:
        """Raises SocketEnded."""
        assert self._socket is not None
        try:
            await self._socket.send_str(json.dumps(frame))
        except (aiohttp.ClientError, OSError) as error:
            await self._end(f"send: {error!r}")

    async def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The next frame. Raises SocketEnded."""
        assert self._socket is not None
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._socket.receive()
        except TimeoutError:
            await self._end("no answer")
        if message.type in _GONE:
            await self._end(f"closed {self._socket.close_code} {message.extra or ''}".strip())
        frame: dict[str, Any] = json.loads(message.data)
        return frame

    async def _end(self, why: str) -> None:
        self._load.closes.append(f"{self.name} at {self.edge}: {why}")
        socket, self._socket = self._socket, None
        self._turn += 1
        assert socket is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):  # whoever is gone answers no closing handshake
                await socket.close()
        raise SocketEnded(why)


class Load:
    """What clients of `scopes` were told so far. `closes` are sockets that ended unasked."""

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str], scopes: Sequence[str]):
        self.session = session
        self.urls = list(urls)
        self.scopes = list(scopes)
        self.acked: dict[str, list[Acked]] = {scope: [] for scope in scopes}
        self.shown: dict[str, dict[str, list[Shown]]] = {scope: {} for scope in scopes}
        self.closes: list[str] = []
        self.refusals: Counter[str] = Counter()
        self._stopping = False
        self._writers: list[asyncio.Task[None]] = []
        self._followers: list[asyncio.Task[None]] = []
        self._heard = asyncio.Event()

    def _begin(self, group: asyncio.TaskGroup, writers: int, rest_s: float) -> None:
        for number, scope in enumerate(self.scopes):
            for turn in range(len(self.urls)):
                follower = Client(self, f"f{turn}:{scope}", turn)
                shown = self.shown[scope][follower.name] = []
                self._followers.append(group.create_task(self._follow(follower, scope, shown)))
            for writer in range(writers):
                client = Client(self, f"w{writer}:{scope}", number + writer)
                self._writers.append(group.create_task(self._write(client, scope, rest_s)))

    def _end(self) -> None:
        for task in self._writers + self._followers:
            task.cancel()

    # -- what a test waits for ---------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Acknowledged writes of all scopes."""
        return sum(map(len, self.acked.values()))

    async def more(self, writes: int, scopes: Sequence[str] | None = None) -> None:
        """Until each of these scopes has had so many more acknowledgements; raises TimeoutError."""
        wanted = {scope: len(self.acked[scope]) + writes for scope in scopes or self.scopes}
        async with asyncio.timeout(WAIT_S):
            while any(len(self.acked[scope]) < least for scope, least in wanted.items()):
                await self._change()

    async def settled(self) -> None:
        """Have writers end with the write they are at, and followers see everything."""
        self._stopping = True
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait(self._writers)
            while behind := self._behind():
                await self._change()
            assert not behind

    def _behind(self) -> list[str]:
        return [
            name for scope in self.scopes for name, shown in self.shown[scope].items()
            if max((s.seq for s in shown), default=0)
            < max((a.seq for a in self.acked[scope]), default=0)
        ]  # fmt: skip

    async def _change(self) -> None:
        self._heard.clear()
        await self._heard.wait()

    def took(self, since: float = 0.0) -> tuple[float, float, float]:
        """Seconds from the first sending to the acknowledgement, of writes first sent since then:
        median, 99th percentile, greatest.
        """
        spans = [a.at - a.sent_at for acks in self.acked.values() for a in acks
                 if a.sent_at >= since]  # fmt: skip
        return percentile(spans, 0.5), percentile(spans, 0.99), percentile(spans, 1.0)

    async def newcomers(self, url: str, seconds: float) -> Counter[str]:
        """Clients that come to `url` one after the other, each with what another follower of its
        scope has seen by then; what they are told, by type or code of error.
        """
        told: Counter[str] = Counter()
        end = monotonic() + seconds
        while monotonic() < end:
            for scope in self.scopes:
                last = max(shown[-1] for shown in self.shown[scope].values() if shown)
                ask = {"type": "sub", "scope": scope, "since": last.seq, "epoch": last.epoch}
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with (
                        asyncio.timeout(CONNECT_S),
                        self.session.ws_connect(f"{url}/api/sync/socket", max_msg_size=0) as socket,
                    ):
                        await socket.send_str(json.dumps(ask))
                        frame = json.loads(await socket.receive_str())
                        told[frame.get("code", frame["type"])] += 1
        return told

    def summary(self, since: float = 0.0) -> str:
        """A line for whoever runs the test."""
        median, tail, longest = self.took(since)
        return (
            f"{self.count} acknowledged; from sending to that p50 {median:.3f} p99 {tail:.3f} "
            f"max {longest:.3f} s; refusals {dict(self.refusals)}; sockets ended {self.closes}"
        )

    # -- clients -----------------------------------------------------------------------------------

    async def _write(self, client: Client, scope: str, rest_s: float) -> None:
        number = 0
        while not self._stopping:
            number += 1
            event_id = f"{client.name}.{number}"
            sent_at = monotonic()
            seq, epoch = await self._until_acked(client, scope, event_id)
            self.acked[scope].append(Acked(event_id, seq, epoch, client.edge, sent_at, monotonic()))
            self._heard.set()
            await asyncio.sleep(rest_s)

    async def _until_acked(self, client: Client, scope: str, event_id: str) -> tuple[int, str]:
        frame = {"type": "publish", "id": event_id, "scope": scope,
                 "envelopes": [envelope(event_id, key=f"item:{len(event_id) % 5}")]}  # fmt: skip
        while True:
            try:
                await client.connected()
                await client.send(frame)
                while (answer := await client.receive(ANSWER_S)).get("id") != event_id:
                    pass
            except SocketEnded:
                continue
            result = answer["results"][0]
            if "seq" in result:
                return result["seq"], answer["epoch"]
            assert "retryAfterMs" in result, result
            self.refusals[result["code"]] += 1
            await asyncio.sleep(min(AGAIN_S, result["retryAfterMs"] / 1000))

    async def _follow(self, client: Client, scope: str, shown: list[Shown]) -> None:
        epoch = ""
        subscribed = False
        while True:
            try:
                if await client.connected() or not subscribed:
                    ask = {"type": "sub", "scope": scope, "batch": True,
                           "since": shown[-1].seq if shown else 0}  # fmt: skip
                    await client.send(ask | ({"epoch": epoch} if epoch else {}))
                    subscribed = True
                frame = await client.receive()
            except SocketEnded:
                continue
            match frame["type"]:
                case "subscribed":
                    epoch = frame["epoch"]
                case "event":
                    self._take(shown, [frame["envelope"]], epoch)
                case "events":
                    self._take(shown, frame["envelopes"], epoch)
                case "scopeError":
                    self.refusals[f"sub {frame.get('reason', frame['code'])}"] += 1
                    subscribed = False
                    if frame["code"] == "snapshot_required":  # never where writes are replicated
                        epoch = frame["epoch"]
                        shown.append(Shown(frame["head"], "a view", epoch))
                    await asyncio.sleep(AGAIN_S)

    def _take(self, shown: list[Shown], envelopes: list[dict[str, Any]], epoch: str) -> None:
        shown += [Shown(each["seq"], each["eventId"], epoch) for each in envelopes]
        self._heard.set()


@asynccontextmanager
async def load_on(
    urls: Sequence[str], scopes: Sequence[str], *, writers: int = 2, rest_s: float = REST_S
) -> AsyncIterator[Load]:
    """`writers` in each scope, and a follower of each scope at each edge, until the block ends."""
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        load = Load(session, urls, scopes)
        load._begin(group, writers, rest_s)
        try:
            yield load
        finally:
            load._end()


def judged(load: Load, store: ObjectStore, folder: Path, prefix: str = "") -> dict[str, Verdict]:
    """What `load` was told, held against the bucket, by scope. The bucket's copy passes
    `ledgers.check_file`.
    """
    verdicts = {}
    for number, scope in enumerate(load.scopes):
        address = Address("default", scope)
        _, checked = restored(store, address, folder / f"judged-{number}.db", prefix)
        verdicts[scope] = judge(
            load.acked[scope], load.shown[scope], checked.causes, batches(store, address, prefix)
        )
    return verdicts


def batches(store: ObjectStore, address: Address, prefix: str = "") -> list[Batch]:
    """Every level-0 file of the scope that stands in the bucket."""
    found: list[Batch] = []
    at = prefix_of(address, prefix)
    after = ""
    while True:
        listing = store.list(at, after=after)
        for info in listing.objects:
            file = parse_key(at, info.key, info.size, info.modified_ms)
            if file is not None and file.level == LEVEL_CHANGES:
                head = decode_header(store.get(info.key, end=HEADER_BYTES))
                nonce = head.salt1 << 32 | head.salt2
                found.append(Batch(head.min_txid, head.node_id, nonce))
        if not listing.truncated:
            return found
        after = listing.objects[-1].key
