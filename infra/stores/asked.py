"""What is asked of an object store in another process, as it crosses a link. Pure.

Bytes of objects cross in pieces: a small body with the request itself, a larger one as parts of its
stream, within the credit the other side gives. An answer's bytes are parts of its stream as well.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from infra.objects import Listing

PIECE_BYTES: Final = 256 << 10


class Put(msgspec.Struct, frozen=True, array_like=True):
    """`whole`: the body is bytes, not a file, and may be made conditional. `rest`: parts follow
    that make the body, in order, until the stream is ended.
    """

    key: str
    body: bytes
    rest: bool
    whole: bool
    if_absent: bool = False
    timestamp_ms: int | None = None


class Get(msgspec.Struct, frozen=True, array_like=True):
    """A range of an object; its bytes are parts of the answer."""

    key: str
    start: int = 0
    end: int | None = None


class Read(msgspec.Struct, frozen=True, array_like=True):
    """An object as a stream: an empty part once it is open, and its bytes as they are taken."""

    key: str


class List(msgspec.Struct, frozen=True, array_like=True):
    """The answer is a Listing."""

    prefix: str
    after: str
    limit: int


class Delete(msgspec.Struct, frozen=True, array_like=True):
    """All of them."""

    keys: list[str]


Ask = Put | Get | Read | List | Delete
ASKS: Final[dict[str, type[Ask]]] = {
    "put": Put, "get": Get, "read": Read, "list": List, "delete": Delete,
}  # fmt: skip
METHODS: Final = {kind: method for method, kind in ASKS.items()}

_encode = msgspec.msgpack.Encoder().encode
_decoders = {method: msgspec.msgpack.Decoder(kind) for method, kind in ASKS.items()}
decode_piece = msgspec.msgpack.Decoder(bytes).decode
decode_listing = msgspec.msgpack.Decoder(Listing).decode


def encode(value: Any) -> msgspec.Raw:
    """For a frame."""
    return msgspec.Raw(_encode(value))


def decode_ask(method: str, payload: msgspec.Raw) -> Ask:
    """Raises KeyError for an unknown method, MsgspecError for another shape."""
    return _decoders[method].decode(payload)
