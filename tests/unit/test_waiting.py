"""Deadlines: kept for what is waited for, and not so much as set for what is there."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import Request

from edge.waiting import body_at_hand, resolve_within


async def slow() -> str:
    await asyncio.Event().wait()
    return "never"


async def quick() -> str:
    return "found"


async def test_a_plain_value_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "timeout", mock.Mock(side_effect=AssertionError))
    found: str = await resolve_within("found", 0)
    assert found == "found"


async def test_what_is_awaited_has_a_deadline() -> None:
    found: str = await resolve_within(quick(), 60)
    assert found == "found"
    with pytest.raises(TimeoutError):
        found = await resolve_within(slow(), 0)


def request_with(*pieces: bytes, whole: bool) -> Request:
    protocol = mock.Mock(spec=BaseProtocol, _reading_paused=False)
    content = StreamReader(protocol, 2**16, loop=asyncio.get_running_loop())
    for piece in pieces:
        content.feed_data(piece)
    if whole:
        content.feed_eof()
    return make_mocked_request("POST", "/", payload=content)


@pytest.mark.parametrize("pieces", [(), (b"one",), (b"one", b"two")])
async def test_a_body_that_has_come_is_taken_at_once(pieces: tuple[bytes, ...]) -> None:
    request = request_with(*pieces, whole=True)
    assert body_at_hand(request) == b"".join(pieces)
    assert body_at_hand(request) == b""


async def test_a_body_on_its_way_is_left_to_who_waits_for_it() -> None:
    request = request_with(b"one", whole=False)
    assert body_at_hand(request) is None
    assert await request.content.readany() == b"one"


async def test_a_body_that_failed_raises_what_reading_it_would() -> None:
    request = request_with(b"one", whole=True)
    request.content.set_exception(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        body_at_hand(request)
