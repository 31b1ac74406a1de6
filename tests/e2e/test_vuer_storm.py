"""Everything hostile at once, and beside it two honest clients and one who only listens: they get
every message, in order, once, and end with the server's scene.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from actors.dialects.vuer.message import VuerRefusal
from edge.client.vuer.client import RTCClient
from edge.dialects.vuer import limits
from edge.server import Server
from tests.support.app import PATIENCE_S, RawSocket, masked, running, token, url_of
from tests.support.rtc import ROOM, Json, Peer, insert, message, meta, op

pytestmark = pytest.mark.e2e
EDITS = 120


def token_of(user: str) -> str:
    """May write to every room, and is no admin."""
    return token("rtc:*", write=True, subject=user)


async def liar(server: Server, turn: int) -> None:
    """Refused message by message; the lie about a clock is taken, and decides nothing."""
    name = f"liar{turn}"
    add = op("number.add", "n", "ann", 1000)
    lies: list[tuple[Json, str]] = [
        ({"sessionId": "ann"}, "session_mismatch"),
        ({"lamportTime": 1 << 53}, "clock_skew"),
        ({"lamportTime": "9"}, "invalid_message"),
        ({"ops": [op("no.such", "n", "x", 1)]}, "unknown_otype"),
        ({"ops": [add, op("number.set", "n", "x", float("nan"))]}, "invalid_op"),
        ({"ops": [add, op("number.set", "n", "x", float("-inf"))]}, "invalid_op"),
        ({"ops": [add, op("number.set", "n", "x", 1 << 60)]}, "invalid_op"),
        ({"ops": [add, op("vector3.set", "n", "x", [1, 2])]}, "invalid_op"),
        ({"ops": [meta("undo", "listener:1")]}, "forbidden undo_expired"),  # once it is compacted
        ({"ops": [add] * 1001}, "invalid_message"),
        ({"clock": {"ann": -1}}, "invalid_message"),
    ]
    token = token_of("eve")
    async with await Peer.joined(server, name, token=token, codec="msgpack") as eve:
        for number, (lie, code) in enumerate(lies, 1):
            answer = await eve.say(message(name, number, add) | lie)
            assert answer["mtype"] == "error" and answer["error"] in code.split(), (lie, answer)
        lying = message(name, 100, op("number.add", "n", "spoilt", 1))
        assert (await eve.say(lying | {"clock": {"ann": 1 << 40}}))["mtype"] == "ack"


async def garbage(server: Server, turn: int) -> None:
    chance = random.Random(turn)
    async with await Peer.joined(server, f"garbage{turn}", token=token_of("eve")) as eve:
        for _ in range(limits.ERRORS_MAX):
            await eve.socket.send_bytes(b"\xc1" + chance.randbytes(chance.randrange(1000)))
        assert (await _end_of(eve)) == 1008


async def huge(server: Server, turn: int) -> None:
    async with await Peer.joined(server, f"huge{turn}", token=token_of("eve")) as eve:
        await eve.socket.send_str("[" * 500_000)
        await eve.socket.send_str('{"mtype":"crdt","msg":' + '{"a":' * 9_000 + "1" + "}" * 9_001)
        await eve.socket.send_str("x" * (limits.FRAME_BYTES_MAX + 1))
        assert (await _end_of(eve)) == 1009


async def flood(server: Server, turn: int) -> None:
    """As much as one session may, and a half more."""
    name = f"flood{turn}"
    async with await Peer.joined(server, name, token=token_of("eve")) as eve:
        spoil = op("number.add", "n", "spoilt", 1)
        count = limits.MESSAGES_BURST * 3 // 2
        for number in range(count):
            await eve.send({"mtype": "crdt", "msg": message(name, number, spoil)})
        for _ in range(count):
            answer = await eve.until(lambda f: f["mtype"] in ("ack", "error"))
            assert answer["mtype"] == "ack" or answer["error"] == "rate_limited"


async def bulk(server: Server, turn: int) -> None:
    name = f"bulk{turn}"
    async with await Peer.joined(server, name, token=token_of("eve")) as eve:
        for _ in range(20):
            answer = await eve.write(*[op("number.add", "n", "spoilt", 0)] * 1000)
            assert answer["mtype"] == "ack"


async def thief(server: Server, turn: int) -> None:
    """The sessions of others, and frames before any join."""
    for session in ("ann", "bob", "listener"):
        async with await Peer.connect(server, session, token=token_of("eve")) as eve:
            await eve.send({"mtype": "crdt", "msg": message(session, 1)}, {"mtype": "join"})
            assert (await eve.until("error"))["error"] == "not_joined"
            assert (await eve.until("error"))["error"] == "session_taken"
            assert (await _end_of(eve)) == 4403


async def deaf(server: Server, turn: int) -> None:
    """Joins and never reads; gone again without a close."""
    header = f"Authorization: Bearer {token_of('eve')}"
    path = f"/rtc/{ROOM}?sessionId=deaf{turn}"
    async with await RawSocket.upgraded(server, header, path=path) as raw:
        for number in range(50):
            await raw.write(masked(1, b'{"mtype":"join"}'))
            await raw.write(masked(2, os.urandom(number)))


async def _end_of(peer: Peer) -> int:
    while (frame := await peer.frame())["mtype"] != "closed":
        pass
    code: int = frame["code"]
    return code


HOSTILE = (liar, garbage, huge, flood, bulk, thief, deaf)


async def again_and_again(
    attack: Callable[[Server, int], Awaitable[None]], server: Server, over: asyncio.Event
) -> None:
    turn = 0
    while not turn or not over.is_set():
        turn += 1
        await attack(server, turn)


async def honest(client: RTCClient, property: str) -> None:
    for number in range(1, EDITS + 1):
        client.store.edit(op("number.add", "n", property, 1))
        client.store.commit()
        if number % 5 == 0:
            await client.settled()


async def listened(peer: Peer, at: int, upto: int) -> None:
    """Read from `at` to `upto`: each number once, in order. A `state` may stand for what was
    compacted before a slow reader came to it.
    """
    while at < upto:
        frame = await peer.until(lambda f: f["mtype"] in ("broadcast", "state"))
        told = frame["journal"] if frame["mtype"] == "state" else (
            frame.get("msgs") or [frame["msg"]])  # fmt: skip
        if frame["mtype"] == "state":
            assert frame["floorSeq"] >= at
            at = frame["floorSeq"]
        assert [m["serverSeq"] for m in told] == list(range(at + 1, at + 1 + len(told)))
        at += len(told)


async def test_honest_clients_in_a_storm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused: list[VuerRefusal] = []
    over = asyncio.Event()
    async with running(tmp_path, mode="serve") as server, asyncio.timeout(6 * PATIENCE_S):
        url = url_of(server)
        listener = await Peer.joined(server, "listener", token=token_of("listener"))
        ann, bob = [
            await RTCClient.connect(url, ROOM, n, token=token_of(n), on_error=refused.append)
            for n in ("ann", "bob")
        ]
        async with listener, ann, bob:
            await listener.write(insert("n", ann=0, bob=0, spoilt=0))
            for client in (ann, bob):
                await client.reached(1)
            async with asyncio.TaskGroup() as group:
                for attack in HOSTILE:
                    group.create_task(again_and_again(attack, server, over))
                async with asyncio.TaskGroup() as work:
                    work.create_task(honest(ann, "ann"))
                    work.create_task(honest(bob, "bob"))
                over.set()
            head, wanted = await ann.check()
            await listened(listener, 1, head)
            for client, name in ((ann, "ann"), (bob, "bob")):
                await client.reached(head)
                assert client.store.graph.hash() == client.store.confirmed.hash() == wanted
                assert client.store.graph.value("n", name) == EDITS
            assert refused == []
            assert (await listener.hash()) == (head, wanted)
    # Nor is the log theirs to fill.
    logged = [r for r in caplog.records if r.name == "asyncio" or r.levelname == "ERROR"]
    assert [r.getMessage() for r in logged] == []
