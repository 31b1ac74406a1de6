"""Blobs between two storages: what is missing where, and moving it piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from actors.dialects.starkeep.merge import file_of
from actors.dialects.starkeep.wire import Record, RowEntry
from edge.client.starkeep.types import (
    FileEntry,
    FileRecordRow,
    FileSyncManifest,
    ObjectStorage,
    RecordResidency,
    StoredObject,
)
from edge.contents import is_content_hash

OnBytes = Callable[[int], object]


class FileSyncEngine:
    """Transfers; of one key at most one at a time."""

    def __init__(self) -> None:
        self._in_flight: set[str] = set()

    def is_transfer_in_flight(self, key: str) -> bool:
        """Whether the key is being moved just now."""
        return key in self._in_flight

    async def get_files_to_push(
        self, local: ObjectStorage, remote: ObjectStorage, entries: Iterable[FileEntry]
    ) -> list[FileSyncManifest]:
        """What is here and missing there."""
        manifests = []
        for entry in entries:
            if await remote.has(entry.key):
                continue
            held = await local.stat(entry.key)
            if held is not None:
                manifests.append(FileSyncManifest(entry.key, entry.key, held.size, entry.mime_type))
        return manifests

    async def get_files_to_pull(
        self, local: ObjectStorage, remote: ObjectStorage, entries: Iterable[FileEntry]
    ) -> list[FileSyncManifest]:
        """What is there and missing here."""
        return await self.get_files_to_push(remote, local, entries)

    async def transfer_file(
        self,
        manifest: FileSyncManifest,
        source: ObjectStorage,
        destination: ObjectStorage,
        *,
        on_bytes: OnBytes | None = None,
    ) -> bool:
        """Have the destination hold the bytes the manifest means; whether it does now.

        False where the key is in flight already, or the source has nothing. What storages raise
        passes. Bytes of another hash under a kept key are replaced, where both hashes are known.
        """
        key = manifest.object_storage_key
        if key in self._in_flight:
            return False
        self._in_flight.add(key)
        try:
            held = await destination.stat(key)
            if held is not None and not _outdated(held, manifest):
                return True
            offered = await source.stat(key)
            if offered is None:
                # An old copy is better than none, but it is not what the manifest means.
                return False
            if held is not None and held.content_hash == offered.content_hash:
                return True
            await destination.write(
                key, _counted(source.read(key), on_bytes), content_type=manifest.mime_type
            )
            return True
        finally:
            self._in_flight.discard(key)


def _outdated(held: StoredObject, manifest: FileSyncManifest) -> bool:
    known = held.content_hash
    wanted = manifest.file_hash
    return known is not None and is_content_hash(wanted) and known != wanted


async def _counted(chunks: AsyncIterator[bytes], on_bytes: OnBytes | None) -> AsyncIterator[bytes]:
    done = 0
    async for chunk in chunks:
        yield chunk
        done += len(chunk)
        if on_bytes is not None:
            on_bytes(done)


async def residency_of(row: FileRecordRow | None, storage: ObjectStorage) -> RecordResidency:
    """Where the blob of a record is: `staged` is metadata whose bytes have not come yet."""
    if row is None:
        return "absent"
    if row.deleted_at:
        return "tombstoned"
    return "resident" if await storage.has(row.object_storage_key) else "staged"


def manifest_of(item: Record | RowEntry) -> FileSyncManifest | None:
    """The blob that belongs to an item; None for tombstones and items without one."""
    if isinstance(item, Record):
        if item.deleted or not item.key:
            return None
        return FileSyncManifest(item.hash or item.key, item.key, item.size, item.mime_type)
    if item.op == "delete" or item.row is None or item.row.get("deleted_at") is not None:
        return None
    found = file_of(item.table, item.row)
    if found is None:
        return None
    key, digest = found
    size, mime_type = item.row.get("size_bytes"), item.row.get("mime_type")
    return FileSyncManifest(
        digest or key, key, size if isinstance(size, int) else 0,
        mime_type if isinstance(mime_type, str) else None,
    )  # fmt: skip
