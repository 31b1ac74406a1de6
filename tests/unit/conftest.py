"""What the tests of a replica share: a bucket with faults, and a new ledger that ships into it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra import replica as replica_module
from infra import requests as requests_module
from infra.stores.directory import DirectoryStore
from tests.support.faulty_store import FaultyStore
from tests.support.shipping import Bucket, Shipping, let_go


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the pauses that spare a store."""
    for module in (requests_module, replica_module):
        monkeypatch.setattr(module, "RETRY_FIRST_MS", 1)
        monkeypatch.setattr(module, "RETRY_MAX_MS", 2)
    monkeypatch.setattr(requests_module, "REFUSED_RETRY_MS", 1)


@pytest.fixture
def store(tmp_path: Path, impatient: None) -> FaultyStore:
    (tmp_path / "bucket").mkdir()
    return FaultyStore(DirectoryStore(tmp_path / "bucket"))


@pytest.fixture
async def bucket(tmp_path: Path, store: FaultyStore) -> AsyncIterator[Bucket]:
    bucket = Bucket(tmp_path, store)
    yield bucket
    store.release()
    await bucket.service.aclose()
    let_go()


@pytest.fixture
async def ship(tmp_path: Path, bucket: Bucket) -> AsyncIterator[Shipping]:
    """A new ledger, which nobody has written to."""
    ship = Shipping.create(bucket, tmp_path / "x.db")
    yield ship
    await ship.close()
