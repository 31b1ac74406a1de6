"""What the admin surface says of the bucket: one scope's replica, and the host's requests. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.host import Host
    from actors.scope import Scope


def replica_report(host: Host, scope: Scope) -> dict[str, Any] | None:
    """How far the bucket is with an open scope; None where there is no bucket.

    `txid` is the last batch in it, None while that is not known; `requests` counts those of this
    scope since it was opened; `error` is what keeps the bucket from taking more.
    """
    replica = host.replicas.get(scope)
    if replica is None:
        return None
    bounds = scope.bounds
    error = replica.requests.trouble
    return {
        "level": scope.gate.level,
        "txid": None if replica.files is None else replica.files.head,
        "durable_seq": bounds.durable,
        "pending": not replica.clean,
        "error": None if error is None else str(error),
        "requests": dict(replica.requests.counts),
    }


def bucket_report(host: Host) -> dict[str, Any] | None:
    """Where the bucket is, and what was asked of it since the start, in requests and in money."""
    if host.waking is None:
        return None
    replication = host.waking.replication
    counts = replication.meter.counts
    return {
        "url": replication.service.store.url,
        "requests": {
            "put": counts.put, "list": counts.list, "get": counts.get, "delete": counts.delete,
        },
        "bytes_up": counts.bytes_up,
        "bytes_down": counts.bytes_down,
        "monthly_cost": round(replication.service.monthly_cost(), 4),
        "restores": replication.restores,
        "replicas_pending": sum(not replica.clean for replica in host.replicas.values()),
    }  # fmt: skip
