"""One key that one connection follows: what it was sent last, and how it gets the rest.

Always true: the client has been sent exactly the changes up to `sent`, coalesced or not, ascending;
LIVE subscriptions have nothing left to read. `latest` is the newest change that was handed here,
so a row that was read before it is read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.plan import stored_of
from edge.dialects.para import frames as f
from edge.dialects.para.access import View
from edge.dialects.para.feed import Change, ParaFeed
from edge.dialects.para.kinds import SchemaSkew
from edge.dialects.para.objects import envelope_of, read_rows, upcast

if TYPE_CHECKING:
    from edge.dialects.para.connection import ParaConnection


class KeySubscription:
    """Fits edge.dialects.para.feed.KeyFollower."""

    __slots__ = (
        "connection", "ended", "epoch", "feed", "key", "latest", "live", "sent", "version", "view",
    )  # fmt: skip

    def __init__(
        self, connection: ParaConnection, feed: ParaFeed, view: View, asked: f.Sub
    ) -> None:
        self.connection = connection
        self.feed = feed
        self.view = view
        self.key = view.key
        self.sent = asked.sequence
        self.epoch: str | None = None
        self.version = asked.schema_version
        self.latest = -1
        self.live = False
        self.ended = False
        feed.follow(self.key, self)

    # -- live (edge.dialects.para.feed.KeyFollower) ------------------------------------------------

    def changed(self, change: Change) -> None:
        self.latest = change.envelope.sequence
        if not self.live:
            return
        if self.connection.sink.congested:
            self.live = False
            self.connection.read_later(self)
            return
        self._push(change)

    def stale(self) -> None:
        self.latest = -1
        self.live = False
        self.connection.read_later(self)

    def _push(self, change: Change) -> None:
        connection, view = self.connection, self.view
        envelope = self._current(change.envelope)
        mark = self._mark(change)
        built: object = None
        if mark is None and view.allowed.project is None:
            hidden = () if view.whole or envelope.deleted else view.hidden(envelope.value)
            built = (connection.codec.binary, hidden)
            if (frames := change.frames.get(built)) is not None:
                self.sent = envelope.sequence
                connection.sink.send_shared(frames)
                return
        shown = view.show(envelope)
        if shown is None:
            connection.end_key(self.key, "forbidden", "the object cannot be shown to you")
            return
        baseline = envelope.sequence != self.sent + 1
        self.sent = envelope.sequence
        frame = f.envelope(self.key, shown, baseline=baseline, op=mark)
        if built is None or baseline:
            connection.send(frame)
        else:
            frames = change.frames[built] = connection.shared(frame)
            connection.sink.send_shared(frames)

    def _mark(self, change: Change) -> f.Mark | None:
        """Which of its own intents this is, where the client is the author."""
        if change.entry.origin not in self.connection.origins:
            return None
        stored = stored_of(change.entry)
        return None if stored.opId is None else (stored.opId, stored.v)

    def _current(self, envelope: SyncEnvelope) -> SyncEnvelope:
        try:
            return upcast(self.view.kind, self.key, envelope)
        except SchemaSkew:
            return envelope  # with its own version: the client's gate decides

    # -- reading the row ---------------------------------------------------------------------------

    async def read(self, known_epoch: str | None = None) -> None:
        """Send what is stored, where the client does not have it, and go on live.

        `known_epoch` is the client's, at its first read. Raises HoldfastError.
        """
        connection = self.connection
        held = await read_rows(connection.service.port, self.feed.address, [self.key])
        if self.ended:
            return
        envelope = envelope_of(held.rows[0], held.bounds.jump)
        if envelope is None:
            envelope = SyncEnvelope(None, self.view.kind.version, 0, deleted=True)
        envelope, epoch = self._current(envelope), held.bounds.epoch
        shown = self.view.show(envelope)
        if shown is None:
            connection.end_key(self.key, "forbidden", "the object cannot be shown to you")
            return
        first = self.epoch is None
        known = (known_epoch if first else self.epoch) or None  # "": it was never written then
        if self.epoch != epoch:
            self.epoch = epoch
            connection.send(
                f.subscribed(self.key, epoch, envelope.sequence, envelope.schema_version)
            )
        moved = known is not None and known != epoch
        if self._lacks(envelope.sequence, moved):
            baseline = first or moved or envelope.sequence != self.sent + 1
            connection.send(f.envelope(self.key, shown, baseline=baseline))
        self.sent = envelope.sequence
        if self.latest > self.sent:
            connection.read_later(self)
        else:
            self.live = True

    def _lacks(self, sequence: int, moved: bool) -> bool:
        """Whether what is stored is not what the client has. 0 and -1 are both nothing."""
        if sequence <= 0 and self.sent <= 0:
            return False
        return moved or sequence != self.sent

    def end(self) -> None:
        """No more frames of this one."""
        self.ended = True
        self.live = False
        self.feed.forget(self.key, self)
