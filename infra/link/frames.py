"""What travels on a link: groups of frames, each a length of four bytes and a msgpack array. Pure.

Frames that leave together are one group: made and read in one call, which is most of what a small
frame costs.

A stream is one request and everything that belongs to it. The side that dialled opens streams of
odd number, the other side even ones, each counting up, so a number is never used twice. `Data`
carries payload within the credit the receiver has given; `Done` and `Fail` end a stream from the
side that answers, `Cancel` from the side that asked. Payloads are msgpack of whoever speaks over
the link and are not looked at here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from infra.errors import ProtocolError

VERSION: Final = 2
FRAME_BYTES_MAX: Final = 96 << 20  # of a group
GROUP_BYTES: Final = 64 << 10  # of payload, after which the next group begins
_AROUND_BYTES: Final = 256  # more than a frame has besides its payload
GREETING_BYTES_MAX: Final = 4096  # of a group from a peer that has not proven who it is
NONCE_BYTES: Final = 32
WINDOW_BYTES: Final = 1 << 20  # credit of a stream at its beginning
NOTICE_BYTES_MAX: Final = 4096  # of a part that may come without credit
STREAMS_MAX: Final = 65_536  # of one peer at once
_HEAD: Final = 4


class LinkError(ProtocolError):
    """The peer broke the rules of the link; the link is over."""

    code = "bad_link"


class Hello(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=0):
    """First of the side that dialled: who it is, and what the other is to prove its key on."""

    version: int
    name: str
    nonce: bytes


class Challenge(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """The answer: who answers, its proof, and what the first is to prove its key on."""

    version: int
    name: str
    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """The proof of the side that dialled."""

    proof: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """Both are who they say; streams may be opened."""


class Open(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """A request. `deadline_ms`: how long an answer is waited for; 0 is for ever."""

    stream: int
    method: str
    payload: msgspec.Raw
    deadline_ms: int


class Data(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """A part, in either direction, within the credit."""

    stream: int
    payload: msgspec.Raw


class Done(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    """The end of an answer, and what it says."""

    stream: int
    payload: msgspec.Raw


class Fail(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=7):
    """The end of an answer that is an error (infra/link/errors.py)."""

    stream: int
    error: msgspec.Raw


class Credit(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=8):
    """The receiver has taken so many bytes of payload: as many more may come."""

    stream: int
    size: int


class Cancel(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=9):
    """Nobody waits for the answer any more."""

    stream: int


class Ping(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=10):
    """Answered by `Pong` with the same number."""

    number: int


class Pong(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=11):
    """See Ping."""

    number: int


class Ended(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=12):
    """The asking side sends no more `Data` on its stream."""

    stream: int


Frame = (
    Hello | Challenge | Proof | Welcome | Open | Data | Done | Fail | Credit | Cancel | Ping | Pong
    | Ended
)  # fmt: skip
NOTHING: Final = msgspec.Raw(b"\xc0")  # nil
_decode = msgspec.msgpack.Decoder(list[Frame]).decode
_encode = msgspec.msgpack.Encoder().encode


def encode_group(frames: list[Frame]) -> bytes:
    """The bytes of frames that go together."""
    body = _encode(frames)
    return len(body).to_bytes(_HEAD, "big") + body


def encode_frame(frame: Frame) -> bytes:
    """The bytes of one frame alone."""
    return encode_group([frame])


class Groups:
    """Frames that wait to be written, in order. `take` gives the bytes of one group each."""

    def __init__(self) -> None:
        self.bytes = 0  # about as many wait
        self._full: list[list[Frame]] = []
        self._frames: list[Frame] = []
        self._size = 0  # of the payloads in `_frames`

    def put(self, frame: Frame, size: int = 0) -> None:
        """`size`: bytes of its payload. Raises LinkError for one that no peer would take."""
        if size > FRAME_BYTES_MAX - _AROUND_BYTES:
            raise LinkError(f"a frame of {size} bytes; at most {FRAME_BYTES_MAX}")
        if self._size and self._size + size > GROUP_BYTES:
            self.cut()
        self._frames.append(frame)
        self._size += size + _AROUND_BYTES
        self.bytes += size + _AROUND_BYTES

    def cut(self) -> None:
        """What follows is another group."""
        if self._frames:
            self._full.append(self._frames)
            self._frames = []
            self._size = 0

    def take(self) -> list[bytes]:
        """All of them; they are forgotten here."""
        self.cut()
        self.bytes = 0
        groups, self._full = self._full, []
        return [encode_group(group) for group in groups]


class FrameReader:
    """Groups out of bytes as they come, whatever the pieces. `bytes_max` may be raised between."""

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._waiting = bytearray()  # of a group that is not whole yet
        self._needed = _HEAD  # bytes until it may be
        self._whole: memoryview = memoryview(b"")

    def feed(self, data: bytes) -> None:
        """Take what came."""
        if self._waiting:
            self._waiting += data
            if len(self._waiting) < self._needed:
                return
            data = bytes(self._waiting)
            self._waiting.clear()
        self._whole = memoryview(data)

    def next(self) -> list[Frame] | None:
        """The next whole group; None where more bytes are needed. Raises LinkError."""
        held = self._whole
        size = int.from_bytes(held[:_HEAD], "big") if len(held) >= _HEAD else 0
        if size > self.bytes_max:
            raise LinkError(f"a group of {size} bytes; at most {self.bytes_max}")
        if len(held) < _HEAD + size or len(held) < _HEAD:
            self._waiting += held
            self._needed = _HEAD + size
            self._whole = memoryview(b"")
            return None
        self._whole = held[_HEAD + size :]
        try:
            frames: list[Frame] = _decode(held[_HEAD : _HEAD + size])
            return frames
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
            raise LinkError(f"not a group of frames: {error}") from error
