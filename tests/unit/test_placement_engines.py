"""Records of hosts in a bucket: who holds a name, what is read, what a lost reply does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.objects import StoreUnavailable
from infra.placement.hosts import HostInfo, HostState
from infra.placement.placement import NameTaken
from infra.placement.renewing import RenewingPlacement
from infra.placement.s3 import BucketEngine
from infra.stores.directory import DirectoryStore

A = HostInfo(name="a", link="tcp:a:1", life="a1")
LATER = msgspec.structs.replace(A, life="a2")
B = HostInfo(name="b", link="tcp:b:1", life="b1")


def keys(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*")
        if path.is_file() and "~hosts" in path.parts
    )  # fmt: skip


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Callable[[], BucketEngine]]:
    made: list[BucketEngine] = []

    def make() -> BucketEngine:
        made.append(BucketEngine(DirectoryStore(str(tmp_path)), "pre/fix"))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_each_renewal_leaves_one_record(
    engine: Callable[[], BucketEngine], tmp_path: Path
) -> None:
    one = engine()
    assert [await one.renew(A) for _ in range(3)] == [1, 2, 3]
    assert [(record.host, record.mark) for record in await one.look()] == [(A, 3)]
    assert keys(tmp_path) == ["pre/fix/~hosts/a/0000000000000003"]
    await one.leave(A)
    assert await one.look() == [] and keys(tmp_path) == []


async def test_a_later_life_goes_past_the_earlier_one(engine: Callable[[], BucketEngine]) -> None:
    one, two = engine(), engine()
    await one.renew(A)
    assert await two.renew(LATER) == 2
    with pytest.raises(NameTaken):
        await one.renew(A)
    # The later one's next beat is free again once it has gone on.
    await two.renew(LATER)
    await two.renew(LATER)
    [record] = await one.look()
    assert record.host == LATER and record.mark == 4


async def test_a_reply_that_was_lost_is_ours(
    engine: Callable[[], BucketEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine()
    await one.renew(A)
    put = one._store.put

    def lossy(key: str, body: Any, **options: Any) -> None:
        put(key, body, **options)
        raise StoreUnavailable("the reply was lost")

    monkeypatch.setattr(one._store, "put", lossy)
    with pytest.raises(StoreUnavailable):
        await one.renew(A)
    monkeypatch.setattr(one._store, "put", put)
    drained = msgspec.structs.replace(A, state=HostState.DRAINING)
    assert await one.renew(drained) == 3
    assert [record.host for record in await one.look()] == [drained]


async def test_whatever_else_lies_there_is_passed_over(
    engine: Callable[[], BucketEngine], tmp_path: Path
) -> None:
    one = engine()
    await one.renew(A)
    for name in ("a/nonsense", "b/0000000000000001", "c/zzzzzzzzzzzzzzzz", "README"):
        path = tmp_path / "pre/fix/~hosts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not a record")
    assert [record.host for record in await one.look()] == [A]


async def test_two_hosts_see_each_other_and_one_leaves(
    engine: Callable[[], BucketEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.placement.renewing.POKE_S", 0.0)
    async with asyncio.timeout(30):
        one = RenewingPlacement(engine(), A, ttl_s=60)
        two = RenewingPlacement(engine(), B, ttl_s=60)
        seen: asyncio.Queue[list[str]] = asyncio.Queue()
        one.watch(lambda view: seen.put_nowait([f"{h.name} {h.state}" for h in view.hosts]))
        await two.start()
        await two.joined()
        await one.start()
        await one.joined()
        assert await seen.get() == ["a up", "b up"] and one.may_claim() and two.may_claim()
        await two.drain()
        assert not two.may_claim()
        while not any(r.host.state is HostState.DRAINING for r in await one._engine.look()):
            await asyncio.sleep(0)
        one.poke()
        assert await seen.get() == ["a up", "b draining"]
        await two.aclose()
        one.poke()
        assert await seen.get() == ["a up"]
        await one.aclose()
