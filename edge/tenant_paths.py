"""Everything a server answers once more for each tenant, below `tenant_path`.

A path below it is answered by the route of the rest, on a request that says the rest only; so every
mount of every dialect works there without knowing of it.
"""

from __future__ import annotations

from aiohttp import web
from yarl import URL

from edge.requests import MOUNTED_AT, TENANT
from edge.tenancy import Tenancy


def add_routes(app: web.Application, tenancy: Tenancy) -> None:
    """Mount everything there is so far below `tenant_path`. Raises ConfigError for an overlap."""
    if not tenancy.mount:
        return
    tenancy.check_routes({r.canonical.split("/")[1] for r in app.router.resources()})

    async def below(request: web.Request) -> web.StreamResponse:
        if TENANT in request.match_info:
            raise web.HTTPNotFound()
        url = request.rel_url
        tenant, mount, rest = tenancy.split_path(url.raw_path)
        address = URL.build(path=rest or "/", query_string=url.raw_query_string, encoded=True)
        inner = request.clone(rel_url=address)
        found = await app.router.resolve(inner)
        found.add_app(app)
        found.freeze()
        found[TENANT], found[MOUNTED_AT] = tenant, mount
        inner._match_info = found
        return await found.handler(inner)

    app.router.add_route("*", tenancy.mount + r"/{rest:[\s\S]*}", below)
