"""WebSocket frames as bytes (RFC 6455): building what a server sends, taking apart what it gets.
Pure.

`Frames` is a run of messages that many sockets send alike: its bytes are built once, plain and
deflated, whoever asks first. A message that is `str` goes as text, one that is `bytes` as binary.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
_SHORT: Final = [bytes((0x81, n)) for n in range(126)]
Message = str | bytes
DEFLATE_BYTES_MIN: Final = 512  # below, a deflated frame is hardly smaller
DEFLATE_LEVEL: Final = 1


def message_frame(message: Message) -> bytes:
    """One unmasked frame, of text or of bytes."""
    if isinstance(message, bytes):
        return head(0x82, len(message)) + message
    payload = message.encode()
    size = len(payload)
    if size < 126:
        return _SHORT[size] + payload
    return head(0x81, size) + payload


def head(first: int, size: int) -> bytes:
    """The frame header for a payload of `size` bytes."""
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)


def control_frame(opcode: int, payload: bytes = b"") -> bytes:
    """Ping, pong or close; payload at most 125 bytes."""
    return bytes((0x80 | opcode, len(payload))) + payload


def close_payload(code: int, reason: str) -> bytes:
    """The code and as much of the reason as fits."""
    return struct.pack("!H", code) + reason.encode()[:120].decode(errors="ignore").encode()


def deflated_frame(message: Message) -> bytes:
    """One permessage-deflate frame without context takeover (RFC 7692)."""
    text = isinstance(message, str)
    payload = message.encode() if isinstance(message, str) else message
    if len(payload) < DEFLATE_BYTES_MIN:
        return head(0x81 if text else 0x82, len(payload)) + payload
    packer = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -15)
    packed = (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return head(0xC1 if text else 0xC2, len(packed)) + packed


def inflate(payload: bytes, size_max: int) -> bytes | None:
    """The message of a deflated payload; None where it is damaged or would exceed `size_max`."""
    unpacker = zlib.decompressobj(-15)
    try:
        message = unpacker.decompress(payload + b"\x00\x00\xff\xff", size_max + 1)
    except zlib.error:
        return None
    return None if len(message) > size_max else message


class Frames:
    """Messages for many receivers."""

    __slots__ = ("_deflated", "_plain", "messages")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self._plain: bytes | None = None
        self._deflated: bytes | None = None

    @property
    def texts(self) -> list[str]:
        """Those of text, for carriers that know no other."""
        return [message for message in self.messages if isinstance(message, str)]

    @property
    def plain(self) -> bytes:
        """All of them as uncompressed frames."""
        if self._plain is None:
            self._plain = b"".join([message_frame(one) for one in self.messages])
        return self._plain

    @property
    def deflated(self) -> bytes:
        """All of them as frames for sockets that took the deflate extension."""
        if self._deflated is None:
            self._deflated = b"".join([deflated_frame(one) for one in self.messages])
        return self._deflated
