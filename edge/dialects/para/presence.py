"""Who is where, and at what: the last value of each peer in each channel. Pure, in memory only.

An entry goes when its peer leaves, when the peer's connection ends, and 45 s after the connection
was last heard of. Nothing here is stored or numbered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from infra.errors import Busy, ScopeError

TTL_MS: Final = 45_000
VALUE_BYTES_MAX: Final = 16 << 10
CHANNELS_MAX: Final = 100  # of one connection, watched or entered
PEERS_MAX: Final = 10_000  # in one channel

Channel = tuple[str, str, str]  # (tenant, namespace, name)


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
    member: Member
    value: Any
    user: str


class _Room:
    __slots__ = ("peers", "watchers")

    def __init__(self) -> None:
        self.peers: dict[str, _Peer] = {}
        self.watchers: dict[Member, None] = {}


class Channels:
    """All channels of one edge."""

    def __init__(self) -> None:
        self._rooms: dict[Channel, _Room] = {}
        self._of: dict[Member, set[Channel]] = {}

    def __len__(self) -> int:
        return len(self._rooms)

    def watch(self, channel: Channel, member: Member) -> None:
        """Tell the member who is there, and of every later change. Raises Busy."""
        room = self._enter(channel, member)
        room.watchers[member] = None
        for peer, held in room.peers.items():
            if held.member is not member:
                member.peer_said(channel[2], peer, held.value)

    def unwatch(self, channel: Channel, member: Member) -> None:
        """No longer."""
        room = self._rooms.get(channel)
        if room is not None:
            room.watchers.pop(member, None)
            self._tidy(channel, member)

    def say(self, channel: Channel, member: Member, peer: str, value: Any) -> None:
        """The peer's value, from now on this member's. Raises PeerTaken, Busy."""
        room = self._rooms.get(channel)
        held = None if room is None else room.peers.get(peer)
        if held is not None and held.user != member.user_id:
            raise PeerTaken(f"peer {peer!r} is another user's")
        if held is None and room is not None and len(room.peers) >= PEERS_MAX:
            raise Busy(f"{PEERS_MAX} peers are in this channel")
        room = self._enter(channel, member)
        room.peers[peer] = _Peer(member, value, member.user_id)
        if held is not None and held.member is not member:
            self._tidy(channel, held.member)
        for watcher in tuple(room.watchers):
            if watcher is not member:
                watcher.peer_said(channel[2], peer, value)

    def leave(self, channel: Channel, member: Member, peer: str | None = None) -> None:
        """The member's peer (all of them where none is named) is gone from the channel."""
        room = self._rooms.get(channel)
        if room is None:
            return
        for name in [n for n, held in room.peers.items() if held.member is member]:
            if peer is None or name == peer:
                self._gone(channel, room, name)
        self._tidy(channel, member)

    def forget(self, member: Member) -> None:
        """The member's connection has ended."""
        for channel in tuple(self._of.get(member, ())):
            self._rooms[channel].watchers.pop(member, None)
            self.leave(channel, member)

    def expire(self, now_ms: int) -> None:
        """Take out peers of connections that were silent for too long."""
        silent = [m for m in self._of if now_ms - m.heard_at_ms > TTL_MS]
        for member in silent:
            for channel in tuple(self._of.get(member, ())):
                self.leave(channel, member)

    def peers(self, channel: Channel) -> dict[str, Any]:
        """The values of the peers that are there."""
        room = self._rooms.get(channel)
        return {} if room is None else {name: held.value for name, held in room.peers.items()}

    def _enter(self, channel: Channel, member: Member) -> _Room:
        channels = self._of.setdefault(member, set())
        if channel not in channels and len(channels) >= CHANNELS_MAX:
            raise Busy(f"at most {CHANNELS_MAX} channels of one connection")
        channels.add(channel)
        return self._rooms.setdefault(channel, _Room())

    def _gone(self, channel: Channel, room: _Room, peer: str) -> None:
        member = room.peers.pop(peer).member
        for watcher in tuple(room.watchers):
            if watcher is not member:
                watcher.peer_left(channel[2], peer)

    def _tidy(self, channel: Channel, member: Member) -> None:
        room = self._rooms.get(channel)
        if room is None:
            return
        if member not in room.watchers and member not in _members(room):
            channels = self._of.get(member, set())
            channels.discard(channel)
            if not channels:
                self._of.pop(member, None)
        if not room.watchers and not room.peers:
            del self._rooms[channel]


def _members(room: _Room) -> Iterator[Member]:
    return (held.member for held in room.peers.values())
