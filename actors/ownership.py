"""Where each scope is, as one host believes: the routing rule of several hosts. Pure; times are
arguments, in seconds of a clock that never goes back.

| the view says | and here the scope is | then it is asked of |
|---|---|---|
| it is ours | open or not | ourselves |
| it is ours | kept by another, as that one told | that one, for DETOUR_S |
| it is ours | open since before we were silent too long | nobody, until it was closed |
| it is another's | open | ourselves, until it is handed over |
| it is another's | closed, or being handed over | that one |
| nobody's | open / not | ourselves / nobody: wait for a view |

`settled`: the host has claimed the scope, and nothing has happened since that could have given it
to another. Such a scope may be opened again though the engine is away. A view with other hosts, or
a time in which we were silent too long, begins a new generation, and what was settled in an earlier
one has to be claimed anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from actors.types import Address
from infra.placement.hosts import HostInfo, HostState, View

DETOUR_S: Final = 1.0
PREVIOUS_MAX: Final = 3  # hosts asked whether they have a scope, beside those that leave
REMEMBERED_MAX: Final = 100_000  # scopes


class Ownership:
    """Of the host `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.view = View()
        self.generation = 0
        self.leaving: set[Address] = set()  # being handed over
        self.doubtful: set[Address] = set()  # open, and another may have gone on with it
        self._members: tuple[HostInfo, ...] = ()
        self._owners: dict[Address, str | None] = {}
        self._detours: dict[Address, tuple[str, float]] = {}
        self._settled: dict[Address, int] = {}

    def saw(self, view: View) -> bool:
        """A new view; whether scopes may have other owners than before."""
        self.view = view
        if view.hosts == self._members:
            return False
        self._members = view.hosts
        self.lapsed()
        for address, (name, _) in list(self._detours.items()):
            if view.host(name) is None:
                del self._detours[address]
        return True

    def lapsed(self) -> None:
        """Nothing is settled any more."""
        self.generation += 1
        self._owners.clear()

    def owner(self, address: Address) -> str | None:
        """Whose the scope is; None where nobody takes anything."""
        if address not in self._owners:
            if len(self._owners) >= REMEMBERED_MAX:
                self._owners.clear()
            host = self.view.owner(address)
            self._owners[address] = None if host is None else host.name
        return self._owners[address]

    def mine(self, address: Address, now: float) -> bool:
        """Whether this host is the one to open the scope."""
        return self.owner(address) == self.name and self._detour(address, now) is None

    def place(self, address: Address, now: float, *, is_open: bool) -> str | None:
        """Whom to ask for the scope."""
        if self._detours and (name := self._detour(address, now)) is not None:
            return name
        owner = self.owner(address)
        if is_open and address in self.doubtful:
            return None if owner == self.name else owner
        if is_open and address not in self.leaving:
            return self.name
        return owner

    def keeps(self, asker: str, *, is_open: bool, is_waking: bool) -> bool:
        """Whether a scope of ours stays here though `asker` takes it for its own. Where both are
        about to claim it, one of them has to give way.
        """
        return is_open or (is_waking and self.name < asker)

    def doubt(self, addresses: Iterable[Address]) -> None:
        """These are open since before we were silent too long. Nothing is answered from them: what
        they have may not be the last.
        """
        self.doubtful.update(addresses)

    # -- what is known of single scopes ------------------------------------------------------------

    def detour(self, address: Address, name: str, now: float) -> None:
        """Another has the scope and keeps it for now."""
        if len(self._detours) >= REMEMBERED_MAX:
            self._detours.clear()
        self._detours[address] = (name, now + DETOUR_S)

    def straight(self, address: Address) -> None:
        """It no longer does."""
        self._detours.pop(address, None)

    def _detour(self, address: Address, now: float) -> str | None:
        found = self._detours.get(address)
        if found is None:
            return None
        if found[1] <= now:
            del self._detours[address]
            return None
        return found[0]

    def settle(self, address: Address) -> None:
        """This host is about to claim it, and nobody keeps it."""
        if len(self._settled) >= REMEMBERED_MAX:
            self._settled.clear()
        self._settled[address] = self.generation

    def unsettle(self, address: Address) -> None:
        """It was handed over, or another has claimed it."""
        self._settled.pop(address, None)

    def settled(self, address: Address) -> bool:
        """Whether it may be opened without asking anybody."""
        return self._settled.get(address) == self.generation

    def previous(self, address: Address) -> list[str]:
        """Who may have the scope open when this host takes it: hosts that leave, and those who
        would own it without us.
        """
        others = [host for host in self.view.candidates(address) if host.name != self.name]
        up = [host.name for host in others if host.state is HostState.UP]
        leaving = [host.name for host in others if host.state is not HostState.UP]
        return leaving + up[:PREVIOUS_MAX]
