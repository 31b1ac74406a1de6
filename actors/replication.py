"""The bucket of one host: what it is, who restores from it, what may leave the disk.

Always true: a scope whose state might be in the bucket is never taken for new; a restore that fails
leaves the scope unavailable, never empty; a local file is deleted only where the bucket provably
has what it holds, else it is moved aside.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from actors.gate import REPLICATED
from actors.index import Index, ReplicaRecord
from actors.ledger import Ledger
from actors.supersede import is_prefix, peek
from actors.types import Address
from actors.write import Write
from infra import ids
from infra.deployment import Decision, claim_marker, decide_deployment, read_marker
from infra.errors import ConfigError
from infra.layout import NoBackup, scope_prefix
from infra.locate import Local, locate
from infra.meter import Meter
from infra.objects import (
    ObjectStore,
    StoreUnavailable,
    open_store,
    probe_conditional_writes,
    store_prefix,
)
from infra.pages import write_claim
from infra.replica import Replica
from infra.replica_files import Files, from_listing
from infra.replicator import ReplicaSettings, Service
from infra.restore import Restored, restore_to
from infra.stores.metered import MeteredStore

log = logging.getLogger("holdfast.replication")

DEPLOYMENT_FILE = "deployment.json"
DEPLOYMENT_LOCK = "deployment.lock"
RESTORE_JUMP = 2**32  # I6: no number that a cut history has shown is used again
LIVES_KEPT = 1024  # of all processes of the directory
KNOWN_ABSENT_MAX = 10_000  # names of scopes that are not in the bucket, remembered


class BucketSettings(msgspec.Struct, frozen=True):
    """`shared`: several hosts may own the same scopes. `evict_s` 0 keeps files on this host.

    `adopt`: an empty prefix is meant, though this directory was replicated before.
    """

    url: str
    replica: ReplicaSettings = ReplicaSettings()
    shared: bool = False
    evict_s: float = 0.0
    adopt: bool = False


class _Deployment(msgspec.Struct):
    """What the data directory remembers. `complete`: every scope below the prefix is in its index,
    because the two began together. `lives`: the nonces of the last processes that ran on it.
    """

    deployment: str
    bucket: str
    complete: bool
    lives: list[int] = []


class Fetched(NamedTuple):
    """A ledger file that was matched with the bucket.

    `whole`: it has more than the bucket. `moved`: it was restored under a new epoch, because it may
    lack what was released. `foreign`: it was restored from a writer who may have gone on since.
    `claims`: the batches behind its last commit, by owners who wrote nothing.
    """

    files: Files
    owner: int = 0
    whole: bool = False
    moved: bool = False
    foreign: bool = False
    claims: Sequence[int] = ()


class Replication:
    """One for each host. Methods that block say so; they are for threads."""

    def __init__(
        self,
        directory: Path,
        settings: BucketSettings,
        index: Index,
        now_ms: Callable[[], int],
        *,
        nonce: int,
        store: ObjectStore | None = None,
    ) -> None:
        self.settings = settings
        self.prefix = store_prefix(settings.url)
        self.nonce = nonce
        self.complete = False
        self.restores = 0
        self._directory = directory
        self._index = index
        self._now_ms = now_ms
        self._absent: dict[Address, None] = {}
        self._lives: frozenset[int] = frozenset()
        self._meter = Meter()
        self._store = MeteredStore(store or open_store(settings.url), self._meter)
        self._service: Service | None = None

    # -- start and stop ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Probe the bucket and match it with the directory. Blocks.

        Raises ConfigError where the two do not belong together and StorageError where the bucket
        cannot be used; a bucket that was in order once may be out of reach.
        """
        # Processes that share the directory read and write the file one after the other.
        with (self._directory / DEPLOYMENT_LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._match()

    def _match(self) -> None:
        path = self._directory / DEPLOYMENT_FILE
        known = _read_deployment(path)
        lives = [*(known.lives if known is not None else []), self.nonce][-LIVES_KEPT:]
        self._lives = frozenset(lives)
        # Only the index knew which scopes are in the bucket alone.
        sure = known is not None and known.complete and not self._index.new
        has_scopes = next(self._directory.glob("*/??/*.db"), None) is not None
        try:
            there = read_marker(self._store, self.prefix)
            if known is None and has_scopes and there is not None:
                raise ConfigError(
                    f"{self.settings.url}: the prefix belongs to deployment {there}, and this data"
                    " directory has scopes of its own that were never replicated; choose another"
                    " prefix, or another data_dir to take that deployment over"
                )
            local_id = None if known is None else known.deployment
            decision = decide_deployment(local_id, there, adopt=self.settings.adopt)
            if decision is not Decision.KEEP or (known and known.bucket != self.settings.url):
                probe_conditional_writes(self._store, self.prefix)
        except StoreUnavailable as error:
            if known is None or known.bucket != self.settings.url:
                raise
            log.warning("the bucket is out of reach; going on from this disk error=%s", error)
            self.complete = sure and not self.settings.shared
            _write_deployment(path, _Deployment(known.deployment, known.bucket, sure, lives))
            return
        if decision in (Decision.CREATE, Decision.CLAIM):
            mine = local_id or ids.new_id()
            winner = claim_marker(self._store, self.prefix, mine)
            complete = winner == mine and (known is None or sure)
        else:
            assert there is not None
            winner, complete = there, sure
        if decision is not Decision.KEEP or (known and known.bucket != self.settings.url):
            self._index.forget_replicas()
        self.complete = complete and not self.settings.shared
        _write_deployment(path, _Deployment(winner, self.settings.url, complete, lives))

    def begin(self) -> None:
        """On the loop, once the bucket is known to be good."""
        self._service = Service(
            self._store, self._meter, self.settings.replica, nonce=self.nonce,
            spool=self._directory, now_ms=self._now_ms,
        )  # fmt: skip

    async def aclose(self) -> None:
        if self._service is not None:
            await self._service.aclose()

    @property
    def service(self) -> Service:
        assert self._service is not None, "not begun"
        return self._service

    @property
    def meter(self) -> Meter:
        return self._meter

    # -- opening -----------------------------------------------------------------------------------

    def must_fetch(self, address: Address, path: Path) -> bool:
        """Whether the bucket must be asked before anybody may say what this scope holds."""
        if self.settings.shared:
            return True
        if path.exists() and path.stat().st_size > 0:
            return False
        if address in self._absent:
            return False
        return not self.complete or self._index.is_evicted(address)

    def fetching(self, address: Address, path: Path) -> Callable[[], Fetched | None]:
        """What restores it, for a thread: the index, whose handle is the loop's, is asked here."""
        record, evicted = self._index.replica_of(address), self._index.is_evicted(address)
        return lambda: self._fetch(address, path, record, evicted=evicted)

    def _fetch(
        self, address: Address, path: Path, record: ReplicaRecord | None, *, evicted: bool
    ) -> Fetched | None:
        """Restore the scope's file from the bucket; None where the bucket has none. Blocks.

        Raises StorageError, and then there is no file.
        """
        prefix = self.prefix_of(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.with_name(path.name + ".fetched")
        try:
            restored = restore_to(self._store, prefix, target, pool=self.service.pool)
        except NoBackup as error:
            if evicted:
                raise NoBackup(
                    f"{prefix}: this scope left the disk for the bucket, which has no file of it"
                    " now: bring its files back, or restore it from a copy"
                ) from error
            return None
        self.restores += 1
        fetched = self._fetched(address, restored, target, record)
        for suffix in ("-wal", "-shm"):  # of a file that is gone; SQLite would play it back
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        target.replace(path)
        _sync_directories(path, self._directory)
        return fetched

    def _fetched(
        self, address: Address, restored: Restored, target: Path, record: ReplicaRecord | None
    ) -> Fetched:
        files = from_listing(restored.listed)
        nonce = restored.salt1 << 32 | restored.salt2
        same = record is not None and (record.files.head, record.nonce) == (restored.txid, nonce)
        header = peek(target, address)
        moved = header.level != REPLICATED and not same
        if moved:
            self._move_epoch(address, target, restored)
        return Fetched(
            files, restored.node_id, whole=moved, moved=moved, foreign=nonce not in self._lives,
            claims=range(header.txid + 1, restored.txid + 1),
        )  # fmt: skip

    def _move_epoch(self, address: Address, target: Path, restored: Restored) -> None:
        """Before the file is in its place, so that no crash leaves it there under the old epoch.

        Shown once the bucket has it, whatever the level: no other restore may use its numbers.
        """
        ledger = Ledger.open(target, address, nonce=self.nonce)
        try:
            ledger.follows(restored.node_id)
            ledger.txid, ledger.level = restored.txid + 1, REPLICATED
            at = self._now_ms()
            ledger.commit(Write(at, first_txid=ledger.txid))
            ledger.move_epoch(ids.new_id(), jump=RESTORE_JUMP, at=at)
        finally:
            ledger.close()
        with target.open("rb") as file:
            os.fsync(file.fileno())

    def compare(self, address: Address, path: Path) -> Fetched:
        """Match the local file with the bucket. Raises Fenced where the bucket's history is not
        this file's, or has gone on without it. Blocks.
        """
        ledger = Ledger.open(path, address)
        local = self._local(ledger)
        ledger.close()
        found = locate(self._store, self.prefix_of(address), local)
        return Fetched(found.files, whole=found.whole)

    def not_there(self, address: Address) -> None:
        """The bucket has nothing of this scope."""
        if self.settings.shared:
            return  # another host may create it any moment
        if len(self._absent) >= KNOWN_ABSENT_MAX:
            self._absent.clear()
        self._absent[address] = None

    def replica_for(self, ledger: Ledger, address: Address, fetched: Fetched | None) -> Replica:
        """The replica of a ledger that was just opened, before its first commit."""
        local, prefix = self._local(ledger), self.prefix_of(address)
        if fetched is None:
            files = self._known_files(address, ledger)
            return Replica(self.service, prefix, local, files, whole=False)
        claim = None
        if not fetched.moved:
            ledger.follows(fetched.owner, fetched.claims)
        if self.settings.shared and not fetched.whole:
            tracker = ledger.follow(0)
            assert tracker is not None, "a scope with a replica has a tracked ledger"
            claim = write_claim(
                tracker, txid=fetched.files.head + 1, owner=ledger.owner, nonce=self.nonce,
                now_ms=self._now_ms(),
            )  # fmt: skip
        return Replica(
            self.service, prefix, local, fetched.files, whole=fetched.whole, claim=claim,
            foreign=fetched.foreign,
        )  # fmt: skip

    def _local(self, ledger: Ledger) -> Local:
        owners = [(owner.txid, owner.nonce) for owner in ledger.owners()]
        return Local(ledger.header.txid, ledger.header.nonce, owners, self._lives)

    def _known_files(self, address: Address, ledger: Ledger) -> Files | None:
        """What the bucket holds, where that is known without asking."""
        record = self._index.replica_of(address)
        if record is not None and ledger.header.txid <= record.files.head:
            return record.files
        if ledger.header.txid == 0 and (self.complete or address in self._absent):
            return Files()  # never shipped, and nobody else could have
        return None

    # -- leaving -----------------------------------------------------------------------------------

    def record(self, replica: Replica, ledger: Ledger) -> ReplicaRecord | None:
        """What to remember of a scope that is being closed; None where the bucket lacks something
        or might.
        """
        if not replica.clean or replica.files is None:
            return None
        return ReplicaRecord(replica.files, ledger.header.nonce)

    def prefix_of(self, address: Address) -> str:
        return scope_prefix(self.prefix, *address)

    def set_aside(self, path: Path) -> Path | None:
        """Move a file that is not of the bucket's history out of the way. Blocks."""
        if not path.exists():
            return None
        aside = path.with_name(f"{path.name}.aside-{self._now_ms()}")
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                beside.replace(aside.with_name(aside.name + suffix))
        return aside

    def drop_if_covered(self, aside: Path, path: Path) -> None:
        """Delete what was set aside where the restored file continues it; else say that it is
        kept. Blocks.
        """
        if path.exists() and is_prefix(aside, path):
            for suffix in ("", "-wal", "-shm"):
                aside.with_name(aside.name + suffix).unlink(missing_ok=True)
            return
        log.warning("kept: it holds what the bucket does not file=%s", aside.name)


def _read_deployment(path: Path) -> _Deployment | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Deployment)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _write_deployment(path: Path, deployment: _Deployment) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(deployment))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _sync_directories(path: Path, root: Path) -> None:
    for directory in path.parents:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if directory == root:
            return
