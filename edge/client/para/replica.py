"""`create_client_replica`: the value of one key, kept as the server has it; read-only.

The rules are in reconciler.py; here are the transport, the refetches and the end. One refetch runs
at a time: whatever calls for one meanwhile leads to one more after it, so that an answer which was
read before the newest trigger is never the last word.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from actors.dialects.para.envelope import SyncEnvelope
from edge.client.para.cell import Cell, Listener, Signal
from edge.client.para.reconciler import (
    GapPolicy,
    Reconciler,
    RefetchPolicy,
    ReplicaMeta,
    ReplicaStats,
)
from edge.client.para.schema import SyncSchema
from edge.client.para.transport import FollowedTransport, LossyTransport, Source, SyncTransport
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.para")

REFETCH_WAIT_S: Final = 30.0
ROUNDS_MAX: Final = 16  # refetches in a row that answer at once and call for another

Envelope = SyncEnvelope | Mapping[str, Any]
Answer = Envelope | None
Refetch = Callable[[], Awaitable[Answer] | Answer]


class ClientReplica:
    """The replica of one key; made by `create_client_replica`.

    Calls belong to one thread: that of the event loop, where there is one.
    """

    def __init__(
        self, key: str, state: Reconciler, cell: Cell, refetch: Refetch | None, wait_s: float
    ) -> None:
        self.key = key
        self._state = state
        self._cell = cell
        self._ask = refetch
        self._wait_s = wait_s
        self._tasks = TaskOwner()
        self._task: asyncio.Task[None] | None = None
        self._waiting: Awaitable[Answer] | None = None
        self._flying = False
        self._again = False
        self._offs: list[Callable[[], None]] = []
        self.disposed = False

    # -- reading ---------------------------------------------------------------------------------

    def get(self) -> Any:
        """The value, as a tracked read of the cell; None before the first."""
        return self._cell.get()

    def peek(self) -> Any:
        """The value, untracked; None before the first."""
        return self._cell.peek()

    @property
    def initialized(self) -> bool:
        """Whether a value was ever applied."""
        return self._state.initialized

    def meta(self) -> ReplicaMeta:
        """Schema version, sequence and status."""
        return self._state.meta

    def peek_meta(self) -> ReplicaMeta:
        """The same."""
        return self._state.meta

    @property
    def position(self) -> tuple[str | None, int]:
        """(schema version, sequence) of what is applied."""
        return self._state.schema_version, self._state.sequence

    @property
    def stats(self) -> ReplicaStats:
        """The counters, live."""
        return self._state.stats

    @property
    def last_error(self) -> Any:
        """Why the last envelope or refetch was not taken; None where there was no such thing."""
        return self._state.last_error

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have the listener called with each new value; returns what ends that.

        Raises TypeError where the injected cell has no `subscribe`.
        """
        subscribe = getattr(self._cell, "subscribe", None)
        if subscribe is None:
            raise TypeError("the cell of this replica has no subscribe; watch the cell itself")
        off: Callable[[], None] = subscribe(listener)
        return off

    async def when_idle(self) -> None:
        """Return once no refetch is under way."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    # -- taking ----------------------------------------------------------------------------------

    def receive(self, envelope: SyncEnvelope) -> None:
        """What the transport calls."""
        if not self.disposed and self._state.ingest(envelope, "receipt"):
            self._recover()

    def ingest(self, envelope: Envelope, source: Source = "receipt") -> None:
        """Reconcile what came as `source`. Raises what a listener raised, after the commit."""
        if not self.disposed and self._state.ingest(envelope, source):
            self._recover()

    def catch_up(self) -> None:
        """Envelopes may have been missed: refetch, or be `stale` where that is not possible."""
        if not self.disposed and self._state.recover():
            self._recover()

    def dispose(self) -> None:
        """Stop for good; what a refetch under way brings is ignored. Safe to call twice."""
        self.disposed = True
        for off in self._offs:
            off()
        self._offs.clear()
        if self._task is not None:
            self._task.cancel()
            _close_unstarted(self._waiting)

    # -- refetching ------------------------------------------------------------------------------

    def _recover(self) -> None:
        if self._flying:
            self._again = True
            return
        self._flying = True
        for _ in range(ROUNDS_MAX):
            for_skew = self._call()
            if self._waiting is not None:
                self._task = self._tasks.spawn(self._fly(for_skew), name=f"para-refetch {self.key}")
                return  # still flying
            if not self._next():
                break
        else:
            self._failed(f"{ROUNDS_MAX} refetches in a row called for another")
        self._flying = False

    def _next(self) -> bool:
        """Whether one more refetch is called for."""
        again, self._again = self._again and not self.disposed, False
        return again

    def _call(self) -> int | None:
        """Ask once; what is to be awaited is in `_waiting`, an answer given at once was taken."""
        assert self._ask is not None
        self._waiting = None
        for_skew = self._state.refetch_begins()
        try:
            answer = self._ask()
            if isinstance(answer, SyncEnvelope | Mapping | None):
                self._landed(answer, for_skew)
            else:
                self._waiting = answer
                asyncio.get_running_loop()  # RuntimeError where nobody could await it
        except Exception as error:
            _close_unstarted(self._waiting)
            self._waiting = None
            self._failed(error)
        return for_skew

    async def _fly(self, for_skew: int | None) -> None:
        try:
            while True:
                if self._waiting is not None:
                    try:
                        async with asyncio.timeout(self._wait_s):
                            answer = await self._waiting
                    except Exception as error:
                        self._failed(error)
                    else:
                        self._landed(answer, for_skew)
                if not self._next():
                    return
                for_skew = self._call()
        finally:
            self._flying = False

    def _landed(self, answer: Answer, for_skew: int | None) -> None:
        if self.disposed:
            return
        if answer is None:
            self._failed("there is no such object")
            return
        try:
            self._state.ingest(answer, "refetch", for_skew=for_skew)
        except Exception:
            # Of a listener: the commit is complete, and nobody waits here who could take it.
            log.exception("a listener failed key=%s", self.key)

    def _failed(self, error: Any) -> None:
        if self.disposed:
            return
        self._state.refetch_failed(error)
        log.warning("refetch failed key=%s error=%r", self.key, error)


def _close_unstarted(waiting: Awaitable[Answer] | None) -> None:
    """A coroutine that nobody will await is closed, so that nobody is warned of it."""
    if inspect.iscoroutine(waiting) and inspect.getcoroutinestate(waiting) == inspect.CORO_CREATED:
        waiting.close()


def create_client_replica(
    *,
    key: str,
    schema: SyncSchema[Any],
    transport: SyncTransport,
    seed: Envelope | None = None,
    refetch: Refetch | None = None,
    cell: Cell | None = None,
    schema_version: str | None = None,
    gap_policy: GapPolicy = "refetch",
    refetch_policy: RefetchPolicy = "accept",
    refetch_wait_s: float = REFETCH_WAIT_S,
) -> ClientReplica:
    """Subscribe to a key and keep its value.

    `refetch` brings the current envelope (at once or as an awaitable; None: no such object) and is
    called where envelopes were missed or cannot be read; without it such a replica is `stale` until
    the next envelope in order. `schema_version` ("major.minor") refuses envelopes of another major.
    `gap_policy="commit"` takes an envelope across a gap as it is, for it is complete.
    `refetch_policy="monotonic"` ignores an answer older than what is applied.
    """
    held: Cell = Signal() if cell is None else cell
    state = Reconciler(
        schema, held, recovers=refetch is not None, schema_version=schema_version,
        gap_policy=gap_policy, refetch_policy=refetch_policy,
    )  # fmt: skip
    replica = ClientReplica(key, state, held, refetch, refetch_wait_s)
    if isinstance(transport, FollowedTransport):
        replica._offs.append(transport.attach(key, replica))
    else:
        replica._offs.append(transport.subscribe(key, replica.receive))
        if isinstance(transport, LossyTransport):
            replica._offs.append(transport.on_loss(key, replica.catch_up))
    if seed is not None:
        replica.ingest(seed, "hydration")
    return replica
