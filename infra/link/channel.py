"""One end of a link as a state machine: bytes in, events out, frames gathered to be sent. Pure.

Greeting: both sides prove that they have the key, on a nonce of the other's, before anything else
is read (HMAC-SHA256 over both names and nonces, with a word for the direction, so that no proof can
be played back). Then streams.

Always true: payload is sent only within the credit the peer gave; a stream that ended is never
heard of again, whatever still arrives for it; a peer that breaks a rule raises LinkError, and after
that nothing more of it is read.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum
from typing import Final, assert_never

import msgspec

from infra.errors import Busy, HoldfastError
from infra.link.errors import decode_error, encode_error
from infra.link.frames import (
    FRAME_BYTES_MAX,
    GREETING_BYTES_MAX,
    NONCE_BYTES,
    NOTHING,
    NOTICE_BYTES_MAX,
    STREAMS_MAX,
    VERSION,
    WINDOW_BYTES,
    Cancel,
    Challenge,
    Credit,
    Data,
    Done,
    Ended,
    Fail,
    Frame,
    FrameReader,
    Groups,
    Hello,
    LinkError,
    Open,
    Ping,
    Pong,
    Proof,
    Welcome,
)

_GRANT_BYTES: Final = WINDOW_BYTES // 2
_CREDIT_MAX: Final = 1 << 40


class Refused(LinkError):
    """The peer has another key, or speaks another version."""

    code = "link_refused"


class Ready(msgspec.Struct, frozen=True):
    """The greeting is over; `peer` is the other side's name."""

    peer: str


class Opened(msgspec.Struct, frozen=True, gc=False):
    """The peer asks something."""

    stream: int
    method: str
    payload: msgspec.Raw
    deadline_ms: int


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """A part of a stream. Tell `taken` once it has been dealt with."""

    stream: int
    payload: msgspec.Raw


class Answered(msgspec.Struct, frozen=True, gc=False):
    """The end of a stream of ours."""

    stream: int
    payload: msgspec.Raw


class Failed(msgspec.Struct, frozen=True):
    """The end of a stream of ours."""

    stream: int
    error: HoldfastError


class Cancelled(msgspec.Struct, frozen=True):
    """The peer no longer waits for the answer on a stream of its own."""

    stream: int


class Finished(msgspec.Struct, frozen=True):
    """The peer sends no more parts on a stream of its own."""

    stream: int


class Credited(msgspec.Struct, frozen=True):
    """A stream may send again."""

    stream: int


class Heard(msgspec.Struct, frozen=True):
    """A pong."""

    number: int


Event = (
    Ready | Opened | Arrived | Answered | Failed | Cancelled | Finished | Credited | Heard
)  # fmt: skip


class State(Enum):
    """Where the greeting stands."""

    HELLO = "waiting for hello"
    CHALLENGE = "waiting for the challenge"
    PROOF = "waiting for the proof"
    WELCOME = "waiting for welcome"
    OPEN = "open"
    BROKEN = "broken"


class _Stream:
    __slots__ = ("credit", "given", "untold")

    def __init__(self) -> None:
        self.credit = WINDOW_BYTES  # what we may still send
        self.given = WINDOW_BYTES  # what the peer may still send
        self.untold = 0  # taken, and not yet told the peer


class Channel:
    """What is to be written gathers in order; take it with `take`."""

    def __init__(self, name: str, key: bytes, nonce: bytes, *, dialled: bool) -> None:
        assert len(nonce) == NONCE_BYTES
        self.name = name
        self.peer = ""
        self.state = State.CHALLENGE if dialled else State.HELLO
        self._key = key
        self._nonce = nonce
        self._theirs = b""
        self._dialled = dialled
        self._next = 1 if dialled else 2
        self._last_theirs = 0 if dialled else -1
        self._streams: dict[int, _Stream] = {}
        self._their_count = 0
        self._reader = FrameReader(GREETING_BYTES_MAX)
        self._outgoing = Groups()
        if dialled:
            self._send(Hello(VERSION, name, nonce))

    # -- what the shell does ---------------------------------------------------------------------

    def take(self) -> list[bytes]:
        """Groups of frames to write; they are forgotten here."""
        return self._outgoing.take()

    @property
    def gathered(self) -> int:
        """About how many bytes `take` would give."""
        return self._outgoing.bytes

    def receive(self, data: bytes) -> list[Event]:
        """What the bytes mean. Raises LinkError, and then is BROKEN."""
        events: list[Event] = []
        if self.state is State.BROKEN:
            return events
        try:
            self._reader.feed(data)
            while (frames := self._reader.next()) is not None:
                for frame in frames:
                    event = self._greeted(frame) if self.state is State.OPEN else self._greet(frame)
                    if event is not None:
                        events.append(event)
        except LinkError:
            self.state = State.BROKEN
            raise
        return events

    def open(self, method: str, payload: msgspec.Raw, deadline_ms: int = 0) -> int:
        """Ask something; the new stream's number. Raises Busy with too many under way."""
        if len(self._streams) - self._their_count >= STREAMS_MAX:
            raise Busy("too many requests are under way on this link", retry_after_ms=100)
        stream = self._next
        self._outgoing.put(Open(stream, method, payload, deadline_ms), memoryview(payload).nbytes)
        self._next += 2
        self._streams[stream] = _Stream()
        return stream

    def credit_of(self, stream: int) -> int:
        """What may be sent on it now, in bytes; 0 where it has ended."""
        held = self._streams.get(stream)
        return 0 if held is None else max(0, held.credit)

    def send(self, stream: int, payload: msgspec.Raw) -> bool:
        """Send a part; False, with nothing sent, where there is no credit or no such stream."""
        held = self._streams.get(stream)
        if held is None or held.credit <= 0:
            return False
        size = memoryview(payload).nbytes
        self._outgoing.put(Data(stream, payload), size)
        held.credit -= size
        return True

    def notify(self, stream: int, payload: msgspec.Raw) -> None:
        """Send a part of at most NOTICE_BYTES_MAX whatever the credit; it is counted as well."""
        held = self._streams.get(stream)
        if held is not None:
            size = memoryview(payload).nbytes
            assert size <= NOTICE_BYTES_MAX
            self._outgoing.put(Data(stream, payload), size)
            held.credit -= size

    def done(self, stream: int, payload: msgspec.Raw = NOTHING) -> None:
        """Answer a stream of the peer's. Raises LinkError where the answer is too large: it is
        still to be answered.
        """
        if stream in self._streams:
            self._outgoing.put(Done(stream, payload), memoryview(payload).nbytes)
            del self._streams[stream]
            self._their_count -= 1

    def fail(self, stream: int, error: BaseException) -> None:
        """Answer a stream of the peer's with an error."""
        if self._streams.pop(stream, None) is not None:
            self._their_count -= 1
            told = encode_error(error)
            self._outgoing.put(Fail(stream, told), memoryview(told).nbytes)

    def end(self, stream: int) -> None:
        """No more parts from us on a stream of ours."""
        if stream in self._streams:
            self._send(Ended(stream))

    def cancel(self, stream: int) -> None:
        """Wait no longer for a stream of ours."""
        if self._streams.pop(stream, None) is not None:
            self._send(Cancel(stream))

    def taken(self, stream: int, size: int) -> None:
        """Bytes of `Arrived` parts were dealt with: as many may follow."""
        held = self._streams.get(stream)
        if held is None:
            return
        held.untold += size
        if held.untold >= _GRANT_BYTES:
            self._send(Credit(stream, held.untold))
            held.given += held.untold
            held.untold = 0

    def ping(self, number: int) -> None:
        """Ask for a sign of life."""
        self._send(Ping(number))

    def _send(self, frame: Frame) -> None:
        self._outgoing.put(frame)

    # -- greeting ----------------------------------------------------------------------------------

    def _greet(self, frame: Frame) -> Event | None:
        match self.state, frame:
            case State.HELLO, Hello(version=version, name=name, nonce=nonce):
                self._meet(version, name, nonce)
                proof = self._proof(b"answers", name, self.name, nonce, self._nonce)
                self._send(Challenge(VERSION, self.name, self._nonce, proof))
                self.state = State.PROOF
            case State.CHALLENGE, Challenge(version=version, name=name, nonce=nonce, proof=proof):
                self._meet(version, name, nonce)
                expected = self._proof(b"answers", self.name, name, self._nonce, nonce)
                self._check(proof, expected)
                mine = self._proof(b"dials", self.name, name, self._nonce, nonce)
                self._send(Proof(mine))
                self.state = State.WELCOME
            case State.PROOF, Proof(proof=proof):
                expected = self._proof(b"dials", self.peer, self.name, self._theirs, self._nonce)
                self._check(proof, expected)
                self._send(Welcome())
                self._outgoing.cut()  # only once it is read may groups be large
                return self._ready()
            case State.WELCOME, Welcome():
                return self._ready()
            case State.WELCOME, Fail(error=error):
                raise Refused(str(decode_error(error)))
            case _:
                kind = type(frame).__name__
                raise LinkError(f"{kind} while {self.state.value}")
        return None

    def _meet(self, version: int, name: str, nonce: bytes) -> None:
        if version != VERSION:
            raise Refused(f"the peer speaks version {version} of the link, this one {VERSION}")
        if len(nonce) != NONCE_BYTES or nonce == self._nonce:
            raise LinkError("a nonce that will not do")
        self.peer, self._theirs = name, nonce

    def _proof(
        self, word: bytes, dialler: str, answerer: str, first: bytes, second: bytes
    ) -> bytes:
        names = msgspec.msgpack.encode([dialler, answerer, first, second])
        return hmac.new(
            self._key, b"holdfast link " + word + b"\0" + names, hashlib.sha256
        ).digest()

    def _check(self, proof: bytes, expected: bytes) -> None:
        if not hmac.compare_digest(proof, expected):
            raise Refused("the peer has another key")

    def _ready(self) -> Ready:
        self.state = State.OPEN
        self._reader.bytes_max = FRAME_BYTES_MAX
        return Ready(self.peer)

    # -- streams -----------------------------------------------------------------------------------

    def _greeted(self, frame: Frame) -> Event | None:
        match frame:
            case Open():
                return self._opened(frame)
            case Data(stream=stream, payload=payload):
                return self._arrived(stream, payload)
            case Done(stream=stream, payload=payload):
                return Answered(stream, payload) if self._ended(stream, ours=True) else None
            case Fail(stream=stream, error=error):
                return (
                    Failed(stream, decode_error(error)) if self._ended(stream, ours=True) else None
                )
            case Cancel(stream=stream):
                return Cancelled(stream) if self._ended(stream, ours=False) else None
            case Ended(stream=stream):
                if self._is_ours(stream):
                    raise LinkError(f"stream {stream} is not the peer's to end")
                self._check_known(stream)
                return Finished(stream) if stream in self._streams else None
            case Credit(stream=stream, size=size):
                return self._credited(stream, size)
            case Ping(number=number):
                self._send(Pong(number))
                return None
            case Pong(number=number):
                return Heard(number)
            case Hello() | Challenge() | Proof() | Welcome():
                raise LinkError("a greeting after the greeting")
            case _:
                assert_never(frame)

    def _opened(self, frame: Open) -> Event | None:
        stream = frame.stream
        if self._is_ours(stream) or stream <= self._last_theirs or frame.deadline_ms < 0:
            raise LinkError(f"stream {stream} cannot be opened")
        self._last_theirs = stream
        self._streams[stream] = _Stream()
        self._their_count += 1
        if self._their_count > STREAMS_MAX:
            self.fail(stream, Busy("too many requests on this link", retry_after_ms=100))
            return None
        return Opened(stream, frame.method, frame.payload, frame.deadline_ms)

    def _arrived(self, stream: int, payload: msgspec.Raw) -> Event | None:
        self._check_known(stream)
        held = self._streams.get(stream)
        if held is None:
            return None
        size = memoryview(payload).nbytes
        if held.given <= 0 and size > NOTICE_BYTES_MAX:
            raise LinkError(f"stream {stream} sent beyond its credit")
        held.given -= size
        return Arrived(stream, payload)

    def _credited(self, stream: int, size: int) -> Event | None:
        self._check_known(stream)
        held = self._streams.get(stream)
        if held is None:
            return None
        if not 0 < size <= _CREDIT_MAX or held.credit + size > _CREDIT_MAX:
            raise LinkError(f"a credit of {size} bytes")
        before = held.credit
        held.credit += size
        return Credited(stream) if before <= 0 < held.credit else None

    def _ended(self, stream: int, *, ours: bool) -> bool:
        """Whether it was under way; it is over now."""
        if self._is_ours(stream) is not ours:
            raise LinkError(f"stream {stream} is not the peer's to end so")
        self._check_known(stream)
        if self._streams.pop(stream, None) is None:
            return False
        if not ours:
            self._their_count -= 1
        return True

    def _is_ours(self, stream: int) -> bool:
        return stream % 2 == (1 if self._dialled else 0)

    def _check_known(self, stream: int) -> None:
        last = self._next - 2 if self._is_ours(stream) else self._last_theirs
        if not 0 < stream <= last:
            raise LinkError(f"stream {stream} was never opened")
