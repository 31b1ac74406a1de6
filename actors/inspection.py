"""What a process knows of its scopes and of itself, for operators: plain values, ready to be sent.

`Inspector` is what the admin surface asks; here it is answered for the scopes of one host.
"""

from __future__ import annotations

from typing import Any, Protocol

from actors.bucket_report import bucket_report, replica_report
from actors.host import Host
from actors.types import Address
from actors.wakes import Why

COUNTERS = (
    "commits", "entries", "refused", "duplicates", "opens", "passes", "release_wait_s",
    "fenced",
)  # fmt: skip
Report = dict[str, Any]  # JSON members, as the admin surface shows them


class Inspector(Protocol):
    """Fits one host, and many of them behind links."""

    async def scopes(self, tenant: str, prefix: str, after: str, limit: int) -> list[Report]:
        """Outlines in order of name; wakes nothing."""

    async def show(self, address: Address) -> Report | None:
        """One scope, awake; None where there is none."""

    async def report(self) -> Report:
        """Totals: `gauges`, `counters` and `bucket`."""


class Inspection:
    """Of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def scopes(self, tenant: str, prefix: str, after: str, limit: int) -> list[Report]:
        rows = self._host.index.page(tenant, prefix, after, limit)
        return [self._outline(Address(tenant, scope), path) for scope, path in rows]

    async def show(self, address: Address) -> Report | None:
        host = self._host
        alarms = await host.alarms.of(address, Why.ADMIN)
        scope = host.open_scopes.get(address)
        if scope is None:
            return None
        header = scope.ledger.header
        path = str(scope.ledger.path.relative_to(host.directory))
        return {
            **self._outline(address, path),
            "owner": header.owner,
            "materialize": header.materialize,
            "created_at": header.created_at,
            "file": path,
            "alarms": [{"name": name, "due_at": due_at} for name, due_at, _, _ in alarms],
            "replica": replica_report(host, scope),
            "bucket": bucket_report(host),
        }

    async def report(self) -> Report:
        host, counts = self._host, self._host.counts
        counters = {name: getattr(counts, name) for name in COUNTERS}
        return {
            "scopes_open": len(host.open_scopes), "counters": counters,
            "bucket": bucket_report(host),
        }  # fmt: skip

    def _outline(self, address: Address, path: str) -> Report:
        """What is known without waking the scope."""
        host = self._host
        outline: Report = {"tenant": address.tenant, "scope": address.scope, "open": False}
        try:
            outline["file_bytes"] = (host.directory / path).stat().st_size
        except OSError:
            outline["file_bytes"] = None
        scope = host.open_scopes.get(address)
        if scope is not None:
            header, bounds = scope.ledger.header, scope.bounds
            outline.update(
                open=True, dialect=header.dialect, epoch=header.epoch, head=bounds.head,
                floor=bounds.floor, bytes=header.bytes,
            )  # fmt: skip
        return outline


def merged(reports: list[Report]) -> Report:
    """The totals of several processes."""
    whole: Report = {}
    for report in reports:
        for name, value in report.items():
            whole[name] = _sum(whole.get(name), value)
    return whole


def _sum(before: Any, value: Any) -> Any:
    if isinstance(before, dict) and isinstance(value, dict):
        return merged([before, value])
    if isinstance(before, int | float) and isinstance(value, int | float):
        return before + value
    return before if value is None else value
