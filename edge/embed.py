"""Holdfast inside another aiohttp application: its routes on yours, its life within yours."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from edge.application import Application
from edge.config import Config
from edge.dialects.asterql import http as asterql
from edge.dialects.para import http as para
from edge.dialects.stratasync import http as stratasync
from edge.dialects.vuer import http as vuer
from edge.requests import SERVER, answer_errors
from edge.server import Server
from infra.errors import ConfigError


def embed(
    site: web.Application, application: Application, config: Config | None = None,
    *, prefix: str = "",
) -> Server:  # fmt: skip
    """Serve the application's databases on `site`, under `prefix`; call before `site` starts.

    The ledgers open and close with the site (`config.data_dir`). AsterQL and rooms are mounted
    where the application authenticates, para-sync where it declares objects besides, StrataSync
    where it declares models. CORS and everything in front of the routes are the site's own. Raises
    ConfigError where neither is declared.
    """
    config = config or Config()
    if config.tenant_path:
        raise ConfigError("tenant_path: the paths of an embedding site are its own")
    if application.authenticator is None and application.declared_strata is None:
        raise ConfigError("nothing to embed: call app.stratasync(...) or @app.authenticate first")
    server = Server(config, application)
    site[SERVER] = server
    if application.authenticator is not None:
        site.middlewares.append(answer_errors)
        asterql.add_routes(site, prefix + asterql.BASE)
        if server.para is not None:
            para.add_routes(site, server.para, prefix)
        vuer.add_routes(site, server.rooms, config.rtc_root, prefix)
    if server.strata is not None:
        stratasync.add_routes(site, server.strata, prefix)

    async def life(_: web.Application) -> AsyncIterator[None]:
        await server.open()
        yield
        await server.stop()

    site.cleanup_ctx.append(life)
    return server
