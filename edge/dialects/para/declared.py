"""What an application says of its para side: kinds, presence, queries, sources, who may. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.dialects.para.keys import kind_of
from edge.client.para.schema import SyncSchema
from edge.client.para.transport import SyncTransport
from edge.dialects.para.access import KeyAuthorize
from edge.dialects.para.kinds import Kinds
from edge.dialects.para.queries import DeclaredQuery
from edge.dialects.para.sources import Source
from edge.dialects.para.spaces import ScopeOf


@dataclass(slots=True)
class ParaDeclared:
    """Collected by `Application.synced` and its sisters."""

    kinds: Kinds = field(default_factory=Kinds)
    presence: dict[str, SyncSchema[Any]] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    query: DeclaredQuery | None = None
    authorize: KeyAuthorize | None = None
    scope_of: ScopeOf | None = None
    transport: SyncTransport | None = None
    root: str | None = None
    configured: bool = False  # by `Application.objectfeed`

    def presence_schema(self, channel: str) -> SyncSchema[Any] | None:
        """The schema of the channel's kind."""
        return self.presence.get(channel) or self.presence.get(kind_of(channel))
