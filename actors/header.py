"""The `scope` row of a ledger file: whose it is, and how far it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from actors.types import Address, Retention
from infra.errors import FileRefused
from infra.sqlite import Handle

if TYPE_CHECKING:
    from pathlib import Path

_HEADER = (
    "SELECT tenant, scope, dialect, epoch, owner, nonce, txid, level, head, floor, floor_at, jump,"
    " bytes, body_max, materialize, clock, retain, retain_seconds, retain_bytes, created_at"
    " FROM scope WHERE one=1"
)


class Header(msgspec.Struct):
    """The `scope` row: positions and identity.

    `txid` is the first replica batch that can hold the last commit (0: never had a replica),
    `nonce` the writer's (infra/replica.py), `level` what the last commit was released at.
    """

    dialect: str
    epoch: str
    owner: int
    nonce: int
    txid: int
    level: str
    head: int
    floor: int
    floor_at: int
    jump: int
    bytes: int
    body_max: int
    materialize: bool
    clock: str | None
    retain: int | None
    retain_seconds: int | None
    retain_bytes: int | None
    created_at: int

    def retention(self, configured: Retention) -> Retention:
        """The scope's own settings where it has any, else the configured ones."""
        return Retention(
            configured.entries if self.retain is None else self.retain,
            configured.seconds if self.retain_seconds is None else self.retain_seconds,
            configured.bytes if self.retain_bytes is None else self.retain_bytes,
        )


class Unfinished(FileRefused):
    """The file was being created when the process ended: nobody was ever told of anything in it."""


def read_header(db: Handle, path: Path, address: Address) -> Header:
    """The scope row, checked against the address. Raises FileRefused."""
    found = db.execute(_HEADER).fetchone()
    if found is None:
        raise Unfinished(f"{path.name}: not a finished ledger (no scope row)")
    tenant, scope, dialect, epoch, owner, nonce, txid, level, head, floor, *rest = found
    if (tenant, scope) != tuple(address):
        raise FileRefused(
            f"{path.name}: holds {tenant}/{scope}, not {address.tenant}/{address.scope}"
        )
    floor_at, jump, size, body_max, materialize, clock, *limits, created_at = rest
    retain, retain_seconds, retain_bytes = limits
    if not 0 <= floor <= head:
        raise FileRefused(f"{path.name}: floor {floor} above head {head}")
    return Header(
        dialect, epoch, owner, nonce, txid, level, head, floor, floor_at, jump, size, body_max,
        bool(materialize), clock, retain, retain_seconds, retain_bytes, created_at,
    )  # fmt: skip
