"""`follow_scope`: keep an `EntityStore` equal to a scope, whatever happens on the way.

Replays from the store's cursor where the server still has it, else reads the scope's view, seeds
the store and goes on from there. A broken entity, too, is mended by a new view, while the stream
goes on; repeated mending slows down, so that a lasting disagreement cannot become a storm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from edge.client.client import Subscription, SyncClient
from edge.client.cursors import Cursor, Outcome
from edge.client.effects import SnapshotInfo, SyncError
from edge.client.store import EntityStore
from edge.client.subscriptions import reconnect_delay
from edge.client.views import ScopeView
from infra import ids


async def follow_scope(
    client: SyncClient,
    scope: str,
    store: EntityStore,
    *,
    on_error: Callable[[Exception], object] | None = None,
) -> Subscription:
    """Return once the store has caught up; call the result to stop following.

    Raises SyncError where the server refuses the scope before that; later refusals, and what
    listeners of the store raise, go to `on_error`.
    """
    follower = _Follower(client, scope, store, on_error)
    try:
        await follower.caught_up
    except BaseException:
        follower.subscription()
        raise
    return follower.subscription


class _Follower:
    def __init__(
        self,
        client: SyncClient,
        scope: str,
        store: EntityStore,
        on_error: Callable[[Exception], object] | None,
    ) -> None:
        self._client = client
        self._store = store
        self._scope = scope
        self._on_error = on_error
        self._mending = False
        self._mended = 0
        self.caught_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        cursor = store.cursors.cursor(scope) or Cursor(0)
        self.subscription = client.subscribe(
            scope,
            self._take,
            since=cursor.seq,
            epoch=cursor.epoch,
            on_snapshot_required=self._bootstrap,
            on_error=self._failed,
            on_caught_up=self._live,
        )

    def _take(self, envelope: Mapping[str, Any]) -> Outcome:
        try:
            return self._store.ingest(envelope)
        finally:  # a listener that raises must not hide a broken entity
            if self._store.broken(self._scope) and not self._mending:
                self._mending = True
                self.subscription.resync(SnapshotInfo("broken"))

    async def _bootstrap(self, scope: str, info: SnapshotInfo) -> Cursor:
        if info.reason in ("broken", "gap"):
            if self._mended:
                await asyncio.sleep(reconnect_delay(self._mended, ids.random()))
            self._mended += 1
        view = await self._view(scope)
        self._mending = False
        self._store.seed(scope, view.entities, seq=view.seq, epoch=view.epoch)
        return Cursor(view.seq, view.epoch)

    async def _view(self, scope: str) -> ScopeView:
        """The view, however long the server is away; only a lasting refusal is raised."""
        attempt = 0
        while True:
            try:
                return await self._client.fetch_view(scope)
            except SyncError as error:
                if not error.retryable:
                    raise
            await asyncio.sleep(reconnect_delay(attempt, ids.random()))
            attempt += 1

    def _live(self, seq: int) -> None:
        if not self.caught_up.done():
            self.caught_up.set_result(None)

    def _failed(self, error: Exception) -> None:
        over = isinstance(error, SyncError)
        if over and not self.caught_up.done():
            self.caught_up.set_exception(error)
        elif self._on_error is not None:
            self._on_error(error)
