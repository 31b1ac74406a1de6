"""`/metrics`: counts the parts keep anyway, in Prometheus' text form. Labels never hold a scope."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from infra import clock

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from edge.server import Server


class EdgeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What one edge counts: numbers of sockets and readers, and seconds since its start."""

    connections: int
    subscriptions: int
    feeds: int
    uptime_s: float


def counts_of(server: Server) -> EdgeCounts:
    """Of the edge that this process is."""
    return EdgeCounts(
        connections=len(server.connections),
        subscriptions=sum(connection.subscriptions for connection in server.connections),
        feeds=len(server.runtime.feeds),
        uptime_s=clock.monotonic() - server.started_at,
    )


def render(edges: list[EdgeCounts], report: dict[str, Any]) -> bytes:
    """The exposition of one server: of all of its edges, and what its scopes' processes report.

    The client library is loaded at the first call: it costs 4 MiB.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(edges, report))
    return generate_latest(registry)


class _Collector:
    def __init__(self, edges: list[EdgeCounts], report: dict[str, Any]) -> None:
        self._edges = edges
        self._report = report

    def collect(self) -> Iterable[Metric]:
        """Fresh at each scrape."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        edges, report = self._edges, self._report
        gauges = {
            "connections": (
                "open sockets and streams",
                sum(edge.connections for edge in edges),
            ),
            "subscriptions": (
                "subscriptions of all connections",
                sum(edge.subscriptions for edge in edges),
            ),
            "feeds": ("live readers of scopes, one an edge", sum(edge.feeds for edge in edges)),
            "edges": ("edges that answered", len(edges)),
            "scopes_open": ("scopes with an open file", report["scopes_open"]),
            "uptime_seconds": (
                "since the start of the oldest edge",
                max(edge.uptime_s for edge in edges),
            ),
        }
        bucket = report["bucket"]
        if bucket is not None:
            gauges |= {
                "bucket_monthly_cost": (
                    "money for a month of requests at the pace since start",
                    bucket["monthly_cost"],
                ),
                "replicas_pending": (
                    "open scopes of which the bucket lacks something",
                    bucket["replicas_pending"],
                ),
            }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"holdfast_{name}", text, value=value)
        counts = report["counters"]
        counters = {
            "commits": ("transactions", counts["commits"]),
            "entries": ("entries written", counts["entries"]),
            "refused_drafts": ("drafts refused by a rule", counts["refused"]),
            "duplicate_drafts": ("drafts answered from the first time", counts["duplicates"]),
            "scope_opens": ("ledger files opened", counts["opens"]),
            "barrier_passes": ("durability passes", counts["passes"]),
            "release_wait_seconds": (
                "sum over commits of the time from commit to release",
                counts["release_wait_s"],
            ),
            "fenced": ("scopes that another writer went on with", counts["fenced"]),
        }
        if bucket is not None:
            counters |= {
                "bucket_bytes_up": ("bytes sent to the bucket", bucket["bytes_up"]),
                "bucket_bytes_down": ("bytes read from the bucket", bucket["bytes_down"]),
                "restores": ("scopes restored from the bucket", bucket["restores"]),
            }
            requests = CounterMetricFamily(
                "holdfast_bucket_requests", "requests to the bucket", labels=["kind"]
            )
            for kind, count in bucket["requests"].items():
                requests.add_metric([kind], count)
            yield requests
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"holdfast_{name}", text, value=value)
