"""How long an urgent batch waits for the writers whom the last one answered. Pure.

Writers that publish again as soon as they are answered come in bursts. If the first of a burst set
out at once, the others would be a request late: two halves of the writers would take turns, each
waiting for two requests, and a batch would carry half of what it could.

So after an answer the next batch waits while they keep coming, until as many entries have come as
were answered. Where entries came without a pause while the request was under way, nobody is missing
and the batch goes at once. Times are milliseconds of a clock that never goes back.
"""

from __future__ import annotations

import msgspec

GAP_MS = 4  # nobody came for so long: no burst, or its end
WAIT_MS_MAX = 20  # from the first of them on, and no more than half of what the last request took
STEADY_PART = 5  # entries come without a pause if any came in the last fifth of a request


class Company(msgspec.Struct):
    """One scope's: what the last batch answered and who came since.

    `answered` is a number of entries, `shipped` the head the bucket has, `head` what there was at
    the answer, `put_ms` how long the request took; `first_at` is of the first commit since.
    """

    answered: int = 0
    shipped: int | None = None
    head: int = 0
    answered_at: int = 0
    put_ms: int = 0
    steady: bool = True
    first_at: int | None = None
    last_at: int = 0

    def came(self, at: int) -> None:
        """A commit was made."""
        self.last_at = at
        if self.first_at is None:
            self.first_at = at

    def sent_off(self, at: int, *, shipped: int, head: int, put_ms: int) -> None:
        """The entries up to `shipped` have been answered; there are more, up to `head`."""
        self.answered = 0 if self.shipped is None else shipped - self.shipped
        self.shipped, self.head = shipped, head
        self.answered_at, self.put_ms = at, put_ms
        self.steady = at - self.last_at < put_ms // STEADY_PART
        self.first_at = None

    def wait_ms(self, head: int, now: int) -> int:
        """How long the next batch should wait from `now` on; look again then, it may be longer."""
        if self.steady or head - self.head >= self.answered:
            return 0
        longest = min(WAIT_MS_MAX, self.put_ms // 2)
        began = self.answered_at if self.first_at is None else self.first_at
        quiet_at = max(self.last_at, self.answered_at) + GAP_MS
        return max(0, min(quiet_at, began + longest) - now)
