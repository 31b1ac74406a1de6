"""The port into the scopes of several hosts: those of our own directly, the others' over links.

Every host is the same: clients connect to any of them, each owns the scopes that the view gives it
(actors/ownership.py), and proxies the rest. A request that meets a scope on the move looks for it
again, with the same cause; a follower joins again and reads on from its cursor. So a client sees a
pause and nothing else while scopes move.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from actors import link_wire as w
from actors.attendance import HostAttendance, ProcessLife
from actors.attendance_links import attendance_methods
from actors.ephemeral import Ephemera
from actors.first_day import check_all_shipped
from actors.followed import Followed
from actors.handing import Handing
from actors.here import HereStream
from actors.host import Host
from actors.hosts_admin import REPORT_WAIT_S, HostsAdmin
from actors.hosts_alarms import HostsAlarms
from actors.inspection import Inspection, Report, merged
from actors.ownership import Ownership
from actors.peer import Peer
from actors.remote import RemotePort
from actors.routed import Routed
from actors.rows import Key, Row
from actors.scan import Spool, Work
from actors.sent import ANSWER_WAIT_S, ELSEWHERE
from actors.serving import Method, Moved, Serving
from actors.snapshot import Snapshot
from actors.types import Address, Bounds, Draft, EntryPage, Page, Reply, Resync
from infra import clock
from infra.errors import Busy, Closed, ConfigError, HoldfastError, TryLater
from infra.link.connection import Link
from infra.link.errors import LinkLost
from infra.link.sockets import Listener
from infra.placement.hosts import HostInfo, View
from infra.placement.placement import Placement

T = TypeVar("T")
log = logging.getLogger("holdfast.hosts")

AGAIN_S: Final = 0.05
SWEEP_S: Final = 1.0
JOIN_WAIT_S: Final = 10.0  # a start waits so long for the others' records, and goes on without
AGAIN_MAX: Final = 20_000  # requests of one scope that wait for its place
VERIFY_WAIT_S: Final = 8.0
DRAIN_LOOK_S: Final = 0.05
DRAIN_MAX_S: Final = 3600.0


class HostsPort(RemotePort):
    """Use as `async with`. `join` makes the placement once it is known where this host listens."""

    def __init__(
        self, name: str, key: bytes, *, spool_dir: Path, listen: str,
        join: Callable[[str], Placement],
        tls: tuple[ssl.SSLContext | None, ssl.SSLContext | None] = (None, None),
    ) -> None:  # fmt: skip
        super().__init__({}, key, name, spool_dir=spool_dir)
        self.name = name
        self.host: Host
        self.placement: Placement | None = None
        self.own = Ownership(name)
        self.draining = False
        self.alarms: HostsAlarms = HostsAlarms(self)
        self.handing = Handing(self.own, self._tasks, self._peers.get, self._rejoin_here)
        self.admin = HostsAdmin(self)
        self.superseded = False  # another process goes on under our name
        self._when_superseded: Callable[[], None] = lambda: None
        self._join_hosts = join
        self._listen = listen
        self._listen_tls, self._dial_tls = tls
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._met: dict[str, tuple[str, str]] = {}  # life and link of each peer
        self._again: dict[Address, deque[Routed]] = {}
        self._again_timer: asyncio.TimerHandle | None = None
        self._lapses = 0
        self._kick = asyncio.Event()

    def serve(self, host: Host, more: Mapping[str, Method] = MappingProxyType({})) -> None:
        """Our own scopes. Once, before `start`; `host` asks `handing.claim` of us."""
        self.host = self.handing.host = host
        self.inspection = Inspection(host)
        self.attendance = HostAttendance(host, ProcessLife(self.name, clock.now_ms()))
        methods = {
            "release": self.handing.released, "agree": self.handing.agreed,
            "verify": self.handing.verified,
            **self.admin.methods, **attendance_methods(self.attendance), **more,
        }  # fmt: skip
        self.serving = self.handing.serving = Serving(host, self._serves, more=methods)
        self._listener = Listener(self.name, self._key, self.serving, self.serving.greeted)

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the directory, listen for the others, and meet them. Raises ConfigError."""
        await self.host.start()
        try:
            await check_all_shipped(self.host)
            place = await self._listener.listen(self._listen, self._listen_tls)
        except OSError as error:
            await self.aclose()
            raise ConfigError(f"cannot listen on {self._listen}: {error.strerror}") from error
        except ConfigError:
            await self.aclose()
            raise
        self.placement = self.handing.placement = self._join_hosts(place)
        self.placement.watch(self._changed)
        await self.placement.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_WAIT_S):
                await self.placement.joined()
        self._changed(self.placement.view)
        self._tasks.spawn(self._sweep_forever(), name="hosts-sweep")
        if self.host.alarms.handled:
            self._tasks.spawn(self.alarms.look_forever(), name="hosts-alarms")

    async def aclose(self) -> None:
        """Followers of our scopes are told; what is open is saved; the others see us leave."""
        self.closed = self.handing.closed = True
        if self._again_timer is not None:
            self._again_timer.cancel()
        for queue in self._again.values():
            for request in queue:
                request.refuse(Closed("the server is closing", retry_after_ms=1000))
        self._again.clear()
        await self.serving.aclose()
        await self._listener.aclose()
        await super().aclose()
        await self.host.aclose()
        if self.placement is not None:
            await self.placement.aclose()

    async def drain(self, within_s: float) -> bool:
        """Hand over every scope, disconnecting nobody; whether all have gone. Afterwards this host
        takes no scope and goes on to serve its clients from the others.
        """
        assert self.placement is not None
        self.draining = True
        log.info("draining scopes=%d", len(self.host.open_scopes))
        await self.placement.drain()
        # Told to their faces: the engine may show it only when we have long gone.
        await self.admin.tell(list(self._peers.values()))
        self._kick.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._left():  # noqa: ASYNC110 - scopes close in many places
                    await asyncio.sleep(DRAIN_LOOK_S)
        log.info("drained scopes_left=%d", len(self._left()))
        return not self._left()

    def begin_drain(self) -> None:
        """Drain for as long as it takes."""
        if not self.draining:
            self.draining = True
            self._tasks.spawn(self.drain(DRAIN_MAX_S), name="drain")

    def peer(self, name: str) -> Peer | None:
        """The host of that name, if it is live and another."""
        return self._peers.get(name)

    def when_superseded(self, act: Callable[[], None]) -> None:
        """Another life of our name leads: this process serves nobody any more."""
        self._when_superseded = act
        if self.superseded:
            act()

    def _left(self) -> list[Address]:
        mine = (None, self.name)
        return [one for one in self.host.open_scopes if self.own.owner(one) not in mine]

    # -- the view ----------------------------------------------------------------------------------

    def _changed(self, view: View) -> None:
        placement = self.placement
        if placement is None or self.closed:
            return
        if placement.superseded and not self.superseded:
            self.superseded = True
            self._when_superseded()
        self.own.saw(view)
        if placement.lapses != self._lapses:
            self._lapses = placement.lapses
            self.own.lapsed()
            log.warning("silent too long: every scope is settled anew")
            doubtful = list(self.host.open_scopes)
            self.own.doubt(doubtful)
            self._tasks.spawn(self.handing.give(doubtful), name="settle anew")
        self._meet(view)
        self._sweep()

    def _meet(self, view: View) -> None:
        """Have a link to each of the others, and to nobody else."""
        there = {h.name: (h.life, h.link) for h in view.hosts if h.name != self.name}
        for name in [name for name, met in self._met.items() if there.get(name) != met]:
            del self._met[name]
            self._runs.pop(name).cancel()
            for request in self._peers.pop(name).dismiss():
                assert isinstance(request, Routed)
                request.requeue()
        for name, met in there.items():
            if name not in self._met:
                self._met[name] = met
                peer = Peer(self, name, self._link_of, self._key, self._me, tls=self._dial_tls)
                self._peers[name] = peer
                self._runs[name] = self._tasks.spawn(peer.run(None), name=f"peer {name}")

    async def _link_of(self, name: str) -> str:
        met = self._met.get(name)
        if met is None:
            raise LinkLost(f"host {name} has gone")
        return met[1]

    async def _sweep_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self._kick.wait()
            self._kick.clear()
            self._sweep()

    def _sweep(self) -> None:
        self.handing.sweep()
        self.serving.move(lambda address: not self.here(address))
        self.beside.look()
        for followed in list(self._followed.values()):
            stream = followed.stream
            if stream is None or stream.source != self._place(followed.address):
                self._join(followed)

    # -- where a scope is --------------------------------------------------------------------------

    def _place(self, address: Address) -> str | None:
        is_open = address in self.host.open_scopes
        return self.own.place(address, clock.monotonic(), is_open=is_open)

    def here(self, address: Address) -> bool:
        """Whether our own host is to be asked."""
        return self._place(address) == self.name

    def elsewhere(self, address: Address) -> HostInfo | None:
        """The other host that has the scope, for whoever can ask it directly."""
        host = self.own.view.owner(address)
        return None if host is None or host.name == self.name or self.here(address) else host

    def _serves(self, address: Address) -> bool:
        if self.here(address):
            return True
        if self.placement is not None:
            self.placement.poke()  # the asker sees it otherwise
        return False

    def peer_of(self, address: Address) -> Peer:
        """The host that has it. Raises Moved where that is ours, or nobody for now."""
        name = self._place(address)
        peer = None if name is None else self._peers.get(name)
        if peer is None:
            raise Moved("the scope has no other host")
        return peer

    def connected(self, peer: Peer) -> None:
        """See RemotePort."""
        self._tasks.spawn(self.admin.tell([peer]), name="tell")
        for address, followed in list(self._followed.items()):
            if self._place(address) == peer.name and peer.link is not None:
                followed.join(peer.link)
        self.beside.look()

    def speaks_over(self, address: Address) -> Link | Ephemera | None:
        """See RemotePort."""
        name = self._place(address)
        if name == self.name:
            return self.host.ephemera
        peer = None if name is None else self._peers.get(name)
        return None if peer is None else peer.link

    def _join(self, followed: Followed) -> None:
        if self.here(followed.address):
            stream = HereStream(followed, self.host, self.name)
            followed.follow(stream)
            self._tasks.spawn(stream.begin(), name="follow")
            return
        with contextlib.suppress(Moved):  # nobody's for now: the next sweep sees
            peer = self.peer_of(followed.address)
            peer.wake()
            if peer.link is not None:  # else `connected` does it
                followed.join(peer.link)

    def _rejoin_here(self, address: Address) -> None:
        followed = self._followed.get(address)
        if followed is not None:
            self._join(followed)

    # -- writing -----------------------------------------------------------------------------------

    def append(
        self, address: Address, drafts: list[Draft], reply: Reply, tag: Any,
        *, replicated: bool = False,
    ) -> None:  # fmt: skip
        if self.closed:
            raise Closed("the server is closing", retry_after_ms=1000)
        request = Routed(self, address, drafts, reply, tag, replicated=replicated)
        if address in self._again:  # behind those that were first
            self.again(request, new=True)
            return
        try:
            self._route(request)
        except HoldfastError as error:
            if error.code not in ELSEWHERE:
                raise
            self.again(request, new=True)

    def _route(self, request: Routed) -> None:
        if self.here(request.address):
            request.put_here()
        elif request.made:
            self.peer_of(request.address)
            work = self._make(
                request.address, request.drafts, request.reply, request.tag, request.replicated
            )
            self._tasks.spawn(work, name="make")
        else:
            request.send(self.peer_of(request.address))

    def new_cause(self) -> str:
        """By which a draft without one is recognised when it comes again."""
        self._caused += 1
        return f"{self._causes}/{self._caused}"

    def again(self, request: Routed, *, new: bool = False) -> None:
        """Look for the scope again, a little later. Raises Busy for a new one too many."""
        queue = self._again.setdefault(request.address, deque())
        if new and len(queue) >= AGAIN_MAX:
            raise Busy("too much waits for the scope", retry_after_ms=100)
        queue.append(request)
        if self._again_timer is None:
            loop = asyncio.get_running_loop()
            self._again_timer = loop.call_later(AGAIN_S, self._route_again)

    def _route_again(self) -> None:
        self._again_timer = None
        waiting, self._again = self._again, {}
        for address, queue in waiting.items():
            for request in queue:
                if request.late:
                    request.refuse(TryLater("the scope has no host", retry_after_ms=1000))
                elif address in self._again:
                    self.again(request)
                else:
                    self._route_one(request)

    def _route_one(self, request: Routed) -> None:
        try:
            self._route(request)
        except HoldfastError as error:
            if error.code in ELSEWHERE:
                self.again(request)
            else:
                request.refuse(error)

    # -- asking ------------------------------------------------------------------------------------

    async def routed(
        self, address: Address, here: Callable[[], Awaitable[T]],
        there: Callable[[], Awaitable[T]], within_s: float = ANSWER_WAIT_S,
    ) -> T:  # fmt: skip
        """The answer of whoever has the scope. Raises TryLater where nobody has it in time."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        return await (here() if self.here(address) else there())
                    except HoldfastError as error:
                        if error.code not in ELSEWHERE or self.closed:
                            raise
                    await asyncio.sleep(AGAIN_S)
        except TimeoutError as error:
            raise TryLater("the scope's host does not answer", retry_after_ms=1000) from error

    async def read(
        self, address: Address, after: int, *, entries_max: int, bytes_max: int, joined: bool
    ) -> Page | Resync:
        there, host = super().read, self.host

        def ask(read: Callable[..., Awaitable[Page | Resync]]) -> Awaitable[Page | Resync]:
            return self._current(
                address,
                lambda: read(
                    address, after, entries_max=entries_max, bytes_max=bytes_max, joined=joined
                ),
            )

        return await self.routed(address, lambda: ask(host.read), lambda: ask(there))

    async def visible(
        self, address: Address, after: int, groups: str, *, entries_max: int, bytes_max: int
    ) -> EntryPage | Resync:
        there, host = super().visible, self.host

        def ask(
            read: Callable[..., Awaitable[EntryPage | Resync]],
        ) -> Awaitable[EntryPage | Resync]:
            return self._current(
                address,
                lambda: read(address, after, groups, entries_max=entries_max, bytes_max=bytes_max),
            )

        return await self.routed(address, lambda: ask(host.visible), lambda: ask(there))

    async def _current(self, address: Address, read: Callable[[], Awaitable[T]]) -> T:
        """What is read. Raises Moved where it is of a host that was away and has not noticed yet:
        whoever asks for more than there is may have seen it elsewhere.
        """
        found = await read()
        if not isinstance(found, Resync) or found.reason != "ahead_of_head":
            return found
        await self._verify(address)
        found = await read()
        followed = self._followed.get(address)
        if isinstance(found, Resync) and followed is not None and followed.is_past(found.bounds):
            raise Moved("the scope is with another by now")
        return found

    async def _verify(self, address: Address) -> None:
        if self.here(address):
            await self.handing.verify(address)
            return
        link = self.peer_of(address).link
        if link is not None:
            await link.call("verify", w.encode(w.Ask(*address)), within_s=VERIFY_WAIT_S)

    async def bounds(self, address: Address) -> Bounds:
        there = super().bounds
        return await self.routed(address, lambda: self.host.bounds(address), lambda: there(address))

    async def clear(self, address: Address) -> Bounds:
        there = super().clear
        return await self.routed(address, lambda: self.host.clear(address), lambda: there(address))

    async def get(self, address: Address, keys: Sequence[Key]) -> list[Row | None]:
        there = super().get
        return await self.routed(
            address, lambda: self.host.get(address, keys), lambda: there(address, keys)
        )

    async def scan(self, address: Address, work: Work) -> Spool | None:
        there = super().scan
        return await self.routed(
            address, lambda: self.host.scan(address, work), lambda: there(address, work)
        )

    async def snapshot(self, address: Address, coll: str) -> Snapshot | None:
        there = super().snapshot
        return await self.routed(
            address, lambda: self.host.snapshot(address, coll), lambda: there(address, coll)
        )

    # -- inspection --------------------------------------------------------------------------------

    async def scopes(self, tenant: str, prefix: str, after: str, limit: int) -> list[Report]:
        """Of every host that answers; of one that several know, as its owner has it."""
        found = await self.inspection.scopes(tenant, prefix, after, limit)
        payload = w.encode(w.ScopesAsk(tenant, prefix, after, limit))
        for answer in await self.each("scopes", payload):
            found += w.decode_plain(answer)
        best: dict[str, Report] = {}
        for one in sorted(found, key=lambda outline: not outline["open"]):
            best.setdefault(str(one["scope"]), one)
        return [best[scope] for scope in sorted(best)][:limit]

    async def show(self, address: Address) -> Report | None:
        there = super().show
        return await self.routed(
            address, lambda: self.inspection.show(address), lambda: there(address)
        )

    async def report(self) -> Report:
        """Of this host alone: each is asked for its own."""
        return merged([await self.inspection.report()])

    async def each(self, method: str, payload: Any) -> list[Any]:
        """The answers of those hosts that are linked."""
        answers = []
        for peer in list(self._peers.values()):
            if peer.link is not None:
                with contextlib.suppress(HoldfastError):
                    answers.append(await peer.link.call(method, payload, within_s=REPORT_WAIT_S))
        return answers
