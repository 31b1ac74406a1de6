"""The client's socket to an objectfeed: as edge/client/transport.py, at the feed's own address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.client.transport import CLOSE_WAIT_S, FRAME_BYTES_IN_MAX, Transport

if TYPE_CHECKING:
    import aiohttp


class FeedSocket(Transport):
    """`base` is the address of the objectfeed itself."""

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        import aiohttp

        return await self._http().ws_connect(
            self._base,
            headers=await self._headers(),
            max_msg_size=FRAME_BYTES_IN_MAX,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_WAIT_S),
            autoping=True,
            heartbeat=30.0,
            compress=0,
        )
