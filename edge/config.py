"""All that can be configured, as one frozen struct. Pure.

For each key the first of these wins: flag, environment, TOML file, default. A name nobody knows is
an error that says the nearest known one, because a misspelt limit is worse than none. Description,
unit and bounds stand at the field and nowhere else: docs/configuration.md, the flags of the command
line and the checks are all made from them. Reading the sources is edge/config_sources.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.patterns import check_pattern, matches
from edge.tenancy import Source, Tenancy
from edge.tokens import TokenKey, check_keys
from infra import limits
from infra.errors import ConfigError
from infra.objects import parse_url
from infra.placement.hosts import HostInfo, check_host

LINK_KEY_BYTES_MIN = 32
Level = Literal["local", "replicated"]
Durability = Literal["auto", "local", "replicated"]
REPLICATED_KINDS = ("strata:", "keep:")  # their clients cannot refill what a lost disk took

Count = Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
Positive = Annotated[int, Meta(ge=1, le=limits.INTEGER_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=10 * 365 * 86_400)]
Timeout = Annotated[float, Meta(ge=1, le=86_400)]


def _doc(text: str, unit: str) -> Meta:
    return Meta(description=text, extra={"unit": unit})


class ScopeOverride(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one entry of `scopes` changes; None leaves the general value."""

    retain: Positive | None = None
    retain_seconds: Count | None = None
    retain_bytes: Count | None = None
    materialize: bool | None = None
    durability: Durability | None = None


class ScopeSettings(msgspec.Struct, frozen=True):
    """What holds for one scope. 0 in `retain_seconds` and `retain_bytes` is no limit."""

    retain: int
    retain_seconds: int
    retain_bytes: int
    materialize: bool
    durability: Level


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every key with its default. Times are in seconds, sizes in bytes, unless the unit says so."""

    host: Annotated[str, _doc("Address to listen on; `dev` takes loopback only.", "address")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65_535), _doc("0 lets the system choose one.", "port")] = (
        8420
    )
    data_dir: Annotated[
        str, Meta(min_length=1), _doc("Directory of the ledger files; made if absent.", "path")
    ] = "holdfast-data"
    edges: Annotated[
        int,
        Meta(ge=0, le=64),
        _doc(
            "Processes that clients connect to, all on one port; 0 with `actors` 0 is one process "
            "for everything.",
            "processes",
        ),
    ] = 0
    actors: Annotated[
        int,
        Meta(ge=0, le=64),
        _doc("Processes that have the scopes, each its share of them by hash.", "processes"),
    ] = 0
    placement: Annotated[
        Literal["hash", "tenant"],
        _doc(
            "Which process has a scope: one of `actors` by hash, or its tenant's own, which is "
            "started when it is wanted.",
            "placement",
        ),
    ] = "hash"
    tenant_idle_s: Annotated[
        Seconds, _doc("A tenant's process without an open scope ends after this long.", "seconds")
    ] = 300.0
    tenant_memory_bytes: Annotated[
        Count, _doc("Data memory of a tenant's process; 0 is no limit of its own.", "bytes")
    ] = 0
    tenant_open_files: Annotated[
        Count, _doc("Files a tenant's process may have open; 0 is no limit of its own.", "files")
    ] = 0
    tenant_from: Annotated[
        tuple[Source, ...],
        _doc(
            "What names the tenant of a request: its `token`, `host` name or `path`. Where several "
            "do they must name the same.",
            "list of `token` `host` `path`",
        ),
    ] = ("token",)
    tenant_host: Annotated[
        str, _doc("Host names of tenants, as `{tenant}.example.com`.", "host name")
    ] = ""
    tenant_path: Annotated[
        str, _doc("Where everything stands once more for each tenant, as `/t/{tenant}`.", "path")
    ] = ""
    tenants: Annotated[
        tuple[str, ...], _doc("Patterns of the tenants that are served; empty is all.", "list")
    ] = ()
    idle_s: Annotated[
        Seconds, _doc("A scope nobody uses closes its file after this long.", "seconds")
    ] = 60.0
    open_scopes_max: Annotated[
        Positive, _doc("Scopes held open at once; the least recently used closes first.", "scopes")
    ] = 1024
    retain: Annotated[
        Positive, _doc("Newest entries kept of each scope; entities are always kept.", "entries")
    ] = 10_000
    retain_seconds: Annotated[
        Count, _doc("Entries older than this are dropped; 0 is no limit by age.", "seconds")
    ] = 0
    retain_bytes: Annotated[
        Count, _doc("Bytes of entries kept of each scope; 0 is no limit by size.", "bytes")
    ] = 0
    materialize: Annotated[
        bool, _doc("Keep the current entities beside the entries, for views.", "true or false")
    ] = True
    durability: Annotated[
        Durability,
        _doc(
            "When a write counts as saved: on this host's disk, or in the bucket too. `auto` is "
            "`replicated` for `strata:` and `keep:` scopes and in a shared bucket, else `local`.",
            "level",
        ),
    ] = "auto"
    bucket: Annotated[
        str,
        _doc(
            "Where every ledger is replicated to: `file:PATH` or "
            "`s3://BUCKET/PREFIX?endpoint=URL&region=NAME`; empty is nowhere.",
            "URL",
        ),
    ] = ""
    shared_bucket: Annotated[
        bool,
        _doc(
            "Several hosts may own the same scopes: each claims a scope when it wakes it.",
            "true or false",
        ),
    ] = False
    hosts: Annotated[
        Literal["none", "static", "s3", "nats"],
        _doc(
            "How several hosts on one bucket find each other: a fixed list, records in the bucket, "
            "or NATS; `none` is one host. See scaling.md.",
            "choice",
        ),
    ] = "none"
    host_name: Annotated[
        str, _doc("What this host is called, unlike any other; needed with `hosts`.", "name")
    ] = ""
    host_weight: Annotated[
        int, Meta(ge=1, le=64), _doc("Its share of the scopes against the others'.", "parts")
    ] = 1
    host_instance: Annotated[
        str,
        _doc(
            "What the proxy in front knows this host by; other hosts then answer `fly-replay` to "
            "it for requests whose scope is here.",
            "name",
        ),
    ] = ""
    hosts_static: Annotated[
        tuple[str, ...],
        _doc("With `static`, every host as `NAME@LINK` or `NAME@LINK*WEIGHT`.", "list"),
    ] = ()
    hosts_ttl_s: Annotated[
        float,
        Meta(ge=1, le=600),
        _doc("A host that has not renewed its record for so long is taken for dead.", "seconds"),
    ] = 15.0
    reuse_port: Annotated[
        bool,
        _doc(
            "Several hosts on this machine listen on one `port`: one for each core.",
            "true or false",
        ),
    ] = False
    link_listen: Annotated[
        str,
        _doc("Where other hosts reach this one: `tcp:HOST:PORT` or `tls:HOST:PORT`.", "address"),
    ] = "tcp:127.0.0.1:0"
    link_address: Annotated[
        str,
        _doc("What others dial, where that is not `link_listen`, as with 0.0.0.0.", "address"),
    ] = ""
    link_key: Annotated[
        str, _doc("What hosts prove to each other to have; at least 32 bytes, alike.", "secret")
    ] = ""
    link_certificate: Annotated[str, _doc("PEM chain this host shows on `tls:` links.", "path")] = (
        ""
    )
    link_certificate_key: Annotated[str, _doc("PEM key of link_certificate.", "path")] = ""
    link_ca: Annotated[
        str, _doc("PEM of who signs the hosts' certificates; empty is the system's.", "path")
    ] = ""
    nats_url: Annotated[
        tuple[str, ...], _doc("With `hosts` nats, the servers: nats://HOST:PORT.", "list")
    ] = ()
    nats_bucket: Annotated[
        str, _doc("Key-value bucket in NATS for the hosts' records.", "name")
    ] = "holdfast-hosts"
    nats_credentials: Annotated[str, _doc("NATS credentials file.", "path")] = ""
    adopt_bucket: Annotated[
        bool,
        _doc(
            "Begin a new replica in an empty prefix, though this directory had one before.",
            "true or false",
        ),
    ] = False
    put_interval_ms: Annotated[
        int,
        Meta(ge=0, le=60_000),
        _doc("Least time between two requests of a `replicated` scope.", "milliseconds"),
    ] = 100
    max_stall_s: Annotated[
        Timeout,
        _doc("A write that waits for the bucket longer than this gets `try_later`.", "seconds"),
    ] = 10.0
    bucket_history_s: Annotated[
        Seconds,
        _doc("Any state of this long ago can be restored; 0 keeps everything.", "seconds"),
    ] = 3600.0
    bucket_snapshots: Annotated[
        int, Meta(ge=2, le=10_000), _doc("Newest snapshots kept of each scope.", "snapshots")
    ] = 2
    bucket_budget: Annotated[
        float,
        Meta(ge=0),
        _doc(
            "Money per month for requests; above it scopes are written less often. 0 is no limit.",
            "dollars",
        ),
    ] = 0.0
    evict_s: Annotated[
        Seconds,
        _doc(
            "Unused so long, a scope leaves this disk once the bucket has it; 0 is never.",
            "seconds",
        ),
    ] = 0.0
    scopes: Annotated[
        dict[str, ScopeOverride],
        _doc(
            "Overrides by scope pattern: retain, retain_seconds, retain_bytes, materialize, "
            "durability. All patterns that match apply in order, a later one wins.",
            "table",
        ),
    ] = msgspec.field(default_factory=dict)
    frame_bytes_max: Annotated[
        int,
        Meta(ge=1024, le=16 << 20),
        _doc("Largest inbound WebSocket message; a larger one closes with 1009.", "bytes"),
    ] = limits.FRAME_BYTES_MAX
    body_bytes_max: Annotated[
        int, Meta(ge=1024, le=64 << 20), _doc("Largest HTTP request body.", "bytes")
    ] = 1 << 20
    connections_max: Annotated[
        Positive, _doc("Sockets and event streams open at once.", "connections")
    ] = limits.CONNECTIONS_MAX
    publish_envelopes_per_s: Annotated[
        Count,
        _doc("Per connection, where the token says nothing; 0 is no limit.", "envelopes/s"),
    ] = 1000
    publish_bytes_per_s: Annotated[
        Count, _doc("Per connection, where the token says nothing; 0 is no limit.", "bytes/s")
    ] = 4 << 20
    reauthorize_s: Annotated[
        Seconds, _doc("Ask `authorize` again about open subscriptions; 0 is never.", "seconds")
    ] = 0.0
    silence_s: Annotated[
        Timeout, _doc("A socket that sends nothing for this long closes with 4408.", "seconds")
    ] = float(limits.SILENCE_MAX_S)
    stall_s: Annotated[
        Timeout, _doc("A socket that accepts no byte for this long closes with 4429.", "seconds")
    ] = float(limits.STALL_MAX_S)
    drain_timeout_s: Annotated[
        Seconds, _doc("At SIGTERM, the longest wait for clients and disk.", "seconds")
    ] = 30.0
    cors_origins: Annotated[
        tuple[str, ...],
        _doc("Origins of browsers that may call; `*` is all, empty the same origin only.", "list"),
    ] = ()
    token_keys: Annotated[
        tuple[TokenKey, ...],
        _doc(
            "Keys of signed tokens, each an id and a secret of at least 32 bytes; the first signs.",
            "list",
        ),
    ] = ()
    insecure: Annotated[
        bool, _doc("Let `serve` run without any authentication.", "true or false")
    ] = False
    compression: Annotated[bool, _doc("Offer permessage-deflate on sockets.", "true or false")] = (
        False
    )
    keep_root: Annotated[
        str,
        Meta(max_length=190),
        _doc("Starkeep space that stands at the root as well as at /keep/{name}.", "name"),
    ] = ""
    keep_store: Annotated[
        str,
        _doc(
            "Where bytes of Starkeep files lie, file:PATH or s3://...; empty is the bucket, or "
            "without one `files` in data_dir.",
            "url",
        ),
    ] = ""
    keep_drift_s: Annotated[
        Seconds, _doc("How far ahead of this server a Starkeep stamp may be.", "seconds")
    ] = 86_400.0
    keep_body_bytes_max: Annotated[
        int, Meta(ge=1024, le=1 << 30), _doc("Largest body of a Starkeep exchange.", "bytes")
    ] = 16 << 20
    keep_file_bytes_max: Annotated[Positive, _doc("Largest file of a Starkeep space.", "bytes")] = (
        16 << 30
    )
    keep_secrets: Annotated[
        dict[str, str],
        _doc("Secrets that sign Starkeep requests, by `{space}/{app id}`.", "table"),
    ] = msgspec.field(default_factory=dict)
    rtc_root: Annotated[
        str,
        Meta(max_length=190),
        _doc("vuer-rtc room that /rtc stands for, as well as /rtc/{name}.", "name"),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _doc("Least level that is logged.", "level")
    ] = "info"
    color: Annotated[
        bool, _doc("Colours on a terminal; NO_COLOR turns it off.", "true or false")
    ] = True
    uvloop: Annotated[
        Literal["auto", "on", "off"],
        _doc("The faster event loop: where installed, always, never.", "choice"),
    ] = "auto"

    @property
    def shares_bucket(self) -> bool:
        """Whether several hosts may own the same scopes."""
        return self.shared_bucket or self.hosts != "none"

    def settings_for(self, scope: str) -> ScopeSettings:
        """The general values with every matching entry of `scopes` laid over them, in order."""
        merged: dict[str, Any] = {
            name: getattr(self, name) for name in ScopeSettings.__struct_fields__
        }
        for pattern, override in self.scopes.items():
            if matches(pattern, scope):
                for name in ScopeOverride.__struct_fields__:
                    if (value := getattr(override, name)) is not None:
                        merged[name] = value
        if merged["durability"] == "auto":
            safe = self.bucket and (self.shares_bucket or scope.startswith(REPLICATED_KINDS))
            merged["durability"] = "replicated" if safe else "local"
        return ScopeSettings(**merged)


class Key(msgspec.Struct, frozen=True):
    """One configuration key as the documents and the command line see it."""

    name: str
    type: Any
    default: Any
    unit: str
    doc: str
    secret: bool


def keys() -> tuple[Key, ...]:
    """Every key of `Config` in the order of the struct."""
    found = []
    for info in msgspec.structs.fields(Config):
        metas = [meta for meta in info.type.__metadata__ if isinstance(meta, Meta)]
        told = next(meta for meta in metas if meta.description is not None)
        default = info.default
        if default is msgspec.NODEFAULT:
            default = info.default_factory()
        unit = (told.extra or {})["unit"]
        secret = info.name in SECRET_KEYS
        found.append(Key(info.name, info.type, default, unit, told.description or "", secret))
    return tuple(found)


SECRET_KEYS = frozenset({"token_keys", "keep_secrets", "link_key"})


def tenancy_of(config: Config) -> Tenancy:
    """What the configuration says of tenants. Raises ConfigError."""
    return Tenancy(
        config.tenant_from, config.tenant_host, config.tenant_path, config.tenants
    )  # fmt: skip


def check(config: Config) -> None:
    """The rules that span keys. Raises ConfigError with what to change."""
    check_keys(config.token_keys)
    tenancy_of(config)
    for pattern in config.scopes:
        check_pattern(pattern)
    levels = [config.durability, *(override.durability for override in config.scopes.values())]
    check_hosts(config)
    if not config.bucket:
        if "replicated" in levels:
            raise ConfigError("durability 'replicated' needs a bucket; set bucket")
        if config.shared_bucket:
            raise ConfigError("shared_bucket needs a bucket; set bucket")
        return
    parse_url(config.bucket)
    if config.shares_bucket and "local" in levels:
        raise ConfigError("in a shared bucket every scope is 'replicated'; remove 'local'")


def check_hosts(config: Config) -> None:
    """The rules of `hosts`. Raises ConfigError."""
    if config.hosts == "none":
        if config.reuse_port:
            raise ConfigError("reuse_port is for several hosts; with one, edges share the port")
        return
    if not config.bucket:
        raise ConfigError("hosts need a bucket that all of them use; set bucket")
    if config.edges or config.actors or config.placement == "tenant":
        raise ConfigError("with hosts each host is one process: leave out edges and actors")
    if len(config.link_key.encode()) < LINK_KEY_BYTES_MIN:
        raise ConfigError(f"hosts need a link_key of at least {LINK_KEY_BYTES_MIN} bytes")
    if config.hosts == "static" and not config.hosts_static:
        raise ConfigError("hosts 'static' needs hosts_static, every host as NAME@LINK")
    if config.hosts == "nats" and not config.nats_url:
        raise ConfigError("hosts 'nats' needs nats_url")
    link = config.link_address or config.link_listen
    check_host(
        HostInfo(
            name=config.host_name, link=link, weight=config.host_weight,
            instance=config.host_instance,
        )
    )  # fmt: skip
    if link == config.link_listen and link.split(":")[1] in ("0.0.0.0", "[", "*"):
        raise ConfigError(f"others cannot dial {link}; set link_address")


def redacted(config: Config) -> dict[str, Any]:
    """The configuration as plain values that may be printed: secrets show as `…`."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    values["token_keys"] = [{"id": key.id, "secret": "…"} for key in config.token_keys]
    values["keep_secrets"] = dict.fromkeys(config.keep_secrets, "…")
    values["link_key"] = "…" if config.link_key else ""
    return values
