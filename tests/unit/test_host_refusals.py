"""What the host answers when the disk refuses: an error, and never something that is not so."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from actors.dialects.asterql.envelope import parse_envelope
from actors.host import Host
from actors.reply import FutureReply
from actors.types import Address, Bounds
from infra.errors import StorageError, Unavailable

A = Address("default", "run:r1")


async def written(host: Host) -> None:
    reply = FutureReply()
    raw = b'{"eventId":"e1","kind":"patch","entities":[{"key":"m:1","value":{"n":1}}]}'
    host.append(A, [parse_envelope(raw, A.scope)], reply, None)
    await reply.future


def refuse(*_args: Any) -> None:
    raise StorageError("no space", code="disk_full")


def full(*_args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_an_alarm_the_disk_refused_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Host(tmp_path) as host:
        await written(host)
        with monkeypatch.context() as patch:
            patch.setattr(host.open_scopes[A].ledger, "commit", refuse)
            with pytest.raises(StorageError, match="no space"):
                await host.alarms.set(A, "ring", 10, None)
        assert await host.alarms.of(A) == []
        await host.alarms.set(A, "ring", 10, None)
        assert [name for name, *_ in await host.alarms.of(A)] == ["ring"]


async def test_clear_leaves_a_failed_scope_as_it_is(tmp_path: Path) -> None:
    async with Host(tmp_path) as host:
        await written(host)
        scope = host.open_scopes[A]
        host.failed(scope, StorageError("the disk did not take it"))
        with pytest.raises(Unavailable):
            await host.clear(A)
        assert scope.ledger.header.head == 1


class Follower:
    """A tap that remembers its resets."""

    def __init__(self) -> None:
        self.resets: list[Bounds] = []

    def deliver(self, batch: Any) -> None:
        raise AssertionError("nothing was written")

    def durable(self, bounds: Bounds) -> None:
        raise AssertionError("nothing was written")

    def moved(self, bounds: Bounds) -> None:
        """Not used without another writer."""

    def reset(self, bounds: Bounds) -> None:
        self.resets.append(bounds)


async def test_a_new_epoch_is_shown_once_it_is_durable(tmp_path: Path) -> None:
    async with Host(tmp_path) as host:
        await written(host)
        scope, tap = host.open_scopes[A], Follower()
        old = await host.subscribe(A, tap)
        scope.begin_epoch("another", 2**20)
        assert scope.bounds == old and tap.resets == []
        await host.settled(A)
        assert [bounds.epoch for bounds in tap.resets] == ["another"]
        assert scope.bounds.head == scope.bounds.floor == 1 + 2**20
        host.unsubscribe(A, tap)


async def test_a_half_written_image_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Host(tmp_path) as host:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            with pytest.raises(StorageError) as refused:
                await written(host)
        assert refused.value.code == "disk_full"
        assert not list(tmp_path.glob("*/*/*"))
        await written(host)
        assert (await host.bounds(A)).head == 1
