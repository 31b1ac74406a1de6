"""Scopes that come to this host and leave it: who is asked before one is claimed, and how one is
handed over. The shell of actors/ownership.py.

Truth is the bucket's log: whatever is answered, or not answered, here, one writer wins each batch.
What is agreed on beforehand only keeps a healthy host from being fenced in the middle of its work.

A hand-over: the owner-to-be says that it takes the scope for its own as well (`agree`); the old one
stops taking requests, ends those under way, closes the file, and sends followers away (`moved`);
the first of them to arrive has the new owner claim it, which asks (`release`) until that is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from actors import hosts_wire as hw
from actors import link_wire as w
from actors.here import HereStream
from actors.serving import MOVED_RETRY_MS, LinkTap, Moved, Serving
from actors.types import Address
from infra import clock
from infra.errors import Closed, Fenced, HoldfastError, TryLater
from infra.link.connection import Link
from infra.locate import overtaken

if TYPE_CHECKING:
    from actors.host import Host
    from actors.ownership import Ownership
    from actors.peer import Peer
    from infra.placement.placement import Placement
    from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.handing")

CLAIM_WAIT_S: Final = 10.0  # for a view, or the right to claim
RELEASE_WAIT_S: Final = 8.0  # for a host that hands over; beyond it the log decides
LINK_WAIT_S: Final = 1.0  # for a link to a host that should be there
CLOSE_WAIT_S: Final = 7.0  # for what is under way in a scope that leaves
AGREE_WAIT_S: Final = 5.0
SEE_WAIT_S: Final = 3.0  # for our view to become what another's is
LOOK_S: Final = 0.05
AT_ONCE: Final = 8
AGREED_AT_ONCE: Final = 64


class Handing:
    """Of one host. `peer` finds the link to another by name."""

    def __init__(
        self, own: Ownership, tasks: TaskOwner, peer: Callable[[str], Peer | None],
        rejoin: Callable[[Address], None],
    ) -> None:  # fmt: skip
        self.host: Host
        self.serving: Serving
        self.placement: Placement | None = None
        self.closed = False
        self._own = own
        self._tasks = tasks
        self._peer = peer
        self._rejoin = rejoin
        self._closing: dict[Address, asyncio.Task[bool]] = {}
        self._handing: set[str] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)

    # -- taking ------------------------------------------------------------------------------------

    async def claim(self, address: Address, fenced: bool) -> None:
        """Before our host opens the scope. Raises Moved where another has it, and TryLater where
        it is not known whose it is, or this host may not take anything.
        """
        own = self._own
        own.doubtful.discard(address)  # its file is closed
        if self.closed:
            raise Closed("the server is closing", retry_after_ms=1000)
        if fenced:
            own.unsettle(address)
        await self._until_allowed(address)
        if own.settled(address):
            return
        generation = own.generation
        if (keeper := await self._ask_others(address)) is not None:
            own.detour(address, keeper, clock.monotonic())
            self._poke()
        if not own.mine(address, clock.monotonic()):
            self._away(address)
        if generation == own.generation:
            own.settle(address)

    async def _until_allowed(self, address: Address) -> None:
        own = self._own
        try:
            async with asyncio.timeout(CLAIM_WAIT_S):
                while True:
                    if own.owner(address) is not None and not own.mine(address, clock.monotonic()):
                        self._away(address)
                    may = self.placement is not None and self.placement.may_claim()
                    if own.owner(address) is not None and (may or own.settled(address)):
                        return
                    await asyncio.sleep(LOOK_S)
        except TimeoutError as error:
            raise TryLater(
                "this host is cut off from the others and takes no scope", retry_after_ms=1000
            ) from error

    def _away(self, address: Address) -> None:
        """It is another's: whoever follows it here goes there. Raises Moved."""
        self.send_away(address)
        raise Moved(f"{address.scope[:80]!r} is not here", retry_after_ms=MOVED_RETRY_MS)

    async def _ask_others(self, address: Address) -> str | None:
        """Have those who may hold the scope hand it over; who keeps it."""
        names = self._own.previous(address)
        asked = {
            self._tasks.spawn(self._release(name, address), name=f"release {name}"): name
            for name in names
        }
        if asked:
            await asyncio.wait(asked)
        return next((name for task, name in asked.items() if task.result()), None)

    async def _release(self, name: str, address: Address) -> bool:
        """Whether that host keeps it. One that does not answer is taken for dead."""
        payload = w.encode(hw.Release(*address, self._own.name))
        try:
            link = await self._link(name)
            kept: bool = w.decode_bool(await link.call("release", payload, within_s=RELEASE_WAIT_S))
            return kept
        except (HoldfastError, TimeoutError) as error:
            log.info("not asked host=%s scope=%s error=%r", name, address.scope, error)
            return False

    async def _link(self, name: str) -> Link:
        peer = self._peer(name)
        if peer is None:
            raise Moved(f"host {name} has gone")
        async with asyncio.timeout(LINK_WAIT_S):
            await peer.up.wait()
        if peer.link is None:
            raise Moved(f"host {name} has gone")
        return peer.link

    # -- giving ------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Begin to hand over whatever is open here and another's."""
        found: dict[str, list[Address]] = {}
        for address in list(self._own.doubtful):
            self._close_soon(address)
        for address in self.host.open_scopes:
            name = self._own.owner(address)
            if name not in (None, self._own.name) and address not in self._closing:
                assert name is not None
                found.setdefault(name, []).append(address)
        for name, addresses in found.items():
            if name not in self._handing:
                self._handing.add(name)
                self._tasks.spawn(self._hand(name, addresses), name=f"hand over to {name}")

    async def _hand(self, name: str, addresses: list[Address]) -> None:
        """Until that host agrees the scopes are served on from here."""
        try:
            link = await self._link(name)
            for at in range(0, len(addresses), AGREED_AT_ONCE):
                some = addresses[at : at + AGREED_AT_ONCE]
                payload = w.encode(hw.Agree([(*one,) for one in some]))
                answer = await link.call("agree", payload, within_s=AGREE_WAIT_S)
                agreed = hw.decode_agreed(answer)
                await self.give(one for one, yes in zip(some, agreed, strict=False) if yes)
        except (HoldfastError, TimeoutError) as error:
            log.info("not handed over host=%s error=%r", name, error)
        finally:
            self._handing.discard(name)

    async def give(self, addresses: Iterable[Address]) -> None:
        """Close these, and send their followers to whoever has them then."""
        tasks = [self._close_soon(address) for address in addresses]
        if tasks:
            await asyncio.wait(tasks)

    def _close_soon(self, address: Address) -> asyncio.Task[bool]:
        task = self._closing.get(address)
        if task is None:
            task = self._tasks.spawn(self._close(address), name=f"give {address.scope[:40]}")
            self._closing[address] = task
        return task

    async def _close(self, address: Address) -> bool:
        """Whether the scope is closed, with everything answered that was under way."""
        own = self._own
        own.unsettle(address)
        try:
            async with self._turns:
                if own.owner(address) != own.name:
                    own.leaving.add(address)
                done = await close_scope(self.host, address, within_s=CLOSE_WAIT_S)
        finally:
            own.leaving.discard(address)
            del self._closing[address]
        if done:
            own.doubtful.discard(address)
            self.send_away(address)
        else:
            log.warning("kept: the bucket lacks something of it scope=%s", address.scope)
        return done

    def send_away(self, address: Address) -> None:
        """End every stream of the scope: followers ask for its place again."""
        for tap in tuple(self.host.taps.get(address, ())):
            if isinstance(tap, LinkTap):
                tap.leave(Moved("the scope moves", retry_after_ms=MOVED_RETRY_MS))
            elif isinstance(tap, HereStream):
                tap.end(Moved("the scope moves", retry_after_ms=MOVED_RETRY_MS))

    async def verify(self, address: Address) -> None:
        """Have our host notice now where another has gone on with a scope that is open here. Raises
        StorageError.
        """
        host, waking = self.host, self.host.waking
        scope = host.open_scopes.get(address)
        replica = None if scope is None else host.replicas.get(scope)
        if waking is None or scope is None or replica is None or replica.files is None:
            return
        bucket, head = waking.replication, replica.files.head
        prefix = bucket.prefix_of(address)
        store, nonce = bucket.service.store, bucket.nonce
        if not await bucket.service.run(lambda: overtaken(store, prefix, head, nonce)):
            return
        if host.open_scopes.get(address) is scope:
            replica.stop()
            host.give_up(scope, Fenced(f"batch {head + 1} is another's", retry_after_ms=100))
        while host.open_scopes.get(address) is scope:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    # -- what other hosts ask (methods of actors.serving.Serving) ----------------------------------

    async def released(
        self, _serving: Serving, _link: Link, _stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        """`release`: another is about to claim the scope."""
        asked: hw.Release = hw.decode_release(payload)
        address = Address(asked.tenant, asked.scope)
        is_waking = self.host.waking is not None and self.host.waking.waking(address)
        is_open = address in self.host.open_scopes
        if self._own.mine(address, clock.monotonic()) and address not in self._own.doubtful:
            self._poke()  # two views: one of them will change
            kept = self._own.keeps(asked.asker, is_open=is_open, is_waking=is_waking)
            return w.encode(kept)
        if is_open or is_waking or address in self._closing:
            return w.encode(not await asyncio.shield(self._close_soon(address)))
        return w.encode(False)

    async def verified(
        self, serving: Serving, _link: Link, _stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        """`verify`: a client has seen more of the scope than we show."""
        asked: w.Ask = w.decode_ask(payload)
        await self.verify(serving.address(asked.tenant, asked.scope))
        return w.encode(True)

    async def agreed(
        self, _serving: Serving, _link: Link, _stream: int, payload: msgspec.Raw
    ) -> msgspec.Raw:
        """`agree`: another has these open and is about to hand them over to us."""
        asked: hw.Agree = hw.decode_agree(payload)
        addresses = [Address(*one) for one in asked.scopes]
        for address in addresses:
            self._own.straight(address)
        try:
            async with asyncio.timeout(SEE_WAIT_S):
                while not all(self._ours(address) for address in addresses):
                    self._poke()
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            log.info("views differ: not all of what is offered is ours")
        answer = [self._ours(address) for address in addresses]
        ours = [address for address, yes in zip(addresses, answer, strict=True) if yes]
        # Open here as well: we were away, and what we have is not the last.
        await self.give(address for address in ours if address in self.host.open_scopes)
        for address in ours:
            self._rejoin(address)
        return w.encode(answer)

    def _ours(self, address: Address) -> bool:
        placement = self.placement
        may = placement is not None and placement.may_claim()
        return may and self._own.mine(address, clock.monotonic())

    def _poke(self) -> None:
        if self.placement is not None:
            self.placement.poke()


async def close_scope(host: Host, address: Address, *, within_s: float) -> bool:
    """End what is under way in the scope and close its file; False where it is open still, because
    the bucket does not take what it has.
    """
    try:
        async with asyncio.timeout(within_s):
            while host.waking is not None and host.waking.waking(address):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
            while (scope := host.open_scopes.get(address)) is not None:
                if scope in host.returns:
                    await asyncio.shield(host.returns[scope])
                elif scope.unsettled:
                    try:
                        await host.settled(address)
                    except HoldfastError:  # fenced, and being discarded; or the bucket is away
                        await asyncio.sleep(LOOK_S)
                elif scope.busy and scope in host.replicas:
                    await host.replicas[scope].drained()
                else:
                    host.close_scope(scope)
                    await asyncio.sleep(0)
    except TimeoutError:
        return address not in host.open_scopes
    return True
