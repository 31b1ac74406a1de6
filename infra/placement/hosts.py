"""Hosts as each of them tells the others of itself, and the view of them that an edge routes by.

What stands here is a hint: a view may be late, and two hosts may hold different ones. Then a scope
is asked of the wrong host, which refuses, or of two, of which the bucket accepts one
(infra/replica.py). No view can make a write count twice or be lost.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cached_property
from typing import Final

import msgspec

from infra.errors import ConfigError, ProtocolError
from infra.placement.rendezvous import WEIGHT_MAX, Key, Member, owner, ranked

HOSTS_MAX: Final = 256
HOST_BYTES_MAX: Final = 4096  # one host's record
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_INSTANCE: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
_LINK: Final = re.compile(
    r"(?:tcp|tls):(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}"
)


class HostState(StrEnum):
    """`draining`: serves what it holds, takes nothing new, and is about to leave."""

    UP = "up"
    DRAINING = "draining"


class HostInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One host. `life` differs between two starts under one name.

    `link` is where other hosts reach it, `tcp:HOST:PORT` or `tls:HOST:PORT`. `instance` is what a
    proxy in front knows it by (`fly-replay`); empty where there is none.
    """

    name: str
    link: str
    life: str = ""
    weight: int = 1
    state: HostState = HostState.UP
    instance: str = ""


class View(msgspec.Struct, frozen=True, dict=True):
    """The hosts believed to be live, by name. `fresh`: the engine behind was heard of lately."""

    hosts: tuple[HostInfo, ...] = ()
    fresh: bool = False

    @cached_property
    def _by_name(self) -> dict[str, HostInfo]:
        return {host.name: host for host in self.hosts}

    @cached_property
    def _members(self) -> tuple[Member, ...]:
        up = (host for host in self.hosts if host.state is HostState.UP)
        return tuple(Member(host.name, host.weight) for host in up)

    def host(self, name: str) -> HostInfo | None:
        """The live host of that name."""
        return self._by_name.get(name)

    def owner(self, key: Key) -> HostInfo | None:
        """The host that should own the key; None where no host takes anything."""
        name = owner(key, self._members)
        return None if name is None else self._by_name[name]

    def candidates(self, key: Key) -> list[HostInfo]:
        """Every live host in the order in which to ask for the key: its owner, then whoever would
        own it without those before, then those that leave and may hold it still.
        """
        found = [self._by_name[name] for name in ranked(key, self._members)]
        return found + [host for host in self.hosts if host.state is not HostState.UP]


_decoder = msgspec.json.Decoder(HostInfo)


def check_host(host: HostInfo) -> HostInfo:
    """The host itself. Raises ConfigError with the form to use."""
    if not _NAME.fullmatch(host.name):
        raise ConfigError(
            f"{host.name!r} is no host name: 1 to 63 letters, digits, '-' and '_', the first a "
            "letter or digit"
        )
    if not _LINK.fullmatch(host.link) or int(host.link.rpartition(":")[2]) > 65_535:
        raise ConfigError(
            f"host {host.name}: {host.link!r} is no address of the form tcp:HOST:PORT or "
            "tls:HOST:PORT"
        )
    if not 1 <= host.weight <= WEIGHT_MAX:
        raise ConfigError(f"host {host.name}: a weight is from 1 to {WEIGHT_MAX}")
    if not _INSTANCE.fullmatch(host.instance):  # it becomes part of a header
        raise ConfigError(
            f"host {host.name}: {host.instance!r} is no instance: up to 64 letters, digits, '-' "
            "and '_'"
        )
    return host


def parse_host(text: str) -> HostInfo:
    """`NAME@LINK`, or `NAME@LINK*WEIGHT`, as in `a@tcp:10.0.0.1:8421*2`. Raises ConfigError."""
    name, _, rest = text.partition("@")
    link, star, weight = rest.partition("*")
    if star and not weight.isdecimal():
        raise ConfigError(f"{text!r}: after * stands a whole number, the weight")
    return check_host(HostInfo(name=name, link=link, weight=int(weight or 1)))


def encode_host(host: HostInfo) -> bytes:
    """The host as an engine keeps it."""
    return msgspec.json.encode(host)


def decode_host(data: bytes) -> HostInfo:
    """What `encode_host` made; fields of later releases are passed over. Raises ProtocolError."""
    if len(data) > HOST_BYTES_MAX:
        raise ProtocolError(f"a host's record has {len(data)} bytes, above {HOST_BYTES_MAX}")
    try:
        return check_host(_decoder.decode(data))
    except (msgspec.DecodeError, ConfigError) as error:
        raise ProtocolError(f"no record of a host: {error}") from error
