"""Seeded histories of hosts over one bucket: writes, crashes, pauses, lost and late requests.

The hosts, their replicas and their files are the production ones; the bucket is in memory, behind a
store with faults for each process life. A life that ends leaves its requests behind, and they land
whenever the seed says so. The model is short: every draft that was acknowledged, with its seq.

Always checked: what a life was told is in what survives it (`replicated`: the bucket alone;
`local`: the disk), the files in the bucket lead from a snapshot to the head without a gap, and in
the end the bucket holds exactly what the last owner serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from unittest import mock

import infra.replica
import infra.replica_files
import infra.requests
from actors.host import Host
from actors.types import Appended, Duplicate, Outcome
from infra.errors import HoldfastError
from infra.layout import NoBackup
from infra.objects import LIST_KEYS_MAX, Listing
from infra.paths import ledger_path
from infra.replicator import ReplicaSettings
from tests.support.faulty_store import Fault, Faults, FaultyStore
from tests.support.hosts import A, abandon, bodies, crash, host_at, put, restored
from tests.support.ledgers import NOW, check_file
from tests.support.memory_store import MemoryStore

STEPS = 24
IDS = 12  # event ids are drawn from few, so that many are repeated
STEP_S = 10
SETTLED_S = 10
HISTORY_MS = 2_000
FAULTS = (Fault.BEFORE, Fault.LOST_REPLY, Fault.LATE, Fault.STALL)


# (hosts, whether they share their scopes, level). `zombies`: each thinks the other dead.
MODES = {
    "local": (1, False, "local"),
    "replicated": (1, False, "replicated"),
    "shared": (3, True, "replicated"),
    "zombies": (2, False, "replicated"),
}


async def simulate(folder: Path, seed: int, mode: str, *, plain: bool = False) -> None:
    """Play one seed in a folder of its own. Raises Lost, or whatever else is wrong."""
    place = folder / f"{mode}{seed}"
    place.mkdir()
    await Sim(place, seed, mode, plain=plain).run()
    shutil.rmtree(place)


class Clock:
    """Runs on by itself, and jumps when told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        self.now += 1
        return self.now


class Lost(AssertionError):
    """Something that was acknowledged is not where it must be."""


class Sim:
    """One seed. `plain`: the control, with a store that drops conditions."""

    def __init__(self, folder: Path, seed: int, mode: str, *, plain: bool = False) -> None:
        self.folder = folder
        self.draw = random.Random(seed)
        self.seed = seed
        self.mode = mode
        self.count, self.shared, self.level = MODES[mode]
        self.memory = _Haunted(self)
        self.clock = Clock()
        self.asked: dict[str, None] = {}
        self.acked: dict[str, int] = {}
        self.hosts: list[Host] = []
        self.stores: list[FaultyStore] = []  # of the lives under way
        self.ghosts: list[FaultyStore] = []  # of those that ended
        self.pending: dict[asyncio.Task[None], Host] = {}
        self.log: list[str] = []
        self._plain = plain
        self._lives = 0

    async def run(self) -> None:
        """Raises Lost, or whatever else is wrong, with the history as a note."""
        try:
            with _impatient():
                await self._run()
        except BaseException as error:
            error.add_note(f"seed {self.seed} of mode {self.mode}")
            error.add_note("; ".join(self.log))
            raise
        finally:
            self._release_all()
            for task in self.pending:
                task.cancel()
            for host in self.hosts:
                if host._started:
                    await abandon(host)

    async def _run(self) -> None:
        for _ in range(self.count):
            self.hosts.append(await self._life(self.folder / f"disk{len(self.hosts)}"))
        steps = [
            (8, self._write), (2, self._write_twice), (3, self._fault), (2, self._release),
            (1, self._land), (3, self._crash), (1, self._close), (1, self._jump), (1, self._read),
        ]  # fmt: skip
        weights, actions = zip(*steps, strict=True)
        for _ in range(STEPS):
            (action,) = self.draw.choices(actions, weights)
            async with asyncio.timeout(STEP_S):
                await action()
        await self._end()

    # -- lives -------------------------------------------------------------------------------------

    async def _life(self, directory: Path) -> Host:
        self._lives += 1
        store = FaultyStore(self.memory, seed=self.seed * 1000 + self._lives)
        host = host_at(
            directory, store, level=self.level, shared=self.shared, now_ms=self.clock,
            replica=ReplicaSettings(put_interval_ms=0, history_ms=HISTORY_MS, max_stall_ms=500),
        )  # fmt: skip
        await host.start()  # it would notice
        store.faults = Faults(plain_put=self._plain)
        self.stores.append(store)
        return host

    async def _crash(self) -> None:
        at = self.draw.randrange(len(self.hosts))
        host, store = self.hosts[at], self.stores.pop(at)
        survives = self.level == "local" or self.draw.random() < 0.6
        self.log.append(f"crash {at}{'' if survives else ' and lose the disk'}")
        into = self.folder / f"disk{at}-{self._lives}"
        for task in [task for task, asked in self.pending.items() if asked is host]:
            task.cancel()  # no answer leaves it any more
            del self.pending[task]
        await crash(host, into)
        self.ghosts.append(store)
        self._check(into)
        if not survives:
            shutil.rmtree(into)
        self.hosts[at] = await self._life(into)
        self.stores.insert(at, self.stores.pop())

    async def _close(self) -> None:
        """What the sweep does to an idle scope."""
        host = self.draw.choice(self.hosts)
        scope = host.open_scopes.get(A)
        if scope is None or scope.busy or scope.lent:
            return
        self.log.append("close")
        host.close_scope(scope)
        if scope in host.returns:
            await asyncio.wait([host.returns[scope]], timeout=0.05)

    # -- requests ----------------------------------------------------------------------------------

    async def _write(self) -> None:
        at = self.draw.randrange(len(self.hosts))
        event_id = f"e{self.draw.randrange(IDS * self._lives)}"
        unheard = [i for i in self.asked if i not in self.acked]
        if unheard and self.draw.random() < 0.5:
            event_id = self.draw.choice(unheard)  # as a client does that got no answer
        self.asked[event_id] = None
        self.log.append(f"{at}: {event_id}")
        task = asyncio.get_running_loop().create_task(self._put(self.hosts[at], event_id))
        self.pending[task] = self.hosts[at]
        # Mostly its answer comes before the next step, sometimes much later or never.
        if self.draw.random() < 0.7:
            await asyncio.wait([task], timeout=0.05)

    async def _write_twice(self) -> None:
        await self._write()
        await self._write()

    async def _put(self, host: Host, event_id: str) -> None:
        with contextlib.suppress(HoldfastError):
            (outcome,) = await put(host, A, event_id)
            self._heard(event_id, outcome)

    def _heard(self, event_id: str, outcome: Outcome) -> None:
        if not isinstance(outcome, Appended | Duplicate):
            return
        seq = outcome.first if isinstance(outcome, Appended) else outcome.seq
        if self.acked.setdefault(event_id, seq) != seq:
            raise Lost(f"{event_id} was at {self.acked[event_id]}, is at {seq}")
        if self.level == "replicated" and self._in_bucket().get(event_id) != seq:
            raise Lost(f"acknowledged before the bucket had it: {event_id}")

    async def _read(self) -> None:
        """What a reader of a `replicated` scope is shown, the bucket has."""
        with contextlib.suppress(HoldfastError, TimeoutError):
            async with asyncio.timeout(0.05):
                shown = await bodies(self.draw.choice(self.hosts), A)
            if self.level == "replicated" and shown:
                missing = set(shown) - set(self._in_bucket())
                if missing:
                    raise Lost(f"shown, and not in the bucket: {missing}")

    # -- the store ---------------------------------------------------------------------------------

    async def _fault(self) -> None:
        fault = self.draw.choice(FAULTS)
        kind = self.draw.choice(("put", "put", "put", "list", "get"))
        if kind != "put" and fault is Fault.LATE:
            fault = Fault.BEFORE
        at = self.draw.randrange(len(self.stores))
        self.log.append(f"{at}: {kind} {fault}")
        self.stores[at].arm(kind, fault)  # type: ignore[arg-type]

    async def _release(self) -> None:
        self.log.append("release")
        for store in self.stores:
            store.release()

    async def _land(self) -> None:
        """Requests of the dead arrive, in any order, and are not heard of."""
        self.log.append("land")
        for store in self.draw.sample(self.ghosts, len(self.ghosts)):
            store.release()
            store.land()

    async def _jump(self) -> None:
        self.log.append("later")
        self.clock.now += 3 * HISTORY_MS

    def _release_all(self) -> None:
        for store in [*self.ghosts, *self.stores]:
            store._armed.clear()
            store.release()
            store.land()

    # -- what must hold ----------------------------------------------------------------------------

    def _in_bucket(self) -> dict[str, int]:
        try:
            return restored(self.memory, A, self.folder / "restored.db")[1].causes
        except NoBackup:
            return {}

    def _check(self, directory: Path) -> None:
        if not self.acked:
            return
        if self.level == "replicated":
            found = self._in_bucket()
        else:
            copy = self.folder / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(directory, copy)
            found = check_file(ledger_path(copy, *A)).causes
        missing = {i: seq for i, seq in self.acked.items() if found.get(i) != seq}
        if missing:
            raise Lost(f"missing: {missing}")

    async def _end(self) -> None:
        self._release_all()
        async with asyncio.timeout(SETTLED_S):
            if self.pending:
                await asyncio.wait(self.pending)
            for task in self.pending:
                task.result()
            last = self.draw.choice(self.hosts)
            while True:
                with contextlib.suppress(HoldfastError):
                    (outcome,) = await put(last, A, "last", replicated=True)
                    self._heard("last", outcome)
                    if "last" in self.acked:
                        break
                await asyncio.sleep(0.002)
            served = await bodies(last, A)
        found = self._in_bucket()
        assert served == [i for i, _ in sorted(found.items(), key=lambda item: item[1])]
        self._check(last.directory)


class _Haunted(MemoryStore):
    """Requests of the dead may land right before anybody's request."""

    def __init__(self, sim: Sim) -> None:
        super().__init__()
        self._sim = sim
        self._draw = random.Random(sim.seed)
        self._landing = False

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        """Most often after a listing: whoever looked then knows something that is not so."""
        found = super().list(prefix, after=after, limit=limit)
        self._haunt(0.3)
        return found

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """See MemoryStore."""
        self._haunt(0.05)
        super().put(key, body, if_absent=if_absent, timestamp_ms=timestamp_ms)

    def _haunt(self, chance: float) -> None:
        if not self._landing and self._sim.ghosts and self._draw.random() < chance:
            self._landing = True
            for ghost in list(self._sim.ghosts):
                ghost.land()
            self._landing = False


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Pauses of the production code cut short, and snapshots so frequent that retention works."""
    with (
        mock.patch.object(infra.requests, "RETRY_FIRST_MS", 1),
        mock.patch.object(infra.requests, "RETRY_MAX_MS", 4),
        mock.patch.object(infra.replica, "RETRY_FIRST_MS", 1),
        mock.patch.object(infra.replica_files, "SNAPSHOT_FILES", 3),
    ):
        yield
