"""Whatever happens to envelopes: a monotonic replica never goes back, and ends at the last value.

Publishes are dropped, repeated, reordered and spoilt; refetches race with them: an answer is read
at one moment and arrives at another, or fails. At the end the transport says, as buses do, that
envelopes may have been lost, and refetches succeed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from edge.client.para import Err, InProcessTransport, Ok, SyncEnvelope, create_client_replica
from edge.client.para.reconciler import GapPolicy, Reconciler
from edge.client.para.replica import ClientReplica

KEY = "k"


class NumberSchema:
    """Takes integers; raises for one of the words it may meet."""

    def parse(self, value: Any) -> Ok[Any] | Err:
        if value == "raise":
            raise RuntimeError(value)
        return Ok(value) if isinstance(value, int) else Err(value)


class World:
    """A server's value, a transport that mistreats it, and one replica."""

    def __init__(self, gap_policy: GapPolicy, version: str | None) -> None:
        self.transport = InProcessTransport()
        self.sequence = 1
        self.sent: list[SyncEnvelope] = []
        self.asked: list[tuple[asyncio.Future[Any], SyncEnvelope]] = []
        self.applied: list[int] = []
        self.replica: ClientReplica = create_client_replica(
            key=KEY, schema=NumberSchema(), transport=self.transport, refetch=self._ask,
            seed=self.current, gap_policy=gap_policy, refetch_policy="monotonic",
            schema_version=version,
        )  # fmt: skip
        self.replica.subscribe(lambda _: self.applied.append(self.replica.meta().sequence))

    @property
    def current(self) -> SyncEnvelope:
        return SyncEnvelope(self.sequence, "1.0", self.sequence)

    def _ask(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked.append((future, self.current))  # read now, whenever it arrives
        return future

    async def do(self, action: str, number: int) -> None:
        """One thing that happens."""
        if action == "put":
            self.sequence += 1
            self.sent.append(self.current)
        elif action == "land":
            if self.asked:
                future, read = self.asked.pop(0)
                future.set_result(read)
        elif action == "fail":
            if self.asked:
                self.asked.pop(0)[0].set_exception(ConnectionError())
        elif self.sent:
            at = number % len(self.sent)
            envelope = self.sent[at] if action == "repeat" else self.sent.pop(at)
            if action in ("deliver", "repeat"):
                self.transport.publish(KEY, envelope)
            elif action == "spoil":
                spoilt: list[dict[str, Any]] = [
                    {"value": "x", "schema_version": "1.0", "sequence": envelope.sequence},
                    {"value": "raise", "schema_version": "1.0", "sequence": envelope.sequence},
                    {"value": envelope.value, "schema_version": "2.0", "sequence": None},
                    {"value": envelope.value, "schema_version": "1.0"},
                ]
                self.transport.publish(KEY, spoilt[number % len(spoilt)])
        for _ in range(number % 4):  # sometimes much happens before the loop goes on
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Everything that is still under way arrives; the transport tells of the loss."""
        self.replica.catch_up()
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            idle = group.create_task(self.replica.when_idle())
            while not idle.done():
                await self.do("land", 1)


ACTIONS = st.sampled_from(
    ["put", "put", "put", "deliver", "deliver", "drop", "repeat", "spoil", "land", "fail"]
)
STEPS = st.lists(st.tuples(ACTIONS, st.integers(0, 15)), max_size=60)


async def live(steps: list[tuple[str, int]], gap_policy: GapPolicy, version: str | None) -> None:
    world = World(gap_policy, version)
    try:
        for action, number in steps:
            await world.do(action, number)
            sequence = world.replica.meta().sequence
            assert world.replica.peek() == sequence, "the value is that of the sequence"
            assert sequence <= world.sequence
        await world.end()
        assert world.applied == sorted(world.applied), "never backwards"
        assert (world.replica.peek(), world.replica.meta().status) == (world.sequence, "ok")
    finally:
        world.replica.dispose()


def check(steps: list[tuple[str, int]], gap_policy: GapPolicy, version: str | None) -> None:
    asyncio.run(live(steps, gap_policy, version))


HISTORIES = given(STEPS, st.sampled_from(["refetch", "commit"]), st.sampled_from([None, "1.4"]))


@settings(max_examples=1000, deadline=None)
@HISTORIES
def test_a_replica_never_goes_back_and_ends_at_the_servers_value(
    steps: list[tuple[str, int]], gap_policy: GapPolicy, version: str | None
) -> None:
    check(steps, gap_policy, version)


def _accepts(self: Reconciler, sequence: int, for_skew: int | None) -> bool:
    return False


def _forgets(self: ClientReplica) -> bool:
    self._again = False
    return False


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [(Reconciler, "_outruns", _accepts), (ClientReplica, "_next", _forgets)],
    ids=["overtaken answers are accepted", "nothing follows a refetch"],
)
def test_the_property_notices_a_broken_rule(
    owner: type, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, broken)

    @settings(max_examples=3000, deadline=None, database=None, phases=[Phase.generate])
    @HISTORIES
    def search(steps: list[tuple[str, int]], gap_policy: GapPolicy, version: str | None) -> None:
        check(steps, gap_policy, version)

    with pytest.raises((AssertionError, ExceptionGroup)):
        search()
