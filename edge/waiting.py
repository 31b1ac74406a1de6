"""Deadlines that cost nothing where nobody waits.

A timer that is set and ended at once is a good part of what a small request costs. Plain hooks
answer at once, and the body of most requests has come with their head.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from aiohttp import web

T = TypeVar("T")


async def resolve_within(value: T | Awaitable[T], wait_s: float) -> T:
    """What a hook gave: the value, or what it yields when awaited. Raises TimeoutError."""
    if not inspect.isawaitable(value):
        return value
    async with asyncio.timeout(wait_s):
        return await value


def body_at_hand(request: web.Request) -> bytes | None:
    """The unread body where all of it has arrived, else None, with nothing taken.

    It may be longer than a handler allows. Raises what reading it would.
    """
    content = request.content
    return content.read_nowait(-1) if content.is_eof() else None
