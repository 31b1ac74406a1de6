"""Which state `--at` means."""

from __future__ import annotations

import pytest

from actors.moment import At, parse_at, rfc3339
from infra.errors import ConfigError

NOW = 1_795_200_000_000


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("5", At(seq=5)),
        ("seq:5", At(seq=5)),
        ("txid:7", At(txid=7)),
        ("-10m", At(time_ms=NOW - 600_000)),
        ("-90s", At(time_ms=NOW - 90_000)),
        ("-2d", At(time_ms=NOW - 2 * 86_400_000)),
        ("1970-01-01T00:00:01Z", At(time_ms=1000)),
        ("1970-01-01T01:00:01.5+01:00", At(time_ms=1500)),
    ],
)
def test_forms(text: str, at: At) -> None:
    assert parse_at(text, now_ms=NOW) == at


@pytest.mark.parametrize(
    "text",
    ["", "0", "seq:0", "txid:", "seq:-1", "10m", "-10", "-10y", "yesterday", "٣", "9" * 17,
     "9" * 16, "2026-11-24T12:00:00", "2026-11-24", "2026-13-01T00:00:00Z"],
)  # fmt: skip
def test_everything_else_is_told_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"seq:N|begin at 1|zone"):
        parse_at(text, now_ms=NOW)


def test_moments_read_back() -> None:
    assert rfc3339(NOW + 7) == "2026-11-20T18:40:00.007Z"
    assert parse_at(rfc3339(NOW + 7), now_ms=0) == At(time_ms=NOW + 7)
