"""A scope leaves a process: closed once everything is answered, and not opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors import link_wire as w
from actors.host import Host
from actors.host_settings import HostSettings
from actors.moving import GiveAsk, Moving
from actors.pins import Pin, Placed
from actors.serving import Serving
from infra.errors import HoldfastError
from infra.paths import ledger_path
from tests.unit.test_host import A, B, closed, put

MEMBERS = ("actor-0", "actor-1")
NO_LINK: Any = None


class Process:
    """One that has both scopes, by pins."""

    def __init__(self, tmp_path: Path, name: str = "actor-0", process: str = "") -> None:
        pins = [Pin(*address, process or name) for address in (A, B)]
        self.placed = Placed(name, MEMBERS, pins)
        self.host = Host(tmp_path, HostSettings(process=name, owns=self.placed.has))
        self.moving = Moving(self.host, self.placed)
        self.serving = Serving(self.host, self.placed.accepts, more=self.moving.methods)

    async def ask(self, method: str, asked: Any) -> None:
        await self.moving.methods[method](self.serving, NO_LINK, 0, w.encode(asked))


async def test_what_was_given_is_opened_by_nobody_until_it_is_kept(tmp_path: Path) -> None:
    process = Process(tmp_path)
    async with process.host as host:
        await put(host, A, "e1")
        await process.ask("give", GiveAsk(*A, 1))
        assert A not in host.open_scopes
        for use in (lambda: host.bounds(A), lambda: put(host, A, "e2"), lambda: host.alarms.of(A)):
            with pytest.raises(HoldfastError) as caught:
                await use()
            assert caught.value.code == "moved"
        with pytest.raises(HoldfastError):
            process.serving.address(*A)
        await process.ask("keep", GiveAsk(*A, 1))
        assert (await host.bounds(A)).head == 1
        with pytest.raises(HoldfastError, match="no scope"):
            await process.ask("give", GiveAsk(*B, 2))
        assert process.placed.accepts(B), "nothing was given"


async def test_a_give_that_comes_after_its_keep_gives_nothing(tmp_path: Path) -> None:
    process = Process(tmp_path)
    async with process.host as host:
        await put(host, A, "e1")
        await closed(host, A)
        await process.ask("keep", GiveAsk(*A, 3))
        with pytest.raises(HoldfastError, match="taken back"):
            await process.ask("give", GiveAsk(*A, 3))
        assert process.placed.accepts(A)
        await process.ask("give", GiveAsk(*A, 4))
        assert not process.placed.has(A)


async def test_indexes_follow_the_pins(tmp_path: Path) -> None:
    old, new = Process(tmp_path), Process(tmp_path, "actor-1", "actor-0")
    async with old.host as host, new.host as other:
        for address in (A, B):
            await put(host, address, "e1")
        await host.alarms.set(A, "wake", 10**15, None)
        await old.ask("give", GiveAsk(*A, 1))
        pins = [Pin(*A, "actor-1"), Pin(*B, "actor-0")]
        await old.ask("pins", pins)
        assert not host.index.has(A) and host.index.has(B)
        await new.ask("pins", pins)
        assert other.index.has(A) and not other.index.has(B)
        assert other.index.due_at(A) == 10**15, "its alarms go with it"
        assert (await other.bounds(A)).head == 1
        assert ledger_path(tmp_path, *A).exists()
        with pytest.raises(HoldfastError) as caught:
            await host.bounds(A)
        assert caught.value.code == "moved"
