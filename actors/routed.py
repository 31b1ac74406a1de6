"""One append on its way to whichever host has the scope, ours or another: sent again whenever the
scope has moved, until it is answered or time is up. Fits actors.types.Reply and Caller.

What a host of ours refuses as `moved` or `fenced` is surely not in the scope's history. A link may
end in doubt; so what goes over one carries a cause, and keeps it wherever it goes afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors import link_wire as w
from actors.sent import ELSEWHERE, EMPTY, Sent, rejected
from actors.types import Address, Bounds, Draft, Outcome, Rejected, Reply
from infra import clock
from infra.errors import HoldfastError

if TYPE_CHECKING:
    from actors.hosts_port import HostsPort
    from actors.peer import Peer


class Routed(Sent):
    """`made`: some draft is a factory, which never crosses a link."""

    __slots__ = ("_hosts", "causes", "made", "replicated")

    def __init__(
        self, port: HostsPort, address: Address, drafts: list[Draft], reply: Reply, tag: Any,
        *, replicated: bool,
    ) -> None:  # fmt: skip
        super().__init__(port, None, address, drafts, reply, tag)  # type: ignore[arg-type] # `send`
        self._hosts = port
        self.replicated = replicated
        self.made = any(draft.make is not None for draft in drafts)
        self.causes: list[str] = []

    def send(self, peer: Peer) -> None:
        """To another host. Raises Busy."""
        if not self.causes:
            self.causes = [draft.cause or self._hosts.new_cause() for draft in self.drafts]
            self.own = {at for at, draft in enumerate(self.drafts) if not draft.cause}
        sent = [
            w.wire_draft(draft, cause)
            for draft, cause in zip(self.drafts, self.causes, strict=True)
        ]
        self.payload = w.encode(w.Append(*self.address, self.replicated, sent))
        self.peer = peer
        peer.put(self)

    def put_here(self) -> None:
        """To our own host. Raises what `append` raises."""
        for at in self.own:
            self.drafts[at].cause = self.causes[at]  # it may have been written under it
        self._hosts.host.append(
            self.address, self.drafts, self, None, replicated=self.replicated
        )  # fmt: skip

    def requeue(self) -> None:
        """The peer has gone: look again who has the scope."""
        self._repeat()

    # -- actors.types.Reply ------------------------------------------------------------------------

    def settle(self, tag: Any, outcomes: list[Outcome], bounds: Bounds) -> None:
        """Our host's answer."""
        if self._moved(outcomes):
            self._hosts.again(self)
            return
        if self.own:
            outcomes = [self._mine(at, outcome) for at, outcome in enumerate(outcomes)]
        self.reply.settle(self.tag, outcomes, bounds)
        self._hosts.flush_later(self.reply)

    def flush(self) -> None:
        """Replies are flushed once a turn for all."""

    # -- actors.sent.Sent --------------------------------------------------------------------------

    def _repeat(self) -> None:
        self.peer.answered(self)
        self._hosts.again(self)

    def _settle(self, outcomes: list[Outcome], bounds: Bounds) -> None:
        if self.peer is not None:
            self.peer.answered(self)
        if self._moved(outcomes):
            self._hosts.again(self)
            return
        self.reply.settle(self.tag, outcomes, bounds)
        self._hosts.flush_later(self.reply)

    def refuse(self, error: HoldfastError) -> None:
        """It is over."""
        self.reply.settle(self.tag, [rejected(error)] * max(1, len(self.drafts)), EMPTY)
        self._hosts.flush_later(self.reply)

    @property
    def late(self) -> bool:
        """Whether time is up."""
        return clock.monotonic() >= self.until or self._hosts.closed

    def _moved(self, outcomes: list[Outcome]) -> bool:
        # Of one request all drafts are planned by one host: one such refusal, and nothing is there.
        gone = any(isinstance(one, Rejected) and one.code in ELSEWHERE for one in outcomes)
        return gone and not self.late
