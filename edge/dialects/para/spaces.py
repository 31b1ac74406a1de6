"""Which scope holds a key: the namespace's own, or one of its parts. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from actors.dialects.para.keys import NAME_BYTES_MAX
from actors.types import Address
from infra.errors import ProtocolError

KIND: Final = "para"
ScopeOf = Callable[[str], str]
"""`scope_of(key)`: the part of the namespace, "" for the namespace itself. Plain and pure: the same
key always lies in the same scope.
"""


class Spaces:
    """The scopes of one namespace. Raises ProtocolError (`bad_scope`) for what cannot name one."""

    def __init__(self, name: str, tenant: str, scope_of: ScopeOf | None) -> None:
        self.name = name
        self.tenant = tenant
        self._scope_of = scope_of
        self._whole = Address(tenant, _scope(name))

    def of(self, key: str) -> Address:
        """The scope of a key."""
        return self._whole if self._scope_of is None else self.part(self._scope_of(key))

    def part(self, name: str) -> Address:
        """The scope of a part."""
        return Address(self.tenant, _scope(f"{self.name}/{name}")) if name else self._whole


def _scope(name: str) -> str:
    first, *rest = name.split("/", 1)
    fits = first and all(rest) and name.isprintable()
    if not fits or len(name.encode("utf-8", "replace")) > NAME_BYTES_MAX:
        raise ProtocolError(
            f"a namespace has 1 to {NAME_BYTES_MAX} printable bytes", code="bad_scope"
        )
    return f"{KIND}:{name}"
