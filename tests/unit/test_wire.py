"""Frames as bytes: what is built can be read back by the other end's rules."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import wire
from edge.wire import Frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_text_frame_has_the_shortest_header(size: int) -> None:
    frame = wire.message_frame("x" * size)
    wide = 0 if size < 126 else 2 if size < 65_536 else 8
    assert len(frame) == 2 + wide + size
    assert frame[0] == 0x81 and frame[1] == (size if size < 126 else 126 if wide == 2 else 127)
    if wide:
        assert int.from_bytes(frame[2 : 2 + wide], "big") == size
    assert frame.endswith(b"x" * size)


def test_close_payload_cuts_the_reason_between_characters() -> None:
    payload = wire.close_payload(1009, "é" * 100)
    assert payload[:2] == b"\x03\xf1" and len(payload) <= 125
    assert payload[2:].decode() == "é" * 60


@given(st.text(alphabet="ab{}é", max_size=4000))
def test_deflate_round_trip(text: str) -> None:
    frame = wire.deflated_frame(text)
    size = frame[1]
    start = 2 if size < 126 else 4
    payload = frame[start:]
    if frame[0] & 0x40:
        assert wire.inflate(payload, 20_000) == text.encode()
        assert len(text.encode()) >= wire.DEFLATE_BYTES_MIN
    else:
        assert payload == text.encode()


def test_inflate_is_bounded_before_it_is_done() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(50 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 60_000
    assert wire.inflate(bomb[:-4], 262_144) is None


def test_inflate_takes_exactly_the_limit() -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = (packer.compress(b"x" * 1000) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert wire.inflate(packed, 1000) == b"x" * 1000
    assert wire.inflate(packed, 999) is None


@given(st.binary(max_size=200))
def test_inflate_of_anything_is_bytes_or_none(data: bytes) -> None:
    found = wire.inflate(data, 1000)
    assert found is None or len(found) <= 1000


def test_shared_frames_are_built_once() -> None:
    frames = Frames(["a", "b" * 2000])
    assert frames.plain is frames.plain
    assert frames.plain == wire.message_frame("a") + wire.message_frame("b" * 2000)
    assert frames.deflated is frames.deflated
    assert len(frames.deflated) < len(frames.plain)


def test_bytes_go_as_binary_messages() -> None:
    frames = Frames([b"\x01\xff", "a", b"z" * 2000])
    assert frames.plain.startswith(b"\x82\x02\x01\xff\x81\x01a\x82\x7e")
    assert frames.texts == ["a"]
    assert frames.deflated.startswith(b"\x82\x02\x01\xff\x81\x01a\xc2")
