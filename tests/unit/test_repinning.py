"""An edge learns that a scope has moved while appends are under way: their order stays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from actors import link_wire as w
from actors.pins import Pin
from actors.remote import RemotePort
from actors.reply import FutureReply
from actors.sent import Sent
from actors.serving import Moved
from actors.types import Address, Draft
from infra.tasks import TaskOwner

A = Address("default", "run:a")
MEMBERS = {"actor-0": "unix:/x/0", "actor-1": "unix:/x/1"}


class FakeLink:
    """Notes what was sent, and answers when it is told to."""

    open = True
    congested = False

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.barrier = asyncio.Event()
        self.called: list[str] = []

    def ask(self, method: str, _payload: Any, caller: Any, **_options: Any) -> int:
        assert method == "append"
        self.sent.append(caller)
        return len(self.sent)

    async def call(self, method: str, _payload: Any, *, within_s: float) -> None:
        self.called.append(method)
        await self.barrier.wait()
        raise Moved("it has moved")

    def close(self) -> None:
        """Nothing to close."""

    def causes(self) -> list[str]:
        """Of all drafts, in order."""
        return [draft[0] for sent in self.sent for draft in w.decode_append(sent.payload).drafts]


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_older_appends_go_first(tmp_path: Path) -> None:
    port = RemotePort(MEMBERS, b"k" * 32, "edge-0", spool_dir=tmp_path)
    old = port.peer_of(A)
    new = next(peer for peer in port._peers.values() if peer is not old)
    before, after = FakeLink(), FakeLink()
    old.link, new.link = before, after  # type: ignore[assignment]

    def append(cause: str) -> None:
        draft = Draft(cause, "patch", "{}", 2)
        port.append(A, [draft], FutureReply(), None)

    async with TaskOwner() as tasks:
        append("1")
        append("2")
        before.sent[0].failed(Moved("it has moved"))  # it waits to be sent to the old one again
        append("3")  # behind it
        assert before.causes() == ["1", "2"]
        port.moves.learn([Pin(*A, new.name)], tasks)
        append("4")
        append("5")
        await until(lambda: before.called)
        assert after.sent == [], "older ones are under way"
        before.sent[1].failed(Moved("it has moved"))
        assert after.sent == []
        before.barrier.set()
        await until(lambda: len(after.sent) == 5)
        append("6")
        assert after.causes() == ["1", "2", "3", "4", "5", "6"]
        assert before.causes() == ["1", "2"] and old.idle and not new.idle
        assert port.moves.held == {}
    await port.aclose()
