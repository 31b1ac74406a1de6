"""`synced`: one object of an objectfeed, with the client's own open changes shown at once.

Two cells: what the server says, kept by a replica, and what is shown. They differ while intents of
this client are open. When the last of them is answered, the shown one is the server's again,
whatever was accepted or refused in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edge.client.para.cell import Listener, Signal
from edge.client.para.feed_client import ObjectFeedClient, Ticket
from edge.client.para.reconciler import ReplicaMeta
from edge.client.para.replica import ClientReplica, Envelope, create_client_replica
from edge.client.para.schema import SyncSchema

SERVER = "server"


class _Truth(Signal):
    """The replica's cell: tells of every commit, of an equal value too."""

    def __init__(self, committed: Callable[[Any], None]) -> None:
        super().__init__()
        self._committed = committed

    def set(self, value: Any) -> None:
        super().set(value)
        self._committed(value)


class SyncedObject:
    """Made by `synced`. `dispose` it once."""

    def __init__(
        self, key: str, schema: SyncSchema[Any], client: ObjectFeedClient, seed: Envelope | None,
        schema_version: str | None, authority: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        self.key = key
        self._client = client
        self._authority = authority or {}
        self._schema = schema
        self._shown = Signal()
        self._truth = _Truth(self._committed)
        self._state = client.followed(key)
        self._state.drained[self._drained] = None
        self.replica: ClientReplica = create_client_replica(
            key=key, schema=schema, transport=client, seed=seed,
            refetch=lambda: client.refetch(key), cell=self._truth, schema_version=schema_version,
        )  # fmt: skip
        known, value = client.pending_value(key)
        if known:
            self._show(value)

    # -- reading -----------------------------------------------------------------------------------

    def get(self) -> Any:
        """What is to be shown; None before the first value, and where there is no object."""
        return self._shown.get()

    peek = get

    @property
    def confirmed(self) -> Any:
        """What the server says."""
        return self._truth.peek()

    @property
    def pending(self) -> bool:
        """Whether changes of this client are open."""
        return bool(self._state.pending)

    def meta(self) -> ReplicaMeta:
        """Schema version, sequence and status of what the server says."""
        return self.replica.meta()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have the listener called with each new value that is to be shown."""
        return self._shown.subscribe(listener)

    async def when_idle(self) -> None:
        """Return once no refetch is under way."""
        await self.replica.when_idle()

    # -- changing ----------------------------------------------------------------------------------

    def set(self, value: Any) -> Ticket:
        """Show the value at once and ask the server for it. `server` fields stay as they are."""
        wanted = msgspec.to_builtins(value)
        base = msgspec.to_builtins(self.confirmed)
        if isinstance(wanted, dict):
            wanted = self._undone(wanted, base if isinstance(base, dict) else {})
        merged = {
            name: base.get(name)
            for name, rule in self._authority.items()
            if callable(rule) and isinstance(base, dict)
        }
        ticket = self._client.intent(self.key, value=wanted, base=merged or None)
        self._show(wanted)
        return ticket

    def intent(
        self, name: str, input: Any = None, *, optimistic: Callable[[Any], Any] | None = None
    ) -> Ticket:
        """Ask for a named change; `optimistic(value)` is shown meanwhile."""
        shown = None if optimistic is None else optimistic(self.get())
        ticket = self._client.intent(self.key, name=name, input=input)
        if optimistic is not None:
            self._shown.set(shown)
        return ticket

    def show(self, value: Any) -> None:
        """Show a value until the open intents are answered: for the arms of a `tx`."""
        if self.pending:
            self._show(value)

    def dispose(self) -> None:
        """Stop for good. Safe to call twice."""
        self._state.drained.pop(self._drained, None)
        self.replica.dispose()

    # -- inside ------------------------------------------------------------------------------------

    def _show(self, value: Any) -> None:
        """A value of the wire, as the schema has it; one it does not take is the server's to say no
        to.
        """
        try:
            parsed = self._schema.parse(value)
        except Exception:  # a schema that fails has not said Ok
            return
        if parsed.tag == "Ok":
            self._shown.set(parsed.value)

    def _undone(self, wanted: dict[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
        made = dict(wanted)
        for name, rule in self._authority.items():
            if rule == SERVER:
                made.pop(name, None)
                if name in base:
                    made[name] = base[name]
        return made

    def _committed(self, value: Any) -> None:
        if self._state.verdict != "suppress":
            self._shown.set(value)

    def _drained(self) -> None:
        self._shown.set(self._truth.peek())


def synced(
    key: str, schema: SyncSchema[Any], client: ObjectFeedClient, *, seed: Envelope | None = None,
    schema_version: str | None = None, authority: Mapping[str, Any] | None = None,
) -> SyncedObject:  # fmt: skip
    """The object of a key: a replica with refetch, and this client's changes shown at once.

    `seed` is an envelope the page came with. `schema_version` refuses other majors. `authority`
    names the fields that are the server's or merged, as the server declares them.
    """
    return SyncedObject(key, schema, client, seed, schema_version, authority)
