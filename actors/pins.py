"""Scopes that were moved: which process has a scope where that is not the one its hash names. Pure.

One supervisor decides and writes them down; every process and edge is told. Always true: the
process that gives a scope away has closed its file, and knows that the scope is another's, before
that other is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from actors.types import Address
from infra.placement.rendezvous import Member, Owners

PINS_MAX: Final = 10_000


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """The scope is this process's."""

    tenant: str
    scope: str
    process: str


def table_of(pins: Iterable[Pin]) -> dict[Address, str]:
    """By address."""
    return {Address(pin.tenant, pin.scope): pin.process for pin in pins}


def pins_of(table: Mapping[Address, str]) -> list[Pin]:
    """To be sent, or stored."""
    return [Pin(*address, process) for address, process in table.items()]


class Placed:
    """Where scopes are, as one process knows it."""

    def __init__(self, me: str, members: Iterable[str], pins: Iterable[Pin] = ()) -> None:
        self.me = me
        self.members = tuple(members)
        self.pins = table_of(pins)
        self.leaving: set[Address] = set()  # no request is taken any more
        self.gone: set[Address] = set()  # closed, and not opened again
        self._owners = Owners(Member(name) for name in self.members)

    def of(self, address: Address) -> str:
        """The process that has the scope."""
        pinned = self.pins.get(address) if self.pins else None
        if pinned is not None:
            return pinned
        name = self._owners.of(address)
        assert name is not None
        return name

    def has(self, address: Address) -> bool:
        """Whether this process may open the scope's file."""
        return self.of(address) == self.me and address not in self.gone

    def accepts(self, address: Address) -> bool:
        """Whether this process takes requests for the scope."""
        return self.has(address) and address not in self.leaving

    def learn(self, pins: Iterable[Pin]) -> None:
        """All there are, now."""
        self.pins = table_of(pins)
        for address in [*self.leaving, *self.gone]:
            if self.of(address) != self.me:
                self.keep(address)  # the table says so from now on

    def keep(self, address: Address) -> None:
        """It is not given away after all."""
        self.leaving.discard(address)
        self.gone.discard(address)
