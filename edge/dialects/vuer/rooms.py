"""Names of rooms, and where their ledgers are."""

from __future__ import annotations

from typing import Final

from actors.types import Address
from infra import limits
from infra.errors import ProtocolError

KIND: Final = "rtc"
ROOM_BYTES_MAX: Final = limits.SCOPE_BYTES_MAX - len(KIND) - 1
TENANT: Final = "default"


def scope_of(room_id: str) -> str:
    """The scope of the room. Raises ProtocolError for what cannot name one."""
    size = len(room_id.encode("utf-8", "replace"))
    if not room_id.isprintable() or not 0 < size <= ROOM_BYTES_MAX:
        raise ProtocolError(
            f"a room has 1 to {ROOM_BYTES_MAX} printable bytes as its name", code="bad_scope"
        )
    return f"{KIND}:{room_id}"


def room_address(room_id: str, tenant: str = TENANT) -> Address:
    """Where the room's ledger is. Raises ProtocolError."""
    return Address(tenant, scope_of(room_id))


def room_of(address: Address) -> str:
    """The other way round."""
    return address.scope.partition(":")[2]
