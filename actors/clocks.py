"""Logical clocks of the dialects: hybrid (Starkeep), Lamport and vector (vuer). Pure.

A clock is a value; a step takes it, the physical time where there is one, and gives the next.
`HybridClock` keeps the current value for callers that want an object. Always true: what a
clock gives is greater than everything it gave or was shown before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from infra.errors import ProtocolError
from infra.limits import INTEGER_MAX

WALL_MAX: Final = 2**48 - 1  # twelve hexadecimal digits: the year 10889
COUNTER_MAX: Final = 0xFFFF  # four hexadecimal digits; beyond it the text no longer sorts
NODE_ID_CHARS_MAX: Final = 128

_TEXT = re.compile(r"([0-9a-fA-F]{1,13}):([0-9a-fA-F]{1,13}):([^:]*)")
_UNFIT = re.compile("[:\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class BadClock(ProtocolError):
    """A stamp or node id is outside what a clock may hold."""

    code = "bad_clock"


# -- hybrid logical clock ------------------------------------------------------------------------


class HLC(msgspec.Struct, frozen=True, gc=False):
    """A stamp: wall milliseconds, counter, and who gave it. The wire names are JavaScript's."""

    wall_ms: int = msgspec.field(name="wallTime")
    counter: int
    node_id: str = msgspec.field(name="nodeId")

    @property
    def order(self) -> tuple[int, int, bytes]:
        """What stamps are compared by: numbers first, then the node as JavaScript compares text."""
        return self.wall_ms, self.counter, node_order(self.node_id)

    @property
    def position(self) -> tuple[int, int]:
        """Where it lies among the stamps of its own node."""
        return self.wall_ms, self.counter

    def __str__(self) -> str:
        return f"{self.wall_ms:012x}:{self.counter:04x}:{self.node_id}"


ZERO_HLC: Final = HLC(0, 0, "")


class HLCState(msgspec.Struct, frozen=True, gc=False):
    """What a hybrid clock remembers: the last wall milliseconds and counter it gave."""

    wall_ms: int = msgspec.field(name="wallTime", default=0)
    counter: int = 0


def node_order(node_id: str) -> bytes:
    """A sort key equal to the order of JavaScript strings (UTF-16 units)."""
    return node_id.encode("utf-16-be", "surrogatepass")


def later(a: HLC, b: HLC) -> bool:
    """Whether `a` is strictly greater than `b`."""
    if a.wall_ms != b.wall_ms:
        return a.wall_ms > b.wall_ms
    if a.counter != b.counter:
        return a.counter > b.counter
    return a.node_id != b.node_id and node_order(a.node_id) > node_order(b.node_id)


def max_hlc(a: HLC, b: HLC) -> HLC:
    """The greater one; `a` where they are equal."""
    return b if later(b, a) else a


def parse_hlc(text: str) -> HLC:
    """The stamp of its serialized form `wall:counter:node`. Raises BadClock."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise BadClock(f"Invalid HLC timestamp string: {text[:200]}")
    wall_ms, counter = int(match[1], 16), int(match[2], 16)
    if wall_ms > WALL_MAX or counter > INTEGER_MAX:
        raise BadClock(f"Invalid HLC timestamp string: {text[:200]}")
    return HLC(wall_ms, counter, match[3])


def check_hlc(stamp: HLC) -> None:
    """Raise BadClock for a stamp from outside that no clock could have given."""
    if not 0 <= stamp.wall_ms <= WALL_MAX:
        raise BadClock(f"wallTime {stamp.wall_ms} is not within 0..2^48-1")
    if not 0 <= stamp.counter <= INTEGER_MAX:
        raise BadClock(f"counter {stamp.counter} is not within 0..2^53-1")
    if not stamp.node_id or len(stamp.node_id) > 4 * NODE_ID_CHARS_MAX:
        raise BadClock("nodeId is empty or too long")
    if ":" in stamp.node_id or "\0" in stamp.node_id or not stamp.node_id.isprintable():
        try:
            stamp.node_id.encode()
        except UnicodeEncodeError as error:
            raise BadClock("nodeId is not Unicode text") from error
        if ":" in stamp.node_id or "\0" in stamp.node_id:
            raise BadClock("nodeId holds ':' or NUL, so its stamps could not be read back")


def check_own_node_id(node_id: str) -> None:
    """Raise BadClock for an id that a clock of ours must not give to its stamps."""
    if not 0 < len(node_id) <= NODE_ID_CHARS_MAX or _UNFIT.search(node_id):
        raise BadClock(
            f"a node id has 1 to {NODE_ID_CHARS_MAX} characters, no ':' and no control characters"
        )


def tick(state: HLCState, now_ms: int) -> HLCState:
    """The next own stamp: `now()` and `send()`."""
    if now_ms > state.wall_ms:
        return _state(now_ms, 0)
    return _state(state.wall_ms, state.counter + 1)


def receive(state: HLCState, remote: HLC, now_ms: int) -> HLCState:
    """The next own stamp after having seen `remote`."""
    if now_ms > state.wall_ms and now_ms > remote.wall_ms:
        return _state(now_ms, 0)
    if remote.wall_ms > state.wall_ms:
        return _state(remote.wall_ms, remote.counter + 1)
    if remote.wall_ms == state.wall_ms:
        return _state(state.wall_ms, max(state.counter, remote.counter) + 1)
    return _state(state.wall_ms, state.counter + 1)


def _state(wall_ms: int, counter: int) -> HLCState:
    # A full counter borrows the next millisecond: still greater, and the text still sorts.
    if counter > COUNTER_MAX:
        wall_ms, counter = wall_ms + 1, 0
    if wall_ms > WALL_MAX:
        raise BadClock(f"the clock stands at {wall_ms} ms, beyond what a stamp can hold")
    return HLCState(wall_ms, counter)


class HybridClock:
    """A hybrid clock of one node. `on_tick` hears the state after each step, for keeping it.

    `now_ms` is the physical clock; `state` continues an earlier life. Raises BadClock for a node
    id whose stamps could not be read back.
    """

    def __init__(
        self,
        node_id: str,
        now_ms: Callable[[], int],
        *,
        state: HLCState | None = None,
        on_tick: Callable[[HLCState], None] | None = None,
    ) -> None:
        check_own_node_id(node_id)
        self.node_id = node_id
        self.state = state or HLCState()
        self._now_ms = now_ms
        self._on_tick = on_tick

    def now(self) -> HLC:
        """A new stamp, greater than all before."""
        return self._move(tick(self.state, self._now_ms()))

    def send(self) -> HLC:
        """The same as `now`, under the name the algorithm has for it."""
        return self.now()

    def receive(self, remote: HLC) -> HLC:
        """A new stamp, greater than all before and than `remote`."""
        return self._move(receive(self.state, remote, self._now_ms()))

    def physical_ms(self) -> int:
        """The wall clock it runs on."""
        return self._now_ms()

    def _move(self, state: HLCState) -> HLC:
        self.state = state
        if self._on_tick is not None:
            self._on_tick(state)
        return HLC(state.wall_ms, state.counter, self.node_id)


# -- Lamport clock -------------------------------------------------------------------------------


def lamport_tick(time: int) -> int:
    """The time of the next own event."""
    return time + 1


def lamport_receive(time: int, remote: int) -> int:
    """The time after having seen an event at `remote`: own events that follow are above both."""
    return max(time, remote)


# -- vector clock --------------------------------------------------------------------------------

VectorClock = Mapping[str, int]
Relation = Literal["before", "after", "equal", "concurrent"]


def vector_create(session: str) -> dict[str, int]:
    """A clock in which the session has done nothing yet."""
    return {session: 0}


def vector_increment(clock: VectorClock, session: str) -> dict[str, int]:
    """A new clock in which the session has done one thing more."""
    _check_vector(clock)
    return {**clock, session: clock.get(session, 0) + 1}


def vector_merge(a: VectorClock, b: VectorClock) -> dict[str, int]:
    """A new clock that has seen what either has."""
    _check_vector(a)
    _check_vector(b)
    return {name: max(a.get(name, 0), b.get(name, 0)) for name in (*a, *b)}


def vector_relation(a: VectorClock, b: VectorClock) -> Relation:
    """How `a` lies to `b`; a missing entry counts 0. Raises ValueError for a bad counter."""
    _check_vector(a)
    _check_vector(b)
    names = a.keys() | b.keys()
    below = any(a.get(name, 0) < b.get(name, 0) for name in names)
    above = any(a.get(name, 0) > b.get(name, 0) for name in names)
    if below and above:
        return "concurrent"
    if below:
        return "before"
    return "after" if above else "equal"


def vector_compare(a: VectorClock, b: VectorClock) -> int:
    """1 after, -1 before, 0 for equal and for concurrent alike, as the vuer engine has it."""
    return {"after": 1, "before": -1, "equal": 0, "concurrent": 0}[vector_relation(a, b)]


def _check_vector(clock: VectorClock) -> None:
    for name, count in clock.items():
        if type(count) is not int or count < 0:
            raise ValueError(f"the counter of {name!r} is {count!r}, not a whole number from 0")


class VectorClockManager:
    """The same functions under the names the vuer engine has for them. Nothing is mutated."""

    @staticmethod
    def create(session: str) -> dict[str, int]:
        """See vector_create."""
        return vector_create(session)

    @staticmethod
    def increment(clock: VectorClock, session: str) -> dict[str, int]:
        """See vector_increment."""
        return vector_increment(clock, session)

    @staticmethod
    def merge(a: VectorClock, b: VectorClock) -> dict[str, int]:
        """See vector_merge."""
        return vector_merge(a, b)

    @staticmethod
    def compare(a: VectorClock, b: VectorClock) -> int:
        """See vector_compare."""
        return vector_compare(a, b)

    @staticmethod
    def are_concurrent(a: VectorClock, b: VectorClock) -> bool:
        """Whether `compare` is 0: also for equal clocks."""
        return vector_compare(a, b) == 0

    @staticmethod
    def relation(a: VectorClock, b: VectorClock) -> Relation:
        """See vector_relation."""
        return vector_relation(a, b)
