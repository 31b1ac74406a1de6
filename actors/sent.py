"""One append on its way to another process: sent until it is answered, or time is up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from actors import link_wire as w
from actors.types import Address, Appended, Bounds, Draft, Duplicate, Outcome, Rejected, Reply
from infra import clock
from infra.errors import HoldfastError, TryLater
from infra.link.errors import LinkLost

if TYPE_CHECKING:
    from actors.peer import Peer
    from actors.remote import RemotePort

ANSWER_WAIT_S: Final = 30.0
ELSEWHERE: Final = frozenset({"link_lost", "moved", "closed", "fenced"})
EMPTY: Final = Bounds("", 0, 0, 0)


class Sent:
    """An append under way; fits infra.link.connection.Caller."""

    __slots__ = (
        "address",
        "drafts",
        "number",
        "own",
        "payload",
        "peer",
        "port",
        "reply",
        "size",
        "tag",
        "until",
    )

    def __init__(
        self, port: RemotePort, peer: Peer, address: Address, drafts: list[Draft], reply: Reply,
        tag: Any,
    ) -> None:  # fmt: skip
        self.port = port
        self.number = port.next_number()
        self.address = address
        self.peer = peer
        self.drafts = drafts
        self.reply = reply
        self.tag = tag
        self.size = sum(draft.size for draft in drafts)
        self.until = clock.monotonic() + ANSWER_WAIT_S
        self.own: set[int] = set()  # drafts whose cause was made here
        self.payload = msgspec.Raw()

    def part(self, payload: msgspec.Raw) -> None:
        """An append has one answer."""

    def done(self, payload: msgspec.Raw) -> None:
        try:
            settled: w.Settled | w.Written = w.decode_settled(payload)
            outcomes = w.outcomes_of(settled, self.drafts)
            if self.own:
                outcomes = [self._mine(at, outcome) for at, outcome in enumerate(outcomes)]
        except (HoldfastError, ValueError) as error:
            self._settle([rejected(error)] * len(self.drafts), EMPTY)
            return
        self._settle(outcomes, settled.where.bounds())

    def failed(self, error: HoldfastError) -> None:
        if error.code in ELSEWHERE and clock.monotonic() < self.until and not self.port.closed:
            self._repeat()
        else:
            self._settle([rejected(error)] * len(self.drafts), EMPTY)

    def give_up(self) -> None:
        """Whether it was written is not known; repeating is safe."""
        self.failed(TryLater("the scope's process does not answer", retry_after_ms=1000))

    def _repeat(self) -> None:
        if self.port.moves.held and self.port.moves.hold_back(self):
            return
        self.go_to(self.port.peer_of(self.address))
        self.peer.repeat(self)

    def go_to(self, peer: Peer) -> None:
        """The scope is another process's now."""
        if peer is not self.peer:
            self.peer.answered(self)
            self.peer = peer
            peer.adopt(self)

    def _mine(self, at: int, outcome: Outcome) -> Outcome:
        # Nobody else can have used such a cause: it was written the first time it was sent.
        if at in self.own and isinstance(outcome, Duplicate):
            return Appended(outcome.seq, outcome.seq + outcome.count - 1, outcome.outcome)
        return outcome

    def _settle(self, outcomes: list[Outcome], bounds: Bounds) -> None:
        self.peer.answered(self)
        self.reply.settle(self.tag, outcomes, bounds)
        self.port.flush_later(self.reply)


def rejected(error: Exception) -> Rejected:
    """The outcome of a draft that an error kept from being written."""
    code = getattr(error, "code", "internal")
    after = getattr(error, "retry_after_ms", None)
    code = "try_later" if isinstance(error, LinkLost) else code
    return Rejected(code, str(error), retry_after_ms=after, error=error)
