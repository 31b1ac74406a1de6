"""The replica: the vectors it shares with JavaScript, and what only Python has."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from edge.client.para import (
    PASSTHROUGH,
    Err,
    InProcessTransport,
    Ok,
    Signal,
    SyncEnvelope,
    create_client_replica,
    msgspec_schema,
)
from edge.client.para.replica import ROUNDS_MAX, ClientReplica
from tests.support.para_cases import CASES, IDS, KEY, run_case


def env(value: Any, sequence: int) -> SyncEnvelope:
    return SyncEnvelope(value, "1.0", sequence)


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_replica(case: dict[str, Any]) -> None:
    transport = InProcessTransport()

    async def publish(envelope: Any) -> None:
        transport.publish(KEY, envelope)

    await run_case(case, transport, publish)
    assert transport.key_count() == 0  # edge 16: dispose leaves nothing behind


def test_all_edges_of_the_replica_are_told() -> None:
    told = {case["edge"] for case in CASES} - {""}
    assert told == {str(number) for number in (*range(1, 17), *range(24, 28))}


def replica(transport: InProcessTransport, **options: Any) -> ClientReplica:
    return create_client_replica(key="k", schema=PASSTHROUGH, transport=transport, **options)


def test_subscribes_before_it_takes_the_seed() -> None:
    class Eager(InProcessTransport):
        def subscribe(self, key: str, handler: Any) -> Any:
            off = super().subscribe(key, handler)
            handler(env("early", 2))
            return off

    assert replica(Eager(), seed=env("seed", 1)).peek() == "seed"


def test_refetches_that_answer_at_once_need_no_event_loop() -> None:
    transport = InProcessTransport()
    held = replica(transport, seed=env("a", 1), refetch=lambda: env("c", 3))
    transport.publish("k", env("c", 3))
    assert (held.peek(), held.meta().sequence, held.stats.refetches) == ("c", 3, 1)


def test_a_refetch_that_nobody_can_await_has_failed() -> None:
    transport = InProcessTransport()

    async def fetch() -> SyncEnvelope:
        raise AssertionError("never awaited")

    held = replica(transport, seed=env("a", 1), refetch=fetch)
    transport.publish("k", env("c", 3))
    assert held.meta().status == "stale"
    assert isinstance(held.last_error, RuntimeError)


def test_refetches_that_always_call_for_another_end() -> None:
    transport = InProcessTransport()
    sequence = 10

    def fetch() -> SyncEnvelope:
        nonlocal sequence
        sequence += 10
        transport.publish("k", env("x", sequence))
        return env("old", 1)

    held = replica(transport, seed=env("a", 1), refetch=fetch)
    transport.publish("k", env("x", 10))
    assert (held.stats.refetches, held.meta().status) == (ROUNDS_MAX, "stale")


async def test_a_refetch_that_never_answers_gives_up() -> None:
    transport = InProcessTransport()
    held = replica(transport, seed=env("a", 1), refetch=asyncio.Event().wait, refetch_wait_s=0.001)
    transport.publish("k", env("c", 3))
    await held.when_idle()
    assert held.meta().status == "stale"
    assert isinstance(held.last_error, TimeoutError)


async def test_dispose_before_a_refetch_has_begun_leaves_no_coroutine() -> None:
    transport = InProcessTransport()

    async def fetch() -> SyncEnvelope:
        return env("c", 3)

    held = replica(transport, seed=env("a", 1), refetch=fetch)
    transport.publish("k", env("c", 3))
    held.dispose()
    held.dispose()
    await held.when_idle()
    assert held.peek() == "a"


async def test_when_idle_waits_for_the_refetch_after_the_refetch() -> None:
    transport = InProcessTransport()
    answers = [env("b", 2), env("d", 4)]

    async def fetch() -> SyncEnvelope:
        await asyncio.sleep(0)
        return answers.pop(0)

    held = replica(transport, seed=env("z", 0), refetch=fetch)
    transport.publish("k", env("b", 2))
    transport.publish("k", env("d", 4))
    await held.when_idle()
    assert (held.peek(), held.stats.refetches, answers) == ("d", 2, [])


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, {"schema_version": "1.0"}, object()])
def test_what_is_no_envelope_is_a_skew(junk: Any) -> None:
    held = replica(InProcessTransport(), seed=env("a", 1))
    held.ingest(junk)
    assert (held.peek(), held.stats.parse_errors) == ("a", 1)


def test_an_injected_cell_holds_the_value() -> None:
    class Plain:
        value: Any = None

        def get(self) -> Any:
            return self.value

        def peek(self) -> Any:
            return self.value

        def set(self, value: Any) -> None:
            self.value = value

    cell = Plain()
    held = replica(InProcessTransport(), seed=env("a", 1), cell=cell)
    assert (cell.value, held.get(), held.peek()) == ("a", "a", "a")
    with pytest.raises(TypeError, match="no subscribe"):
        held.subscribe(print)


def test_a_listener_that_fails_does_not_undo_the_commit() -> None:
    transport = InProcessTransport()
    held = replica(transport, seed=env("a", 1))

    def fail(value: Any) -> None:
        raise LookupError(value)

    seen: list[Any] = []
    held.subscribe(fail)
    held.subscribe(seen.append)
    with pytest.raises(LookupError, match="b"):
        transport.publish("k", env("b", 2))
    assert (held.meta().sequence, held.meta().status, seen) == (2, "ok", ["b"])


def test_a_listener_that_publishes_sees_its_own_change_applied() -> None:
    transport = InProcessTransport()
    held = replica(transport, seed=env(1, 1))
    seen: list[Any] = []
    held.subscribe(lambda value: transport.publish("k", env(3, 3)) if value == 2 else None)
    held.subscribe(seen.append)
    transport.publish("k", env(2, 2))
    assert (held.peek(), held.meta().sequence, held.stats.gaps) == (3, 3, 0)
    assert seen == [3], "nobody sees an older value after a newer one"


@pytest.mark.parametrize("option", ["gap_policy", "refetch_policy"])
def test_unknown_policies_are_refused_before_anything_is_subscribed(option: str) -> None:
    transport = InProcessTransport()
    with pytest.raises(ValueError, match=option):
        replica(transport, **{option: "guess"})
    assert transport.key_count() == 0


def test_a_transport_that_follows_is_attached_to() -> None:
    class Following(InProcessTransport):
        def attach(self, key: str, follower: Any) -> Any:
            self.follower = follower
            return lambda: setattr(self, "follower", None)

    transport = Following()
    held = replica(transport, seed=env("a", 5))
    assert transport.follower.position == ("1.0", 5)
    transport.follower.ingest(env("b", 3), "hydration")
    assert (held.peek(), held.position) == ("b", ("1.0", 3))
    held.dispose()
    assert transport.follower is None


# -- cells and schemas -----------------------------------------------------------------------------


def test_a_signal_tells_only_what_can_be_told_apart() -> None:
    told: list[Any] = []
    signal = Signal()
    off = signal.subscribe(told.append)
    shared: list[int] = [1]
    for value in (None, 1, 1, True, 1.0, "a", "a", shared, shared, [1]):
        signal.set(value)
    assert [(type(value), value) for value in told] == [
        (int, 1), (bool, True), (float, 1.0), (str, "a"), (list, [1]), (list, [1]),
    ]  # fmt: skip
    off()
    off()
    signal.set("unheard")
    assert (len(told), signal.get()) == (6, "unheard")


class User(msgspec.Struct):
    name: str
    age: int = 0


def test_a_msgspec_schema_gives_values_their_type() -> None:
    schema = msgspec_schema(User)
    parsed = schema.parse({"name": "Ada", "age": 36})
    assert (parsed, parsed.tag) == (Ok(User("Ada", 36)), "Ok")
    assert schema.parse(User("Ada")) == Ok(User("Ada"))
    refused = schema.parse({"name": 7})
    assert isinstance(refused, Err)
    assert refused.tag == "Err"
    assert isinstance(refused.error, msgspec.ValidationError)


def test_passthrough_takes_everything() -> None:
    assert PASSTHROUGH.parse(None) == Ok(None)
