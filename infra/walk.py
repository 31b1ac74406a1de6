"""Which replicas lie below a prefix, found without reading every key. Pure but for the store."""

from __future__ import annotations

from collections.abc import Iterator

from infra.errors import StorageError
from infra.layout import escape, folder, parse_key
from infra.objects import LIST_KEYS_MAX, ObjectStore

REPLICAS_MAX = 10_000_000  # beyond that something is wrong with the listing
_AFTER_SLASH = "0"  # the character after "/": what follows all keys of a folder


def walk_replicas(store: ObjectStore, prefix: str, tenant: str | None = None) -> Iterator[str]:
    """The `scope_prefix` of each replica below `prefix`, in the order of the keys; of one tenant
    where it is named.

    One listing for a thousand keys, and one more for each replica that has more keys than that.
    What else lies there (markers, other programs' objects) is passed over. Raises the store's
    errors.
    """
    base = folder(prefix)
    start = base if tenant is None else f"{base}{escape(tenant)}/"
    after = ""
    last = ""
    for _ in range(REPLICAS_MAX):
        listing = store.list(start, after=after, limit=LIST_KEYS_MAX)
        for info in listing.objects:
            found = _replica_of(base, info.key)
            if found is not None and found != last:
                last = found
                yield found
        if not listing.truncated:
            return
        key = listing.objects[-1].key
        # Of a replica that was met, the rest of its keys is passed over.
        after = last + _AFTER_SLASH if last and key.startswith(last + "/") else key
    raise StorageError(f"{store.url}: more than {REPLICAS_MAX} listings below {prefix}")


def _replica_of(base: str, key: str) -> str | None:
    parts = key[len(base) :].split("/")
    if len(parts) < 4:  # tenant, scope, level, file
        return None
    found = f"{base}{parts[0]}/{parts[1]}"
    return found if parse_key(found, key, 0, 0) is not None else None
