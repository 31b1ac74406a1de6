"""What a supervisor tells a process at its start: one line of JSON on standard input, which stays
open for as long as the supervisor lives. Secrets so stand in no command line and no environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from actors.pins import Pin, Placed
from edge.access import Mode
from edge.application import Application, load_application
from edge.config import Config
from infra.errors import ConfigError

BOOT_BYTES_MAX = 4 << 20


class Boot(msgspec.Struct, frozen=True):
    """`name` is this process, `members` where each actor process listens, `key` what links are
    proven with.
    """

    name: str
    config: Config
    mode: Mode
    target: str | None
    directory: str
    members: dict[str, str]
    key: bytes
    control: str = ""  # where the supervisor listens, which starts tenants' processes
    tenant: str | None = None  # whose process this is
    edges: dict[str, str] = {}  # where each edge listens for the others, if there are others
    listen_fd: int | None = None  # an edge's, inherited: the socket to accept clients from
    store: str = ""  # where the process listens that speaks to the bucket, if there is one
    pins: list[Pin] = []  # scopes that were moved

    def application(self) -> Application:
        """The user's."""
        if self.target is None:
            return Application()
        return load_application(self.target, directory=Path(self.directory))

    @property
    def place(self) -> str:
        """Where an actor process listens: of a tenant's, the one place there is."""
        if self.tenant is not None:
            return next(iter(self.members.values()))
        return self.members[self.name]

    def placed(self) -> Placed:
        """Where scopes are, as this process knows it at its start."""
        return Placed(self.name, self.members, self.pins)


def encode_boot(boot: Boot) -> bytes:
    """One line."""
    return msgspec.json.encode(boot) + b"\n"


def read_boot() -> Boot:
    """From standard input. Raises ConfigError for whoever starts this by hand."""
    if sys.stdin.isatty():
        raise ConfigError("this process is started by `holdfast serve --edges E --actors A`")
    data = b""
    while not data.endswith(b"\n") and len(data) < BOOT_BYTES_MAX:
        piece = os.read(0, 65_536)
        if not piece:
            break
        data += piece
    try:
        return msgspec.json.decode(data, type=Boot)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"not what a supervisor says: {error}") from error
