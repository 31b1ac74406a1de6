"""The replica's vectors, told step by step, over whichever transport a test has.

An envelope is written `[n, sequence]`, short for the value `{"n": n}` of version 1.0, or in full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from edge.client.para import Err, Ok, SyncTransport, create_client_replica
from edge.client.para.replica import ClientReplica
from tests.support.vectors import vectors

KEY = "user:1"
CASES = vectors("para/replica")
IDS = [f"edge_{case['edge'] or 'none'}_{case['name'].replace(' ', '_')}" for case in CASES]


def envelope(written: Any) -> Any:
    """The envelope that a vector writes."""
    if isinstance(written, list):
        value, sequence = written
        return {"value": {"n": value}, "schema_version": "1.0", "sequence": sequence}
    return written


class NumberSchema:
    """Takes `{"n": number}`; raises where n is "raise"."""

    def parse(self, value: Any) -> Ok[Any] | Err:
        if value["n"] == "raise":
            raise RuntimeError("a schema with a mistake")
        return Ok(value) if isinstance(value["n"], int) else Err("n is no number")


class Told:
    """One case: a replica, and refetches that end when the case says so."""

    def __init__(self, transport: SyncTransport, case: dict[str, Any], key: str = KEY) -> None:
        options = dict(case["options"])
        refetch = self._ask if options.pop("refetch", False) else None
        self._asked: list[asyncio.Future[Any]] = []
        seed = case.get("seed")
        self.replica: ClientReplica = create_client_replica(
            key=key, schema=NumberSchema(), transport=transport, refetch=refetch,
            seed=None if seed is None else envelope(seed), **options,
        )  # fmt: skip

    def _ask(self) -> Awaitable[Any]:
        self._asked.append(asyncio.get_running_loop().create_future())
        return self._asked[-1]

    async def tell(self, step: dict[str, Any], publish: Callable[[Any], Awaitable[None]]) -> None:
        """Do one step and let the replica take what it brings."""
        if "receive" in step:
            await publish(envelope(step["receive"]))
        elif "answer" in step:
            waiting = self._asked.pop(0)
            if not waiting.done():  # a disposed replica has given it up
                waiting.set_result(envelope(step["answer"]))
        elif "fail" in step:
            self._asked.pop(0).set_exception(RuntimeError(step["fail"]))
        elif "dispose" in step:
            self.replica.dispose()
        else:
            assert step["catch_up"]
            self.replica.catch_up()
        for _ in range(3):  # a refetch's task begins, ends, begins again
            await asyncio.sleep(0)

    def check(self, expect: dict[str, Any] | None) -> None:
        """Compare with what the vector expects; counters that it does not name are 0."""
        if expect is None:
            return
        value, meta = self.replica.peek(), self.replica.peek_meta()
        shown = {
            "value": None if value is None else value["n"], "sequence": meta.sequence,
            "status": meta.status,
            "stats": {
                name: count
                for name in self.replica.stats.__struct_fields__
                if (count := getattr(self.replica.stats, name))
            },
        }  # fmt: skip
        assert shown == expect


async def run_case(
    case: dict[str, Any],
    transport: SyncTransport,
    publish: Callable[[Any], Awaitable[None]],
    key: str = KEY,
) -> None:
    """The whole case, its expectations checked after each step."""
    told = Told(transport, case, key)
    try:
        told.check(case.get("start"))
        for step in case["steps"]:
            await told.tell(step, publish)
            told.check(step.get("expect"))
    finally:
        told.replica.dispose()
        for waiting in told._asked:
            waiting.cancel()
