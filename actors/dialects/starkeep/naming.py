"""Names of Starkeep: record ids, object keys, categories, app ids, tables and columns. Pure.

A record id is a ULID. An object key says where a blob lies; the exchange treats it as opaque, only
the builders here look inside. What may be a key on a file route is checked by `check_object_key`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from infra.errors import ProtocolError

ID_CHARS: Final = 26
KEY_BYTES_MAX: Final = 1024
APP_ID_CHARS_MAX: Final = 128
IDENTIFIER_CHARS_MAX: Final = 63
SYNC_RECORDS: Final = "_starkeep_sync_records"  # the reserved table of an app's files
DRIVE: Final = "starkeep-drive"  # the channel of the shared records
RESERVED_COLUMNS: Final = frozenset({"updated_at", "deleted_at", "node_id"})

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*", re.IGNORECASE)
_WHITE = re.compile(r"\s")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_CATEGORIES: Final = {
    "image": "jpeg jpg png gif webp heic heif avif bmp tiff tif svg ico",
    "video": "mp4 mov m4v avi mkv webm mpeg mpg wmv flv",
    "audio": "mp3 wav flac aac ogg oga opus m4a aiff wma",
    "document": "pdf markdown md html htm doc docx xls xlsx ppt pptx odt ods odp rtf epub pages"
    " numbers key",
    "text": "txt log env json jsonc xml yaml yml toml ini conf tex rst adoc",
    "code": "js mjs cjs ts tsx jsx py rb go rs java kt swift c h cpp hpp cs php sh bash zsh fish"
    " ps1 lua r sql css scss sass less vue svelte dockerfile gitignore gitattributes",
    "font": "ttf otf woff woff2 eot",
    "archive": "zip tar gz tgz bz2 tbz2 xz txz 7z rar zst",
    "data": "csv tsv parquet arrow feather sqlite sqlite3 db jsonl ndjson hdf5 h5 orc",
    "model3d": "obj stl gltf glb fbx dae 3ds blend ply usd usdz",
}
_BY_EXTENSION: Final = {
    extension: category
    for category, extensions in _CATEGORIES.items()
    for extension in extensions.split()
}


class BadName(ProtocolError):
    """A key, app id, table or column is outside its grammar."""

    code = "bad_name"


# -- record ids ------------------------------------------------------------------------------------


class UlidMaker:
    """Record ids: 10 characters of time, 16 of chance; rising within one maker.

    `now_ms` is wall time in milliseconds, `random_bits(n)` n random bits.
    """

    def __init__(self, now_ms: Callable[[], int], random_bits: Callable[[int], int]) -> None:
        self._now_ms = now_ms
        self._random_bits = random_bits
        self._last = (-1, 0)

    def new(self) -> str:
        """The next id. A clock that went back goes on in the last millisecond, plus one."""
        now_ms = self._now_ms()
        last_ms, last_random = self._last
        if now_ms > last_ms:
            self._last = (now_ms, self._random_bits(_RANDOM_BITS))
        elif last_random + 1 < 1 << _RANDOM_BITS:
            self._last = (last_ms, last_random + 1)
        else:
            self._last = (last_ms + 1, self._random_bits(_RANDOM_BITS))
        return ulid(*self._last)


def ulid(ms: int, random_bits: int) -> str:
    """The id of a time and 80 bits."""
    value = (ms & ((1 << 48) - 1)) << _RANDOM_BITS | random_bits
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


def is_starkeep_id(value: object) -> bool:
    """A string of 26 characters, as the real check has it; not more."""
    return isinstance(value, str) and len(value) == ID_CHARS


# -- object keys -----------------------------------------------------------------------------------


def category_of(type_name: str) -> str:
    """The category of a record's type: `image/jpeg` of later versions, `jpg` of the first."""
    head, slash, _ = type_name.partition("/")
    if slash:
        return head if head in _CATEGORIES else "other"
    return _BY_EXTENSION.get(type_name.lower().removeprefix("."), "other")


def shared_object_key(type_name: str, content_hash: str) -> str:
    """Where the blob of a record lies."""
    return f"shared/{category_of(type_name)}/{content_hash[:2]}/{content_hash}"


def app_object_key(app_id: str, sub_key: str) -> str:
    """Where a file of an app lies; a key that is there already stays. Raises BadName."""
    if not app_id or "/" in app_id or _WHITE.search(app_id):
        raise BadName(f"app id {app_id!r} is empty or holds a slash or white space")
    prefix = f"apps/{app_id}/syncable/"
    rest = sub_key.removeprefix(prefix)
    if rest.startswith("/") or ".." in rest.split("/"):
        raise BadName(f"file name {sub_key!r} is absolute or has a '..' segment")
    return prefix + rest


def check_object_key(key: str) -> str:
    """The key of a file route itself. Raises BadName for one that is refused."""
    if not key or len(key.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
        raise BadName(f"an object key has 1 to {KEY_BYTES_MAX} bytes")
    if _CONTROL.search(key):
        raise BadName("an object key has no control characters and is Unicode text")
    if key.startswith("/") or any(part in (".", "..") for part in key.split("/")):
        raise BadName("an object key is relative and has no '.' or '..' segment")
    return key


# -- apps, tables, columns -------------------------------------------------------------------------


def check_app_id(app_id: str) -> str:
    """The app id itself. Raises BadName."""
    if not 0 < len(app_id) <= APP_ID_CHARS_MAX or "/" in app_id or _WHITE.search(app_id):
        raise BadName(f"an app id has 1 to {APP_ID_CHARS_MAX} characters, no slash, no space")
    if _CONTROL.search(app_id) or ":" in app_id or app_id in (".", "..", DRIVE):
        raise BadName(f"{app_id[:80]!r} is no app id")
    return app_id


def check_identifier(name: str, what: str) -> str:
    """The name of a table or column itself. Raises BadName."""
    if len(name) > IDENTIFIER_CHARS_MAX or not _IDENTIFIER.fullmatch(name):
        raise BadName(f"{what} {name[:80]!r} is no identifier ([a-z_][a-z0-9_]*)")
    return name


def table_name(app_id: str, table: str) -> str:
    """The name the table has in a SQLite file of the real product."""
    return f"{app_id.lower().replace('-', '_')}_syncable_{table}"
