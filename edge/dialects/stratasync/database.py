"""`app.strata(name)`: the application's own writes, reads and memberships of one database.

These calls are the server's: models' rules and codecs hold, groups are not asked for, before- and
after-hooks do not run. Every call is on disk (at the scope's durability level) when it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actors.dialects.stratasync.models import ACTIONS, MEMBERS
from actors.dialects.stratasync.plan import (
    Action,
    Membership,
    Mutation,
    effective_groups,
    stored_groups,
)
from actors.dialects.stratasync.reads import SelectWork
from actors.reply import FutureReply
from actors.types import Address, Appended, Draft, Duplicate, Rejected
from edge.dialects.stratasync import frames as f
from infra import ids
from infra.errors import HoldfastError

if TYPE_CHECKING:
    from edge.dialects.stratasync.service import StrataService

ROWS_MAX: Final = 10_000
DRAFT_BYTES: Final = 256


class StrataRefused(HoldfastError):
    """The write is refused for good; the message is what a client would be told."""

    code = "refused"


class StrataDatabase:
    """One database. Cheap to make; holds nothing."""

    def __init__(self, service: StrataService, address: Address, name: str) -> None:
        self.name = name
        self._service = service
        self._address = address

    # -- writing ---------------------------------------------------------------------------------

    async def mutate(
        self, action: str, model: str, id: str, payload: Mapping[str, Any] | None = None,
        *, key: str | None = None,
    ) -> str:  # fmt: skip
        """INSERT, UPDATE, DELETE, ARCHIVE or UNARCHIVE one row; the syncId.

        With a `key` a repeat gives the first answer and changes nothing. Raises StrataRefused.
        """
        if action not in ACTIONS:
            raise StrataRefused(f"action: one of {', '.join(ACTIONS)}")
        data = Mutation(action=ACTIONS[action], model=model, id=id, payload=dict(payload or {}))
        return await self._append("mutate", data, key)

    async def publish(
        self, action: str, model: str, id: str, data: Mapping[str, Any],
        *, group: str | None = None, key: str | None = None,
    ) -> str:  # fmt: skip
        """Append a sync action as it stands (a letter of IUDAV) and fold it into the rows.

        No model's rules are applied: `data` is what clients read. Raises StrataRefused.
        """
        wanted = Action(action=action, model=model, id=id, data=dict(data), group=group)
        return await self._append("publish", wanted, key)

    async def _append(self, kind: str, data: Any, key: str | None = None) -> str:
        # No client's cause can look like this: frames.cause_of escapes the tilde.
        draft = Draft(f"~/{key or ids.new_id()}", kind, "", DRAFT_BYTES, data)
        reply = FutureReply()
        self._service.port.append(self._address, [draft], reply, None)
        (outcome,), _ = await reply.future
        match outcome:
            case Appended(last=last):
                return str(last)
            case Duplicate(seq=seq, count=count):
                return str(seq + max(1, count) - 1)
            case Rejected(code=code, message=message, retry_after_ms=after):
                raise StrataRefused(message, code=code, retry_after_ms=after)

    # -- memberships -----------------------------------------------------------------------------

    async def add_member(self, user_id: str, *groups: str) -> str:
        """Have the user see the groups from this syncId on; devices fetch their rows at once."""
        return await self._regroup(user_id, add=groups)

    async def remove_member(self, user_id: str, *groups: str) -> str:
        """End it: from this syncId on no socket of the user gets an action of these groups.

        Groups the resolver gives besides remain the user's.
        """
        return await self._regroup(user_id, remove=groups)

    async def invalidate_groups(self, user_id: str) -> str:
        """What the resolver gives this user has changed: ask it, and act as a membership change."""
        return await self._regroup(user_id)

    async def members_of(self, user_id: str) -> tuple[str, ...]:
        """The user's stored groups."""
        (row,) = await self._service.port.get(self._address, [(MEMBERS, user_id)])
        return tuple(stored_groups(row))

    async def groups_of(self, user_id: str) -> tuple[str, ...]:
        """Every group the user may see: the resolver's, the stored ones, the user's own."""
        resolved = await self._service.declared.auth.groups(user_id, self.name)
        return effective_groups(resolved, await self.members_of(user_id), user_id)

    async def _regroup(
        self, user_id: str, *, add: tuple[str, ...] = (), remove: tuple[str, ...] = ()
    ) -> str:
        resolved = await self._service.declared.auth.groups(user_id, self.name)
        change = Membership(user=user_id, add=add, remove=remove, groups=resolved)
        return await self._append("member", change)

    # -- reading ---------------------------------------------------------------------------------

    async def row(self, model: str, id: str) -> dict[str, Any] | None:
        """One row as stored, or None."""
        (row,) = await self._service.port.get(self._address, [(model, id)])
        return None if row is None or model == MEMBERS else dict(row.value)

    async def rows(
        self, model: str, where: str = "1", params: Mapping[str, Any] | None = None,
        *, limit: int = ROWS_MAX,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Rows as a bootstrap shows them, in cursor order; at most ROWS_MAX.

        `where` is an SQL condition over the model's view: never build it from what clients send,
        use `params`. Raises KeyError for a model that is not declared.
        """
        self._service.declared.registry.models[model]  # or KeyError, wherever the rows are
        work = SelectWork(model, where, dict(params or {}), min(limit, ROWS_MAX))
        spool = await self._service.port.scan(self._address, work)
        if spool is None:
            return []
        spool.close()
        rows: list[dict[str, Any]] = [msgspec.json.decode(line) for line in spool.result]
        for row in rows:
            del row["__class"]
        return rows

    # -- messages beside the log -----------------------------------------------------------------

    def broadcast(self, topic: str, message: Any) -> int:
        """Send a message to every socket in the topic; how many they were in this process.

        Nothing is stored. Raises ProtocolError for more than 1 MiB.
        """
        return self._service.topics.broadcast(self._address, topic, f.text(message))
