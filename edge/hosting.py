"""How a process that has scopes is set up, as the configuration and the application say. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from actors.host_settings import HostSettings
from actors.replication import BucketSettings
from actors.types import Address, Retention, ScopePolicy
from edge.application import Application
from edge.config import Config
from infra.replicator import ReplicaSettings


def host_settings(
    config: Config, application: Application, open_max: int, *, process: str = "", home: str = "*",
    owns: Callable[[Address], bool] = lambda _address: True,
    claim: Callable[[Address, bool], Awaitable[None]] | None = None,
) -> HostSettings:  # fmt: skip
    """`process` and `owns` where several share the directory (actors/host_settings.py)."""

    def policy(address: Address) -> ScopePolicy:
        settings = config.settings_for(address.scope)
        retention = Retention(settings.retain, settings.retain_seconds, settings.retain_bytes)
        return ScopePolicy(retention, settings.materialize, settings.durability)

    return HostSettings(
        policy=policy, idle_s=config.idle_s, open_max=open_max, dialects=application.dialects(),
        bucket=bucket_settings(config), drain_s=config.drain_timeout_s, process=process, owns=owns,
        home=home, claim=claim,
    )  # fmt: skip


def bucket_settings(config: Config) -> BucketSettings | None:
    """What the configuration says of the bucket; None where there is none."""
    if not config.bucket:
        return None
    replica = ReplicaSettings(
        put_interval_ms=config.put_interval_ms,
        max_stall_ms=int(config.max_stall_s * 1000),
        history_ms=int(config.bucket_history_s * 1000),
        snapshots=config.bucket_snapshots,
        budget=config.bucket_budget,
    )
    return BucketSettings(
        config.bucket, replica, shared=config.shares_bucket, evict_s=config.evict_s,
        adopt=config.adopt_bucket,
    )  # fmt: skip
