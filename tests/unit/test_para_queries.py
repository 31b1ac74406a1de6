"""Queries on a transport of their own, coalesced work, key locks, seeds in a page."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from actors.types import Address
from edge.client.para import InProcessTransport, SyncEnvelope, msgspec_schema
from edge.dialects.para.coalesce import Coalesced
from edge.dialects.para.kinds import ParseGateError
from edge.dialects.para.locks import KeyLocks
from edge.dialects.para.query_authority import Membership, create_query_authority
from edge.dialects.para.seeding import seed_script
from infra.tasks import TaskOwner
from tests.support.app import PATIENCE_S


async def test_42_membership_drops_and_adds_again() -> None:
    transport, table = InProcessTransport(), {"a": 1, "b": 2}
    rows: list[SyncEnvelope] = []
    transport.subscribe("row:a", rows.append)
    told: list[Membership] = []
    evaluated: list[Any] = []

    async def evaluate(spec: Any) -> list[dict[str, Any]]:
        evaluated.append(spec)
        return [{"id": id, "n": n} for id, n in sorted(table.items(), key=lambda item: item[1])]

    async with create_query_authority(
        transport, evaluate, lambda row: f"row:{row['id']}", msgspec_schema(dict[str, Any]),
        read_set_of=lambda spec: [spec],
    ) as authority:  # fmt: skip

        async def wrote(scope: str = "t") -> None:
            count = len(evaluated)
            authority.wrote(scope)
            async with asyncio.timeout(PATIENCE_S):
                while len(evaluated) == count:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)

        off = await authority.subscribe("t", told.append)
        assert told[0].keys == ("row:a", "row:b") and told[0].seeds["row:b"].sequence == 1
        await wrote()
        assert len(told) == 1 and len(rows) == 1, "nothing changed"
        table["a"] = 3
        await wrote()
        assert told[1] == Membership(("row:b", "row:a"), {}) and rows[-1].sequence == 2
        del table["a"]
        await wrote()
        assert told[2] == Membership(("row:b",), {})
        table["a"] = 4
        await wrote()
        assert told[3].keys == ("row:b", "row:a") and told[3].seeds["row:a"].sequence == 3
        assert authority.get("row:a") == rows[-1]
        authority.wrote("elsewhere")
        await asyncio.sleep(0)
        assert len(evaluated) == 5, "it does not read that"
        off()
        authority.wrote()
        await asyncio.sleep(0)
        assert len(evaluated) == 5


async def test_a_row_that_does_not_parse() -> None:
    transport = InProcessTransport()
    authority = create_query_authority(
        transport, lambda spec: ["text"], str, msgspec_schema(dict[str, Any])
    )
    with pytest.raises(ParseGateError):
        await authority.subscribe(None, lambda membership: None)
    await authority.aclose()


async def test_triggers_during_a_run_make_one_more() -> None:
    gate, began = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        await gate.wait()
        raise ValueError("user code")

    async with TaskOwner() as tasks:
        coalesced = Coalesced(work, tasks, "x")
        for _ in range(3):
            coalesced.trigger()
        await began.wait()
        for _ in range(5):
            coalesced.trigger()
        gate.set()
        async with asyncio.timeout(PATIENCE_S):
            while len(tasks):
                await asyncio.sleep(0)
        assert coalesced.runs == 2
        coalesced.trigger()
        async with asyncio.timeout(PATIENCE_S):
            while len(tasks):
                await asyncio.sleep(0)
        assert coalesced.runs == 3, "a failure ends one run"


async def test_locks_go_round_in_order_and_never_cross() -> None:
    locks, address, order = KeyLocks(), Address("t", "s"), []

    async def use(name: str, *keys: str) -> None:
        async with locks.hold(address, keys):
            order.append(name)
            await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(use(f"{number}", "a"))
            group.create_task(use("ab", "a", "b"))
            group.create_task(use("ba", "b", "a"))
    assert [name for name in order if name.isdigit()] == [str(n) for n in range(10)]
    assert len(locks) == 0
    async with locks.hold(address, ["a"]):
        waiting = asyncio.get_running_loop().create_task(use("cancelled", "a"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert len(locks) == 0 and "cancelled" not in order


def test_seeds_cannot_break_out_of_their_element() -> None:
    seeds = {"k": {"value": "</script><script>alert(1)</script>&\u2028", "sequence": 1}}
    html = seed_script(seeds, nonce="abc=")
    assert html.count("<") == 2 and html.count("</script>") == 1
    text = html.partition(">")[2].removesuffix("</script>")
    assert json.loads(text) == seeds
    with pytest.raises(ValueError, match="attribute"):
        seed_script({}, id='x"><b')
