"""Case 58 over plain sockets: a server killed between commit and ack, and at random under load.

The clients know nothing but the rule: what has no answer is sent again, in order, as it was. Each
message then has one number, the one it was acknowledged with, and counts once.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.auth import Grant
from edge.tokens import mint
from infra import clock
from tests.support.app import PATIENCE_S
from tests.support.process import KEY, ServerProcess
from tests.support.rtc import Json, Peer, insert, message, op

pytestmark = pytest.mark.e2e


async def aside(call: Callable[..., object], *args: object) -> None:
    await asyncio.get_running_loop().run_in_executor(None, call, *args)


async def kill_and_start(server: ServerProcess) -> None:
    await aside(server.stop, signal.SIGKILL)
    await aside(server.start)


def add(session: str, number: int) -> Json:
    return message(session, number, op("number.add", "n", "x", 1))


async def check_room(url: str, acked: dict[str, int]) -> None:
    """A newcomer finds those messages at those numbers, nothing besides, and each counted once."""
    assert sorted(acked.values()) == list(range(1, len(acked) + 1))
    async with await Peer.joined(url, "reader") as reader:
        state = reader.seen[0]
        # A process that outlives the killed one may have compacted the room as it ended.
        assert [m["serverSeq"] for m in state["journal"]] == list(
            range(state["floorSeq"] + 1, len(acked) + 1)
        )
        assert all(acked[m["id"]] == m["serverSeq"] for m in state["journal"])
        state = await reader.join(mode="graph")
        assert state["headSeq"] == len(acked)
        assert state["snapshot"]["graph"]["nodes"]["n"]["x"] == len(acked) - 1  # but the insert


async def test_58_what_was_committed_and_not_acknowledged_is_answered_dup(tmp_path: Path) -> None:
    """The author hears no answer at all; that others have heard a message shows its commit."""
    with ServerProcess(tmp_path, "dev") as server:
        ann, bob = await Peer.joined(server.url, "ann"), await Peer.joined(server.url, "bob")
        sent = [message("ann", 1, insert("n", x=0)), *(add("ann", n) for n in range(2, 201))]
        await ann.send(*({"mtype": "crdt", "msg": msg} for msg in sent))
        heard = {m["id"]: m["serverSeq"] for m in await bob.heard(20)}
        await kill_and_start(server)
        await ann.close()
        await bob.close()
        async with await Peer.joined(server.url, "ann") as again:
            kept = again.seen[0]["headSeq"]
            acked: dict[str, int] = {}
            for number, msg in enumerate(sent, 1):
                answer = await again.say(msg)
                assert (answer["mtype"], answer["serverSeq"]) == ("ack", number)
                assert answer.get("dup", False) is (number <= kept)
                acked[msg["id"]] = number
        assert kept >= len(heard) >= 20 and heard.items() <= acked.items()
        await check_room(server.url, acked)


async def test_a_session_is_its_users_after_a_kill(tmp_path: Path) -> None:
    """From its first acknowledged message on, whatever became of the process."""

    def of(user: str) -> str:
        return mint(
            KEY, subject=user, now_ms=clock.now_ms(), ttl_s=600, scopes=[Grant("rtc:*", "write")]
        )

    async def refused(url: str) -> None:
        async with await Peer.connect(url, "s", token=of("eve")) as eve:
            await eve.send({"mtype": "join"})
            assert (await eve.until("error"))["error"] == "session_taken"
            assert (await eve.until("closed"))["code"] == 4403

    with ServerProcess.with_tokens(tmp_path) as server:
        ann = await Peer.joined(server.url, "s", token=of("ann"))
        assert (await ann.write(insert("n", x=0)))["mtype"] == "ack"
        for _ in range(2):
            await kill_and_start(server)
            await refused(server.url)
        await ann.close()
        async with await Peer.joined(server.url, "s", token=of("ann")) as again:
            assert (await again.write(number=2))["serverSeq"] == 2


async def test_58_at_random_under_load(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    names = ["ann", "bob", "eve"]
    acked: dict[str, int] = {}
    with ServerProcess(tmp_path, "dev") as server:
        async with await Peer.joined(server.url, "ann") as ann:
            acked["ann:1"] = (await ann.write(insert("n", x=0)))["serverSeq"]
        unanswered: dict[str, dict[str, Json]] = {name: {} for name in names}

        async def work(
            joined: Peer, name: str, first: int, enough: asyncio.Event, acks_wanted: int
        ) -> None:
            """Resend, then go on, until the server is gone."""
            waiting = unanswered[name]
            for number in range(first, first + 60):
                msg = add(name, number)
                waiting[msg["id"]] = msg
            async with joined as peer:
                try:
                    await peer.send(*({"mtype": "crdt", "msg": m} for m in waiting.values()))
                    while waiting:
                        frame = await peer.until(lambda f: f["mtype"] in ("ack", "closed", "error"))
                        if frame["mtype"] == "closed":
                            return
                        assert frame["mtype"] == "ack", frame
                        id, seq = frame["msgId"], frame["serverSeq"]
                        assert acked.setdefault(id, seq) == seq
                        del waiting[id]
                        if len(acked) >= acks_wanted:
                            enough.set()
                except ConnectionError:
                    return

        for turn in range(4):
            enough = asyncio.Event()
            wanted = len(acked) + chance.randrange(1, 120)
            peers = [await Peer.joined(server.url, name) for name in names]  # all, before the kill
            async with asyncio.timeout(3 * PATIENCE_S), asyncio.TaskGroup() as group:
                for peer, name in zip(peers, names, strict=True):
                    group.create_task(work(peer, name, 2 + turn * 60, enough, wanted))
                await enough.wait()
                await kill_and_start(server)
        async with asyncio.timeout(3 * PATIENCE_S):
            peers = [await Peer.joined(server.url, name) for name in names]
            await asyncio.gather(*(
                work(peer, name, 300, asyncio.Event(), 1 << 30)
                for peer, name in zip(peers, names, strict=True)
            ))  # fmt: skip
        assert not any(unanswered.values())
        assert len(acked) == 1 + len(names) * 5 * 60
        await check_room(server.url, acked)
