"""Intents of clients: decided once, by the application's handlers, and answered again as before.

An intent that comes again is answered from the ledger; its handler does not run a second time. A
refusal by the application is kept like a success. What the handler made is written with the
revision it has seen, else it decides again. Everything else that goes wrong stores nothing, so the
client may repeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec import UNSET, UnsetType

from actors.dialects.para.envelope import majors_differ
from actors.dialects.para.keys import check_key
from actors.dialects.para.plan import Change, Op
from actors.dialects.para.values import check_json
from actors.types import Address
from edge.auth import Principal, resolve
from edge.dialects.para.access import View
from edge.dialects.para.authority import ATTEMPTS_MAX, CrossScope, SyncedAuthority
from edge.dialects.para.fields import admit
from edge.dialects.para.frames import TX_INTENTS_MAX, BadFrame
from edge.dialects.para.kinds import Intent, IntentRejected, SchemaSkew, SyncedKind
from edge.dialects.para.objects import Stale, Written, recall, refuse
from infra.errors import Busy, HoldfastError, ScopeError

log = logging.getLogger("holdfast.para")
HANDLER_WAIT_S: Final = 30.0


class Forbidden(ScopeError):
    """The user may not do this."""

    code = "forbidden"


class HandlerFailed(ScopeError):
    """The application's handler raised something else than IntentRejected."""

    code = "internal"


@dataclass(frozen=True, slots=True)
class Wish:
    """One intent as it came: a value or a name. `version` is the schema version that the client
    follows the key with, where it said so.
    """

    key: str
    v: int
    value: Any
    name: str | UnsetType
    input: Any
    base: Any
    version: str | None = None


async def decide(
    authority: SyncedAuthority, user: Principal, client: str, op_id: str, wishes: Sequence[Wish]
) -> dict[str, int]:
    """Carry out one intent, or a group of them: the sequence of each key.

    Raises IntentRejected, Forbidden, CrossScope, Busy and what the parse gate raises; nothing is
    stored then.
    """
    return await _Decision(authority, user, Op(user.id, client, op_id), wishes).run()


class _Decision:
    def __init__(
        self, authority: SyncedAuthority, user: Principal, op: Op, wishes: Sequence[Wish]
    ) -> None:
        self._authority = authority
        self._user = user
        self._op = op
        self._wishes = wishes

    async def run(self) -> dict[str, int]:
        authority, wishes = self._authority, self._wishes
        self._check()
        address = authority.address_of([wish.key for wish in wishes])
        async with authority.locks.hold(address, [wish.key for wish in wishes]):
            views = {wish.key: await self._view(address, wish.key) for wish in wishes}
            known = await recall(authority.port, address, self._op)
            if known is not None:
                return _answered(known)
            for _ in range(ATTEMPTS_MAX):
                try:
                    changes = await self._changes(address, views)
                    return _answered(await authority.write(address, changes, self._op))
                except Stale:
                    continue
                except IntentRejected as error:
                    kept = await refuse(authority.port, address, self._op, error.code, str(error))
                    return _answered(kept)
        raise Busy("others keep writing the object", retry_after_ms=100)

    def _check(self) -> None:
        keys = {check_key(wish.key) for wish in self._wishes}
        if not 0 < len(self._wishes) <= TX_INTENTS_MAX or len(keys) != len(self._wishes):
            raise BadFrame(f"a group has 1 to {TX_INTENTS_MAX} intents with distinct keys")
        for wish in self._wishes:
            if (wish.value is UNSET) == (wish.name is UNSET):
                raise BadFrame("an intent has a value, or a name with an input")
            if wish.value is not UNSET:
                check_json(wish.value)
                kind = self._authority.kinds.of(wish.key)
                if wish.version is not None and majors_differ(kind.version, wish.version):
                    raise SchemaSkew(wish.key, wish.version, kind.version)

    async def _view(self, address: Address, key: str) -> View:
        kind = self._authority.kinds.of(key)
        allowed = await self._authority.doorkeeper.ask(self._user, address.scope, key, "write")
        if allowed is None:
            raise Forbidden("no write access to this key")
        return View(kind, self._user, key, allowed)

    async def _changes(self, address: Address, views: Mapping[str, View]) -> list[Change]:
        held = await self._authority.held(address, list(views))
        changes = []
        for wish in self._wishes:
            rev, current = held[wish.key]
            wanted = await self._decided(wish, views[wish.key], current)
            changes.append(self._authority.change(wish.key, wanted, rev=rev, v=wish.v))
        return changes

    async def _decided(self, wish: Wish, view: View, current: Any) -> Any:
        kind = view.kind
        if wish.name is not UNSET:
            named = kind.named.get(wish.name)
            if named is not None:
                return await self._asked(named, current, wish.input, self._user)
            if kind.handler is None:
                raise IntentRejected("unknown_intent", f"{kind.name!r} has no {wish.name!r}")
            intent = Intent(wish.key, current, name=wish.name, input=wish.input)
            return await self._asked(kind.handler, wish.key, intent, self._user)
        value = self._admitted(kind, view, wish, current)
        if kind.handler is None:
            return value
        intent = Intent(wish.key, current, value=value)
        return await self._asked(kind.handler, wish.key, intent, self._user)

    def _admitted(self, kind: SyncedKind, view: View, wish: Wish, current: Any) -> Any:
        """The client's value under the rules of its fields."""
        if view.allowed.project is not None and kind.handler is None:
            # Nobody can say what the projection has taken away; writing would delete it.
            raise Forbidden("you are shown a part of this object; use named intents")
        value = wish.value
        if current is not None and kind.visible:
            value = kind.visible.keep(value, current, view.hidden(current))
        return admit(kind.authority, value, current, wish.base)

    async def _asked(self, handler: Any, *args: Any) -> Any:
        try:
            async with asyncio.timeout(HANDLER_WAIT_S):
                return await resolve(handler(*args))
        except HoldfastError:
            raise
        except Exception as error:  # user code; no traceback reaches a client
            log.exception("intent handler failed")
            raise HandlerFailed("the intent could not be decided") from error


def _answered(written: Written) -> dict[str, int]:
    if written.answer.code is not None:
        raise IntentRejected(written.answer.code, written.answer.message)
    return written.sequences


__all__ = ["CrossScope", "Forbidden", "HandlerFailed", "Wish", "decide"]
