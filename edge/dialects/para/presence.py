"""Who is where, and at what: the last value of each peer in each channel. Pure, in memory only.

An entry goes when its peer leaves, when the peer's connection ends, and 45 s after the connection
was last heard of. Nothing here is stored or numbered. Peers of other processes are told of those
here, and are here as if they were, by way of the process that has the namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from actors.dialects.para.values import json_text
from actors.ephemeral import Line, Party, Said
from actors.types import Address
from infra.errors import Busy, HoldfastError, ScopeError

TTL_MS: Final = 45_000
VALUE_BYTES_MAX: Final = 16 << 10
CHANNELS_MAX: Final = 100  # of one connection, watched or entered
PEERS_MAX: Final = 10_000  # in one channel

Channel = tuple[Address, str]  # (the namespace's scope, name)


class PeerTaken(ScopeError):
    """Another user is that peer already."""

    code = "forbidden"


class Member(Protocol):
    """A connection, as channels see it."""

    @property
    def user_id(self) -> str: ...

    @property
    def heard_at_ms(self) -> int: ...

    def peer_said(self, channel: str, peer: str, value: Any) -> None:
        """A peer of a watched channel has a new value."""

    def peer_left(self, channel: str, peer: str) -> None:
        """A peer of a watched channel is gone."""


@dataclass(slots=True)
class _Peer:
    member: Member | None  # None: it is another process's
    value: Any
    user: str


class _Room:
    __slots__ = ("peers", "watchers")

    def __init__(self) -> None:
        self.peers: dict[str, _Peer] = {}
        self.watchers: dict[Member, None] = {}

    def tell(self, channel: str, peer: str, value: Any, but: Member | None) -> None:
        for watcher in tuple(self.watchers):
            if watcher is not but:
                watcher.peer_said(channel, peer, value)

    def tell_left(self, channel: str, peer: str, but: Member | None) -> None:
        for watcher in tuple(self.watchers):
            if watcher is not but:
                watcher.peer_left(channel, peer)


class Channels:
    """All channels of one edge. `ephemeral` is the port's."""

    def __init__(self, ephemeral: Callable[[Address, Party], Line]) -> None:
        self._ephemeral = ephemeral
        self._spaces: dict[Address, _Space] = {}
        self._of: dict[Member, set[Channel]] = {}

    def __len__(self) -> int:
        return sum(len(space.rooms) for space in self._spaces.values())

    def watch(self, channel: Channel, member: Member) -> None:
        """Tell the member who is there, and of every later change. Raises Busy."""
        room = self._enter(channel, member)
        room.watchers[member] = None
        for peer, held in room.peers.items():
            if held.member is not member:
                member.peer_said(channel[1], peer, held.value)

    def unwatch(self, channel: Channel, member: Member) -> None:
        """No longer."""
        room = self._room(channel)
        if room is not None:
            room.watchers.pop(member, None)
            self._tidy(channel, member)

    def say(self, channel: Channel, member: Member, peer: str, value: Any) -> None:
        """The peer's value, from now on this member's. Raises PeerTaken, Busy."""
        room = self._enter(channel, member)
        held = room.peers.get(peer)
        try:
            if held is not None and held.user != member.user_id:
                raise PeerTaken(f"peer {peer!r} is another user's")
            if held is None and len(room.peers) >= PEERS_MAX:
                raise Busy(f"{PEERS_MAX} peers are in this channel")
            line = self._spaces[channel[0]].line
            line.say(channel[1], peer, json_text(value), user=member.user_id, kept=True)
        except HoldfastError:
            self._tidy(channel, member)
            raise
        room.peers[peer] = _Peer(member, value, member.user_id)
        if held is not None and held.member is not None and held.member is not member:
            self._tidy(channel, held.member)
        room.tell(channel[1], peer, value, member)

    def leave(self, channel: Channel, member: Member, peer: str | None = None) -> None:
        """The member's peer (all of them where none is named) is gone from the channel."""
        room = self._room(channel)
        if room is None:
            return
        line = self._spaces[channel[0]].line
        for name in [n for n, held in room.peers.items() if held.member is member]:
            if peer is None or name == peer:
                del room.peers[name]
                line.take_back(channel[1], name)
                room.tell_left(channel[1], name, member)
        self._tidy(channel, member)

    def forget(self, member: Member) -> None:
        """The member's connection has ended."""
        for channel in tuple(self._of.get(member, ())):
            room = self._room(channel)
            if room is not None:
                room.watchers.pop(member, None)
            self.leave(channel, member)

    def expire(self, now_ms: int) -> None:
        """Take out peers of connections that were silent for too long."""
        silent = [m for m in self._of if now_ms - m.heard_at_ms > TTL_MS]
        for member in silent:
            for channel in tuple(self._of.get(member, ())):
                self.leave(channel, member)

    def peers(self, channel: Channel) -> dict[str, Any]:
        """The values of the peers that are there."""
        room = self._room(channel)
        return {} if room is None else {name: held.value for name, held in room.peers.items()}

    def replaced(self, channel: Channel, member: Member) -> None:
        """A peer of the member's speaks in another process now."""
        self._tidy(channel, member)

    def _room(self, channel: Channel) -> _Room | None:
        space = self._spaces.get(channel[0])
        return None if space is None else space.rooms.get(channel[1])

    def _enter(self, channel: Channel, member: Member) -> _Room:
        channels = self._of.setdefault(member, set())
        if channel not in channels and len(channels) >= CHANNELS_MAX:
            raise Busy(f"at most {CHANNELS_MAX} channels of one connection")
        channels.add(channel)
        space = self._spaces.get(channel[0])
        if space is None:
            space = self._spaces[channel[0]] = _Space(self, channel[0])
            space.line = self._ephemeral(channel[0], space)
        return space.room(channel[1])

    def _tidy(self, channel: Channel, member: Member) -> None:
        room = self._room(channel)
        if room is None:
            return
        if member not in room.watchers and member not in _members(room):
            channels = self._of.get(member, set())
            channels.discard(channel)
            if not channels:
                self._of.pop(member, None)
        if not room.watchers and not any(held.member for held in room.peers.values()):
            space = self._spaces[channel[0]]
            del space.rooms[channel[1]]
            if not space.rooms:
                del self._spaces[channel[0]]
                space.line.close()


class _Space:
    """The channels of one namespace in which somebody of this process is; fits Party."""

    def __init__(self, channels: Channels, address: Address) -> None:
        self.rooms: dict[str, _Room] = {}
        self.line: Line
        self._channels = channels
        self._address = address

    def room(self, name: str) -> _Room:
        """The channel's, with who is there elsewhere."""
        room = self.rooms.get(name)
        if room is None:
            room = self.rooms[name] = _Room()
            for said in self.line.others():
                if said.topic == name:
                    room.peers[said.sender] = _peer_of(said)
        return room

    def heard(self, said: Said) -> None:
        room = self.rooms.get(said.topic)
        if room is None:
            return
        before = room.peers.get(said.sender)
        peer = room.peers[said.sender] = _peer_of(said)
        room.tell(said.topic, said.sender, peer.value, None)
        if before is not None and before.member is not None:
            self._channels.replaced((self._address, said.topic), before.member)

    def withdrawn(self, said: Said) -> None:
        room = self.rooms.get(said.topic)
        held = None if room is None else room.peers.get(said.sender)
        if room is not None and held is not None and held.member is None:
            del room.peers[said.sender]
            room.tell_left(said.topic, said.sender, None)


def _peer_of(said: Said) -> _Peer:
    return _Peer(None, msgspec.json.decode(said.body), said.user)


def _members(room: _Room) -> Iterator[Member | None]:
    return (held.member for held in room.peers.values())
