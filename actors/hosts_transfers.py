"""Fork, export and import with several hosts: scopes of our own directly, the others' over links,
and again wherever a scope has gone meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from actors.hosts_port import HostsPort
from actors.serving import PART_BYTES
from actors.transfer_links import WAIT_S, MadeThere, RemoteTransfers, StateAsk
from actors.transfers import Export, Transfers
from actors.types import Address
from infra.errors import HoldfastError


class HostsTransfers(RemoteTransfers):
    """Of scopes of several hosts; fits actors.transfers.Transferring."""

    def __init__(self, port: HostsPort, spool_dir: Path) -> None:
        super().__init__(port, spool_dir)
        self._hosts = port

    @cached_property
    def own(self) -> Transfers:
        """Of our host, which has started when something is asked."""
        return Transfers(self._hosts.host)

    def close(self) -> None:
        """See Transfers."""
        if "own" in self.__dict__:
            self.own.close()

    async def _fetched(self, address: Address, method: str, asked: Any) -> Export:
        there = super()._fetched

        async def here() -> Export:
            if isinstance(asked, StateAsk):
                return await self.own.state(address, asked.at)
            return await self.own.export(address, asked.form)

        return await self._hosts.routed(
            address, here, lambda: there(address, method, asked), WAIT_S
        )  # fmt: skip

    async def _make(self, address: Address, method: str, epoch: str, file: IO[bytes]) -> MadeThere:
        there = super()._make

        async def here() -> MadeThere:
            chunks = self._read(file)
            if method == "fork_begin":
                made = await self.own.begin(address, chunks, epoch)
            else:
                made = await self.own.accept(address, chunks, keep_epoch=not epoch, new_epoch=epoch)
            return MadeThere(made.bounds)

        try:
            return await self._hosts.routed(
                address, here, lambda: there(address, method, epoch, file), WAIT_S
            )  # fmt: skip
        except HoldfastError as error:
            # By the first of two hosts that were asked, whose answer was lost.
            if error.code == "conflict" and epoch:
                with contextlib.suppress(HoldfastError):
                    bounds = await self._hosts.bounds(address)
                    if bounds.epoch == epoch:
                        return MadeThere(bounds)
            raise

    async def _read(self, file: IO[bytes]) -> AsyncIterator[bytes]:
        await self._disk(lambda: file.seek(0))
        while data := await self._disk(lambda: file.read(PART_BYTES)):
            yield data
