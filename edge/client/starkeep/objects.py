"""Object storages for engines: in memory, and over any object store (a directory, S3).

Over a store, bytes lie under their SHA-256 and a small pointer under the hash of the key, so no key
can reach outside, no length or letter case matters, and equal bytes are stored once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from pathlib import Path

import msgspec

from actors.dialects.starkeep.naming import check_object_key
from edge.client.starkeep.types import ObjectData, ObjectPage, StoredObject
from edge.contents import Content, ContentStore, Run
from infra.objects import ObjectMissing, ObjectStore, join_key
from infra.stores.directory import DirectoryStore

LIST_PAGE = 1000


class _Pointer(msgspec.Struct):
    """What a key maps to."""

    key: str
    hash: str
    size: int
    content_type: str | None = None
    metadata: dict[str, str] | None = None


class ContentObjectStorage:
    """Objects below `prefix` of a store; fits ObjectStorage. Several storages may share a store."""

    def __init__(
        self, store: ObjectStore, *, spool_dir: Path, prefix: str = "", run: Run = asyncio.to_thread
    ) -> None:
        self._store = store
        self._prefix = join_key(prefix, "keys")
        self._contents = ContentStore(store, prefix, spool_dir=spool_dir, run=run)
        self._run = run

    async def init(self) -> None:
        """Nothing to do: the first write makes what is missing."""

    async def close(self) -> None:
        """Close the store."""
        await self._run(self._store.close)

    async def health_check(self) -> bool:
        """Whether the store answers a listing."""
        try:
            await self._run(lambda: self._store.list(self._prefix, limit=1))
        except Exception:  # whatever is wrong: it is not healthy
            return False
        return True

    async def has(self, key: str) -> bool:
        """See ObjectStorage."""
        return await self._pointer(key) is not None

    async def stat(self, key: str) -> StoredObject | None:
        """See ObjectStorage."""
        found = await self._pointer(key)
        if found is None:
            return None
        return StoredObject(found.size, found.content_type, found.hash, found.metadata)

    async def get(self, key: str) -> ObjectData | None:
        """See ObjectStorage."""
        found = await self._pointer(key)
        if found is None:
            return None
        data = b"".join([piece async for piece in self._contents.read(found.hash)])
        return ObjectData(data, found.size, found.content_type, found.metadata)

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """See ObjectStorage."""
        return await self.write(key, _once(data), content_type=content_type, metadata=metadata)

    async def read(
        self, key: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """See ObjectStorage."""
        found = await self._pointer(key)
        if found is None:
            raise ObjectMissing(f"no object {key!r}")
        async for piece in self._contents.read(found.hash, start=start, end=end):
            yield piece

    async def write(
        self,
        key: str,
        chunks: AsyncIterable[bytes],
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """See ObjectStorage. Raises BadName for a key that could never be served."""
        check_object_key(key)
        content: Content = await self._contents.put(chunks)
        kept = None if metadata is None else dict(metadata)
        pointer = _Pointer(key, content.hash, content.size, content_type, kept)
        body = msgspec.json.encode(pointer)
        await self._run(lambda: self._store.put(self._place(key), body))
        return StoredObject(content.size, content_type, content.hash, metadata)

    async def delete(self, key: str) -> None:
        """Remove the pointer; the bytes may belong to other keys and stay."""
        await self._run(lambda: self._store.delete([self._place(key)]))

    async def list(
        self, prefix: str = "", *, limit: int = LIST_PAGE, cursor: str | None = None
    ) -> ObjectPage:
        """See ObjectStorage. Reads every pointer: for tools, not for every round."""
        keys: list[str] = await self._run(lambda: self._keys(prefix))
        rest = [key for key in keys if cursor is None or key > cursor]
        page, more = rest[:limit], len(rest) > limit
        return ObjectPage(tuple(page), page[-1] if more else None, more)

    def _keys(self, prefix: str) -> list[str]:  # type: ignore[valid-type]
        found = []
        after = ""
        while True:
            listing = self._store.list(self._prefix + "/", after=after, limit=LIST_PAGE)
            for info in listing.objects:
                after = info.key
                pointer = msgspec.json.decode(self._store.get(info.key), type=_Pointer)
                if pointer.key.startswith(prefix):
                    found.append(pointer.key)
            if not listing.truncated:
                return sorted(found)

    async def _pointer(self, key: str) -> _Pointer | None:
        try:
            body = await self._run(lambda: self._store.get(self._place(key)))
        except ObjectMissing:
            return None
        return msgspec.json.decode(body, type=_Pointer)

    def _place(self, key: str) -> str:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return join_key(self._prefix, digest[:2], digest)


def directory_storage(directory: Path) -> ContentObjectStorage:
    """Objects in a folder of this machine."""
    directory.mkdir(parents=True, exist_ok=True)
    store = DirectoryStore(directory)
    return ContentObjectStorage(store, spool_dir=directory.with_name(directory.name + ".incoming"))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


class MemoryObjectStorage:
    """Objects in this process; fits ObjectStorage. For tests and examples."""

    def __init__(self) -> None:
        self.objects: dict[str, ObjectData] = {}

    async def init(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def health_check(self) -> bool:
        """Always."""
        return True

    async def has(self, key: str) -> bool:
        """See ObjectStorage."""
        return key in self.objects

    async def stat(self, key: str) -> StoredObject | None:
        """See ObjectStorage."""
        found = self.objects.get(key)
        if found is None:
            return None
        digest = hashlib.sha256(found.data).hexdigest()
        return StoredObject(found.size, found.content_type, digest, found.metadata)

    async def get(self, key: str) -> ObjectData | None:
        """See ObjectStorage."""
        return self.objects.get(key)

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """See ObjectStorage."""
        self.objects[key] = ObjectData(data, len(data), content_type, metadata)
        return StoredObject(len(data), content_type, hashlib.sha256(data).hexdigest(), metadata)

    async def read(
        self, key: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """See ObjectStorage."""
        found = self.objects.get(key)
        if found is None:
            raise ObjectMissing(f"no object {key!r}")
        yield found.data[start:end]

    async def write(
        self,
        key: str,
        chunks: AsyncIterable[bytes],
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """See ObjectStorage."""
        data = b"".join([chunk async for chunk in chunks])
        return await self.put(key, data, content_type=content_type, metadata=metadata)

    async def delete(self, key: str) -> None:
        """See ObjectStorage."""
        self.objects.pop(key, None)

    async def list(
        self, prefix: str = "", *, limit: int = LIST_PAGE, cursor: str | None = None
    ) -> ObjectPage:
        """See ObjectStorage."""
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        rest = [key for key in keys if cursor is None or key > cursor]
        page, more = rest[:limit], len(rest) > limit
        return ObjectPage(tuple(page), page[-1] if more else None, more)
