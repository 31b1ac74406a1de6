"""What travels together: the drive (shared records), one app's rows, or everything. Pure.

Watermarks of a channel cover everything on it, so a space is either combined or split for life: a
client of one kind would take the other's coverage for its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from actors.dialects.starkeep.namespaces import Namespace

RECORDS = "rec"  # the collection of shared records
COVERAGE = "cov"
NAMESPACES = "ns"
PARKED = "parked"
BLOBS = "blob"
META = "meta"
CHANNELS = "channels"  # the row of META that says which kind the space is

Kind = Literal["combined", "drive", "app"]
Mode = Literal["combined", "split"]


class Channel(msgspec.Struct, frozen=True):
    """Which one. `app_id` is "" but for an app's."""

    kind: Kind
    app_id: str = ""

    @property
    def mode(self) -> Mode:
        """What a space must be to have it."""
        return "combined" if self.kind == "combined" else "split"

    @property
    def records(self) -> bool:
        """Whether shared records travel on it."""
        return self.kind != "app"

    def takes(self, app_id: str) -> bool:
        """Whether rows of the app travel on it."""
        return self.kind == "combined" or (self.kind == "app" and app_id == self.app_id)

    def collections(self, namespaces: Iterable[Namespace]) -> Iterator[str]:
        """The collections that travel on it."""
        if self.records:
            yield RECORDS
        for namespace in namespaces:
            if self.takes(namespace.app_id):
                for name in namespace.table_names:
                    yield rows_of(namespace.app_id, name)

    def __str__(self) -> str:
        return f"{self.kind}:{self.app_id}"


COMBINED = Channel("combined")
DRIVE_CHANNEL = Channel("drive")


def channel_of(text: str) -> Channel:
    """The inverse of str(channel)."""
    kind, _, app_id = text.partition(":")
    return msgspec.convert({"kind": kind, "app_id": app_id}, Channel)


def rows_of(app_id: str, table: str) -> str:
    """The collection of a table's rows; neither part has a colon."""
    return f"app:{app_id}:{table}"


def table_of(coll: str) -> tuple[str, str]:
    """(app id, table) of a collection of rows."""
    _, app_id, table = coll.split(":")
    return app_id, table


def covered(coll: str, node_id: str) -> str:
    """The id of the row that says how far an author is held in a collection."""
    return f"{coll}\n{node_id}"
