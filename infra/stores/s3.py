"""A bucket behind the S3 protocol, through boto3, as an object store.

The SDK never repeats a request: a conditional write whose answer was lost may have been applied,
and only its caller can tell (by reading the key) whether it was. Here, only what may safely happen
twice is repeated: reads, listings, deletions, and the parts of an upload.

One client serves all threads. What costs time at every request and gains nothing is off: checksums
beside the signature's own hash, validation of parameters, a user agent made anew for each request,
and `Expect: 100-continue` before small bodies, which is a round trip. A PUT of 800 bytes takes
0.5 ms of CPU instead of 0.7 (loopback, one core of a 2-core virtual machine).
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

import boto3
from boto3.exceptions import Boto3Error
from botocore import exceptions as sdk
from botocore.config import Config

from infra import clock, ids
from infra.errors import ConfigError, StorageError
from infra.objects import (
    DELETE_KEYS_MAX,
    LIST_KEYS_MAX,
    PART_BYTES,
    TIMESTAMP_METADATA,
    Listing,
    ObjectInfo,
    StoreRefused,
    StoreUnavailable,
    StoreUrl,
    check_key,
    check_put,
    check_range,
)
from infra.stores.s3_errors import Answer, error_of

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20  # without a byte in either direction
CONNECTIONS_MAX = 64
TRIES_MAX = 4  # of what may safely happen twice
BACKOFF_MS = 100  # before the second try; doubled for each further one, jittered
PARTS_MAX = 10_000  # S3's
STREAM_BYTES = 256 << 10  # read ahead of an opened object
DEFAULT_REGION = "us-east-1"  # where neither URL, environment nor profile says one

T = TypeVar("T")


class S3Store:
    """One bucket; fits infra.objects.ObjectStore. Credentials are found as boto3 finds them."""

    def __init__(self, url: StoreUrl) -> None:
        """Connects to nothing yet. Raises ConfigError for a profile or endpoint boto3 refuses."""
        self.url = url.text
        self._bucket = url.bucket
        self._closing = threading.Event()
        try:
            self._client = _client(url)
        except (sdk.BotoCoreError, Boto3Error, ValueError) as error:
            raise ConfigError(f"{self.url}: {error}") from error

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """See ObjectStore; `timestamp_ms` becomes metadata that the official tool reads."""
        check_put(key, body, if_absent=if_absent)
        options: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        if timestamp_ms is not None:
            options["Metadata"] = {TIMESTAMP_METADATA: rfc3339(timestamp_ms)}
        if not isinstance(body, bytes):
            size = _remaining(body)
            if size > PART_BYTES:
                self._put_parts(key, body, size, options)
                return
            body = body.read()
        if if_absent:
            options["IfNoneMatch"] = "*"
        self._once(
            f"put {key}",
            lambda: self._client.put_object(Body=body, **options),
            conditional=if_absent,
        )

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ObjectStore."""
        check_key(key)
        if not check_range(start, end):
            return b""
        wanted = {"Range": _range(start, end)} if start or end is not None else {}

        def read() -> bytes:
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key, **wanted)
            except sdk.ClientError as error:
                if _answer_of(error).status == 416:  # starts at the end, or beyond it
                    return b""
                raise
            # Not `with`: that would hand out the stream below, whose errors are another library's.
            with closing(answer["Body"]) as stream:
                data: bytes = stream.read()
            # A server may ignore ranges. The status does not tell: some send a part as 200.
            return data[start:end] if wanted and "ContentRange" not in answer else data

        return self._repeated(f"get {key}", read, of_key=True)

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore. A connection that breaks is taken up again where it broke."""
        check_key(key)
        stream = _Stream(lambda start, etag: self._body(key, start, etag), self._pause)
        return cast(BinaryIO, io.BufferedReader(stream, STREAM_BYTES))

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        """See ObjectStore. Raises StoreRefused where the server does not list in key order."""
        options: dict[str, Any] = {"Bucket": self._bucket, "Prefix": prefix}
        options["MaxKeys"] = min(limit, LIST_KEYS_MAX)
        if after:
            options["StartAfter"] = after
        answer = self._repeated(
            f"list {prefix or 'everything'}", lambda: self._client.list_objects_v2(**options)
        )
        found = [
            ObjectInfo(
                item["Key"],
                item["Size"],
                int(item["LastModified"].timestamp() * 1000),
                item.get("ETag", "").strip('"'),
            )
            for item in answer.get("Contents", ())
        ]
        last = after.encode()
        for info in found:
            key = info.key.encode()
            if key <= last:
                raise StoreRefused(
                    f"{self.url} does not list keys in order (a directory bucket?), which "
                    "restoring relies on; use a general purpose bucket"
                )
            last = key
        return Listing(found, truncated=bool(answer.get("IsTruncated")))

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        for key in keys:
            check_key(key)
        if len(keys) == 1:  # also for the stores that have no request for many
            self._repeated(
                f"delete {keys[0]}",
                lambda: self._client.delete_object(Bucket=self._bucket, Key=keys[0]),
            )
            return
        for first in range(0, len(keys), DELETE_KEYS_MAX):
            self._delete_many(keys[first : first + DELETE_KEYS_MAX])

    def close(self) -> None:
        """See ObjectStore."""
        self._closing.set()
        self._client.close()

    def _put_parts(self, key: str, body: BinaryIO, size: int, options: dict[str, Any]) -> None:
        """An upload in parts, one in memory at a time; nothing is to be seen before the last."""
        what = f"put {key} ({size} bytes)"
        begun = self._once(what, lambda: self._client.create_multipart_upload(**options))
        upload = {"Bucket": self._bucket, "Key": key, "UploadId": begun["UploadId"]}
        part_bytes = max(PART_BYTES, -(-size // PARTS_MAX))
        parts = []
        try:
            for number, at in enumerate(range(0, size, part_bytes), start=1):
                part = {**upload, "Body": _read_exactly(body, min(part_bytes, size - at))}
                part["PartNumber"] = number  # S3 keeps the last part of a number: safe to repeat
                answer = self._repeated(what, partial(self._client.upload_part, **part))
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            done = {**upload, "MultipartUpload": {"Parts": parts}}
            self._once(what, lambda: self._client.complete_multipart_upload(**done))
        except BaseException:
            # Parts nobody completes are paid for. Where this fails too, a lifecycle rule of the
            # bucket has to (AbortIncompleteMultipartUpload).
            with suppress(sdk.BotoCoreError, sdk.ClientError):
                self._client.abort_multipart_upload(**upload)
            raise

    def _body(self, key: str, start: int, etag: str) -> tuple[Any, str, int]:
        """The rest of an object from `start` on, its ETag, and how many bytes the rest has."""
        options: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        if start:
            options |= {"Range": _range(start, None), "IfMatch": etag}
        answer = self._repeated(
            f"get {key}", lambda: self._client.get_object(**options), of_key=True
        )
        if start and "ContentRange" not in answer:
            answer["Body"].close()
            raise StoreUnavailable(f"{self.url}: get {key}: broke off at {start}; read it again")
        return answer["Body"], answer["ETag"], answer["ContentLength"]

    def _delete_many(self, keys: Sequence[str]) -> None:
        what = f"delete {len(keys)} keys"
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def delete() -> None:
            answer = self._client.delete_objects(Bucket=self._bucket, Delete=wanted)
            for failed in answer.get("Errors", ()):
                code, message = failed.get("Code", ""), failed.get("Message", "")
                if code != "NoSuchKey":
                    # A status of its own each key has not: what is not refused may be repeated.
                    status = 403 if code == "AccessDenied" else 503
                    raise self._error(what, Answer(status=status, code=code, message=message))

        self._repeated(what, delete)

    def _repeated(self, what: str, call: Callable[[], T], *, of_key: bool = False) -> T:
        """The result of a request that may safely be applied twice."""
        for tried in range(1, TRIES_MAX):
            try:
                return self._once(what, call, of_key=of_key)
            except StoreUnavailable as error:
                self._pause(tried, error)
        return self._once(what, call, of_key=of_key)

    def _pause(self, tried: int, error: StoreUnavailable) -> None:
        """Before the next try; raises the error instead once the store is closed."""
        most_ms = max(BACKOFF_MS << (tried - 1), error.retry_after_ms or 0)
        if self._closing.wait(most_ms * (0.5 + ids.random() / 2) / 1000):
            raise error

    def _once(
        self, what: str, call: Callable[[], T], *, of_key: bool = False, conditional: bool = False
    ) -> T:
        """The result of one request. Every error of the SDK becomes one of ours here."""
        try:
            return call()
        except sdk.ClientError as error:
            answer = _answer_of(error)
            raise self._error(what, answer, of_key=of_key, conditional=conditional) from error
        except (sdk.BotoCoreError, Boto3Error, OSError) as error:
            raise self._no_answer(what, error) from error

    def _error(
        self, what: str, answer: Answer, *, of_key: bool = False, conditional: bool = False
    ) -> StorageError:
        now_ms = clock.now_ms()
        return error_of(
            self.url, what, answer, now_ms=now_ms, of_key=of_key, conditional=conditional
        )

    def _no_answer(self, what: str, error: Exception) -> StorageError:
        said = f"{self.url}: {what}: {error}"
        if isinstance(error, sdk.NoCredentialsError | sdk.PartialCredentialsError):
            return StoreRefused(
                f"{said}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role"
            )
        if isinstance(error, sdk.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return StoreRefused(
                f"{said}; the server's certificate is not trusted here: set AWS_CA_BUNDLE"
            )
        if isinstance(error, sdk.HTTPClientError):
            return StoreUnavailable(f"{said}; check network and endpoint= if it stays so")
        return StoreUnavailable(f"{said}; repeat later")


class _Stream(io.RawIOBase):
    """An object read from front to back, taken up again where a connection breaks."""

    def __init__(
        self,
        fetch: Callable[[int, str], tuple[Any, str, int]],
        pause: Callable[[int, StoreUnavailable], None],
    ) -> None:
        self._fetch = fetch
        self._pause = pause
        self._at = 0
        self._body, self._etag, self._size = fetch(0, "")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of the buffer; 0 at the end. Raises StoreUnavailable."""
        if self._at == self._size or not len(buffer):
            return 0
        for tried in range(1, TRIES_MAX + 1):
            try:
                data = self._body.read(min(len(buffer), self._size - self._at))
                if data:
                    buffer[: len(data)] = data
                    self._at += len(data)
                    return len(data)
                broken = StoreUnavailable(f"the stream ended at {self._at} of {self._size} bytes")
            except (sdk.BotoCoreError, OSError) as error:
                broken = StoreUnavailable(f"the stream broke at {self._at} bytes: {error}")
            if tried < TRIES_MAX:
                self._pause(tried, broken)
                self._body.close()
                self._body, _, _ = self._fetch(self._at, self._etag)
        raise broken

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


def rfc3339(timestamp_ms: int) -> str:
    """As in `2026-11-24T10:00:00.123Z`."""
    seconds, ms = divmod(timestamp_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"


def _client(url: StoreUrl) -> Any:
    session = boto3.session.Session()
    path_style = url.path_style
    if path_style is None:
        # Servers of one's own rarely have a DNS name for each bucket.
        named = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        path_style = bool(url.endpoint or any(os.environ.get(name) for name in named))
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS_MAX,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if path_style else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        parameter_validation=False,
        user_agent="holdfast",
    )
    client = session.client(
        "s3",
        region_name=url.region or session.region_name or DEFAULT_REGION,
        endpoint_url=url.endpoint,
        config=config,
    )
    client.meta.events.register_last("before-call.s3", _drop_expect)
    client.meta.events.register_last("before-call.s3.DeleteObjects", _add_md5)
    return client


def _drop_expect(model: Any, params: dict[str, Any], **_: Any) -> None:
    # To wait for the server's leave to send a body this small costs more than to send it in vain.
    if model.name == "PutObject":
        params["headers"].pop("Expect", None)


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    # The SDK sends a newer checksum only, and older servers refuse DeleteObjects without this one.
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def _answer_of(error: Any) -> Answer:
    """What a botocore ClientError holds; its XML may be missing, as after a HEAD."""
    told = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    return Answer(
        status=meta.get("HTTPStatusCode", 0),
        code=str(told.get("Code", "")),
        message=str(told.get("Message", "")),
        headers={name.lower(): value for name, value in meta.get("HTTPHeaders", {}).items()},
    )


def _range(start: int, end: int | None) -> str:
    return f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"


def _remaining(body: BinaryIO) -> int:
    at = body.tell()
    size = body.seek(0, os.SEEK_END) - at
    body.seek(at)
    return size


def _read_exactly(body: BinaryIO, size: int) -> bytes:
    parts = []
    while size and (chunk := body.read(size)):
        parts.append(chunk)
        size -= len(chunk)
    if size:
        raise ValueError(f"the file shrank by {size} bytes while it was uploaded")
    return b"".join(parts)
