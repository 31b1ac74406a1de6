"""One of several hosts: the whole server in this process, with the others' scopes behind links."""

from __future__ import annotations

import ssl
from pathlib import Path

from actors.host import Host
from actors.hosts_attendance import HostsAttendance
from actors.hosts_port import HostsPort
from actors.hosts_transfers import HostsTransfers
from actors.transfer_links import transfer_methods
from actors.types import Address
from edge.access import Mode
from edge.application import Application
from edge.config import Config
from edge.hosting import host_settings
from edge.server import Server
from infra import ids
from infra.errors import ConfigError
from infra.link.sockets import parse_place
from infra.link.tls import dialling, listening
from infra.objects import open_store, store_prefix
from infra.placement.hosts import HostInfo, check_host, parse_host
from infra.placement.nats import NatsEngine
from infra.placement.placement import Placement
from infra.placement.renewing import RenewingPlacement
from infra.placement.s3 import BucketEngine
from infra.placement.static import StaticPlacement
from infra.process import raise_open_files_limit


def make_host(config: Config, application: Application, mode: Mode) -> Server:
    """A server that is one of several. Raises ConfigError."""
    port = HostsPort(
        config.host_name, config.link_key.encode(), spool_dir=Path(config.data_dir),
        listen=config.link_listen, join=lambda place: placement_of(config, place),
        tls=_tls(config),
    )  # fmt: skip
    server = Server(config, application, mode, remote=port)

    async def ring(
        address: Address, name: str, due_at: int, payload: str | None, attempt: int
    ) -> None:
        await server.ring(address, name, due_at, payload, attempt)

    open_max = raise_open_files_limit(config.open_scopes_max)
    settings = host_settings(config, application, open_max, claim=port.handing.claim)
    on_alarm = ring if application.alarm_handlers else None
    transfers = HostsTransfers(port, Path(config.data_dir))
    host = Host(Path(config.data_dir), settings, on_alarm=on_alarm)
    port.serve(host, transfer_methods(lambda: transfers.own))
    server.transfers = transfers
    server.attendance = HostsAttendance(port)
    if server.para is not None:
        server.para.leads = port.here
    return server


def placement_of(config: Config, listened: str) -> Placement:
    """How this host, which listens there, finds the others. Raises ConfigError."""
    if config.hosts == "static":
        return StaticPlacement([parse_host(text) for text in config.hosts_static], config.host_name)
    me = check_host(
        HostInfo(
            name=config.host_name, link=config.link_address or listened, life=ids.new_id(),
            weight=config.host_weight, instance=config.host_instance,
        )
    )  # fmt: skip
    if config.hosts == "s3":
        engine = BucketEngine(open_store(config.bucket), store_prefix(config.bucket))
        return RenewingPlacement(engine, me, ttl_s=config.hosts_ttl_s)
    credentials = Path(config.nats_credentials) if config.nats_credentials else None
    nats = NatsEngine(
        config.nats_url, bucket=config.nats_bucket, ttl_s=config.hosts_ttl_s,
        credentials=credentials,
    )  # fmt: skip
    return RenewingPlacement(nats, me, ttl_s=config.hosts_ttl_s)


def _tls(config: Config) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """To listen and to dial with."""
    listen = None
    if parse_place(config.link_listen).scheme == "tls":
        if not config.link_certificate:
            raise ConfigError("link_listen tls: needs link_certificate and link_certificate_key")
        listen = listening(config.link_certificate, config.link_certificate_key)
    return listen, dialling(config.link_ca)
