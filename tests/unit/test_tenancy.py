"""Which tenant an address names, and who may use it."""

from __future__ import annotations

import pytest

from edge.tenancy import Tenancy
from infra.errors import ConfigError, TenantRefused

BOTH = Tenancy(("token", "host", "path"), "{tenant}.example.com", "/t/{tenant}")


@pytest.mark.parametrize(
    ("host", "tenant"),
    [
        ("acme.example.com", "acme"), ("ACME.Example.com:8420", "acme"),
        ("a-1.example.com.", "a-1"),
        ("example.com", None), (".example.com", None), ("-a.example.com", None),
        ("a.b.example.com", None), ("acme.example.com.evil.org", None), ("acmeXexample.com", None),
        ("a" * 65 + ".example.com", None), ("", None), ("127.0.0.1:8420", None),
        ("a%2fb.example.com", None), ("ümlaut.example.com", None),
    ],
)  # fmt: skip
def test_host_names(host: str, tenant: str | None) -> None:
    assert BOTH.of_host(host) == tenant
    assert Tenancy().of_host(host) is None


def test_a_host_name_may_have_more_in_its_first_label() -> None:
    found = Tenancy(("host",), "{tenant}-sync.example.com")
    assert found.of_host("acme-sync.example.com") == "acme"
    assert found.of_host("acme.example.com") is None


@pytest.mark.parametrize(
    ("raw", "tenant", "mount", "rest"),
    [
        ("/t/acme/api/sync/socket", "acme", "/t/acme", "/api/sync/socket"),
        ("/t/a%2Fb/rtc/x%2Fy", "a/b", "/t/a%2Fb", "/rtc/x%2Fy"), ("/t/acme", "acme", "/t/acme", ""),
        ("/t/acme/", "acme", "/t/acme", "/"), ("/%74/acme//x/", "acme", "/%74/acme", "//x/"),
        ("/t/%C3%BC/x", "ü", "/t/%C3%BC", "/x"), ("/t/../x", "..", "/t/..", "/x"),
    ],
)  # fmt: skip
def test_paths(raw: str, tenant: str, mount: str, rest: str) -> None:
    assert BOTH.split_path(raw) == (tenant, mount, rest)


@pytest.mark.parametrize("raw", ["/t/", "/t//x", "/t/%00/x", "/t/%FF/x", f"/t/{'a' * 65}/x", "/t"])
def test_paths_that_can_name_nobody(raw: str) -> None:
    with pytest.raises(TenantRefused) as refused:
        BOTH.split_path(raw)
    assert refused.value.code == "unknown_tenant"


def test_a_mount_may_be_deeper() -> None:
    deep = Tenancy(("path",), path="/sync/of/{tenant}")
    assert deep.split_path("/sync/of/acme/rtc/x") == ("acme", "/sync/of/acme", "/rtc/x")


def test_host_and_path_name_the_same_or_one_of_them_nobody() -> None:
    assert BOTH.named("acme.example.com", "acme") == "acme"
    assert BOTH.named("example.com", "acme") == "acme"
    assert BOTH.named("acme.example.com", None) == "acme"
    assert BOTH.named("example.com", None) is None
    with pytest.raises(TenantRefused) as refused:
        BOTH.named("acme.example.com", "beta")
    assert refused.value.code == "wrong_tenant"


def test_nobody_is_moved_to_another_tenant() -> None:
    BOTH.admit("acme", "acme")
    BOTH.admit("acme", None)
    for tenant, named in (("acme", "beta"), ("default", "acme"), ("acme", "default")):
        with pytest.raises(TenantRefused) as refused:
            BOTH.admit(tenant, named, anywhere=True)
        assert refused.value.code == "wrong_tenant"


def test_without_token_an_address_must_name_a_tenant() -> None:
    hosts = Tenancy(("host",), "{tenant}.example.com")
    hosts.admit("acme", "acme")
    hosts.admit("acme", None, anywhere=True)
    with pytest.raises(TenantRefused) as refused:
        hosts.admit("acme", None)
    assert refused.value.code == "unknown_tenant"


def test_only_the_tenants_there_are() -> None:
    some = Tenancy(served=("acme", "eu-*"))
    some.admit("acme", None)
    some.admit("eu-7", None)
    with pytest.raises(TenantRefused) as refused:
        some.admit("beta", None)
    assert refused.value.code == "unknown_tenant"


@pytest.mark.parametrize(
    ("sources", "host", "path"),
    [
        ((), "", ""), (("token", "token"), "", ""), (("host",), "", ""),
        (("token",), "", "/t/{tenant}"),
        (("host",), "example.com", ""), (("host",), "{tenant}", ""),
        (("host",), "x.{tenant}.org", ""),
        (("host",), "{tenant}.Example.com", ""), (("host",), "{tenant}{tenant}.example.com", ""),
        (("path",), "", "/{tenant}"), (("path",), "", "/t"), (("path",), "", "/t/{tenant}/x"),
        (("path",), "", "t/{tenant}"), (("path",), "", "/t//{tenant}"),
        (("path",), "", "/{x}/{tenant}"),
        (("path",), "", "/../{tenant}"),
    ],
)  # fmt: skip
def test_templates_that_cannot_work(sources: tuple[str, ...], host: str, path: str) -> None:
    with pytest.raises(ConfigError):
        Tenancy(sources, host, path)  # type: ignore[arg-type]


def test_a_mount_must_not_hide_another() -> None:
    BOTH.check_routes({"api", "", "v1"})
    with pytest.raises(ConfigError, match="/t is used"):
        BOTH.check_routes({"api", "t"})
