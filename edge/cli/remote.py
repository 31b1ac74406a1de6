"""What the commands that talk to a running server share: where it is, who asks, JSON and files."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import quote, urlencode

import click
import msgspec

from edge.version import VERSION
from infra.errors import HoldfastError

F = TypeVar("F", bound=Callable[..., Any])

URL_DEFAULT: Final = "http://127.0.0.1:8420"
TIMEOUT_S: Final = 30
TRANSFER_TIMEOUT_S: Final = 3600  # without a byte: a server may restore or check for long
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
    with _opened(url, path, token=token, query=query, method=method) as answer:
        return msgspec.json.decode(answer.read(ANSWER_BYTES_MAX))


def post_json(
    url: str,
    path: str,
    body: BinaryIO | bytes,
    *,
    token: str | None,
    query: Mapping[str, str | int | None] | None = None,
    size: int | None = None,
    content_type: str = "application/json",
) -> Any:
    """The JSON a server answers a POST with; a file of `size` bytes is sent as it is read.

    For work that takes long. Raises as `get_json`.
    """
    headers = {
        "Content-Type": content_type,
        "Content-Length": str(len(body) if isinstance(body, bytes) else size),
    }
    with _opened(
        url, path, token=token, query=query, body=body, headers=headers, wait_s=TRANSFER_TIMEOUT_S
    ) as answer:
        return msgspec.json.decode(answer.read(ANSWER_BYTES_MAX))


@contextmanager
def download(
    url: str, path: str, *, token: str | None, query: Mapping[str, str | int | None]
) -> Iterator[tuple[Any, int]]:
    """(a stream to read, its size in bytes). Raises as `get_json`, also for a stream cut short."""
    with _opened(url, path, token=token, query=query, wait_s=TRANSFER_TIMEOUT_S) as answer:
        yield answer, int(answer.headers.get("Content-Length", "0"))


def scope_path(tenant: str, scope: str, *more: str) -> str:
    """The path of a scope on the admin surface."""
    return "/".join(("/v1/scopes", quote(tenant, safe=""), quote(scope, safe=""), *more))


@contextmanager
def _opened(
    url: str,
    path: str,
    *,
    token: str | None,
    query: Mapping[str, str | int | None] | None,
    body: BinaryIO | bytes | None = None,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
    wait_s: int = TIMEOUT_S,
) -> Iterator[Any]:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    target = _base(url) + path + ("?" + urlencode(given) if given else "")
    sent = {"Accept": "application/json", "User-Agent": f"holdfast/{VERSION}", **(headers or {})}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    # No proxy: the server is most often on this host, where one would not reach it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(target, data=body, headers=sent, method=method)
        with opener.open(request, timeout=wait_s) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error.code, error.read(1 << 16)) from error
    except (OSError, ValueError, HTTPException) as error:  # a URLError is an OSError
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
