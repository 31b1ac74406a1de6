"""Which earlier state of a scope is meant: a seq, a replica batch (TXID), or a moment. Pure.

Written `seq:120` or `120`, `txid:7`, `2026-11-24T12:00:00Z`, or an age such as `-10m`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import msgspec

from infra.errors import ConfigError
from infra.limits import INTEGER_MAX

FORMS: Final = "seq:N, txid:N, a time like 2026-11-24T12:00:00Z, or an age like -10m"
_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_NUMBER = re.compile(r"(?:(seq|txid):)?([0-9]{1,16})")
_AGE = re.compile(r"-([0-9]{1,9})([smhd])")


class At(msgspec.Struct, frozen=True):
    """Exactly one is set. `seq`: the first state that holds it; `txid`: exactly that batch;
    `time_ms`: the last state from before it, in Unix milliseconds.
    """

    seq: int | None = None
    txid: int | None = None
    time_ms: int | None = None


def parse_at(text: str, *, now_ms: int) -> At:
    """What a person has written. Raises ConfigError with the forms there are."""
    if found := _NUMBER.fullmatch(text):
        number = int(found[2])
        if not 1 <= number <= INTEGER_MAX:
            raise ConfigError(f"{text!r} is out of range: numbers begin at 1")
        return At(txid=number) if found[1] == "txid" else At(seq=number)
    if found := _AGE.fullmatch(text):
        return At(time_ms=now_ms - int(found[1]) * _UNITS_MS[found[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no state: use {FORMS}") from None
    if moment.tzinfo is None:
        raise ConfigError(f"{text!r} does not say in which zone: add Z, or an offset like +02:00")
    return At(time_ms=int(moment.timestamp() * 1000))


def rfc3339(time_ms: int) -> str:
    """A moment in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
