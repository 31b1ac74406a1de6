"""URLs of stores, and the probe against stores that behave in their own ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.objects import (
    ObjectBusy,
    StoreRefused,
    StoreUnavailable,
    join_key,
    open_store,
    parse_url,
    probe_conditional_writes,
    store_prefix,
)
from tests.support.faulty_store import Fault, Faults, FaultyStore


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:bucket", "bucket"),
        ("file:/srv/bucket", "/srv/bucket"),
        ("file:///srv/bucket", "/srv/bucket"),
        ("file:a b%20c?d#e", "a b%20c?d#e"),  # literally: a path is not percent-encoded
    ],
)
def test_file_urls(url: str, path: str) -> None:
    parsed = parse_url(url)
    assert (parsed.kind, parsed.path, parsed.prefix) == ("file", path, "")


@pytest.mark.parametrize(
    ("url", "bucket", "prefix", "text"),
    [
        ("s3://b-1.c", "b-1.c", "", "s3://b-1.c"),
        ("s3://bucket/", "bucket", "", "s3://bucket"),
        ("s3://bucket/p", "bucket", "p", "s3://bucket/p"),
        ("s3://bucket/p/q~20r/", "bucket", "p/q~20r", "s3://bucket/p/q~20r"),
        ("s3://bucket//p/", "bucket", "p", "s3://bucket/p"),
    ],
)
def test_bucket_urls(url: str, bucket: str, prefix: str, text: str) -> None:
    parsed = parse_url(url)
    assert (parsed.kind, parsed.bucket, parsed.prefix, parsed.text) == ("s3", bucket, prefix, text)
    assert (parsed.endpoint, parsed.region, parsed.path_style) == (None, None, None)
    assert store_prefix(url) == prefix


def test_options_of_a_bucket() -> None:
    parsed = parse_url(
        "s3://bucket/p?endpoint=http://127.0.0.1:9000/&region=eu-central-1&path_style=false"
    )
    assert parsed.endpoint == "http://127.0.0.1:9000"
    assert (parsed.region, parsed.path_style) == ("eu-central-1", False)
    assert parsed.text == (
        "s3://bucket/p?endpoint=http://127.0.0.1:9000&region=eu-central-1&path_style=false"
    )
    assert parse_url(parsed.text) == parsed
    assert parse_url("s3://bucket?path_style=true").path_style is True


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "a bucket is"),
        ("bucket", "a bucket is"),
        ("/srv/bucket", "a bucket is"),
        ("gs://bucket", "a bucket is"),
        ("https://hidden@example.org", "a bucket is"),
        ("file:", "path of a directory"),
        ("file:a\0b", "path of a directory"),
        ("file://host/path", "file://HOST"),
        ("s3://", "bucket name"),
        ("s3:bucket", "bucket name"),
        ("s3:///p", "bucket name"),
        ("s3://b:9000/p", "bucket name"),
        ("s3://AKIA:hidden@bucket/p", "credentials"),
        ("s3://bucket/../p", "prefix"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/a b", "prefix"),
        ("s3://bucket/a%2F..%2Fb", "prefix"),
        ("s3://bucket/p#x", "#"),
        ("s3://bucket/p?region", "name=value"),
        ("s3://bucket/p?secret_key=hidden", "not secret_key"),
        ("s3://bucket/p?region=a&region=b", "twice"),
        ("s3://bucket/p?region=a%20b", "region="),
        ("s3://bucket/p?path_style=1", "true or false"),
        ("s3://bucket/p?endpoint=127.0.0.1:9000", "http"),
        ("s3://bucket/p?endpoint=http://a:hidden@b", "without credentials"),
        ("s3://bucket/p?endpoint=http://b?c", "no query"),
    ],
)
def test_urls_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert said in str(caught.value) and "hidden" not in str(caught.value)


def test_joining_leaves_out_what_is_empty() -> None:
    assert join_key("", "a", "", "b/c") == "a/b/c"


def test_the_probe_notices_a_store_without_conditions(tmp_path: Path) -> None:
    store = FaultyStore(open_store(f"file:{tmp_path}"), Faults(plain_put=True))
    with pytest.raises(StoreRefused, match="overwrite each other") as caught:
        probe_conditional_writes(store, "p")
    assert store.url in str(caught.value) and not caught.value.retryable
    assert store.list("").objects == []


@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.LOST_REPLY])
def test_the_probe_does_not_judge_what_it_did_not_see(tmp_path: Path, fault: Fault) -> None:
    store = FaultyStore(open_store(f"file:{tmp_path}"))
    store.arm("put", Fault.NONE, fault)
    with pytest.raises(StoreUnavailable):
        probe_conditional_writes(store, "p")
    probe_conditional_writes(store, "p")
    assert store.list("").objects == []


def test_errors_say_whether_to_repeat() -> None:
    assert StoreUnavailable("").retryable and ObjectBusy("").retryable
    assert not StoreRefused("").retryable
