"""The ephemeral traffic of one edge in one scope, at the process that has the scope."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from actors import link_wire as w
from actors.ephemeral_wire import Exchange
from actors.types import Address
from infra.errors import HoldfastError
from infra.link.connection import Link

if TYPE_CHECKING:
    from actors.serving import Serving


class Served(Exchange):
    """Fits infra.link.connection.Answerer. The scope is neither opened nor kept open by it."""

    def __init__(self, serving: Serving, link: Link, stream: int, payload: msgspec.Raw) -> None:
        super().__init__()
        asked: w.Ask = w.decode_ask(payload)
        self.address: Address = serving.address(asked.tenant, asked.scope)
        self._serving = serving
        self._link = link
        self._stream = stream
        self.send = self._send
        self.line = serving.host.ephemera.open(self.address, self)
        self.begin()
        self.flush()

    def _send(self, payload: msgspec.Raw) -> bool:
        return not self._link.congested and self._link.send(self._stream, payload)

    # -- Answerer ----------------------------------------------------------------------------------

    def part(self, payload: msgspec.Raw) -> None:
        try:
            self.receive(payload)
        except HoldfastError as error:  # the stream ends, the link goes on
            self.gone()
            self._link.fail(self._stream, error)
            return
        self._link.taken(self._stream, payload)

    def finished(self) -> None:
        """The edge ends the stream by cancelling it."""

    def credited(self) -> None:
        if self.waiting:
            self.flush()

    def gone(self) -> None:
        """The link has ended, or the edge has nobody there: what it kept is taken back."""
        self._serving.forget(self)
        self.line.close()

    def leave(self, error: HoldfastError) -> None:
        """The scope moves: every edge is about to tell the next process what it keeps, so nobody
        is told that it is gone.
        """
        self._serving.forget(self)
        self.line.close(quietly=True)
        self._link.fail(self._stream, error)
