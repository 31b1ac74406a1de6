"""What an S3 server's answer becomes: the class a caller acts on, and what its operator reads."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from infra.errors import StorageError
from infra.objects import ObjectBusy, ObjectExists, ObjectMissing, StoreRefused, StoreUnavailable
from infra.stores.s3_errors import RETRY_AFTER_MAX_S, Answer, clock_off_ms, error_of

NOW_MS = 1_795_518_000_000
URL = "s3://bucket/p"


def told(answer: Answer, *, of_key: bool = False, conditional: bool = False) -> StorageError:
    error = error_of(URL, "put a", answer, now_ms=NOW_MS, of_key=of_key, conditional=conditional)
    assert URL in str(error) and "put a" in str(error)
    return error


def date(ms: int) -> dict[str, str]:
    return {"date": format_datetime(datetime.fromtimestamp(ms / 1000, UTC), usegmt=True)}


@pytest.mark.parametrize(
    ("status", "code", "of_key", "conditional", "kind"),
    [
        (412, "PreconditionFailed", False, True, ObjectExists),
        (412, "", False, True, ObjectExists),
        (412, "PreconditionFailed", True, False, StoreUnavailable),
        (412, "PreconditionFailed", False, False, StoreRefused),
        (409, "ConditionalRequestConflict", False, True, ObjectBusy),
        (409, "OperationAborted", False, False, StoreUnavailable),
        (404, "NoSuchKey", True, False, ObjectMissing),
        (404, "", True, False, ObjectMissing),
        (404, "NoSuchBucket", True, False, StoreRefused),
        (404, "NoSuchBucket", False, True, StoreRefused),
        (404, "", False, False, StoreRefused),
        (404, "NoSuchUpload", False, False, StoreUnavailable),
        (500, "InternalError", True, False, StoreUnavailable),
        (503, "SlowDown", False, True, StoreUnavailable),
        (507, "XMinioStorageFull", False, True, StoreUnavailable),
        (501, "NotImplemented", False, True, StoreRefused),
        (429, "", False, False, StoreUnavailable),
        (408, "", False, False, StoreUnavailable),
        (400, "RequestTimeout", False, True, StoreUnavailable),
        (400, "InvalidRequest", False, True, StoreRefused),
        (403, "AccessDenied", True, False, StoreRefused),
        (301, "PermanentRedirect", True, False, StoreRefused),
        (0, "", True, False, StoreRefused),
    ],
)
def test_kinds(
    status: int, code: str, of_key: bool, conditional: bool, kind: type[StorageError]
) -> None:
    error = told(Answer(status=status, code=code), of_key=of_key, conditional=conditional)
    assert type(error) is kind


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "AccessDenied", "s3:ListBucket"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "renew"),
        (401, "", "renew"),
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "AuthorizationHeaderMalformed", "region=eu-1"),
        (301, "", "region=eu-1"),
        (501, "NotImplemented", "If-None-Match"),
        (405, "MethodNotAllowed", "endpoint="),
        (404, "NoSuchBucket", "create the bucket"),
    ],
)
def test_advice(status: int, code: str, said: str) -> None:
    headers = {"x-amz-bucket-region": "eu-1"}
    error = told(Answer(status=status, code=code, headers=headers), conditional=True)
    assert said in str(error)


@pytest.mark.parametrize(
    ("off_ms", "said"),
    [
        (3_600_000, "off by 1 h (ahead"),
        (-3_600_000, "off by 1 h (behind"),
        (5_460_000, "off by 1 h 31 min (ahead"),
        (-400_000, "off by 6 min (behind"),
    ],
)
def test_a_wrong_clock_is_named(off_ms: int, said: str) -> None:
    # Some servers call it by other names, so the date they send decides.
    for code in ("RequestTimeTooSkewed", "AccessDenied", "SignatureDoesNotMatch"):
        error = told(Answer(status=403, code=code, headers=date(NOW_MS - off_ms)))
        assert said in str(error) and "NTP" in str(error)


def test_a_right_clock_is_not_blamed() -> None:
    for off_ms in (0, 299_000, -299_000):
        answer = Answer(status=403, code="AccessDenied", headers=date(NOW_MS - off_ms))
        assert "clock" not in str(told(answer))


@pytest.mark.parametrize("headers", [{}, {"date": ""}, {"date": "yesterday"}])
def test_without_a_date_nothing_is_known(headers: dict[str, str]) -> None:
    assert clock_off_ms(headers, NOW_MS) is None


@pytest.mark.parametrize(
    ("text", "ms"), [("", None), ("3", 3000), ("soon", None), ("-1", None), ("²", None)]
)
def test_when_to_come_back(text: str, ms: int | None) -> None:
    error = told(Answer(status=503, headers={"retry-after": text}))
    assert error.retry_after_ms == ms


def test_nobody_waits_for_hours() -> None:
    error = told(Answer(status=503, headers={"retry-after": "86400"}))
    assert error.retry_after_ms == RETRY_AFTER_MAX_S * 1000
