"""The writing half of a connection: `publish` frames in, one `published` each out.

The frames of one read from the socket are gathered and put to the scope's port as one append; the
answers of one release leave as one write. Results stand in the order of the frame's envelopes.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

import msgspec

from actors.dialects.asterql.envelope import parse_envelope
from actors.dialects.asterql.keys import check_scope
from actors.types import Address, Appended, Bounds, Draft, Outcome, Rejected
from edge.auth import Action, Principal, PublishLimits
from edge.budget import Budget
from edge.dialects.asterql import frames as f
from infra import limits
from infra.errors import HoldfastError, ProtocolError

if TYPE_CHECKING:
    from edge.dialects.asterql.connection import Environment, Sink

GATES_MAX = 1000  # scopes whose write permission a connection remembers
GATHER_MAX = 256  # drafts in one append
RETRY_MS = 1000


class _Gate(msgspec.Struct):
    """A scope this connection may publish to."""

    address: Address
    text: str  # the scope as JSON


class _Tag(msgspec.Struct, gc=False):
    """One `publish` frame under way.

    Its id, its drafts, and the results known before the append.
    """

    id: str
    count: int
    known: list[str | None] | None
    durable: bool


class Publisher:
    """Fits actors.types.Reply."""

    __slots__ = (
        "_acks", "_allowed", "_bytes", "_drafts", "_env", "_envelopes", "_gate", "_gates",
        "_principal", "_replicated", "_sink", "_tags", "pending",
    )  # fmt: skip

    def __init__(self, env: Environment, sink: Sink, principal: Principal) -> None:
        self.pending = 0  # frames without an answer
        self._env = env
        self._sink = sink
        self._gates: dict[str, _Gate] = {}
        self._gate: _Gate | None = None  # what is gathered goes there
        self._replicated = False  # at this level
        self._drafts: list[Draft] = []
        self._tags: list[_Tag] = []
        self._acks: list[str] = []
        self._allowed: PublishLimits | None = None
        self._envelopes: Budget | None = None
        self._bytes: Budget | None = None
        self.become(principal)

    def become(self, principal: Principal) -> None:
        """Someone else's credentials, or renewed ones: permissions are asked for anew.

        Budgets go on where they are the same, or a client could refill them by an auth frame.
        """
        self._principal = principal
        self._gates.clear()
        now = self._env.monotonic()
        allowed = principal.publish or self._env.publish_limits
        if allowed == self._allowed:
            return
        self._allowed = allowed
        rate, size = allowed.envelopes_per_s, allowed.bytes_per_s
        self._envelopes = Budget(rate, 2 * rate, now) if rate else None
        self._bytes = Budget(size, 2 * size, now) if size else None

    def forget_gates(self) -> None:
        """Ask `authorize` again at the next frame of each scope."""
        self._gates.clear()

    # -- frames in -------------------------------------------------------------------------------

    def take_known(self, frame: f.Publish) -> bool:
        """Gather the frame if its scope is known to be allowed; False: nothing was done."""
        gate = self._gates.get(frame.scope)
        if gate is None or not 0 < len(frame.envelopes) <= limits.PUBLISH_ENVELOPES_MAX:
            return False
        self._gather(frame, gate)
        return True

    def knows(self, scope: str) -> bool:
        """Whether `authorize` has said yes to this scope already."""
        return scope in self._gates

    def take(self, frame: f.Publish) -> Awaitable[None] | None:
        """Gather the frame; what to await where `authorize` is asynchronous."""
        gate = self._gates.get(frame.scope)
        if gate is not None:
            self._gather(frame, gate)
            return None
        try:
            check_scope(frame.scope)
        except ProtocolError as error:
            self._refuse(frame, "bad_scope", str(error))
            return None
        answer = self._env.authorize(self._principal, frame.scope, Action.WRITE)
        if isinstance(answer, bool):
            self._decided(frame, answer)
            return None
        return self._decide(frame, answer)

    async def _decide(self, frame: f.Publish, answer: Awaitable[bool]) -> None:
        self._decided(frame, await answer)
        self.submit()

    def _decided(self, frame: f.Publish, allowed: bool) -> None:
        if not allowed:
            self._refuse(frame, "forbidden", "no write access to this scope")
            return
        if len(self._gates) >= GATES_MAX:
            self._gates.clear()
        gate = _Gate(Address(self._principal.tenant, frame.scope), f.quote(frame.scope))
        self._gates[frame.scope] = gate
        self._gather(frame, gate)

    def _gather(self, frame: f.Publish, gate: _Gate) -> None:
        envelopes = frame.envelopes
        if self._envelopes is not None or self._bytes is not None:
            wait_ms = self._over_budget(envelopes)
            if wait_ms:
                self._refuse(frame, "rate_limited", "the token's publish limit", wait_ms)
                return
        replicated = frame.level == "replicated"
        if (
            gate is not self._gate
            or replicated is not self._replicated
            or len(self._drafts) >= GATHER_MAX
        ):
            self.submit()
            self._gate, self._replicated = gate, replicated
        drafts = self._drafts
        before = len(drafts)
        known: list[str | None] | None = None
        scope = frame.scope
        for index, raw in enumerate(envelopes):
            try:
                drafts.append(parse_envelope(bytes(raw), scope))
            except ProtocolError as error:
                if known is None:
                    known = [None] * len(envelopes)
                known[index] = f.result(Rejected(error.code, str(error)))
        id = frame.id
        text = str(id) if type(id) is int else f.quote(id)
        self._tags.append(_Tag(text, len(drafts) - before, known, frame.durable))

    def submit(self) -> None:
        """Put what was gathered to the scope."""
        tags, drafts, gate = self._tags, self._drafts, self._gate
        if not tags or gate is None:
            return
        self._tags, self._drafts = [], []
        self.pending += len(tags)
        if not drafts:  # every envelope was refused: nothing for the scope, which may not exist
            self.settle((gate, tags), [], Bounds("", 0, 0, 0))
            self.flush()
            return
        try:
            self._env.port.append(
                gate.address, drafts, self, (gate, tags), replicated=self._replicated
            )
        except HoldfastError as error:
            # A client takes the hint for a promise that a repeat may help.
            after_ms = (error.retry_after_ms or RETRY_MS) if error.retryable else None
            rejected = Rejected(error.code, str(error), retry_after_ms=after_ms)
            self.settle((gate, tags), [rejected] * len(drafts), Bounds("", 0, 0, 0))
            self.flush()

    def _over_budget(self, envelopes: list[msgspec.Raw]) -> int:
        now = self._env.monotonic()
        wait_ms = 0
        if self._envelopes is not None:
            wait_ms = self._envelopes.take(len(envelopes), now)
        if not wait_ms and self._bytes is not None:
            wait_ms = self._bytes.take(sum(len(bytes(raw)) for raw in envelopes), now)
            if wait_ms and self._envelopes is not None:
                self._envelopes.give_back(len(envelopes))
        return wait_ms

    def _refuse(
        self, frame: f.Publish, code: str, message: str, retry_after_ms: int | None = None
    ) -> None:
        result = f.result(Rejected(code, message, retry_after_ms=retry_after_ms))
        results = ",".join([result] * len(frame.envelopes))
        scope, empty = f.quote(frame.scope), Bounds("", 0, 0, 0)
        self._sink.send([f.published(f.quote(frame.id), scope, empty, results, False)])

    # -- answers out -------------------------------------------------------------------------------

    def settle(
        self, tag: tuple[_Gate, list[_Tag]], outcomes: list[Outcome], bounds: Bounds
    ) -> None:
        """An append was decided and released."""
        gate, tags = tag
        self.pending -= len(tags)
        # The two constant parts of the frame that nearly every answer is.
        head = '{"type":"published","id":'
        middle = f',"scope":{gate.text},"epoch":"{bounds.epoch}","results":[{{"seq":'
        acks = self._acks
        done = 0
        for one in tags:
            if one.count == 1 and one.known is None and not one.durable:
                outcome = outcomes[done]
                done += 1
                if type(outcome) is Appended:
                    acks.append(f"{head}{one.id}{middle}{outcome.first}}}]}}")
                    continue
                results = f.result(outcome)
            else:
                results = _results(outcomes[done : done + one.count], one.known)
                done += one.count
            acks.append(f.published(one.id, gate.text, bounds, results, one.durable))

    def flush(self) -> None:
        """Send the answers gathered in this turn, as one write."""
        acks, self._acks = self._acks, []
        if acks:
            self._sink.send(acks)


def _results(outcomes: list[Outcome], known: list[str | None] | None) -> str:
    if known is None:
        return ",".join([f.result(outcome) for outcome in outcomes])
    rest = iter(outcomes)
    return ",".join([f.result(next(rest)) if text is None else text for text in known])
