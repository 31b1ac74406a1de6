"""What a directory must not hold when its host becomes one of several: what the bucket lacks.

A scope of a single host may be `local`: acknowledged, and not in the bucket yet. Once others may
own it, whoever wins it would begin it anew.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actors.gate import REPLICATED
from actors.supersede import level_of
from actors.types import Address
from infra.errors import ConfigError
from infra.paths import ledger_path

if TYPE_CHECKING:
    from actors.host import Host

AT_ONCE: Final = 256


async def check_all_shipped(host: Host) -> None:
    """Raises ConfigError where a scope of this disk was `local` and may not be in the bucket."""
    after: Address | None = None
    while found := host.index.unshipped(AT_ONCE, after):
        after = found[-1]
        late = await host.run(partial(_local, host.directory, found))
        if late:
            raise ConfigError(
                f"{late[0].scope!r} and maybe others were written on this host alone and may not "
                "be in the bucket: start once without `hosts`, and stop with SIGTERM"
            )


def _local(directory: Path, addresses: list[Address]) -> list[Address]:
    """Those whose file was written `local`. Blocks."""
    return [
        address for address in addresses
        if level_of(ledger_path(directory, *address)) not in (None, REPLICATED)
    ]  # fmt: skip
