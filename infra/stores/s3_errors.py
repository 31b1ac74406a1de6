"""What the answer of an S3 server means to us, and what its operator should do. Pure.

Servers differ in their codes more than in their statuses, so the status decides wherever the
protocol leaves it no choice, and codes only refine the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec

from infra.errors import StorageError
from infra.objects import (
    ObjectBusy,
    ObjectExists,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
)

CLOCK_OFF_MIN_MS = 300_000  # servers accept 15 minutes; a third of it already deserves a word
RETRY_AFTER_MAX_S = 60

# Of status 400 in some server or other, and gone when repeated.
_PASSING = frozenset(
    {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
)
_CREDENTIALS = frozenset(
    {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}
    | {"SignatureDoesNotMatch", "InvalidSecurity", "NotSignedUp"}
)
_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "Redirect"}
    | {"IllegalLocationConstraintException"}
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said to one request. Names of `headers` are in lower case."""

    status: int
    code: str = ""
    message: str = ""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


def error_of(
    url: str, what: str, answer: Answer, *, now_ms: int, of_key: bool, conditional: bool = False
) -> StorageError:
    """The typed error for an answer that is no success.

    `what` names the request ("put a/b"), `of_key` is whether it reads one key, so that a 404 can
    mean that key, and `conditional` whether it carried If-None-Match.
    """
    status, code = answer.status, answer.code
    said = f"{url}: {what}: {code or status}" + (f" ({answer.message})" if answer.message else "")
    if status == 412 and conditional:
        return ObjectExists(f"{said}; the key is taken")
    if status == 409 and conditional:
        return ObjectBusy(f"{said}; another writer is creating this key; repeat")
    if status == 412 and of_key:
        return StoreUnavailable(f"{said}; it was replaced while it was read; read it again")
    if status == 404:
        return _not_found(said, code, of_key)
    if status >= 500 and status != 501:
        return StoreUnavailable(f"{said}; repeat later", retry_after_ms=_retry_after_ms(answer))
    if status in (408, 409, 425, 429) or code in _PASSING:
        return StoreUnavailable(f"{said}; repeat later", retry_after_ms=_retry_after_ms(answer))
    return StoreRefused(f"{said}; {_advice(answer, now_ms, conditional)}")


def clock_off_ms(headers: Mapping[str, str], now_ms: int) -> int | None:
    """How far this host's clock is ahead (behind: negative) of the server's; None if unknown."""
    try:
        server = parsedate_to_datetime(headers.get("date", ""))
        return now_ms - int(server.timestamp() * 1000)
    except (ValueError, TypeError, OverflowError):
        return None


def _not_found(said: str, code: str, of_key: bool) -> StorageError:
    if code == "NoSuchBucket":
        return StoreRefused(f"{said}; create the bucket, or correct its name in the URL")
    if code == "NoSuchUpload":
        return StoreUnavailable(f"{said}; the upload in parts was given up; start it again")
    if of_key:
        return ObjectMissing(said)
    return StoreRefused(f"{said}; check the bucket's name and endpoint= in the URL")


def _advice(answer: Answer, now_ms: int, conditional: bool) -> str:
    status, code = answer.status, answer.code
    off_ms = clock_off_ms(answer.headers, now_ms)
    if status in (400, 401, 403) and off_ms is not None and abs(off_ms) >= CLOCK_OFF_MIN_MS:
        return _clock_advice(off_ms)
    if code in ("RequestTimeTooSkewed", "RequestExpired"):
        return "this host's clock is wrong: set it (NTP)"
    if code == "InvalidAccessKeyId":
        return "the store does not know this access key: check AWS_ACCESS_KEY_ID or the profile"
    if code == "SignatureDoesNotMatch":
        return "the secret key is wrong: check AWS_SECRET_ACCESS_KEY or the profile"
    if code in _CREDENTIALS or status == 401:
        return "the credentials are not accepted: renew them"
    if code in _REGION or status in (301, 302, 307, 308):
        region = answer.headers.get("x-amz-bucket-region")
        return f"the bucket is in another region: set region={region or '…'} in the URL"
    if status == 403:
        return (
            "the credentials are known but lack a permission: allow s3:ListBucket on the bucket "
            "and s3:GetObject, s3:PutObject, s3:DeleteObject on its objects"
        )
    if status == 501 and conditional:
        return (
            "the store has no conditional writes (If-None-Match), without which two writers could "
            "overwrite each other; use one that has them"
        )
    return "the store refuses this request; check bucket, endpoint= and region= in the URL"


def _clock_advice(off_ms: int) -> str:
    off_s = abs(off_ms) // 1000
    hours, minutes = divmod(off_s // 60, 60)
    span = (f"{hours} h " if hours else "") + (f"{minutes} min" if minutes or not hours else "")
    side = "ahead" if off_ms > 0 else "behind"
    return f"this host's clock is off by {span.strip()} ({side} of the store's): set it (NTP)"


def _retry_after_ms(answer: Answer) -> int | None:
    text = answer.headers.get("retry-after", "")
    return min(int(text), RETRY_AFTER_MAX_S) * 1000 if text.isascii() and text.isdigit() else None
