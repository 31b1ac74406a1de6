"""What the commands that talk to a running server share: where it is, who asks, one JSON GET."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import click
import msgspec

from edge.version import VERSION
from infra.errors import HoldfastError

F = TypeVar("F", bound=Callable[..., Any])

URL_DEFAULT: Final = "http://127.0.0.1:8420"
TIMEOUT_S: Final = 30
ANSWER_BYTES_MAX: Final = 64 << 20
_CODES: Final = {401: "unauthenticated", 403: "forbidden", 404: "not_found", 409: "conflict"}


def remote_options(command: F) -> F:
    """Add `--url` and `--token`, also read from the environment."""
    command = click.option(
        "--token",
        envvar="HOLDFAST_TOKEN",
        metavar="TOKEN",
        help="Signed token; not needed with `holdfast dev`.  [env: HOLDFAST_TOKEN]",
    )(command)
    return click.option(
        "--url",
        envvar="HOLDFAST_URL",
        default=URL_DEFAULT,
        metavar="URL",
        help=f"Address of the server.  [env: HOLDFAST_URL; default: {URL_DEFAULT}]",
    )(command)


def get_json(
    url: str,
    path: str,
    *,
    token: str | None,
    query: Mapping[str, str | int | None] | None = None,
    method: str = "GET",
) -> Any:
    """The JSON a server answers with.

    Raises HoldfastError with the server's own code, or `unreachable` where nobody answers.
    """
    given = {name: value for name, value in (query or {}).items() if value is not None}
    target = _base(url) + path + ("?" + urlencode(given) if given else "")
    headers = {"Accept": "application/json", "User-Agent": f"holdfast/{VERSION}"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    # No proxy: the server is most often on this host, where one would not reach it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(target, headers=headers, method=method)
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(ANSWER_BYTES_MAX))
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error.code, error.read(1 << 16)) from error
    except (OSError, ValueError) as error:  # URLError is an OSError; a bad URL a ValueError
        reason = getattr(error, "reason", error)
        message = f"no answer from {_base(url)}: {reason}"
        raise HoldfastError(message, code="unreachable") from error


def check_reachable(url: str) -> None:
    """Fail at once where nothing listens; the client itself would go on trying for ever."""
    try:
        get_json(url, "/healthz", token=None)
    except HoldfastError as error:
        if error.code == "unreachable":
            raise


def _base(url: str) -> str:
    base = url.rstrip("/").removesuffix("/api/sync")
    if base.startswith(("http://", "https://")):
        return base
    if "://" in base:
        raise click.BadParameter(f"{url!r} must begin with http:// or https://")
    return "http://" + base


def _refusal(status: int, body: bytes) -> HoldfastError:
    """The error a problem document (RFC 9457) stands for; its code, else one for the status."""
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {}
    code = problem.get("code")
    message = problem.get("detail") or problem.get("title") or f"the server answered {status}"
    if not isinstance(code, str):
        code = _CODES.get(status, "unavailable" if status >= 500 else "failure")
    return HoldfastError(str(message), code=code)
