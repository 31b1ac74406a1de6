"""One AsterQL connection alone: order of frames, subscriptions, and what a peer may not do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.types import Batch, Bounds
from edge.auth import Action, Principal
from edge.dialects.asterql.connection import Connection
from infra import limits
from infra.errors import FileRefused, Unavailable
from tests.support.app import Json
from tests.support.connection import NOW_MS, SCOPE, Bench, FakeSink, change


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    found = Bench()
    yield found
    await found.env.tasks.aclose()


def types(frames: list[Json]) -> list[str]:
    return [frame["type"] for frame in frames]


def seqs(frames: list[Json]) -> list[int]:
    return [frame["envelope"]["seq"] for frame in frames if frame["type"] == "event"]


async def test_replay_then_live_in_order(bench: Bench) -> None:
    bench.other_publishes(change("e1"), change("e2"))
    frames = await bench.sub(since=0)
    assert types(frames) == ["subscribed", "event", "event", "caughtUp"]
    assert frames[0] == {
        "type": "subscribed", "scope": SCOPE, "epoch": "E", "since": 0, "head": 2, "floor": 0,
    }  # fmt: skip
    assert frames[-1] == {"type": "caughtUp", "scope": SCOPE, "seq": 2}
    bench.other_publishes(change("e3"))
    frames = await bench.rest()
    assert seqs(frames) == [3] and frames[0]["envelope"]["eventId"] == "e3"


async def test_batch_subscription_gets_events_frames(bench: Bench) -> None:
    bench.other_publishes(change("e1"), change("e2"))
    frames = await bench.sub(since=0, batch=True)
    assert types(frames) == ["subscribed", "events", "caughtUp"]
    assert [envelope["seq"] for envelope in frames[1]["envelopes"]] == [1, 2]
    assert frames[1]["scope"] == SCOPE


async def test_switching_to_batches_while_a_page_is_read_loses_nothing(bench: Bench) -> None:
    bench.other_publishes(change("e1"), change("e2"))
    bench.env.fake.gate.clear()
    await bench.sub(since=0)
    await bench.sub(since=0, batch=True)
    bench.env.fake.gate.set()
    frames = await bench.rest()
    got = seqs(frames) + [e["seq"] for f in frames if f["type"] == "events" for e in f["envelopes"]]
    assert got == [1, 2] and types(frames)[-1] == "caughtUp"


async def test_sub_again_without_since_only_repeats_subscribed(bench: Bench) -> None:
    await bench.sub(since=0)
    bench.other_publishes(change("e1"))
    await bench.rest()
    frames = await bench.sub()
    assert types(frames) == ["subscribed"] and frames[0]["since"] == 1
    bench.other_publishes(change("e2"))
    assert seqs(await bench.rest()) == [2]
    assert bench.connection.subscriptions == 1


async def test_sub_again_with_since_replays(bench: Bench) -> None:
    bench.other_publishes(change("e1"), change("e2"))
    await bench.sub(since=0)
    frames = await bench.sub(since=1)
    assert types(frames) == ["subscribed", "event", "caughtUp"] and seqs(frames) == [2]


async def test_sub_again_with_a_bad_since_keeps_the_subscription(bench: Bench) -> None:
    await bench.sub()
    (frame,) = await bench.sub(since="x")
    assert (frame["type"], frame["code"]) == ("scopeError", "bad_since")


@pytest.mark.parametrize("since", [-1, 1.5, "1", True, 2**53, [], {}, 10**30])
async def test_bad_since(bench: Bench, since: Any) -> None:
    (frame,) = await bench.sub(since=since)
    assert (frame["type"], frame["code"]) == ("scopeError", "bad_since")
    assert bench.connection.subscriptions == 0 and not bench.connection.closed


async def test_epoch_is_checked_where_given(bench: Bench) -> None:
    bench.other_publishes(change("e1"))
    (frame,) = await bench.sub(since=1, epoch="other")
    assert (frame["code"], frame["reason"]) == ("snapshot_required", "epoch_changed")
    assert frame["epoch"] == "E" and (frame["head"], frame["floor"]) == (1, 0)
    assert types(await bench.sub(since=1, epoch="E")) == ["subscribed", "caughtUp"]


async def test_a_cursor_from_an_edge_that_heard_of_it_first(bench: Bench) -> None:
    fake = bench.env.fake
    early = Connection(bench.env, FakeSink(), Principal(id="u2"))
    early.handle(json.dumps({"type": "sub", "scope": SCOPE}))
    await bench.rest()
    ((address, (feed,)),) = fake.taps.items()
    fake.taps[address] = []  # what follows has not got here yet
    bench.other_publishes(change("e1"), change("e2"))
    frames = await bench.sub(since=2, epoch="E")
    assert types(frames) == ["subscribed", "caughtUp"] and frames[0]["head"] == 2
    for seq in (1, 2):  # now it gets here
        feed.deliver(Batch(seq, seq, [fake.bodies[address][seq - 1]], Bounds("E", 2, 0, 2)))
    assert await bench.rest() == []
    fake.taps[address] = [feed]
    bench.other_publishes(change("e3"))
    assert seqs(await bench.rest()) == [3]
    await bench.ask({"type": "unsub", "scope": SCOPE})
    (frame,) = await bench.sub(since=9)
    assert (frame["code"], frame["reason"]) == ("snapshot_required", "ahead_of_head")


async def test_unsub_during_replay(bench: Bench) -> None:
    bench.other_publishes(change("e1"))
    bench.env.fake.gate.clear()
    assert types(await bench.sub(since=0)) == ["subscribed"]
    assert types(await bench.ask({"type": "unsub", "scope": SCOPE})) == ["unsubscribed"]
    bench.env.fake.gate.set()
    bench.other_publishes(change("e2"))
    assert await bench.rest() == []
    assert len(bench.env.feeds) == 0


async def test_unsub_of_a_scope_not_subscribed(bench: Bench) -> None:
    assert await bench.ask({"type": "unsub", "scope": "x"}) == [
        {"type": "unsubscribed", "scope": "x"}
    ]


async def test_replay_frame(bench: Bench) -> None:
    (frame,) = await bench.ask({"type": "replay", "scope": SCOPE, "since": 0})
    assert (frame["type"], frame["code"], frame["re"]) == ("error", "not_subscribed", "replay")
    bench.other_publishes(change("e1"), change("e2"))
    await bench.sub(since=2)
    frames = await bench.ask({"type": "replay", "scope": SCOPE, "since": 1})
    assert types(frames) == ["subscribed", "event", "caughtUp"] and seqs(frames) == [2]
    (frame,) = await bench.ask({"type": "replay", "scope": SCOPE})
    assert (frame["code"], frame["re"]) == ("bad_frame", "replay")
    (frame,) = await bench.ask({"type": "replay", "scope": SCOPE, "since": 9})
    assert (frame["code"], frame["reason"]) == ("snapshot_required", "ahead_of_head")


async def test_retention_during_replay_ends_the_subscription(bench: Bench) -> None:
    bench.other_publishes(*[change(f"e{n}") for n in range(100)])
    bench.env.fake.gate.clear()
    await bench.sub(since=0)
    bench.env.fake.floor = 50
    bench.env.fake.gate.set()
    frames = await bench.rest()
    assert frames[-1]["type"] == "scopeError" and frames[-1]["reason"] == "below_floor"
    assert bench.connection.subscriptions == 0


async def test_congestion_falls_back_to_replay_without_gap_or_repeat(bench: Bench) -> None:
    await bench.sub(since=0)
    bench.sink.congested = True
    bench.other_publishes(change("e1"))
    bench.other_publishes(change("e2"))
    assert await bench.rest() == []
    bench.sink.congested = False
    bench.sink.free.set()
    assert seqs(await bench.rest()) == [1, 2]
    bench.other_publishes(change("e3"))
    assert seqs(await bench.rest()) == [3]


@pytest.mark.parametrize(
    ("text", "code", "re"),
    [
        ('{"type":"sub"}', "bad_frame", "sub"),
        ("[]", "bad_frame", None),
        ("nope", "bad_json", None),
        ('{"type":"sub","scope":"x"', "bad_json", None),
        ('{"type":7}', "bad_frame", None),
        ("{}", "bad_frame", None),
        ('{"type":"fly"}', "unknown_type", "fly"),
        ('{"type":"sub","scope":7}', "bad_frame", "sub"),
        ('{"type":"sub","scope":"\\ud800"}', "bad_json", None),
        (b'{"type":"ping","t":"\xff"}', "bad_json", "ping"),
        (b'{"type":"sub","scope":"\xff"}', "bad_json", None),
        ('{"type":"ping","t":"%s"}' % ("x" * 70), "bad_frame", "ping"),
        ('{"type":"publish","id":1,"scope":"x","envelopes":[]}', "bad_frame", "publish"),
        ('{"type":"publish","id":1.5,"scope":"x","envelopes":[{}]}', "bad_frame", "publish"),
        ("[" * 100_000, "bad_json", None),
        ('{"type":"sub","scope":"x","since":%s}' % ("[" * 100_000), "bad_json", None),
        ('{"type":"sub","scope":"x","since":NaN}', "bad_json", None),
    ],
)
async def test_edge_34_protocol_errors(
    bench: Bench, text: str | bytes, code: str, re: str | None
) -> None:
    (frame,) = await bench.ask(text)
    assert (frame["type"], frame["code"], frame.get("re")) == ("error", code, re)
    assert len(frame["message"]) <= 300 and not bench.connection.closed


async def test_edge_34_twenty_protocol_errors_close(bench: Bench) -> None:
    await bench.sub()
    bench.send(*["["] * (limits.PROTOCOL_ERRORS_MAX - 1))
    assert bench.sink.ended is None
    bench.send("[")
    assert bench.sink.ended is not None and bench.sink.ended[0] == 1008
    assert bench.connection.closed and bench.connection.subscriptions == 0
    bench.send("[", {"type": "ping"})


async def test_ping_echoes(bench: Bench) -> None:
    t = {"a": [1, None, "x"]}
    assert await bench.ask({"type": "ping", "t": t}) == [{"type": "pong", "t": t, "now": NOW_MS}]
    assert await bench.ask({"type": "ping"}) == [{"type": "pong", "now": NOW_MS}]
    longest = "x" * (limits.PING_BYTES_MAX - 2)
    assert types(await bench.ask({"type": "ping", "t": longest})) == ["pong"]


async def test_pong_says_how_far_followed_scopes_are_durable(bench: Bench) -> None:
    await bench.ask(
        {"type": "sub", "scope": SCOPE, "durable": True}, {"type": "sub", "scope": "a:b"}
    )
    [pong] = await bench.ask({"type": "ping"})
    assert pong["durableSeqs"] == {SCOPE: 0}


async def test_control_frames_are_limited_and_recover(bench: Bench) -> None:
    frames = await bench.ask(*[{"type": "ping"}] * (limits.CONTROL_FRAMES_BURST + 2))
    assert types(frames) == ["pong"] * limits.CONTROL_FRAMES_BURST + ["error"] * 2
    assert (frames[-1]["code"], frames[-1]["re"]) == ("rate_limited", "ping")
    bench.env.now += 1
    assert types(await bench.ask({"type": "ping"})) == ["pong"]


async def test_edge_44_subscriptions_are_limited(bench: Bench) -> None:
    for number in range(limits.SUBSCRIPTIONS_MAX):
        bench.env.now += 1
        bench.send({"type": "sub", "scope": f"run:{number}"})
        while bench.connection.subscriptions <= number:
            await asyncio.sleep(0)
    await bench.rest()
    (frame,) = await bench.sub("run:one-more")
    assert (frame["type"], frame["code"]) == ("scopeError", "too_many_subscriptions")
    await bench.ask({"type": "unsub", "scope": "run:7"})
    assert types(await bench.sub("run:one-more")) == ["subscribed", "caughtUp"]


@pytest.mark.parametrize("scope", ["", "a" * 201, "run:\x00", "strata:x", "run:\x7f"])
async def test_bad_scope(bench: Bench, scope: str) -> None:
    (frame,) = await bench.sub(scope)
    assert (frame["type"], frame["code"], frame["scope"]) == ("scopeError", "bad_scope", scope)
    assert bench.env.asked == []


async def test_frames_wait_behind_one_that_awaits(bench: Bench) -> None:
    decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    bench.env.allow = lambda _p, scope, action: decided if action is Action.READ else True
    publish = {"type": "publish", "id": 1, "scope": SCOPE, "envelopes": [change("e1")]}
    frames = await bench.ask(
        {"type": "sub", "scope": SCOPE, "since": 0}, {"type": "ping"}, publish, "[",
        {"type": "unsub", "scope": SCOPE},
    )  # fmt: skip
    assert types(frames) == ["error"] and not bench.connection.idle  # only what is no frame at all
    decided.set_result(True)
    frames = await bench.rest()
    expected = ["subscribed", "caughtUp", "pong", "event", "published", "unsubscribed"]
    assert sorted(types(frames)) == sorted(expected)
    assert [t for t in types(frames) if t not in ("event", "published")] == [
        "subscribed", "caughtUp", "pong", "unsubscribed",
    ]  # fmt: skip
    assert types(frames)[-1] == "unsubscribed" and bench.connection.idle


async def test_authorize_that_denies_or_was_closed_over(bench: Bench) -> None:
    bench.env.allow = lambda _p, _s, _a: False
    (frame,) = await bench.sub()
    assert (frame["type"], frame["code"]) == ("scopeError", "forbidden")
    decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    bench.env.allow = lambda _p, _s, _a: decided
    await bench.sub()
    bench.connection.close()
    bench.connection.close()
    decided.set_result(True)
    assert await bench.rest() == [] and len(bench.env.feeds) == 0


async def test_reauthorize_revokes(bench: Bench) -> None:
    await bench.sub()
    await bench.sub("run:r2")
    bench.env.allow = lambda _p, scope, _a: scope == SCOPE
    await bench.connection.reauthorize()
    (frame,) = await bench.rest()
    assert (frame["scope"], frame["code"]) == ("run:r2", "revoked")
    bench.other_publishes(change("e1"), scope="run:r2")
    assert await bench.rest() == [] and bench.connection.subscriptions == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable("x", retry_after_ms=7), "moved"), (FileRefused("y"), "internal")],
)
async def test_scope_that_cannot_be_opened(bench: Bench, error: Any, code: str) -> None:
    bench.env.fake.refuse = error
    (frame,) = await bench.sub()
    assert (frame["type"], frame["code"]) == ("scopeError", code) and frame["retryAfterMs"] >= 1


async def test_any_text_frame_is_answered_as_json(bench: Bench) -> None:
    for text in ('{"type":"sub","scope":"a\\u2028b"}', '{"type":"unsub","scope":"\\u0000\\""}'):
        for frame in await bench.ask(text):
            assert json.loads(json.dumps(frame)) == frame and "scope" in frame


async def test_principal_is_needed_first() -> None:
    bench = Bench(anonymous=True)
    bench.env.tokens["good"] = Principal(id="u9", expires_at_ms=5)
    frames = await bench.ask({"type": "auth", "token": "good"}, {"type": "ping"})
    assert frames[0] == {"type": "authenticated", "user": "u9", "expiresAt": 5}
    assert types(frames) == ["authenticated", "pong"]
    await bench.env.tasks.aclose()
