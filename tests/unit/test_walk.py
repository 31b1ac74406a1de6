"""Finding the replicas below a prefix."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.layout import file_key, scope_prefix
from infra.objects import LIST_KEYS_MAX, Listing
from infra.stores.directory import DirectoryStore
from infra.walk import walk_replicas

# Names whose keys sort around each other's folders.
SCOPES = [
    ("default", "run:1"), ("default", "run:10"), ("default", "run"), ("default", "run-x"),
    ("default", "run0"), ("default", ".hidden"), ("default", "a/b"), ("other", "run:1"),
    ("default", "z" * 300),
]  # fmt: skip


class Narrow(DirectoryStore):
    """Lists two keys at a time and counts how often it was asked."""

    asked = 0

    def list(self, prefix: str, *, after: str = "", limit: int = LIST_KEYS_MAX) -> Listing:
        self.asked += 1
        return super().list(prefix, after=after, limit=min(limit, 2))


def filled(directory: Path, prefix: str, files: int = 1) -> Narrow:
    store = Narrow(str(directory))
    for tenant, scope in SCOPES:
        for txid in range(1, files + 1):
            store.put(file_key(scope_prefix(prefix, tenant, scope), 0, txid, txid), b"x")
    return store


@pytest.mark.parametrize("prefix", ["", "p", "p/q"])
def test_each_is_found_once(tmp_path: Path, prefix: str) -> None:
    store = filled(tmp_path, prefix, files=7)
    for stray in ("holdfast.json", "holdfast-probe/x", "t/s/readme.txt", "t/s/0000/x.ltx"):
        store.put("/".join(part for part in (prefix, stray) if part), b"x")
    wanted = sorted(scope_prefix(prefix, *name) for name in SCOPES)
    assert sorted(walk_replicas(store, prefix)) == wanted


def test_a_large_replica_costs_one_listing_more(tmp_path: Path) -> None:
    store = filled(tmp_path, "p", files=40)
    assert len(list(walk_replicas(store, "p"))) == len(SCOPES)
    assert store.asked <= 2 * len(SCOPES) + 1


def test_one_tenant(tmp_path: Path) -> None:
    store = filled(tmp_path, "p")
    assert list(walk_replicas(store, "p", "other")) == ["p/other/run~3a1"]
    assert list(walk_replicas(store, "p", "oth")) == []
    assert list(walk_replicas(store, "nothing")) == []
