"""Which authenticator and authorizer a start uses. Pure; `serve` without either is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from edge.application import Application
from edge.auth import (
    Authenticate,
    Authorize,
    Credentials,
    Principal,
    allow_all,
    authorize_by_grants,
)
from edge.config import Config
from edge.tokens import token_authenticator
from infra.errors import ConfigError

Mode = Literal["dev", "serve"]


class Access(NamedTuple):
    """The two hooks every surface asks. `open_to_all`: no credentials are needed to do anything."""

    authenticate: Authenticate
    authorize: Authorize
    open_to_all: bool


def choose_access(
    config: Config, application: Application, mode: Mode, now_ms: Callable[[], int]
) -> Access:
    """The application's own hooks before tokens, tokens before nothing.

    Without either, `dev` and `insecure` let everyone in as admin, and anything else raises
    ConfigError (`insecure`). In `dev` a token is checked where one is sent, so that an app can be
    tried with and without.
    """
    authorize = application.authorizer or authorize_by_grants
    if application.authenticator is not None:
        return Access(application.authenticator, authorize, open_to_all=False)
    if config.token_keys:
        by_token = token_authenticator(config.token_keys, now_ms)
        if mode == "dev":
            return Access(_token_or_dev(by_token), authorize, open_to_all=True)
        return Access(by_token, authorize, open_to_all=False)
    if mode == "dev" or config.insecure:
        return Access(allow_all, authorize, open_to_all=True)
    if application.declared_strata is not None:  # which has an authentication of its own
        return Access(_nobody, authorize, open_to_all=False)
    raise ConfigError(
        "serve needs authentication: set token_keys, register @app.authenticate, "
        "or say --insecure to let everyone do everything",
        code="insecure",
    )


def _nobody(credentials: Credentials, /) -> None:
    """The surfaces that a deployment has declared nobody for."""
    return None


def _token_or_dev(by_token: Callable[[Credentials], Principal]) -> Authenticate:
    def authenticate(credentials: Credentials, /) -> Principal:
        return allow_all(credentials) if credentials.token is None else by_token(credentials)

    return authenticate
