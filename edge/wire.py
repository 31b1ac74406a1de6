"""WebSocket frames as bytes (RFC 6455): building what a server sends, taking apart what it gets.
Pure.

`Frames` is a run of text messages that many sockets send alike: its bytes are built once, plain and
deflated, whoever asks first.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
_SHORT: Final = [bytes((0x81, n)) for n in range(126)]
DEFLATE_BYTES_MIN: Final = 512  # below, a deflated frame is hardly smaller
DEFLATE_LEVEL: Final = 1


def text_frame(text: str) -> bytes:
    """One unmasked text frame."""
    payload = text.encode()
    size = len(payload)
    if size < 126:
        return _SHORT[size] + payload
    return head(0x81, size) + payload


def binary_frame(payload: bytes) -> bytes:
    """One unmasked binary frame."""
    return head(0x80 | BINARY, len(payload)) + payload


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


def deflated_frame(text: str) -> bytes:
    """One permessage-deflate frame without context takeover (RFC 7692)."""
    return _deflated(text.encode(), TEXT)


def deflated_binary_frame(payload: bytes) -> bytes:
    """The same of a binary message."""
    return _deflated(payload, BINARY)


def _deflated(payload: bytes, opcode: int) -> bytes:
    if len(payload) < DEFLATE_BYTES_MIN:
        return head(0x80 | opcode, len(payload)) + payload
    packer = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -15)
    packed = (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return head(0xC0 | opcode, len(packed)) + packed


def inflate(payload: bytes, size_max: int) -> bytes | None:
    """The message of a deflated payload; None where it is damaged or would exceed `size_max`."""
    unpacker = zlib.decompressobj(-15)
    try:
        message = unpacker.decompress(payload + b"\x00\x00\xff\xff", size_max + 1)
    except zlib.error:
        return None
    return None if len(message) > size_max else message


class Frames:
    """Text messages for many receivers."""

    __slots__ = ("_deflated", "_plain", "texts")

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self._plain: bytes | None = None
        self._deflated: bytes | None = None

    @property
    def plain(self) -> bytes:
        """All of them as uncompressed frames."""
        if self._plain is None:
            self._plain = b"".join([text_frame(text) for text in self.texts])
        return self._plain

    @property
    def deflated(self) -> bytes:
        """All of them as frames for sockets that took the deflate extension."""
        if self._deflated is None:
            self._deflated = b"".join([deflated_frame(text) for text in self.texts])
        return self._deflated


class BinaryFrames:
    """As `Frames`, binary messages."""

    __slots__ = ("_deflated", "_plain", "payloads")

    def __init__(self, payloads: list[bytes]) -> None:
        self.payloads = payloads
        self._plain: bytes | None = None
        self._deflated: bytes | None = None

    @property
    def plain(self) -> bytes:
        """All of them as uncompressed frames."""
        if self._plain is None:
            self._plain = b"".join([binary_frame(payload) for payload in self.payloads])
        return self._plain

    @property
    def deflated(self) -> bytes:
        """All of them as frames for sockets that took the deflate extension."""
        if self._deflated is None:
            self._deflated = b"".join([deflated_binary_frame(data) for data in self.payloads])
        return self._deflated
