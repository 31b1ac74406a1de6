"""Of several processes with the same sources, one runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.types import Address
from edge.application import Application
from edge.config import Config
from edge.dialects.para.sources import RunningSource, Source
from edge.processes.boot import Boot
from edge.processes.edge import make_edge
from infra.tasks import TaskOwner

HERE = Address("default", "para:main/num")


class Objects:
    """Of an authority, what a source needs."""

    def __init__(self) -> None:
        self.put_values: list[Any] = []

    def address(self, key: str) -> Address:
        return HERE

    async def put(self, key: str, value: Any) -> None:
        self.put_values.append(value)


async def test_who_does_not_lead_the_scope_computes_nothing() -> None:
    asked: list[Address] = []
    leads = False

    def leading(address: Address) -> bool:
        asked.append(address)
        return leads

    objects, tasks = Objects(), TaskOwner()
    source = Source("num:1", lambda: 7, once=True)
    running = RunningSource(source, objects, tasks, leading)  # type: ignore[arg-type]
    await running._compute()
    assert (asked, objects.put_values) == ([HERE], [])
    leads = True  # the scope has come here
    await running._compute()
    assert objects.put_values == [7]
    await tasks.aclose()


@pytest.mark.parametrize(
    ("name", "edges", "leads"),
    [("edge-0", 1, True), ("edge-0", 2, True), ("edge-1", 2, False)],
)
async def test_the_first_edge_runs_them(tmp_path: Path, name: str, edges: int, leads: bool) -> None:
    app = Application()
    app.source("num:1", once=True)(lambda: 1)
    places = {f"edge-{number}": f"unix:{tmp_path}/{number}" for number in range(edges)}
    boot = Boot(
        name, Config(data_dir=str(tmp_path)), "dev", None, "", {}, b"k" * 32,
        edges=places if edges > 1 else {},
    )  # fmt: skip
    server, _ = make_edge(boot, app)
    assert server.para is not None
    assert server.para.leads(HERE) is leads
