"""Whose tenant a request is for: what its host name or the beginning of its path names, and whether
whoever sends it belongs there. Pure.

A principal belongs to one tenant, which its token or the application says. Where the address names
a tenant as well, the two must be the same: an address never moves anybody to another tenant. So a
host name or a path that is made up reaches nothing that its sender could not reach without it.
"""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import unquote

from edge.patterns import check_pattern, matches
from infra.errors import ConfigError, TenantRefused
from infra.limits import TENANT_BYTES_MAX

Source = Literal["token", "host", "path"]
HOLE: Final = "{tenant}"
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"  # of a host name (RFC 1123), in lower case
_HOST = re.compile(r"[a-z0-9-]*\{tenant\}[a-z0-9-]*(?:\.[a-z0-9-]+)+")
_MOUNT = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")


def tenant_fault(name: str) -> str | None:
    """What keeps the name from being a tenant's, or None."""
    # isprintable also rules out lone surrogates, which no file name can carry.
    if name.isprintable() and 0 < len(name.encode()) <= TENANT_BYTES_MAX:
        return None
    return f"a tenant has 1 to {TENANT_BYTES_MAX} printable bytes"


class Tenancy:
    """The rules of one deployment. Raises ConfigError for what cannot work.

    `host` and `path` are templates such as `{tenant}.example.com` and `/t/{tenant}`; `served` are
    patterns of the tenants there are, and empty is all.
    """

    def __init__(
        self, sources: tuple[Source, ...] = ("token",), host: str = "", path: str = "",
        served: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        for source, template in (("host", host), ("path", path)):
            if (source in sources) != bool(template):
                raise ConfigError(
                    f"tenant_from with {source!r} and tenant_{source} need each other"
                )
        if not sources or len(set(sources)) < len(sources):
            raise ConfigError("tenant_from names at least one source, and each one once")
        if host and not _HOST.fullmatch(host):
            raise ConfigError(
                f"tenant_host: {HOLE} in the first label of a name in lower case, "
                f"as {HOLE}.example.com, not {host!r}"
            )
        self.mount = path.removesuffix(f"/{HOLE}")
        if path and (self.mount == path or not _MOUNT.fullmatch(self.mount)):
            raise ConfigError(
                f"tenant_path: a plain path that ends with /{HOLE}, as /t/{HOLE}, not {path!r}"
            )
        for pattern in served:
            check_pattern(pattern)
        self._by_token = "token" in sources
        before, _, after = host.partition(HOLE)
        self._host = re.compile(f"{re.escape(before)}({_LABEL}){re.escape(after)}")
        self._has_hosts = bool(host)
        self._served = served

    def of_host(self, host: str) -> str | None:
        """The tenant that a Host header names; None where it is no tenant's."""
        if not self._has_hosts:
            return None
        name = host.partition(":")[0].lower().removesuffix(".")
        found = self._host.fullmatch(name)
        if found is None or tenant_fault(found[1]) is not None:
            return None
        return found[1]

    def split_path(self, raw: str) -> tuple[str, str, str]:
        """(tenant, raw path up to and with it, raw path below it) of a path below `mount`.

        Raises TenantRefused `unknown_tenant` where no tenant can have that name.
        """
        parts = raw.split("/")
        depth = self.mount.count("/") + 2  # as many parts, the empty one before the first included
        name = unquote("".join(parts[depth - 1 : depth]), errors="surrogateescape")
        if (fault := tenant_fault(name)) is not None:
            raise TenantRefused(f"the path names no tenant: {fault}", code="unknown_tenant")
        rest = parts[depth:]
        return name, "/".join(parts[:depth]), "".join(f"/{part}" for part in rest)

    def named(self, host: str, by_path: str | None) -> str | None:
        """The tenant that the address names; TenantRefused where host and path name two."""
        by_host = self.of_host(host)
        if by_host is not None and by_path not in (None, by_host):
            raise TenantRefused("host name and path are of different tenants")
        return by_path if by_host is None else by_host

    def admit(self, tenant: str, named: str | None, *, anywhere: bool = False) -> None:
        """Raise TenantRefused unless somebody of `tenant` may use an address that names `named`.

        With `anywhere` an address that names nobody will do: what operators ask is of no tenant.
        """
        if named is None and not self._by_token and not anywhere:
            raise TenantRefused("this address names no tenant", code="unknown_tenant")
        if named is not None and named != tenant:
            raise TenantRefused("the credentials are good for another tenant than this address's")
        if self._served and not any(matches(pattern, tenant) for pattern in self._served):
            raise TenantRefused("no such tenant here; see `tenants`", code="unknown_tenant")

    def check_routes(self, first_segments: set[str]) -> None:
        """Raise ConfigError where the mount of tenants would hide what is mounted elsewhere."""
        first = self.mount.split("/")[1] if self.mount else ""
        if first in first_segments:
            raise ConfigError(f"tenant_path: /{first} is used already; choose another beginning")
