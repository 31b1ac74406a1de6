"""The S3 store against answers that no test server gives on demand: failures, refusals, silence."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from infra.errors import ConfigError
from infra.objects import (
    PART_BYTES,
    ObjectBusy,
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    StoreRefused,
    StoreUnavailable,
    open_store,
    probe_conditional_writes,
)
from infra.stores import s3
from tests.support.s3 import ROOT
from tests.support.scripted_http import Reply, Scripted
from tests.support.shared_store import SharedStore

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("s3_credentials")]

CLOSED = Reply(status=0)
UNAVAILABLE = Reply(status=503)
EMPTY_LISTING = Reply(body=b"<ListBucketResult></ListBucketResult>")


def failure(status: int, code: str, text: str = "told so", **headers: str) -> Reply:
    body = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
    return Reply(status=status, body=body, headers=headers)


def listing(*keys: str) -> Reply:
    items = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size>"
        "<LastModified>2026-11-24T10:00:00.000Z</LastModified></Contents>"
        for key in keys
    )
    return Reply(body=f"<ListBucketResult>{items}</ListBucketResult>".encode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setattr(s3, "BACKOFF_MS", 1)
    with Scripted() as scripted:
        yield scripted


@pytest.fixture
def here(server: Scripted) -> Iterator[ObjectStore]:
    opened = open_store(f"s3://bucket/p?endpoint={server.url}&region=eu-test-1")
    yield opened
    opened.close()


@pytest.fixture(params=["here", pytest.param("shared", marks=pytest.mark.soak)])
def store(here: ObjectStore, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """The store itself, and as other processes have it."""
    if request.param == "here":
        yield here
        return
    opened = SharedStore(here)
    yield opened
    opened.close()


@pytest.mark.parametrize("reply", [CLOSED, UNAVAILABLE, Reply(status=500), Reply(status=429)])
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_put_is_sent_once(
    server: Scripted, store: ObjectStore, reply: Reply, if_absent: bool
) -> None:
    # Twice, and the second would be refused by what the first has written.
    server.script(reply)
    with pytest.raises(StoreUnavailable, match="bucket/p"):
        store.put("p/a", b"x", if_absent=if_absent)
    assert [request.method for request in server.requests] == ["PUT"]


def test_silence_ends_at_the_timeout(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.1)
    store = open_store(f"s3://bucket?endpoint={server.url}")
    server.script(Reply(held=True))
    with pytest.raises(StoreUnavailable, match="put a"):
        store.put("a", b"x", if_absent=True)
    assert len(server.requests) == 1


def test_what_a_put_says(server: Scripted, store: ObjectStore) -> None:
    store.put("p/a b~20", b"body", if_absent=True, timestamp_ms=1_795_518_805_095)
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("PUT", "/bucket/p/a%20b~20", b"body")
    assert request.headers["if-none-match"] == "*"
    assert request.headers["x-amz-meta-litestream-timestamp"] == "2026-11-24T11:13:25.095Z"
    assert "expect" not in request.headers
    assert not [name for name in request.headers if "checksum" in name]
    assert "/eu-test-1/s3/" in request.headers["authorization"]
    store.put("p/b", b"")
    assert "if-none-match" not in server.requests[1].headers


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (failure(412, "PreconditionFailed"), ObjectExists),
        (failure(409, "ConditionalRequestConflict"), ObjectBusy),
        (failure(404, "NoSuchBucket"), StoreRefused),
        (failure(403, "AccessDenied"), StoreRefused),
        (failure(501, "NotImplemented"), StoreRefused),
        (failure(400, "RequestTimeout"), StoreUnavailable),
    ],
)
def test_answers_to_a_conditional_put(
    server: Scripted, store: ObjectStore, reply: Reply, error: type[Exception]
) -> None:
    server.script(reply)
    with pytest.raises(error):
        store.put("p/a", b"x", if_absent=True)
    assert len(server.requests) == 1


READS: list[tuple[Callable[[ObjectStore], object], Reply]] = [
    (lambda store: store.get("a"), Reply(body=b"x")),
    (lambda store: store.list("a"), EMPTY_LISTING),
    (lambda store: store.delete(["a"]), Reply(status=204)),
    (lambda store: store.delete(["a", "b"]), Reply(body=b"<DeleteResult></DeleteResult>")),
    (lambda store: store.open("a").read(), Reply(body=b"x", headers={"ETag": '"e"'})),
]


@pytest.mark.parametrize(("call", "answer"), READS)
def test_what_may_happen_twice_is_repeated(
    server: Scripted, store: ObjectStore, call: Callable[[ObjectStore], object], answer: Reply
) -> None:
    server.script(UNAVAILABLE, CLOSED, answer)
    call(store)
    assert len(server.requests) == 3


@pytest.mark.parametrize(("call", "answer"), READS)
def test_repeating_has_an_end(
    server: Scripted, store: ObjectStore, call: Callable[[ObjectStore], object], answer: Reply
) -> None:
    server.script(*[UNAVAILABLE] * s3.TRIES_MAX, answer)
    with pytest.raises(StoreUnavailable, match="repeat later"):
        call(store)
    assert len(server.requests) == s3.TRIES_MAX


def test_refusals_are_not_repeated(server: Scripted, store: ObjectStore) -> None:
    server.script(failure(403, "AccessDenied"))
    with pytest.raises(StoreRefused, match="s3:GetObject"):
        store.get("a")
    server.script(failure(404, "NoSuchKey"))
    with pytest.raises(ObjectMissing):
        store.get("a")
    assert len(server.requests) == 2


def test_a_closed_store_does_not_wait(
    server: Scripted, here: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "BACKOFF_MS", 1 << 40)
    here.close()
    server.script(UNAVAILABLE, UNAVAILABLE)
    with pytest.raises(StoreUnavailable):
        here.get("a")
    assert len(server.requests) == 1


def test_the_server_says_how_long_to_wait(server: Scripted, store: ObjectStore) -> None:
    server.script(Reply(status=503, headers={"Retry-After": "7"}))
    with pytest.raises(StoreUnavailable) as caught:
        store.put("a", b"x")
    assert caught.value.retry_after_ms == 7000


@pytest.mark.parametrize(
    ("code", "off", "said"),
    [
        ("RequestTimeTooSkewed", timedelta(hours=-1, seconds=-20), "off by 1 h (ahead"),
        ("AccessDenied", timedelta(minutes=90, seconds=20), "off by 1 h 30 min (behind"),
        ("AccessDenied", timedelta(0), "lack a permission"),
        ("InvalidAccessKeyId", timedelta(0), "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", timedelta(0), "secret key is wrong"),
        ("ExpiredToken", timedelta(0), "renew them"),
    ],
)
def test_a_403_says_what_to_do(
    server: Scripted, store: ObjectStore, code: str, off: timedelta, said: str
) -> None:
    date = format_datetime(datetime.now(UTC) + off, usegmt=True)
    server.script(failure(403, code, Date=date))
    with pytest.raises(StoreRefused) as caught:
        store.put("a", b"x", if_absent=True)
    assert said in str(caught.value) and "s3://bucket/p" in str(caught.value)


def test_no_credentials(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(f"s3://bucket?endpoint={server.url}")
    with pytest.raises(StoreRefused, match="AWS_ACCESS_KEY_ID"):
        store.list("")
    assert server.requests == []


def test_a_profile_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="nobody"):
        open_store("s3://bucket")


def test_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "BACKOFF_MS", 1)
    with Scripted() as gone:
        url = gone.url
    with pytest.raises(StoreUnavailable, match="endpoint="):
        open_store(f"s3://bucket?endpoint={url}").list("")


def test_the_endpoint_of_the_environment_counts(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    open_store("s3://bucket").put("a", b"x")
    assert [request.path for request in server.requests] == ["/bucket/a"]


@pytest.mark.parametrize("headers", [{}, {"Content-Range": "bytes 2-3/6"}])
@pytest.mark.parametrize("status", [200, 206])
def test_servers_differ_about_ranges(
    server: Scripted, store: ObjectStore, headers: dict[str, str], status: int
) -> None:
    # Without Content-Range it is the whole object, whatever the status; with it, a part.
    server.script(Reply(status=status, headers=headers, body=b"23" if headers else b"012345"))
    assert store.get("a", start=2, end=4) == b"23"
    assert server.requests[0].headers["range"] == "bytes=2-3"


def test_a_broken_stream_goes_on(server: Scripted, store: ObjectStore) -> None:
    body = bytes(range(256)) * 4000
    whole = {"ETag": '"e1"'}
    rest = {**whole, "Content-Range": "some"}
    server.script(
        Reply(body=body[:300_000], missing=len(body) - 300_000, headers=whole),
        UNAVAILABLE,
        Reply(status=206, body=body[300_000:300_001], missing=700_000, headers=rest),
        Reply(status=206, body=body[300_001:], headers=rest),
    )
    with store.open("a") as file:
        assert file.read() == body
    asked = [request.headers.get("range") for request in server.requests]
    assert asked == [None, "bytes=300000-", "bytes=300000-", "bytes=300001-"]
    assert {request.headers.get("if-match") for request in server.requests[1:]} == {'"e1"'}


@pytest.mark.parametrize(
    "second", [failure(412, "PreconditionFailed"), Reply(body=b"another", headers={"ETag": "e2"})]
)
def test_a_stream_never_joins_two_objects(
    server: Scripted, store: ObjectStore, second: Reply
) -> None:
    server.script(Reply(body=b"one", missing=3, headers={"ETag": '"e1"'}))
    server.script(*[second] * s3.TRIES_MAX)
    with store.open("a") as file, pytest.raises(StoreUnavailable, match="read it again"):
        file.read()


def test_a_stream_that_stays_broken_ends(server: Scripted, store: ObjectStore) -> None:
    rest = {"ETag": '"e1"', "Content-Range": "some"}
    server.script(Reply(body=b"", missing=9, headers={"ETag": '"e1"'}))
    server.script(*[Reply(status=206, body=b"", missing=9, headers=rest)] * 50)
    with store.open("a") as file, pytest.raises(StoreUnavailable, match="at 0"):
        file.read()
    assert len(server.requests) == s3.TRIES_MAX


def test_an_object_that_was_cut_off_is_read_again(server: Scripted, store: ObjectStore) -> None:
    server.script(Reply(body=b"hal", missing=2), Reply(body=b"whole"))
    assert store.get("a") == b"whole"


@pytest.mark.parametrize("keys", [("b", "a"), ("a", "a")])
def test_a_store_without_order_is_refused(
    server: Scripted, store: ObjectStore, keys: tuple[str, ...]
) -> None:
    server.script(listing(*keys))
    with pytest.raises(StoreRefused, match="in order"):
        store.list("")


def test_a_store_that_cannot_go_on_behind_a_key_is_refused(
    server: Scripted, store: ObjectStore
) -> None:
    server.script(listing("a", "b"))
    with pytest.raises(StoreRefused, match="in order"):
        store.list("", after="a")


def test_deleting_many(server: Scripted, store: ObjectStore) -> None:
    failed = "<DeleteResult><Error><Key>b</Key><Code>{}</Code></Error></DeleteResult>"
    for code in ("InternalError", "NoSuchKey"):
        server.script(Reply(body=failed.format(code).encode()))
    store.delete(["a", "b"])
    assert len(server.requests) == 2
    digest = hashlib.md5(server.requests[0].body, usedforsecurity=False).digest()
    assert server.requests[0].headers["content-md5"] == base64.b64encode(digest).decode()
    server.script(Reply(body=failed.format("AccessDenied").encode()))
    with pytest.raises(StoreRefused, match="s3:DeleteObject"):
        store.delete(["a", "b"])
    assert len(server.requests) == 3


BEGUN = Reply(body=b"<R><UploadId>u1</UploadId></R>")
PART = Reply(headers={"ETag": '"p"'})
DONE = Reply(body=b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")


def test_parts_are_repeated_and_the_upload_completed(server: Scripted, store: ObjectStore) -> None:
    server.script(BEGUN, UNAVAILABLE, PART, CLOSED, PART, DONE)
    data = b"a" * PART_BYTES + b"tail"
    store.put("a", io.BytesIO(data), timestamp_ms=0)
    begun, *parts, done = server.requests
    assert begun.headers["x-amz-meta-litestream-timestamp"] == "1970-01-01T00:00:00.000Z"
    assert parts[1].body + parts[3].body == data
    assert done.body.count(b"<PartNumber>") == 2


@pytest.mark.parametrize(
    "complete",
    [
        UNAVAILABLE,
        CLOSED,
        # S3 answers 200 at once and may still fail.
        Reply(body=b"<Error><Code>InternalError</Code><Message>no</Message></Error>"),
    ],
)
def test_an_upload_that_fails_is_given_up(
    server: Scripted, store: ObjectStore, complete: Reply
) -> None:
    server.script(BEGUN, PART, PART, complete)
    with pytest.raises(StoreUnavailable):
        store.put("a", io.BytesIO(bytes(PART_BYTES + 1)))
    assert (server.requests[-1].method, server.requests[-1].path) == (
        "DELETE",
        "/bucket/a?uploadId=u1",
    )


def test_a_file_that_shrinks_is_not_stored(server: Scripted, here: ObjectStore) -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(1 << 20, size or 0)) if self.tell() < PART_BYTES else b""

    server.script(BEGUN, PART)
    with pytest.raises(ValueError, match="shrank"):
        here.put("a", Shrinking(bytes(2 * PART_BYTES)))
    assert [request.method for request in server.requests] == ["POST", "PUT", "DELETE"]


def test_the_probe_removes_what_it_wrote(server: Scripted, store: ObjectStore) -> None:
    server.script(Reply(), Reply(), Reply(status=204))  # the second creation succeeds
    with pytest.raises(StoreRefused, match="ignores If-None-Match"):
        probe_conditional_writes(store, "p")
    assert [request.method for request in server.requests] == ["PUT", "PUT", "DELETE"]
    assert len({request.path for request in server.requests}) == 1


def test_the_probe_leaves_failures_as_they_are(server: Scripted, store: ObjectStore) -> None:
    server.script(UNAVAILABLE)
    with pytest.raises(StoreUnavailable):
        probe_conditional_writes(store, "p")
    server.script(Reply(), UNAVAILABLE)
    with pytest.raises(StoreUnavailable):
        probe_conditional_writes(store, "p")
    assert [request.method for request in server.requests] == ["PUT", "PUT", "PUT", "DELETE"]


def test_no_bucket_no_sdk() -> None:
    code = (
        "import sys; from infra.objects import open_store; open_store('file:x'); "
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
