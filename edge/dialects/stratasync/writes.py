"""Writing: a client's transactions one after the other, with the application's hooks around them.

Transactions without a before-hook go to the writer together and cost one commit. One with a hook is
prepared here on the row as it is, shown to the hook, and appended with the row's revision: where
that has changed meanwhile, it is done again. Whatever is refused for good is that transaction's own
answer; what may pass (busy, disk) fails the request as a whole, and repeating it is safe.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from actors.dialects.stratasync.models import (
    MEMBERS,
    Actor,
    BeforeDelete,
    BeforeWrite,
    Change,
    Registry,
    Standard,
)  # fmt: skip
from actors.dialects.stratasync.plan import (
    Mutation,
    Prepared,
    effective_groups,
    prepare,
    stored_groups,
)
from actors.port import StatePort
from actors.reply import FutureReply
from actors.rows import Key, Row
from actors.types import Address, Appended, Draft, Duplicate, Outcome, Refusal, Rejected
from edge.auth import resolve
from edge.dialects.stratasync.auth import User
from edge.dialects.stratasync.frames import cause_of
from edge.dialects.stratasync.requests import Transaction
from infra import clock
from infra.errors import Busy, HoldfastError, Unavailable

log = logging.getLogger("holdfast.stratasync")

HOOK_TRIES_MAX: Final = 8
HOOK_WAIT_S: Final = 30.0
FINAL: Final = frozenset({"refused", "bad_value", "too_large"})
PROBE: Final = "probe"
INTERNAL: Final = "Internal error; the transaction was not written"


class Result(msgspec.Struct):
    """The answer to one transaction."""

    client_tx_id: str
    sync_id: int | None = None  # None: refused, for the reason in `error`
    error: str | None = None
    warnings: list[str] = []

    def body(self) -> dict[str, Any]:
        """As JSON, in the words of the wire."""
        if self.sync_id is None:
            return {"clientTxId": self.client_tx_id, "error": self.error, "success": False}
        found = {"clientTxId": self.client_tx_id, "success": True, "syncId": str(self.sync_id)}
        return {**found, "warnings": self.warnings} if self.warnings else found


class _Work(msgspec.Struct):
    """A transaction on its way."""

    asked: Transaction
    mutation: Mutation
    result: Result
    size: int  # about, in bytes
    written: dict[str, Any] = {}  # id and data as stored, where an after-hook is to see them

    def draft(self, kind: str) -> Draft:
        asked = self.asked
        cause = cause_of(asked.client_id, asked.client_tx_id)
        return Draft(cause, kind, "", self.size, self.mutation, asked.client_id)


class Writer:
    """One request's writes, for one user of one database."""

    def __init__(
        self, port: StatePort, registry: Registry, address: Address, user: User,
        resolved: tuple[str, ...], *, body_bytes: int = 0,
    ) -> None:  # fmt: skip
        self._body_bytes = body_bytes
        self._port = port
        self._registry = registry
        self._address = address
        self._user = user
        self._resolved = resolved

    async def write(self, transactions: Sequence[Transaction]) -> list[Result]:
        """The answers, in order. Raises HoldfastError where the request should be repeated."""
        each = 256 + self._body_bytes // max(1, len(transactions))
        works = [self._work(asked, each) for asked in transactions]
        together: list[_Work] = []
        for work in works:
            if self._before(work.mutation) is None:
                together.append(work)
                continue
            await self._append(together)
            together = []
            await self._with_hook(work)
        await self._append(together)
        return [work.result for work in works]

    def _work(self, asked: Transaction, size: int) -> _Work:
        mutation = Mutation(
            action=asked.action, model=asked.model, id=asked.id, payload=asked.payload,
            user=self._user.user_id, groups=self._resolved,
        )  # fmt: skip
        return _Work(asked, mutation, Result(asked.client_tx_id), size)

    def _before(self, mutation: Mutation) -> BeforeWrite | BeforeDelete | None:
        model = self._registry.get(mutation.model)
        if model is None or not isinstance(model.mutate, Standard):
            return None
        match mutation.action:
            case "I":
                return model.mutate.on_before_insert
            case "U":
                return model.mutate.on_before_update
            case "D":
                return model.mutate.on_before_delete
            case _:
                return None

    # -- without hooks ---------------------------------------------------------------------------

    async def _append(self, works: list[_Work]) -> None:
        if not works:
            return
        outcomes = await self._ask(works)
        done = [self._settle(work, outcome) for work, outcome in zip(works, outcomes, strict=True)]
        for work, appended in zip(works, done, strict=True):
            if appended:
                await self._after(work)

    async def _ask(self, works: list[_Work], kind: str = "mutate") -> list[Outcome]:
        drafts = [work.draft(kind) for work in works]
        reply = FutureReply()
        self._port.append(self._address, drafts, reply, None)
        outcomes, _ = await reply.future
        for work, draft in zip(works, drafts, strict=True):
            work.written = draft.written or {}
        return outcomes

    def _settle(self, work: _Work, outcome: Outcome) -> bool:
        """Note the answer; whether this very call wrote it. Raises where it may pass later."""
        result = work.result
        match outcome:
            case Appended(last=last):
                result.sync_id = last
                return True
            case Duplicate(seq=seq, count=count):
                result.sync_id = seq + max(count, 1) - 1
            case Rejected(code=code, message=message) if code in FINAL:
                result.error = message
            case Rejected(code="internal", error=error):
                # A bug of ours or of a callback: its neighbours must not wait behind it for ever.
                log.error("transaction failed model=%s error=%r", work.asked.model, error)
                result.error = INTERNAL
            case Rejected(code=code, message=message, retry_after_ms=after):
                raise Unavailable(message, code=code, retry_after_ms=after)
        return False

    async def _after(self, work: _Work) -> None:
        """The after-hook: once, after publication; what it raises is a warning."""
        model = self._registry.get(work.asked.model)
        hook = None if model is None else model.mutate.on_after_mutation
        if hook is None or model is None or work.result.sync_id is None:
            return
        asked = work.asked
        change = Change(
            asked.model, work.written["id"], asked.action, asked.payload, work.written["data"],
            str(work.result.sync_id),
        )  # fmt: skip
        try:
            async with asyncio.timeout(HOOK_WAIT_S):
                await resolve(hook(change))
        except Exception as error:
            log.exception("onAfterMutation hook failed model=%s", asked.model)
            work.result.warnings = [f"onAfterMutation hook failed: {error}"]

    # -- with a before-hook ----------------------------------------------------------------------

    async def _with_hook(self, work: _Work) -> None:
        """Show the hook what would be written, and write what it makes of it."""
        (outcome,) = await self._ask([work], PROBE)
        if not (isinstance(outcome, Rejected) and outcome.code == PROBE):
            self._settle(work, outcome)  # written before: no hook runs for repeats
            return
        for _ in range(HOOK_TRIES_MAX):
            rows = await self._rows(work.asked)
            try:
                found = prepare(self._registry, work.mutation, rows.get, clock.now_ms())
                work.mutation.data = await self._run_hook(work, found, rows)
            except Refusal as refusal:
                work.result.error = str(refusal)
                return
            work.mutation.rev = 0 if found.row is None else found.row.rev
            (outcome,) = await self._ask([work])
            if isinstance(outcome, Rejected) and outcome.code == "stale":
                work.mutation.data = work.mutation.rev = None
                continue
            if self._settle(work, outcome):
                await self._after(work)
            return
        raise Busy("the row changes faster than its hook", retry_after_ms=1000)

    async def _rows(self, asked: Transaction) -> _Rows:
        keys: list[Key] = [(asked.model, asked.id), (MEMBERS, self._user.user_id)]
        found = await self._port.get(self._address, keys)
        return _Rows(dict(zip(keys, found, strict=True)))

    async def _run_hook(self, work: _Work, found: Prepared, rows: _Rows) -> dict[str, Any] | None:
        asked, user = work.asked, self._user
        hook: Any = self._before(work.mutation)
        stored = stored_groups(rows.get(MEMBERS, user.user_id))
        groups = effective_groups(self._resolved, stored, user.user_id)
        actor = Actor(user.user_id, groups, user.email, user.name)
        try:
            async with asyncio.timeout(HOOK_WAIT_S):
                if asked.action == "D":
                    await resolve(hook(found.id, asked.payload, actor))
                    return None
                data = await resolve(hook(found.id, asked.payload, dict(found.data), actor))
        except HoldfastError:
            raise
        except Exception as error:  # its text is the refusal's: that is how hooks refuse
            raise Refusal(str(error) or type(error).__name__, code="refused") from error
        if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
            raise Refusal("the before hook returned no data", code="refused")
        return data


class _Rows:
    """Rows read for one transaction."""

    def __init__(self, found: dict[Key, Row | None]) -> None:
        self._found = found

    def get(self, coll: str, id: str) -> Row | None:
        return self._found.get((coll, id))
