"""Whose prefix it is: the marker, and what a start decides."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.deployment import Decision, claim_marker, decide_deployment, read_marker
from infra.errors import ConfigError
from infra.objects import ObjectStore, StoreRefused, StoreUnavailable
from infra.stores.directory import DirectoryStore
from tests.support.faulty_store import Fault, FaultyStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return DirectoryStore(tmp_path)


@pytest.mark.parametrize("adopt", [True, False])
@pytest.mark.parametrize(
    ("local", "bucket", "decision"),
    [
        (None, None, Decision.CREATE),
        (None, "b", Decision.ADOPT),
        ("a", "a", Decision.KEEP),
    ],
)
def test_what_is_safe_goes_on(
    local: str | None, bucket: str | None, decision: Decision, adopt: bool
) -> None:
    assert decide_deployment(local, bucket, adopt=adopt) is decision


@pytest.mark.parametrize("adopt", [True, False])
def test_another_deployment_is_refused_whatever_was_said(adopt: bool) -> None:
    with pytest.raises(ConfigError, match="belongs to another deployment") as caught:
        decide_deployment("ours", "theirs", adopt=adopt)
    assert "ours" in str(caught.value) and "theirs" in str(caught.value)


def test_an_empty_prefix_needs_a_word() -> None:
    with pytest.raises(ConfigError, match="--adopt-bucket"):
        decide_deployment("a", None, adopt=False)
    assert decide_deployment("a", None, adopt=True) is Decision.CLAIM


def test_the_marker_is_what_the_documents_say(tmp_path: Path, store: ObjectStore) -> None:
    claim_marker(store, "p/q", "id-1")
    assert (tmp_path / "p/q/holdfast.json").read_text() == '{"format":1,"deployment":"id-1"}'


def test_of_many_starts_one_claims(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: claim_marker(store, "p", f"id-{n}"), range(8)))
    assert set(ids) == {read_marker(store, "p")}


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.BEFORE, Fault.LATE])
def test_a_claim_may_be_repeated(store: ObjectStore, fault: Fault) -> None:
    faulty = FaultyStore(store)
    faulty.arm("put", fault)
    with pytest.raises(StoreUnavailable):
        claim_marker(faulty, "p", "one")
    assert claim_marker(faulty, "p", "one") == "one"
    faulty.land()
    assert claim_marker(faulty, "p", "two") == "one"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no marker"),
        (b"{}", "no marker"),
        (b'{"format":1,"deployment":7}', "no marker"),
        (b"\xff" * 100_000, "no marker"),
        (b'{"format":2,"deployment":"x"}', "upgrade"),
        (b'{"format":1,"deployment":""}', "names no deployment"),
    ],
)
def test_a_marker_that_cannot_be_read_is_never_nobody(
    store: ObjectStore, data: bytes, said: str
) -> None:
    store.put("p/holdfast.json", data)
    with pytest.raises(StoreRefused, match=said):
        read_marker(store, "p")
    with pytest.raises(StoreRefused, match=said):
        claim_marker(store, "p", "one")


def test_later_releases_may_add_fields(store: ObjectStore) -> None:
    store.put("p/holdfast.json", b'{"format":1,"deployment":"x","note":"y"}')
    assert read_marker(store, "p") == "x"


def test_a_marker_that_comes_and_goes(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_marker(store, "p", "one")
    monkeypatch.setattr("infra.deployment.read_marker", lambda *_: None)
    with pytest.raises(StoreUnavailable, match="repeat"):
        claim_marker(store, "p", "two")
