"""An object store with faults, seeded: what a network and a busy server do to requests.

Each request meets at most one fault. Which one depends only on the seed, the kind of request, its
key, and how often that key was asked for in that way, so threads change nothing. `arm` forces the
next fault of a kind; `counts` tells what happened.

`plain_put` is not a fault of a request but of a store: conditions are dropped, as by a server that
does not know them. It is the control: with it, a test of fencing must lose something.
"""

from __future__ import annotations

import io
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, Literal, TypeVar

from infra.errors import StorageError
from infra.objects import LIST_KEYS_MAX, Listing, ObjectStore, StoreUnavailable, check_put

Kind = Literal["put", "get", "open", "list", "delete"]
WRITES: tuple[Kind, ...] = ("put", "delete")
STALL_S_MAX = 60.0  # a stall that nobody ends
T = TypeVar("T")


class Fault(StrEnum):
    """What may become of a request."""

    NONE = "none"
    BEFORE = "before"  # never reaches the store: StoreUnavailable
    LOST_REPLY = "lost_reply"  # applied, and StoreUnavailable all the same
    LATE = "late"  # StoreUnavailable now, applied after some more requests; writes only
    STALL = "stall"  # waits for `release`, then goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often each fault strikes, from 0 to 1, and what every request costs."""

    before: float = 0.0
    lost_reply: float = 0.0
    late: float = 0.0
    stall: float = 0.0
    late_requests_max: int = 20  # a late write lands within so many further requests
    stall_s: float = STALL_S_MAX  # a stall nobody ends goes on by itself after this
    latency_ms: float = 0.0
    plain_put: bool = False


class FaultyStore:
    """Wraps a store; fits infra.objects.ObjectStore. Without faults it changes nothing."""

    def __init__(self, store: ObjectStore, faults: Faults | None = None, *, seed: int = 0) -> None:
        self.faults = faults or Faults()
        self.seed = seed
        self.counts: Counter[str] = Counter()  # "put", and "put.lost_reply" for each fault
        self._store = store
        self._armed: dict[Kind, deque[Fault]] = {}
        self._asked: Counter[tuple[Kind, str]] = Counter()
        self._late: list[tuple[int, Callable[[], object]]] = []  # (request after which, what)
        self._requests = 0
        self._changed = threading.Condition()
        self._released = 0
        self._stalls = 0
        self.stalled = 0

    @property
    def url(self) -> str:
        return self._store.url

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        check_put(key, body, if_absent=if_absent)
        data = body if isinstance(body, bytes) else body.read()
        condition = if_absent and not self.faults.plain_put

        def apply() -> None:
            whole = data if isinstance(body, bytes) else io.BytesIO(data)
            self._store.put(key, whole, if_absent=condition, timestamp_ms=timestamp_ms)

        self._request("put", key, apply)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        return self._request("get", key, lambda: self._store.get(key, start=start, end=end))

    def open(self, key: str) -> BinaryIO:
        return self._request("open", key, lambda: self._store.open(key))

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        return self._request(
            "list", prefix, lambda: self._store.list(prefix, after=after, limit=limit)
        )

    def delete(self, keys: Sequence[str]) -> None:
        wanted = list(keys)
        self._request("delete", wanted[0] if wanted else "", lambda: self._store.delete(wanted))

    def close(self) -> None:
        self.release()
        self.land()
        self._store.close()

    def arm(self, kind: Kind, *faults: Fault) -> None:
        """The next requests of this kind meet these faults, before any that chance picks."""
        with self._changed:
            self._armed.setdefault(kind, deque()).extend(faults)

    def land(self) -> int:
        """Apply all late writes now, in the order they were made; how many there were."""
        return self._land(None)

    def release(self) -> None:
        """Let every request that is stalled now go on."""
        with self._changed:
            self._released = self._stalls
            self._changed.notify_all()

    def wait_stalled(self, count: int = 1, *, timeout_s: float = 30.0) -> None:
        """Wait until so many requests are stalled at once. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.stalled >= count, timeout_s):
                raise TimeoutError(f"{self.stalled} requests are stalled, not {count}")

    def _request(self, kind: Kind, key: str, apply: Callable[[], T]) -> T:
        fault, draw = self._begin(kind, key)
        self._land(self._requests)
        if self.faults.latency_ms:
            time.sleep(self.faults.latency_ms / 1000)
        lost = StoreUnavailable(f"{self.url}: {kind} {key}: {fault} (seed {self.seed})")
        match fault:
            case Fault.BEFORE:
                raise lost
            case Fault.LATE:
                self._postpone(apply, draw.randint(1, self.faults.late_requests_max))
                raise lost
            case Fault.LOST_REPLY:
                with suppress(StorageError):  # a refusal is a reply too
                    apply()
                raise lost
            case Fault.STALL:
                self._stall()
        return apply()

    def _begin(self, kind: Kind, key: str) -> tuple[Fault, random.Random]:
        with self._changed:
            self._requests += 1
            self._asked[kind, key] += 1
            # Seeded with bytes, which Python hashes alike in every process.
            name = f"{self.seed}/{kind}/{key}/{self._asked[kind, key]}"
            draw = random.Random(name.encode("utf-8", "surrogatepass"))
            armed = self._armed.get(kind)
            fault = armed.popleft() if armed else self._pick(kind, draw.random())
            self.counts[kind] += 1
            if fault is not Fault.NONE:
                self.counts[f"{kind}.{fault}"] += 1
            return fault, draw

    def _pick(self, kind: Kind, chance: float) -> Fault:
        for fault, share in (
            (Fault.BEFORE, self.faults.before),
            (Fault.LOST_REPLY, self.faults.lost_reply),
            (Fault.LATE, self.faults.late if kind in WRITES else 0.0),
            (Fault.STALL, self.faults.stall),
        ):
            chance -= share
            if chance < 0:
                return fault
        return Fault.NONE

    def _postpone(self, apply: Callable[[], object], requests: int) -> None:
        with self._changed:
            self._late.append((self._requests + requests, apply))

    def _land(self, by: int | None) -> int:
        with self._changed:
            due = [apply for at, apply in self._late if by is None or at <= by]
            self._late = [item for item in self._late if not (by is None or item[0] <= by)]
        for apply in due:
            try:
                apply()
                self.counts["landed"] += 1
            except StorageError:
                self.counts["landed.refused"] += 1  # its answer goes nowhere
        return len(due)

    def _stall(self) -> None:
        with self._changed:
            self._stalls += 1
            mine = self._stalls
            self.stalled += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._released >= mine, self.faults.stall_s)
            self.stalled -= 1
