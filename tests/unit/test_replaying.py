"""Which requests a proxy is asked to take to another host, and which are served where they came."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from actors.types import Address
from edge.replaying import BODY_BYTES_MAX, replay, scope_of
from infra.errors import AuthError, ConfigError
from infra.placement.hosts import HostInfo, check_host

OTHER = HostInfo(name="b", link="tcp:b:1", instance="m-1")


@pytest.mark.parametrize(
    ("path", "query", "scope"),
    [
        ("/rtc/room%2Fa", None, "rtc:room/a"),
        ("/strata/acme/sync/deltas", None, "strata:acme"),
        ("/keep/s1/records", None, "keep:s1"),
        ("/api/sync/events", "run:a", "run:a"),
        ("/api/sync/views/last", "run:a", "run:a"),
        ("/api/sync/events", None, None),  # of any scope
        ("/api/sync/socket", "run:a", None),
        ("/para/p/objectfeed", None, None),  # of several
        ("/v1/scopes", "run:a", None),
        ("/", None, None),
    ],
)
def test_the_scope_that_an_address_names(path: str, query: str | None, scope: str | None) -> None:
    assert scope_of(path, query) == scope


def test_an_instance_becomes_part_of_a_header() -> None:
    with pytest.raises(ConfigError):
        check_host(HostInfo(name="b", link="tcp:b:1", instance="m;app=other"))


async def test_only_what_the_proxy_can_repeat_is_sent_away() -> None:
    asked: list[Address] = []

    def elsewhere(address: Address) -> HostInfo | None:
        asked.append(address)
        return {"strata:there": OTHER, "strata:unnamed": HostInfo(name="c", link="tcp:c:1")}.get(
            address.scope
        )

    async def tenant_of(request: web.Request) -> str:
        if "refused" in request.query:
            raise AuthError("no")
        return "acme"

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    app = web.Application(middlewares=[replay(elsewhere, tenant_of)], client_max_size=1 << 24)
    app.router.add_route("*", "/{rest:.*}", answer)
    async with TestServer(app) as server, ClientSession(str(server.make_url("/"))) as session:
        async with session.get("strata/there/sync/deltas") as got:
            assert got.headers["fly-replay"].startswith("instance=m-1;")
            assert (got.status, asked) == (503, [Address("acme", "strata:there")])
        async with session.post("strata/there/sync/mutate", data=b"x") as got:
            assert "fly-replay" in got.headers
        for path in ("strata/here/sync/deltas", "strata/unnamed/sync/deltas", "other",
                     "strata/there/sync/deltas?refused="):  # fmt: skip
            async with session.get(path) as got:
                assert got.status == 200 and "fly-replay" not in got.headers, path
        for header in ("fly-replay-src", "fly-replay-failed"):
            async with session.get("strata/there/sync/deltas", headers={header: "x"}) as got:
                assert got.status == 200, "it came from the proxy: it is served here"
        large = b"x" * (BODY_BYTES_MAX + 1)
        async with session.post("strata/there/sync/batch", data=large) as got:
            assert await got.text() == str(len(large))

        async def pieces() -> AsyncIterator[bytes]:
            yield b"xy"

        async with session.post("strata/there/sync/batch", data=pieces()) as got:
            assert await got.text() == "2", "nobody knows how long it will be"
