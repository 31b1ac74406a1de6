"""Names to file paths: safe, bounded, unique, and still readable by a person.

The path is `{tenant slug}/{two hex digits}/{slug}-{hash}.db`. The hash is of the exact name, so
names that differ only in case, or that a file system cannot hold, get files of their own; the slug
is for eyes only. A file name is at most 77 characters, all of [a-z0-9._-].
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

_UNSAFE = re.compile(r"[^a-z0-9]+")
SLUG_CHARS_MAX = 40


def _slug(name: str) -> str:
    return _UNSAFE.sub("-", name.lower())[:SLUG_CHARS_MAX].strip("-") or "x"


def _digest(*names: str) -> str:
    # A length before each name: ("a", "bc") and ("ab", "c") must not meet.
    parts = [name.encode("utf-8", "surrogatepass") for name in names]
    joined = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return hashlib.sha256(joined).hexdigest()[:32]


def tenant_home(tenant: str) -> str:
    """The folder of a tenant's ledgers."""
    return f"{_slug(tenant)}-{_digest(tenant)[:12]}"


def ledger_path(root: Path, tenant: str, scope: str) -> Path:
    """Where the ledger of (tenant, scope) lies below `root`; never outside it."""
    digest = _digest(tenant, scope)
    return root / PurePosixPath(tenant_home(tenant), digest[:2], f"{_slug(scope)}-{digest}.db")
