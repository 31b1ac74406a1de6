"""The WebSocket protocol on a made-up transport and clock."""

from __future__ import annotations

import asyncio
import itertools
import socket
import zlib
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import wire
from edge.websocket import Socket, SocketSettings, accept_key
from edge.wire import Frames
from tests.support.app import masked

LIMIT = 1000
SILENCE_S, STALL_S = 75.0, 30.0


class FakeTransport:
    """Keeps what is written; `unsent` is what the peer has not taken."""

    def __init__(self) -> None:
        self.written = b""
        self.unsent = 0
        self.carrier: socket.socket | None = None
        self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        assert high > low

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self.carrier if name == "socket" else None

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kw: None


class FakeSession:
    """Keeps messages."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.errors: list[str] = []
        self.closed = False

    def handle(self, data: bytes | bytearray | str) -> None:
        self.messages.append(data.encode() if isinstance(data, str) else bytes(data))

    receive = handle

    def received(self) -> None:
        """Nothing is gathered."""

    def protocol_error(self, code: str, message: str, re: str | None = None) -> None:
        self.errors.append(code)

    def close(self) -> None:
        self.closed = True


class Rig:
    """A socket at the time 100."""

    def __init__(self, *, deflate: bool = False, carrier: socket.socket | None = None) -> None:
        self.now = 100.0
        self.settings = SocketSettings(
            frame_bytes_max=LIMIT, compression=deflate, monotonic=lambda: self.now
        )
        self.transport = FakeTransport()
        self.transport.carrier = carrier
        self.session = FakeSession()
        self.socket = Socket(self.settings, deflate)
        self.socket.attach(cast(asyncio.Transport, self.transport))
        self.socket.session = cast(Any, self.session)

    def feed(self, *data: bytes) -> Rig:
        for part in data:
            self.socket.data_received(part)
        return self

    @property
    def close_code(self) -> int | None:
        """Of the close frame that was written, if any."""
        at = self.transport.written.rfind(b"\x88")
        if at < 0:
            return None
        return int.from_bytes(self.transport.written[at + 2 : at + 4], "big")

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.socket.tick(self.now, silence_s=SILENCE_S, stall_s=STALL_S)


_payload = st.one_of(st.binary(max_size=40), st.binary(min_size=120, max_size=300))


@st.composite
def _stream(draw: st.DrawFn) -> tuple[bytes, list[bytes], int]:
    """The bytes of some messages, whole or in fragments; the messages; the pings between."""
    data, pings = b"", 0
    messages: list[bytes] = []
    for message in draw(st.lists(_payload, min_size=1, max_size=5)):
        messages.append(message)
        cuts = draw(st.lists(st.integers(0, len(message)), max_size=3).map(sorted))
        edges = [0, *cuts, len(message)]
        parts = [message[a:b] for a, b in itertools.pairwise(edges)]
        for number, part in enumerate(parts):
            data += masked(0 if number else 1, part, final=number == len(parts) - 1)
            if draw(st.booleans()):
                data += masked(9, b"p")
                pings += 1
    return data, messages, pings


@settings(max_examples=150, deadline=None)
@given(_stream(), st.data())
def test_any_split_gives_the_same_messages(
    stream: tuple[bytes, list[bytes], int], data: st.DataObject
) -> None:
    whole, messages, pings = stream
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12).map(sorted))
    edges = [0, *cuts, len(whole)]
    rig = Rig().feed(*[whole[a:b] for a, b in itertools.pairwise(edges)])
    assert rig.session.messages == messages
    assert rig.transport.written == wire.control_frame(wire.PONG, b"p") * pings
    assert rig.close_code is None


def test_byte_by_byte() -> None:
    data = masked(1, b"hello") + masked(1, b"x" * 300)
    rig = Rig().feed(*[data[n : n + 1] for n in range(len(data))])
    assert rig.session.messages == [b"hello", b"x" * 300]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x05helloxxx", 1002),  # not masked
        (masked(1, b"x", rsv=0x40), 1002),
        (masked(1, b"x", rsv=0x20), 1002),
        (masked(1, b"x", rsv=0x10), 1002),
        (masked(0, b"x"), 1002),  # continues nothing
        (masked(1, b"x", final=False) + masked(1, b"y"), 1002),
        (masked(3, b""), 1002),
        (masked(7, b""), 1002),
        (masked(11, b""), 1002),
        (masked(9, b"x", final=False), 1002),
        (masked(9, b"x" * 126), 1002),
        (masked(8, b"x" * 126), 1002),
        (masked(1, b"x" * (LIMIT + 1)), 1009),
        (b"\x81\xff" + b"\xff" * 8 + b"mask", 1009),
        (masked(1, b"x" * LIMIT, final=False) + masked(0, b"y"), 1009),
        (
            masked(1, b"x" * LIMIT, final=False)
            + masked(0, b"", final=False) * 3
            + masked(0, b"yy"),
            1009,
        ),
        (masked(8, b""), 1000),
        (masked(8, b"\x03"), 1000),
        (masked(8, (1001).to_bytes(2, "big") + b"bye"), 1001),
        (masked(8, (1005).to_bytes(2, "big")), 1002),
        (masked(8, (999).to_bytes(2, "big")), 1002),
        (masked(8, (4999).to_bytes(2, "big")), 4999),
    ],
)
def test_close_codes(data: bytes, code: int) -> None:
    rig = Rig().feed(data, masked(1, b"after"))
    assert rig.close_code == code
    assert rig.session.closed and rig.session.messages == []
    assert rig.transport.written.count(b"\x88") == 1


def test_exactly_the_limit_is_taken() -> None:
    parts = masked(1, b"x" * 600, final=False), masked(0, b"y" * 400)
    rig = Rig().feed(masked(1, b"x" * LIMIT), *parts)
    assert [len(message) for message in rig.session.messages] == [LIMIT, LIMIT]


def test_binary_is_told_to_the_session() -> None:
    parts = masked(2, b"a", final=False), masked(0, b"b"), masked(1, b"t")
    rig = Rig().feed(masked(2, b"\x00"), *parts)
    assert rig.session.errors == ["bad_frame"] * 2 and rig.session.messages == [b"t"]
    assert rig.close_code is None


class FakeBinarySession(FakeSession):
    """Takes both kinds."""

    def receive_binary(self, data: bytes) -> None:
        self.messages.append(b"binary " + data)


def test_a_session_that_takes_binary_gets_it_and_has_limits_of_its_own() -> None:
    rig = Rig()
    rig.session = rig.socket.session = FakeBinarySession()
    rig.socket.frame_bytes_max = LIMIT * 2
    rig.socket.silence_s = 10.0
    rig.feed(masked(2, b"a", final=False), masked(0, b"b"), masked(1, b"t"))
    rig.feed(masked(1, b"x" * LIMIT * 2))
    assert rig.session.messages == [b"binary ab", b"t", b"x" * LIMIT * 2]
    assert rig.session.errors == []
    rig.tick(9.0)
    assert rig.close_code is None
    rig.tick(2.0)
    assert rig.close_code == 4408


def deflated(payload: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_deflated_messages() -> None:
    rig = Rig(deflate=True)
    packed = deflated(b"hello" * 50)
    rig.feed(masked(1, packed, rsv=0x40), masked(1, b"plain"))
    rig.feed(masked(1, packed[:5], rsv=0x40, final=False), masked(0, packed[5:]))
    assert rig.session.messages == [b"hello" * 50, b"plain", b"hello" * 50]


def test_deflate_bomb() -> None:
    rig = Rig(deflate=True).feed(masked(1, deflated(bytes(200_000)), rsv=0x40))
    assert rig.close_code == 1009 and rig.session.messages == []


def test_damaged_deflate_closes() -> None:
    rig = Rig(deflate=True).feed(masked(1, b"\xff\xff\xff", rsv=0x40))
    assert rig.close_code in (1002, 1007, 1009) and rig.session.messages == []


@pytest.mark.parametrize("data", [masked(9, b"x", rsv=0x40), masked(0, b"x", rsv=0x40)])
def test_only_a_first_data_frame_may_be_deflated(data: bytes) -> None:
    rig = Rig(deflate=True).feed(masked(1, b"a", final=False), data)
    assert rig.close_code == 1002


def test_sent_frames_plain_and_deflated() -> None:
    plain, packed = Rig(), Rig(deflate=True)
    shared = Frames(["x" * 2000])
    for rig in (plain, packed):
        rig.socket.send(["a", "b"])
        rig.socket.send_shared(shared)
    assert plain.transport.written == b"\x81\x01a\x81\x01b" + shared.plain
    assert packed.transport.written == b"\x81\x01a\x81\x01b" + shared.deflated


def test_nothing_is_sent_after_the_close_frame() -> None:
    rig = Rig()
    rig.socket.close(4401, "x")
    before = rig.transport.written
    rig.socket.send(["late"])
    rig.socket.send_shared(Frames(["late"]))
    rig.socket.close(1001, "again")
    rig.feed(masked(9, b""), masked(1, b"late"))
    assert rig.transport.written == before and rig.session.messages == []


def test_a_peer_that_takes_nothing_is_closed() -> None:
    rig = Rig()
    rig.transport.unsent = 500
    for _ in range(31):
        rig.feed(masked(10, b""))
        rig.tick(1)
        rig.socket._write(b"x" * 10)  # more comes all the time
        rig.transport.unsent += 10
    assert rig.close_code is None
    rig.tick(1)
    assert rig.close_code == 4429
    rig.tick(STALL_S + 1)
    assert rig.transport.aborted


def test_a_slow_peer_that_takes_something_is_kept() -> None:
    rig = Rig()
    for _ in range(100):  # takes 60 of each 100 bytes: what waits grows all the same
        rig.socket._write(b"x" * 100)
        rig.transport.unsent += 40
        rig.feed(masked(10, b""))
        rig.tick(1)
    assert rig.close_code is None


def test_a_peer_that_says_nothing_is_pinged_then_closed() -> None:
    rig = Rig()
    rig.tick(29)
    assert rig.transport.written == b""
    rig.tick(2)
    assert rig.transport.written == wire.control_frame(wire.PING)
    rig.feed(masked(10, b""))
    rig.tick(70)
    assert rig.close_code is None
    rig.tick(10)
    assert rig.close_code == 4408


def test_half_a_frame_does_not_count_as_one() -> None:
    rig = Rig()
    whole = masked(1, b"x" * 200)
    for n in range(80):
        rig.feed(whole[n : n + 1])
        rig.tick(1)
    assert rig.close_code == 4408


async def test_congestion_and_its_end() -> None:
    rig = Rig()
    rig.socket.pause_writing()
    assert rig.socket.congested
    asyncio.get_running_loop().call_soon(rig.socket.resume_writing)
    await rig.socket.drained()
    assert not rig.socket.congested
    await rig.socket.drained()


async def test_a_lost_connection_frees_whoever_waits() -> None:
    rig = Rig()
    rig.socket.pause_writing()
    asyncio.get_running_loop().call_soon(rig.socket.connection_lost, None)
    await rig.socket.drained()
    assert rig.session.closed and rig.socket not in rig.settings.sockets
    rig.socket.send(["late"])
    rig.tick(1000)


def test_accept_key_of_the_rfc() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_close_waits_for_the_peers_answer() -> None:
    rig = Rig()
    rig.socket.close(1001, "going away")
    rig.feed(masked(1, b"still under way"))
    assert rig.close_code == 1001 and not rig.transport.closed
    rig.feed(masked(8, (1001).to_bytes(2, "big")))
    assert rig.transport.closed and rig.session.messages == []


def test_a_peer_that_does_not_answer_the_close_is_ended() -> None:
    rig = Rig()
    rig.socket.close(1001, "going away")
    rig.tick(1)
    assert not rig.transport.closed
    rig.tick(3)
    assert rig.transport.closed


def test_shared_frames_go_past_the_transport_only_while_nothing_waits_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        rig = Rig(carrier=ours)
        rig.socket.send_shared(Frames(["one"]))
        assert rig.transport.written == b"" and theirs.recv(99) == b"\x81\x03one"
        rig.transport.unsent = 7
        rig.socket.send_shared(Frames(["two"]))
        assert rig.transport.written == b"\x81\x03two"  # behind what waits
        rig.transport.unsent = 0
        big = "x" * (8 << 20)  # more than the system takes at once
        rig.socket.send_shared(Frames([big]))
        rest = rig.transport.written[5:]
        taken = 0
        theirs.setblocking(False)
        while (taken + len(rest)) < len(big) + 10:
            taken += len(theirs.recv(1 << 20))
        assert taken and rest and taken + len(rest) == len(big) + 10
    rig.socket.send_shared(Frames(["gone"]))  # the descriptor is closed: the transport finds out
    assert rig.transport.written.endswith(b"\x81\x04gone")


def test_a_lost_connection_writes_nowhere() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        rig = Rig(carrier=ours)
        rig.socket.connection_lost(None)
        rig.socket.send_shared(Frames(["late"]))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(9)


def test_a_close_answer_in_two_parts_is_understood() -> None:
    rig = Rig()
    rig.socket.close(1001, "going away")
    answer = masked(8, (1001).to_bytes(2, "big"))
    rig.feed(answer[:4], answer[4:])
    assert rig.transport.closed


def test_after_an_oversized_frame_its_payload_is_not_taken_for_frames() -> None:
    rig = Rig().feed(b"\x81\xff" + (LIMIT + 1).to_bytes(8, "big") + b"mask")
    rig.feed(masked(8, b"\x03\xe8") * 3)  # what looks like a close frame inside the payload
    assert rig.close_code == 1009 and not rig.transport.closed
