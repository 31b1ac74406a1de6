"""Hearing of changes at the peer instead of polling: its notices, as events of the notifier."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec

from actors.clocks import HLC
from edge.client.starkeep.notifier import ChangeNotifier
from edge.client.starkeep.transport import HttpPeer
from edge.client.starkeep.types import ChangeEvent
from infra import ids

log = logging.getLogger("holdfast.starkeep")

PATH: Final = "/sync/notices"
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 60.0
FRAME_BYTES_MAX: Final = 1 << 20
HEARTBEAT_S: Final = 30.0


class _Notice(msgspec.Struct, rename="camel"):
    event_type: str
    record_ids: tuple[str, ...] = ()
    timestamp: HLC = HLC(0, 0, "")


async def follow_notices(peer: HttpPeer, notifier: ChangeNotifier) -> None:
    """Emit `remote-update-available` for every notice, until cancelled.

    Connects again for ever, twice as late each time up to RETRY_S_MAX; each connection begins with
    an event, because what happened before it was not heard.
    """
    import aiohttp

    wait_s = RETRY_S
    while True:
        try:
            headers = await peer.headers("GET", PATH)
            async with peer.session().ws_connect(
                peer.base + PATH, headers=headers, max_msg_size=FRAME_BYTES_MAX,
                heartbeat=HEARTBEAT_S,
            ) as socket:  # fmt: skip
                wait_s = RETRY_S
                _emit(notifier, _Notice("remote-update-available"))
                async for message in socket:
                    _heard(notifier, message.data)
        except (aiohttp.ClientError, OSError) as error:
            log.info("notices broke off base=%s error=%s", peer.base, error)
        await asyncio.sleep(wait_s * (0.5 + ids.random()))
        wait_s = min(RETRY_S_MAX, wait_s * 2)


def _heard(notifier: ChangeNotifier, text: Any) -> None:
    try:
        notice = msgspec.json.decode(text, type=_Notice)
    except (msgspec.MsgspecError, TypeError) as error:
        log.warning("a notice that is none error=%s", error)
        return
    _emit(notifier, notice)


def _emit(notifier: ChangeNotifier, notice: _Notice) -> None:
    if notice.event_type == "remote-update-available":
        notifier.emit(ChangeEvent("remote-update-available", notice.record_ids, notice.timestamp))
