"""Object stores as the rest of Holdfast sees them: values, errors, URLs, and one small Protocol.

A store maps keys to immutable objects and lists them in order. What fencing rests on: of any number
of `put(..., if_absent=True)` of one key, from any number of processes, exactly one succeeds. Not
every server that speaks S3 keeps that promise, so it is probed before it is relied upon
(`probe_conditional_writes`). Every error says whether the same call may be repeated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import BinaryIO, Literal, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from infra import ids
from infra.errors import ConfigError, StorageError

LIST_KEYS_MAX = 1000  # what one listing of S3 returns at most
DELETE_KEYS_MAX = 1000  # what one DeleteObjects of S3 takes
KEY_BYTES_MAX = 1024  # S3's
PART_BYTES = 8 << 20  # files up to this go up in one request; above, it is the memory a put takes
TIMESTAMP_METADATA = "litestream-timestamp"  # where the official tool looks for the time of a file
PROBE_FOLDER = "holdfast-probe"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PREFIX = re.compile(r"[A-Za-z0-9._~=@+,-]+(?:/[A-Za-z0-9._~=@+,-]+)*")
_S3_OPTIONS = ("endpoint", "region", "path_style")


class StoreUnavailable(StorageError):
    """The store did not answer, or not in time. Whether a write was applied is unknown.

    The code is `disk_full` where a directory store has no room left.
    """

    code = "store_unavailable"
    retryable = True


class StoreRefused(StorageError):
    """The store says no and will say it again; the message tells the operator what to change."""

    code = "store_refused"
    retryable = False


class ObjectExists(StorageError):
    """The key is taken: a write with `if_absent` has changed nothing."""

    code = "object_exists"
    retryable = False


class ObjectBusy(StorageError):
    """Another conditional write of this key is under way; this one has changed nothing. Repeat."""

    code = "object_busy"
    retryable = True


class ObjectMissing(StorageError):
    """No object has this key."""

    code = "object_missing"
    retryable = False


class ObjectInfo(msgspec.Struct, frozen=True):
    """One object of a listing.

    `modified_ms` is when S3 took it, in whole seconds there; a directory keeps the `timestamp_ms`
    it was put with. `etag` is empty where the store has none.
    """

    key: str
    size: int
    modified_ms: int
    etag: str = ""


class Listing(msgspec.Struct, frozen=True):
    """Objects in the order of their keys' bytes. `truncated`: more follow after the last one."""

    objects: list[ObjectInfo]
    truncated: bool


class ObjectStore(Protocol):
    """A bucket. Calls block, and any thread may make them at once.

    Keys are relative to the bucket and include the prefix of the URL (`store_prefix`). Every method
    raises StoreUnavailable and StoreRefused beside what it names.
    """

    @property
    def url(self) -> str:
        """For messages: what was configured, without secrets."""

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """Store the object; it is durable on return. Nobody ever sees a part of it.

        With `if_absent` (for bytes only) raises ObjectExists or ObjectBusy and changes nothing
        where the key is taken; such a call is never repeated inside the store. A file is read from
        where it stands, and must be seekable.
        """

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """The bytes from `start` up to but without `end`, as far as there are any.

        Raises ObjectMissing.
        """

    def open(self, key: str) -> BinaryIO:
        """The object as a stream that the caller closes. Raises ObjectMissing.

        Its `read` raises StoreUnavailable where the connection breaks; bytes read so far stand.
        """

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        """Up to `limit` (at most LIST_KEYS_MAX) objects whose keys start with `prefix`.

        Only keys strictly above `after`, compared as bytes.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects; those that do not exist are no error. After an error some are."""

    def close(self) -> None:
        """Give up connections. Calls after it, or under way during it, may fail."""


class StoreUrl(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed URL: a directory (`path`) or a bucket, with `prefix` below it ("" for none)."""

    kind: Literal["file", "s3"]
    text: str
    path: str = ""
    bucket: str = ""
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None


def parse_url(url: str) -> StoreUrl:
    """`file:path` or `s3://bucket/prefix?endpoint=http://…&region=…&path_style=true`.

    A file path is taken literally. Raises ConfigError with the form to use; never repeats what
    might be a secret.
    """
    scheme = url.partition(":")[0]
    if scheme == "file":
        return _parse_file(url)
    if scheme == "s3":
        return _parse_s3(url)
    raise ConfigError("a bucket is file:PATH or s3://BUCKET/PREFIX?endpoint=URL&region=NAME")


def store_prefix(url: str) -> str:
    """The key prefix the URL asks for, without slashes at its ends; "" for none."""
    return parse_url(url).prefix


def open_store(url: str) -> ObjectStore:
    """The store behind the URL. Connects to nothing yet; raises ConfigError."""
    parsed = parse_url(url)
    if parsed.kind == "file":
        from infra.stores.directory import DirectoryStore

        return DirectoryStore(parsed.path)
    # Late: boto3 costs 25 MiB, and only those who have a bucket shall pay.
    from infra.stores.s3 import S3Store

    return S3Store(parsed)


def probe_conditional_writes(store: ObjectStore, prefix: str) -> None:
    """Make sure that the store refuses the second creation of a key.

    Writes and deletes one object below `<prefix>/holdfast-probe/`. Raises StoreRefused where the
    store would let two writers overwrite each other.
    """
    key = join_key(prefix, PROBE_FOLDER, ids.new_id())
    store.put(key, b"probe", if_absent=True)
    try:
        store.put(key, b"probe again", if_absent=True)
    except ObjectExists:
        return
    finally:
        store.delete([key])
    raise StoreRefused(
        f"{store.url} ignores If-None-Match: it let the same key be created twice, so two writers "
        "of a scope could overwrite each other and lose acknowledged writes. Use a store with "
        "conditional writes (Amazon S3, MinIO, Cloudflare R2, a local directory)"
    )


def join_key(*parts: str) -> str:
    """The parts with slashes between them; empty ones are left out."""
    return "/".join(part for part in parts if part)


def check_key(key: str) -> str:
    """The key itself. Raises StoreRefused for one that could leave the bucket's directory.

    One rule for every store, so that nothing works in a directory that fails in S3, or the reverse.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in key:
        raise StoreRefused(f"{key!r} is no key: it has an empty part, '.', '..' or a NUL")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise StoreRefused(f"{key!r} is no key: it is not Unicode text") from None
    if size > KEY_BYTES_MAX:
        raise StoreRefused(f"a key of {size} bytes is above {KEY_BYTES_MAX}: {key[:80]!r}…")
    return key


def check_put(key: str, body: bytes | BinaryIO, *, if_absent: bool) -> None:
    """What every store checks before a put. Raises StoreRefused for the key."""
    check_key(key)
    if if_absent and not isinstance(body, bytes):
        raise TypeError("if_absent is for bodies of bytes: an upload in parts has no condition")


def check_range(start: int, end: int | None) -> bool:
    """Whether the half-open range can hold a byte at all; S3 has no way to ask for none."""
    if start < 0:  # would be a suffix in HTTP
        raise ValueError(f"a range starts at 0 or later, not at {start}")
    return end is None or end > start


def _parse_file(url: str) -> StoreUrl:
    path = url.removeprefix("file:")
    if path.startswith("//"):
        path = path[2:]
        if not path.startswith("/"):
            raise ConfigError("file://HOST is not supported: use file:PATH or file:///PATH")
    if not path or "\0" in path:
        raise ConfigError("file: needs the path of a directory, as in file:/srv/bucket")
    return StoreUrl(kind="file", text=f"file:{path}", path=path)


def _parse_s3(url: str) -> StoreUrl:
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ConfigError("the s3:// URL cannot be read: after ? go name=value pairs") from error
    if "@" in parts.netloc:
        raise ConfigError(
            "credentials do not belong in an s3:// URL: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or use a profile"
        )
    if not _BUCKET.fullmatch(parts.netloc):
        raise ConfigError(f"s3://{parts.netloc}: {parts.netloc!r} is no bucket name")
    prefix = unquote(parts.path).strip("/")
    if prefix and (not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/"))):
        raise ConfigError(
            f"the prefix {prefix!r} of s3://{parts.netloc} may hold letters, digits, ._~=@+,- "
            "and single slashes, and no part that is '.' or '..'"
        )
    if parts.fragment:
        raise ConfigError("an s3:// URL has no part after '#'")
    return _with_options(parts.netloc, prefix, pairs)


def _with_options(bucket: str, prefix: str, pairs: list[tuple[str, str]]) -> StoreUrl:
    options = dict(pairs)
    # Only names are repeated in messages: a value under a mistyped name may be a secret.
    if unknown := sorted(set(options) - set(_S3_OPTIONS)):
        raise ConfigError(f"an s3:// URL knows {', '.join(_S3_OPTIONS)}; not {', '.join(unknown)}")
    if len(options) != len(pairs):
        raise ConfigError("an option of the s3:// URL is given twice")
    endpoint, region, style = (options.get(name) for name in _S3_OPTIONS)
    if endpoint is not None:
        endpoint = _check_endpoint(endpoint)
    if region is not None and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", region):
        raise ConfigError("region= of the s3:// URL is a name such as eu-central-1")
    if style not in (None, "true", "false"):
        raise ConfigError("path_style= of the s3:// URL is true or false")
    shown = {"endpoint": endpoint, "region": region, "path_style": style}
    query = "&".join(f"{name}={value}" for name, value in shown.items() if value is not None)
    return StoreUrl(
        kind="s3",
        text="s3://" + join_key(bucket, prefix) + (f"?{query}" if query else ""),
        bucket=bucket,
        prefix=prefix,
        endpoint=endpoint,
        region=region,
        path_style=None if style is None else style == "true",
    )


def _check_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise ConfigError("endpoint= of the s3:// URL is http(s)://HOST:PORT, without credentials")
    if parts.query or parts.fragment:
        raise ConfigError("endpoint= of the s3:// URL has no query: write & between options")
    return endpoint.rstrip("/")
