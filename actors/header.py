"""The `scope` row of a ledger file: whose it is, and how far it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from actors.types import Address
from infra.errors import FileRefused
from infra.sqlite import Handle

if TYPE_CHECKING:
    from pathlib import Path

_HEADER = (
    "SELECT tenant, scope, dialect, epoch, owner, txid, head, floor, floor_at, jump, bytes,"
    " body_max, materialize, clock, retain, retain_seconds, retain_bytes, created_at"
    " FROM scope WHERE one=1"
)


class Header(msgspec.Struct):
    """The `scope` row: positions and identity. `txid` names the replica batch a commit ships in."""

    dialect: str
    epoch: str
    owner: int
    txid: int
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


class Unfinished(FileRefused):
    """The file was being created when the process ended: nobody was ever told of anything in it."""


def read_header(db: Handle, path: Path, address: Address) -> Header:
    """The scope row, checked against the address. Raises FileRefused."""
    found = db.execute(_HEADER).fetchone()
    if found is None:
        raise Unfinished(f"{path.name}: not a finished ledger (no scope row)")
    tenant, scope, dialect, epoch, owner, txid, head, floor, floor_at, jump, size, *rest = found
    if (tenant, scope) != tuple(address):
        raise FileRefused(
            f"{path.name}: holds {tenant}/{scope}, not {address.tenant}/{address.scope}"
        )
    body_max, materialize, clock, retain, retain_seconds, retain_bytes, created_at = rest
    if not 0 <= floor <= head:
        raise FileRefused(f"{path.name}: floor {floor} above head {head}")
    return Header(
        dialect, epoch, owner, txid, head, floor, floor_at, jump, size, body_max,
        bool(materialize), clock, retain, retain_seconds, retain_bytes, created_at,
    )  # fmt: skip
