"""A node that writes: records, rows and files of a device, each stamped and stored at once.

The clock's state is stored in the transaction of the write it stamped, so a crash can neither lose
a tick nor give a stamp twice. Everything here is local; an engine carries it to others.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from actors.clocks import HLC, ZERO_HLC, HybridClock
from actors.dialects.starkeep.merge import wins
from actors.dialects.starkeep.naming import (
    SYNC_RECORDS,
    BadName,
    UlidMaker,
    app_object_key,
    shared_object_key,
)
from actors.dialects.starkeep.wire import Op, RowEntry, record_of
from edge.client.starkeep.notifier import ChangeNotifier
from edge.client.starkeep.storage import (
    LocalFile,
    SqliteAppTables,
    SqliteRecords,
    SqliteSyncStateStore,
)
from edge.client.starkeep.types import (
    AppSyncableNamespace,
    AppSyncableSource,
    ChangeEvent,
    ObjectStorage,
)
from infra import clock, ids
from infra.errors import ScopeError


class LocalNode:
    """One device: a SQLite file, a storage for blobs, a clock. Use as `with`.

    `node_id` must be this replica's alone: a copied or rolled-back one needs a new id.
    """

    def __init__(
        self,
        path: Path,
        node_id: str,
        objects: ObjectStorage,
        *,
        now_ms: Callable[[], int] = clock.now_ms,
        channel: str = "",
        random_bits: Callable[[int], int] = ids.random_bits,
    ) -> None:
        self.file = LocalFile(path)
        self.records = SqliteRecords(self.file)
        self.tables = SqliteAppTables(self.file)
        self.state = SqliteSyncStateStore(self.file, channel)
        self.objects = objects
        self.notifier = ChangeNotifier()
        self.clock = HybridClock(node_id, now_ms, state=self.state.get_hlc_clock_state())
        self._new_id = UlidMaker(now_ms, random_bits).new

    @property
    def source(self) -> AppSyncableSource:
        """The rows, for an engine."""
        return AppSyncableSource(self.tables, self.tables)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- records -----------------------------------------------------------------------------------

    async def create_record(
        self,
        type: str,
        *,
        origin_app_id: str,
        content: bytes | AsyncIterable[bytes] | None = None,
        mime_type: str | None = None,
        original_filename: str | None = None,
        **members: Any,
    ) -> dict[str, Any]:
        """Store a record, its blob first; the record as a JSON object.

        A streamed blob is stored twice, once under a key of its own until its hash is known: the
        storage keeps its bytes once.
        """
        id = self._new_id()
        digest = hashlib.sha256(b"").hexdigest()
        key, size = "", 0
        if content is not None:
            digest, size = await self._store(f"incoming/{id}", content, mime_type)
            key = shared_object_key(type, digest)
            await self.objects.write(
                key, self.objects.read(f"incoming/{id}"), content_type=mime_type
            )
            await self.objects.delete(f"incoming/{id}")
        record = {
            "id": id, "kind": "data", "type": type, "deletedAt": None, "version": 1,
            "contentHash": digest, "objectStorageKey": key, "mimeType": mime_type,
            "sizeBytes": size, "originalFilename": original_filename,
            "originAppId": origin_app_id, "parentId": None, "label": None, **members,
        }  # fmt: skip
        return self._put(record, created=True)

    def update_record(self, id: str, **members: Any) -> dict[str, Any]:
        """Change members of a record; the whole record. Raises ScopeError `not_found`."""
        held = self._held(id)
        return self._put({**held, **members, "id": id, "version": held.get("version", 0) + 1})

    def delete_record(self, id: str) -> None:
        """Make it a tombstone. Raises ScopeError `not_found`."""
        self._put({**self._held(id)}, deleted=True)

    def _held(self, id: str) -> dict[str, Any]:
        held = self.records.get(id)
        if held is None:
            raise ScopeError(f"no record {id!r}", code="not_found")
        return held

    def _put(
        self, record: dict[str, Any], *, created: bool = False, deleted: bool = False
    ) -> dict[str, Any]:
        with self.file.transaction():
            stamp = self._stamp(self.records.held(record["id"]))
            plain = msgspec.to_builtins(stamp)
            record["updatedAt"] = plain
            record["deletedAt"] = plain if deleted else None
            if created:
                record["createdAt"] = plain
            self.records.put(record_of(record))
        self._tell((record["id"],), stamp, record.get("originAppId"))
        return record

    # -- rows --------------------------------------------------------------------------------------

    def declare(self, namespace: AppSyncableNamespace) -> None:
        """Have an app's tables synced."""
        self.tables.declare(namespace)

    def insert(self, app_id: str, table: str, row: Mapping[str, Any]) -> None:
        """Store a whole row, in place of one with the same key. Raises NotDeclared."""
        self._write_row(app_id, table, "insert", dict(row), None)

    def update(
        self, app_id: str, table: str, where: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> None:
        """Change columns of the row that `where` names; none is no error."""
        self._write_row(app_id, table, "update", dict(patch), dict(where))

    def delete(self, app_id: str, table: str, where: Mapping[str, Any]) -> None:
        """Make the row that `where` names a tombstone."""
        self._write_row(app_id, table, "delete", None, dict(where))

    def _write_row(
        self,
        app_id: str,
        table: str,
        op: Op,
        row: dict[str, Any] | None,
        where: dict[str, Any] | None,
        *,
        reserved: bool = False,
    ) -> None:
        if table.lower() == SYNC_RECORDS and not reserved:
            raise BadName(f"apps do not write {SYNC_RECORDS}: use register_file")
        with self.file.transaction():
            entry = RowEntry(ZERO_HLC, app_id, table, op, row, where)
            stamp = self._stamp(self.tables.held(entry))
            self.tables.apply(msgspec.structs.replace(entry, timestamp=stamp))
        self._tell((), stamp, app_id)

    # -- files of apps -----------------------------------------------------------------------------

    async def register_file(
        self,
        app_id: str,
        sub_key: str,
        content: bytes | AsyncIterable[bytes],
        *,
        mime_type: str | None = None,
        original_filename: str | None = None,
    ) -> str:
        """Store a file of an app and the row that tells of it; the object key. Raises BadName."""
        key = app_object_key(app_id, sub_key)
        digest, size = await self._store(key, content, mime_type)
        row = {
            "id": key, "object_storage_key": key, "content_hash": digest, "mime_type": mime_type,
            "size_bytes": size, "original_filename": original_filename, "origin_app_id": app_id,
        }  # fmt: skip
        held = self.tables.row(app_id, SYNC_RECORDS, id=key)
        row["created_at"] = str(self.clock.now()) if held is None else held["created_at"]
        self._write_row(app_id, SYNC_RECORDS, "insert", row, None, reserved=True)
        return key

    async def delete_file(self, app_id: str, sub_key: str) -> None:
        """Remove the blob and make the row a tombstone."""
        key = app_object_key(app_id, sub_key)
        self._write_row(app_id, SYNC_RECORDS, "delete", None, {"id": key}, reserved=True)
        await self.objects.delete(key)

    async def _store(
        self, key: str, content: bytes | AsyncIterable[bytes], mime_type: str | None
    ) -> tuple[str, int]:
        """(hash, size) of what was stored."""
        hashing = hashlib.sha256()

        async def hashed() -> AsyncIterator[bytes]:
            if isinstance(content, bytes):
                hashing.update(content)
                yield content
                return
            async for chunk in content:
                hashing.update(chunk)
                yield chunk

        stored = await self.objects.write(key, hashed(), content_type=mime_type)
        return hashing.hexdigest(), stored.size

    # -- clock -------------------------------------------------------------------------------------

    def _stamp(self, held: HLC | None) -> HLC:
        """A new stamp, stored with the write; above the held copy's, or the write would be lost."""
        stamp = self.clock.now()
        if held is not None and not wins(stamp, held):
            stamp = self.clock.receive(held)
        self.state.set_hlc_clock_state(self.clock.state)
        return stamp

    def _tell(self, record_ids: tuple[str, ...], stamp: HLC, app_id: str | None) -> None:
        self.notifier.emit(ChangeEvent("local-change-recorded", record_ids, stamp, app_id))
