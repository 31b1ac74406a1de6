"""The link's state machine: any split of the bytes means the same, any bytes at all mean something
or are refused, keys are proven both ways, and payload never goes beyond the credit.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import Busy, HoldfastError, NoBucket
from infra.link import channel as c
from infra.link import frames
from infra.link.errors import decode_error, encode_error
from infra.link.frames import (
    FRAME_BYTES_MAX,
    GREETING_BYTES_MAX,
    GROUP_BYTES,
    NONCE_BYTES,
    WINDOW_BYTES,
    Cancel,
    Credit,
    Data,
    Done,
    Ended,
    Fail,
    LinkError,
    Open,
    Proof,
    Welcome,
    encode_frame,
)

KEY = b"k" * 32


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def pair(key: bytes = KEY) -> tuple[c.Channel, c.Channel]:
    return (
        c.Channel("edge", KEY, b"a" * NONCE_BYTES, dialled=True),
        c.Channel("actor", key, b"b" * NONCE_BYTES, dialled=False),
    )


def carry(source: c.Channel, target: c.Channel) -> list[c.Event]:
    return target.receive(b"".join(source.take()))


def greeted() -> tuple[c.Channel, c.Channel]:
    edge, actor = pair()
    for _ in range(2):
        carry(edge, actor)
        carry(actor, edge)
    assert edge.state is actor.state is c.State.OPEN
    assert (edge.peer, actor.peer) == ("actor", "edge")
    return edge, actor


def test_another_key_is_found_out_by_both() -> None:
    edge, actor = pair(b"x" * 32)
    carry(edge, actor)
    with pytest.raises(c.Refused):
        carry(actor, edge)
    # One that dials without the key gets no further either, whatever it sends as its proof.
    edge, actor = pair()
    carry(edge, actor)
    with pytest.raises(c.Refused):
        actor.receive(encode_frame(Proof(b"\0" * 32)))
    assert actor.receive(encode_frame(Open(1, "read", raw(1), 0))) == [], "it reads no more"


def test_a_proof_cannot_be_sent_back_to_its_maker() -> None:
    edge, _ = pair()
    (hello,) = edge.take()
    with pytest.raises(LinkError):
        edge.receive(hello)
    edge, actor = pair()
    carry(edge, actor)
    (challenge,) = actor.take()
    edge.receive(challenge)
    with pytest.raises(LinkError):
        actor.receive(challenge)


def test_requests_go_both_ways_and_end_once() -> None:
    edge, actor = greeted()
    first, second = edge.open("read", raw([1])), actor.open("ring", raw(None), 500)
    (asked,) = carry(edge, actor)
    assert isinstance(asked, c.Opened) and (asked.stream, asked.method) == (first, "read")
    actor.done(first, raw("yes"))
    actor.done(first, raw("again"))
    rung, answered = carry(actor, edge)
    assert isinstance(rung, c.Opened) and rung.deadline_ms == 500
    assert isinstance(answered, c.Answered) and bytes(answered.payload) == bytes(raw("yes"))
    edge.fail(second, Busy("no", retry_after_ms=7))
    (failed,) = carry(edge, actor)
    assert isinstance(failed, c.Failed) and isinstance(failed.error, Busy)
    assert failed.error.retry_after_ms == 7 and failed.error.retryable


@given(st.lists(st.one_of(st.integers(0, 300), st.integers(0, GROUP_BYTES * 2)), max_size=30))
def test_frames_come_in_the_order_of_their_sending(sizes: list[int]) -> None:
    edge, actor = greeted()
    asked = [(edge.open("append", part := raw(b"x" * size)), bytes(part)) for size in sizes]
    largest = max([GROUP_BYTES, *sizes])
    assert edge.gathered >= sum(sizes)
    groups = edge.take()
    assert edge.gathered == 0 and edge.take() == []
    assert all(len(group) < largest + 300 for group in groups)
    arrived = [event for group in groups for event in actor.receive(group)]
    opened = [event for event in arrived if isinstance(event, c.Opened)]
    assert [(event.stream, bytes(event.payload)) for event in opened] == asked


def test_the_first_request_may_follow_welcome_at_once() -> None:
    edge, actor = pair()
    carry(edge, actor)
    carry(actor, edge)
    carry(edge, actor)
    actor.open("ring", raw(b"x" * 2 * GREETING_BYTES_MAX))
    ready, asked = carry(actor, edge)
    assert isinstance(ready, c.Ready) and isinstance(asked, c.Opened)


def test_an_answer_that_no_peer_would_take_can_still_be_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_MAX", 10_000)
    edge, actor = greeted()
    stream = edge.open("read", raw(1))
    carry(edge, actor)
    with pytest.raises(LinkError, match="at most"):
        actor.done(stream, raw(b"x" * 10_000))
    actor.fail(stream, Busy("too large"))
    (failed,) = carry(actor, edge)
    assert isinstance(failed, c.Failed)


def test_payload_stays_within_the_credit() -> None:
    edge, actor = greeted()
    stream = edge.open("subscribe", raw(1))
    carry(edge, actor)
    part, sent = raw(b"x" * 100_000), 0
    while actor.send(stream, part):
        sent += 1
    assert 0 < sent <= WINDOW_BYTES // 100_000 + 1 and actor.credit_of(stream) == 0
    arrived = carry(actor, edge)
    assert len(arrived) == sent and carry(edge, actor) == []
    for event in arrived:
        assert isinstance(event, c.Arrived)
        edge.taken(stream, memoryview(event.payload).nbytes)
    assert carry(edge, actor) == [c.Credited(stream)] and actor.send(stream, part)
    with pytest.raises(LinkError, match="credit"):
        carry(actor, edge)
        for _ in range(99):
            edge.receive(encode_frame(Data(stream, part)))


@pytest.mark.parametrize(
    "frame",
    [
        Open(2, "x", raw(1), 0), Open(0, "x", raw(1), 0), Open(1, "x", raw(1), -1),
        Data(9, raw(1)), Credit(1, 1), Done(1, raw(1)), Cancel(2), Ended(2), Welcome(),
    ],
)  # fmt: skip
def test_what_a_peer_must_not_do(frame: Any) -> None:
    _, actor = greeted()
    with pytest.raises(LinkError):
        actor.receive(encode_frame(frame))


def test_what_comes_late_for_an_ended_stream_is_nothing() -> None:
    edge, actor = greeted()
    stream = edge.open("read", raw(1))
    carry(edge, actor)
    actor.send(stream, raw(1))
    actor.done(stream)
    edge.cancel(stream)
    assert carry(actor, edge) == [] and carry(edge, actor) == []
    assert not actor.send(stream, raw(1))


def recorded() -> bytes:
    """A whole conversation as the answering side reads it."""
    edge, actor = pair()
    sent = b"".join(frames := edge.take())
    actor.receive(b"".join(frames))
    edge.receive(b"".join(actor.take()))
    proof = edge.take()
    actor.receive(b"".join(proof))
    edge.receive(b"".join(actor.take()))
    streams = [edge.open("append", raw({"n": number})) for number in range(3)]
    edge.send(streams[0], raw(b"part"))
    edge.end(streams[0])
    edge.cancel(streams[1])
    edge.ping(3)
    return sent + b"".join(proof) + b"".join(edge.take())


CONVERSATION = recorded()


def events_of(pieces: list[bytes]) -> list[c.Event]:
    actor = pair()[1]
    return [event for piece in pieces for event in actor.receive(piece)]


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=20))
def test_any_split_means_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CONVERSATION)]
    pieces = [CONVERSATION[a:b] for a, b in pairwise(edges)]
    assert events_of(pieces) == events_of([CONVERSATION])


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, len(CONVERSATION)), st.integers(0, 40))
def test_any_bytes_mean_something_or_are_refused(noise: bytes, at: int, dropped: int) -> None:
    actor = pair()[1]
    try:
        for event in actor.receive(CONVERSATION[:at] + noise + CONVERSATION[at + dropped :]):
            assert isinstance(event, c.Event)
    except LinkError:
        assert actor.state is c.State.BROKEN and actor.receive(CONVERSATION) == []


def test_a_frame_that_is_too_large_is_refused_before_it_is_held() -> None:
    actor = pair()[1]
    with pytest.raises(LinkError, match="at most"):
        actor.receive((5000).to_bytes(4, "big"))
    _, actor = greeted()
    with pytest.raises(LinkError, match="at most"):
        actor.receive((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))


class _Odd(Busy):
    """Only this file knows it."""

    def __init__(self) -> None:
        super().__init__("odd", code="odd")
        self.entity, self.secret = "k:1", object()


def test_errors_keep_their_class_as_far_as_it_is_known() -> None:
    again = decode_error(encode_error(NoBucket("none here")))
    assert type(again) is NoBucket and str(again) == "none here"
    odd = decode_error(encode_error(_Odd()))
    assert isinstance(odd, _Odd) and odd.entity == "k:1" and not hasattr(odd, "secret")
    text = bytes(encode_error(_Odd())).replace(b"_Odd", b"_New")
    assert type(decode_error(msgspec.Raw(text))) is Busy
    bug = decode_error(encode_error(KeyError("a secret detail")))
    assert bug.code == "internal" and "secret" not in str(bug)


@given(st.binary(max_size=100))
def test_an_error_that_cannot_be_read_is_an_error(data: bytes) -> None:
    assert isinstance(decode_error(msgspec.Raw(data)), HoldfastError)
    assert isinstance(Fail(1, msgspec.Raw(data)).error, msgspec.Raw)
