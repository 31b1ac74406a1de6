"""Whose bucket prefix this is: one small object says which deployment writes below it.

`<prefix>/holdfast.json` is `{"format": 1, "deployment": "<id>"}`, created once and never changed.
Each data directory remembers the id it was replicated under, so that a wrong prefix, or a bucket
that was lost, is met at start and not by histories that mix.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from infra.errors import ConfigError
from infra.objects import (
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    StoreRefused,
    StoreUnavailable,
    join_key,
)

MARKER = "holdfast.json"
FORMAT = 1
MARKER_BYTES_MAX = 4096


class Decision(StrEnum):
    """What a start does about the marker."""

    CREATE = "create"  # a new deployment: choose an id, claim the marker with it
    ADOPT = "adopt"  # a fresh machine: take over the bucket's id
    KEEP = "keep"  # both know each other: go on
    CLAIM = "claim"  # a known deployment begins a new replica: claim the marker with its id


class _Marker(msgspec.Struct, frozen=True):
    format: int
    deployment: str


_decoder = msgspec.json.Decoder(_Marker)


def read_marker(store: ObjectStore, prefix: str) -> str | None:
    """The id of the deployment that owns the prefix; None for nobody's.

    Raises StoreRefused for a marker that is damaged or of a newer release, beside the store's own.
    """
    key = join_key(prefix, MARKER)
    try:
        data = store.get(key, end=MARKER_BYTES_MAX)
    except ObjectMissing:
        return None
    try:
        marker = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise StoreRefused(f"{store.url}: {key} is no marker of Holdfast: {error}") from error
    if marker.format != FORMAT:
        raise StoreRefused(
            f"{store.url}: {key} has format {marker.format}, this release knows {FORMAT}: upgrade"
        )
    if not marker.deployment:
        raise StoreRefused(f"{store.url}: {key} names no deployment")
    return marker.deployment


def claim_marker(store: ObjectStore, prefix: str, deployment_id: str) -> str:
    """Create the marker; the id in it on return, which is another's if that one was first.

    Safe to repeat after any error.
    """
    marker = msgspec.json.encode(_Marker(FORMAT, deployment_id))
    try:
        store.put(join_key(prefix, MARKER), marker, if_absent=True)
    except ObjectExists as error:
        winner = read_marker(store, prefix)
        if winner is None:
            raise StoreUnavailable(f"{store.url}: the marker came and went; repeat") from error
        return winner
    return deployment_id


def decide_deployment(local_id: str | None, bucket_id: str | None, *, adopt: bool) -> Decision:
    """What to do when the data directory knows `local_id` and the bucket prefix `bucket_id`.

    None: it was never replicated, or nobody owns the prefix. `adopt` is the operator's word that an
    empty prefix is meant. Raises ConfigError where histories could mix.
    """
    if local_id is None:
        return Decision.CREATE if bucket_id is None else Decision.ADOPT
    if bucket_id is None:
        if adopt:
            return Decision.CLAIM
        raise ConfigError(
            "the bucket prefix is empty, but this data directory was replicated before: is the "
            "prefix wrong, or was the bucket lost? Start with --adopt-bucket to begin a new "
            "replica there"
        )
    if local_id != bucket_id:
        raise ConfigError(
            f"the bucket prefix belongs to another deployment ({bucket_id}; this data directory "
            f"is of {local_id}): give each deployment a prefix or a data directory of its own"
        )
    return Decision.KEEP
