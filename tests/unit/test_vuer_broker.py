"""RoomBroker: what the original gives, word by word, and the broker of rooms of a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors.host import Host
from edge.dialects.vuer.actor_broker import ActorBroker
from edge.dialects.vuer.broker import InMemoryBroker
from edge.dialects.vuer.journal import JournalService
from edge.dialects.vuer.repositories import LedgerRepository
from edge.dialects.vuer.roster import MemberState
from tests.support.app import PATIENCE_S
from tests.support.rtc import insert, message

STATE = MemberState("ann", {"ann": 1}, 1000, True)


async def test_numbers_begin_at_one_in_every_room() -> None:
    broker = InMemoryBroker()
    assert [await broker.next_seq("a") for _ in range(3)] == [1, 2, 3]
    assert await broker.next_seq("b") == 1


async def test_publish_reaches_every_current_subscriber_in_their_order() -> None:
    broker = InMemoryBroker()
    heard: list[tuple[str, Any]] = []

    async def second(msg: Any) -> None:
        heard.append(("second", msg["n"]))

    end = broker.subscribe("a", lambda msg: heard.append(("first", msg["n"])))
    broker.subscribe("a", second)
    broker.subscribe("b", lambda msg: heard.append(("other", msg["n"])))
    await broker.publish("a", {"n": 1})
    end()
    end()
    await broker.publish("a", {"n": 2})
    await broker.publish("nobody", {"n": 3})
    assert heard == [("first", 1), ("second", 1), ("second", 2)]


async def test_one_that_raises_or_unsubscribes_meanwhile_stops_nobody() -> None:
    broker = InMemoryBroker()
    heard: list[int] = []

    def bad(msg: Any) -> None:
        end_last()
        raise RuntimeError("mine alone")

    broker.subscribe("a", bad)
    broker.subscribe("a", lambda msg: heard.append(1))
    end_last = broker.subscribe("a", lambda msg: heard.append(2))
    await broker.publish("a", {})
    assert heard == [1, 2]  # it was a subscriber when the message came
    await broker.publish("a", {})
    assert heard == [1, 2, 1]


async def test_members_are_a_copy() -> None:
    broker = InMemoryBroker()
    assert await broker.get_members("a") == {}
    await broker.set_member("a", "ann", STATE)
    (await broker.get_members("a")).clear()
    assert await broker.get_members("a") == {"ann": STATE}
    await broker.remove_member("a", "ann")
    await broker.remove_member("a", "ann")
    assert await broker.get_members("a") == {}


async def test_62_clear_keeps_subscriptions_and_delete_drops_all() -> None:
    broker = InMemoryBroker()
    heard: list[Any] = []
    broker.subscribe("a", heard.append)
    await broker.next_seq("a")
    await broker.set_member("a", "ann", STATE)
    await broker.clear_room("a")
    await broker.publish("a", {"n": 1})
    assert (await broker.next_seq("a"), await broker.get_members("a")) == (1, {})
    await broker.delete_room("a")
    await broker.publish("a", {"n": 2})
    assert heard == [{"n": 1}] and await broker.next_seq("a") == 1


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with Host(tmp_path) as found:
        yield found


class Heard:
    """A handler that can be waited for."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.news = asyncio.Event()

    def __call__(self, msg: Any) -> None:
        self.ids.append(msg["id"])
        self.news.set()

    async def upto(self, id: str) -> list[str]:
        async with asyncio.timeout(PATIENCE_S):
            while id not in self.ids:
                self.news.clear()
                await self.news.wait()
        return self.ids


async def test_rooms_of_a_port_are_heard_from_their_writer(host: Host) -> None:
    broker = ActorBroker(host)
    journal = JournalService(LedgerRepository(host))
    heard = Heard()
    await journal.process_message("a", message("ann", 1, insert("n")))
    end = broker.subscribe("a", heard)
    await asyncio.sleep(0)  # it subscribes
    assert await broker.next_seq("a") == 2
    for number in range(2, 600):
        await journal.process_message("a", message("ann", number))
    await broker.publish("a", {"id": "not by this way"})
    assert await heard.upto("ann:599") == [f"ann:{n}" for n in range(2, 600)]
    end()
    end()
    await journal.process_message("a", message("ann", 600))
    again = Heard()
    broker.subscribe("a", again)
    await asyncio.sleep(0)
    await broker.clear_room("a")
    assert await broker.next_seq("a") == 601 + 2**20
    await journal.process_message("a", message("bob", 1))
    assert await again.upto("bob:1") == ["bob:1"] and "ann:600" not in heard.ids
    await broker.delete_room("a")
    await journal.process_message("a", message("bob", 2))
    await broker.aclose()
    assert again.ids == ["bob:1"]
    await journal.close()
