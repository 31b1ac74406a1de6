"""One table from error codes to HTTP status and socket close codes, and RFC 9457 bodies. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from infra.errors import AuthError, HoldfastError, TenantRefused

HTTP_STATUS: Final = {
    "bad_envelope": 400,
    "bad_frame": 400,
    "bad_json": 400,
    "bad_clock": 400,
    "bad_exchange": 400,
    "bad_name": 400,
    "bad_params": 400,
    "bad_key": 400,
    "bad_value": 400,
    "parse_failed": 400,
    "bad_scope": 400,
    "bad_since": 400,
    "bad_entity_key": 400,
    "bad_import": 400,
    "no_bucket": 400,
    "unauthenticated": 401,
    "token_expired": 401,
    "token_invalid": 401,
    "token_unknown_key": 401,
    "forbidden": 403,
    "wrong_tenant": 403,
    "not_found": 404,
    "unknown_tenant": 404,
    "object_missing": 404,
    "method_not_allowed": 405,
    "patch_failed": 409,
    "conflict": 409,
    "schema_skew": 409,
    "refused": 409,
    "wrong_channel": 409,
    "fenced": 409,
    "deleted": 410,
    "view_expired": 410,
    "stalled": 408,
    "too_large": 413,
    "bad_range": 416,
    "clock_drift": 422,
    "rate_limited": 429,
    "internal": 500,
    "busy": 503,
    "closed": 503,
    "disk_full": 503,
    "read_only": 503,
    "storage": 503,
    "store_unavailable": 503,
    "store_refused": 503,
    "link_lost": 503,
    "try_later": 503,
    "unavailable": 503,
    "too_many_connections": 503,
}

CLOSE_CODES: Final = {
    1001: "the server is going away; connect again",
    1002: "a frame broke the WebSocket protocol",
    1008: "20 protocol errors on one connection",
    1009: "a message was larger than the limit",
    1011: "a StrataSync socket that was silent, or could not be served",
    4401: "not authenticated, or the token has expired",
    4403: "no access to the vuer-rtc room, or the session is another user's",
    4408: "no frame for 75 s; on a vuer-rtc socket for 45 s, or no join in 10 s",
    4409: "the vuer-rtc session was joined elsewhere by the same user",
    4429: "no byte accepted for 30 s",
}


def status_of(code: str) -> int:
    """500 for a code nobody has thought of: never a success by accident."""
    return HTTP_STATUS.get(code, 500)


def status_of_error(error: HoldfastError) -> int:
    """The same, and 401 for an error of authentication whatever an application calls it."""
    if isinstance(error, AuthError) and not isinstance(error, TenantRefused):
        return 401
    return status_of(error.code)


def problem(
    code: str,
    message: str,
    *,
    request_id: str,
    status: int | None = None,
    retryable: bool = False,
    retry_after_ms: int | None = None,
    detail: dict[str, Any] | None = None,
) -> bytes:
    """The body of an error answer, `application/problem+json`."""
    status = status or status_of(code)
    body: dict[str, Any] = {
        "type": f"urn:holdfast:problem:{code}",
        "title": code.replace("_", " "),
        "status": status,
        "detail": message,
        "code": code,
        "retryable": retryable or status in (429, 503),
        "request_id": request_id,
    }
    if retry_after_ms is not None:
        body["retry_after_ms"] = retry_after_ms
    return msgspec.json.encode({**(detail or {}), **body})


class Problem(HoldfastError):
    """Raised by an HTTP handler; the application answers with `problem`."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after_ms: int | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after_ms=retry_after_ms)
        self.detail = detail
