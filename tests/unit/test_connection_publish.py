"""The publish and auth frames of one AsterQL connection: results, limits, permission, renewal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.types import Appended, Bounds, Duplicate, Outcome, Rejected
from edge.auth import Action, Principal, PublishLimits
from infra import limits
from infra.errors import Busy, Closed
from tests.support.app import Json
from tests.support.connection import SCOPE, Bench, change


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    found = Bench()
    yield found
    await found.env.tasks.aclose()


def publish(*envelopes: Any, id: Any = 1, scope: str = SCOPE, **members: Any) -> Json:
    return {"type": "publish", "id": id, "scope": scope, "envelopes": list(envelopes), **members}


async def test_one_answer_with_a_result_for_each(bench: Bench) -> None:
    bench.env.fake.outcomes = [
        Appended(5, 5),
        Duplicate(2),
        Rejected("patch_failed", "no", {"entity": "a:1", "index": 0, "reason": "type_mismatch"}),
    ]
    bad = {"eventId": "", "kind": "patch", "entities": []}
    seq = {**change("x"), "seq": 9}
    (frame,) = await bench.ask(
        publish(change("e1"), bad, change("e2"), 7, change("e3"), seq, id="i", durable=True)
    )
    assert (frame["type"], frame["id"], frame["scope"], frame["epoch"]) == (
        "published", "i", SCOPE, "E",
    )  # fmt: skip
    assert frame["durableSeq"] == 3
    first, wrong, again, number, failed, given = frame["results"]
    assert first == {"seq": 5} and again == {"seq": 2, "duplicate": True}
    assert failed == {
        "code": "patch_failed", "message": "no", "entity": "a:1", "index": 0,
        "reason": "type_mismatch",
    }  # fmt: skip
    assert {wrong["code"], number["code"], given["code"]} == {"bad_envelope"}
    assert [draft.cause for draft in bench.env.fake.drafts] == ["e1", "e2", "e3"]


async def test_all_envelopes_bad(bench: Bench) -> None:
    bench.env.fake.outcomes = []
    (frame,) = await bench.ask(publish({}, []))
    assert [result["code"] for result in frame["results"]] == ["bad_envelope"] * 2


@pytest.mark.parametrize("id", ["", 'q"\n', 0, -1, 2**53, 10**30])
async def test_id_is_echoed(bench: Bench, id: Any) -> None:
    (frame,) = await bench.ask(publish(change("e1"), id=id))
    assert frame["id"] == id
    bench.env.allow = lambda _p, _s, _a: False
    (frame,) = await bench.ask(publish(change("e1"), id=id, scope="run:other"))
    assert frame["id"] == id and frame["results"][0]["code"] == "forbidden"


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "9007199254740992", "1e400"])
async def test_numbers_nobody_holds(bench: Bench, number: str) -> None:
    bench.env.fake.outcomes = []
    text = (
        '{"type":"publish","id":1,"scope":"run:r1","envelopes":[{"eventId":"e","kind":"patch",'
        '"entities":[{"key":"a:1","value":{"n":' + number + "}}]}]}"
    )
    (frame,) = await bench.ask(text)
    assert frame["results"][0]["code"] == "bad_envelope"


async def test_too_many_envelopes_in_one_frame(bench: Bench) -> None:
    (frame,) = await bench.ask(publish(*[{}] * (limits.PUBLISH_ENVELOPES_MAX + 1)))
    assert (frame["type"], frame["code"], frame["re"]) == ("error", "bad_frame", "publish")


async def test_a_refusal_is_no_larger_than_a_lawful_frame_earns(bench: Bench) -> None:
    (frame,) = await bench.ask(publish(*[0] * 50_000, scope=""))
    assert len(str(frame)) < 1000 * limits.PUBLISH_ENVELOPES_MAX
    assert frame["type"] == "error" or len(frame["results"]) <= limits.PUBLISH_ENVELOPES_MAX
    (frame,) = await bench.ask(publish(0, 0, scope=""))
    assert [result["code"] for result in frame["results"]] == ["bad_scope"] * 2


async def test_write_needs_permission_and_is_asked_once(bench: Bench) -> None:
    bench.env.allow = lambda _p, scope, action: action is Action.WRITE and scope == SCOPE
    await bench.ask(publish(change("e1")), publish(change("e2")))
    assert bench.env.asked == [(SCOPE, Action.WRITE)]
    (frame,) = await bench.ask(publish(change("e3"), change("e4"), scope="run:no"))
    assert [result["code"] for result in frame["results"]] == ["forbidden"] * 2
    assert [draft.cause for draft in bench.env.fake.drafts] == ["e1", "e2"]


async def test_async_permission_keeps_the_order(bench: Bench) -> None:
    decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    bench.env.allow = lambda _p, _s, _a: decided
    assert await bench.ask(publish(change("e1"), id=1), publish(change("e2"), id=2)) == []
    decided.set_result(True)
    assert [frame["id"] for frame in await bench.rest()] == [1, 2]


@pytest.mark.parametrize("error", [Busy("full", retry_after_ms=100), Closed("x")])
async def test_busy_can_be_repeated(bench: Bench, error: Any) -> None:
    bench.env.fake.refuse = error
    (frame,) = await bench.ask(publish(change("e1"), change("e2")))
    assert [result["code"] for result in frame["results"]] == [error.code] * 2
    assert all(result["retryAfterMs"] >= 100 for result in frame["results"])
    bench.env.fake.refuse = None
    (frame,) = await bench.ask(publish(change("e1")))
    assert frame["results"] == [{"seq": 1}] and bench.connection.idle


async def test_envelopes_are_limited(bench: Bench) -> None:
    principal = Principal(id="u", publish=PublishLimits(envelopes_per_s=10))
    limited = Bench(principal)
    sent = [publish(change(f"e{n}"), id=n) for n in range(25)]
    frames = await limited.ask(*sent)
    codes = [frame["results"][0].get("code") for frame in frames]
    assert codes == [None] * 20 + ["rate_limited"] * 5
    assert frames[-1]["results"][0]["retryAfterMs"] > 0 and not limited.connection.closed
    limited.env.now += 1
    assert (await limited.ask(sent[-1]))[0]["results"] == [{"seq": 21}]


async def test_bytes_are_limited_by_the_server_where_the_token_says_nothing(bench: Bench) -> None:
    bench.env.publish_limits = PublishLimits(bytes_per_s=300)
    bench.env.tokens["t"] = Principal(id="u1")
    await bench.ask({"type": "auth", "token": "t"})
    frames = await bench.ask(*[publish(change(f"e{n}"), id=n) for n in range(12)])
    codes = [frame["results"][0].get("code") for frame in frames]
    assert codes[0] is None and codes[-1] == "rate_limited"


async def test_answers_of_one_turn_go_out_together(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = bench.env.fake
    outcomes: list[Outcome] = [Appended(1, 1)]
    held: list[Any] = []
    monkeypatch.setattr(port, "append", lambda _a, _d, *rest, **_more: held.append(rest))
    assert await bench.ask(publish(change("e1"), id=1), publish(change("e2"), id=2)) == []
    assert not bench.connection.idle
    for reply, tag in held:
        reply.settle(tag, outcomes, Bounds("E", 1, 0, 1))
    assert await bench.rest() == []
    held[0][0].flush()
    assert [frame["id"] for frame in await bench.rest()] == [1, 2] and bench.connection.idle


async def test_answers_after_the_end_are_dropped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = bench.env.fake
    held: list[Any] = []
    monkeypatch.setattr(port, "append", lambda _a, _d, *rest, **_more: held.append(rest))
    await bench.ask(publish(change("e1")))
    bench.connection.end(1001, "bye")
    held[0][0].settle(held[0][1], [Appended(1, 1)], Bounds("E", 1, 0, 1))
    held[0][0].flush()
    assert await bench.rest() == []


@pytest.mark.parametrize(
    "frame", [{"type": "ping"}, {"type": "sub", "scope": SCOPE}, publish(change("e1"))]
)
async def test_anything_before_auth_closes(frame: Json) -> None:
    bench = Bench(anonymous=True)
    assert await bench.ask(frame) == []
    assert bench.sink.ended is not None and bench.sink.ended[0] == 4401
    assert bench.env.fake.drafts == []


async def test_bad_token_closes() -> None:
    bench = Bench(anonymous=True)
    assert await bench.ask({"type": "auth", "token": "nope"}, {"type": "ping"}) == []
    assert bench.sink.ended is not None and bench.sink.ended[0] == 4401
    assert "nope" not in bench.sink.ended[1]


async def test_the_auth_frame_is_waited_for_a_while() -> None:
    bench = Bench(anonymous=True)
    now = bench.env.now
    assert not bench.connection.unauthenticated_since(now + limits.AUTH_FRAME_WAIT_S)
    assert bench.connection.unauthenticated_since(now + limits.AUTH_FRAME_WAIT_S + 1)


async def test_renewal_keeps_subscriptions_and_asks_about_writing_again(bench: Bench) -> None:
    await bench.sub()
    await bench.ask(publish(change("e1")))
    bench.env.tokens["new"] = Principal(id="u1", expires_at_ms=77)
    bench.env.allow = lambda _p, _s, action: action is Action.READ
    (frame,) = await bench.ask({"type": "auth", "token": "new"})
    assert frame == {"type": "authenticated", "user": "u1", "expiresAt": 77}
    (frame,) = await bench.ask(publish(change("e2")))
    assert frame["results"][0]["code"] == "forbidden"
    bench.env.allow = lambda _p, _s, _a: True
    bench.other_publishes(change("e3"))
    assert [frame["type"] for frame in await bench.rest()] == ["event"]


async def test_renewal_with_less_ends_what_is_no_longer_allowed(bench: Bench) -> None:
    await bench.sub("run:a")
    await bench.sub("run:b")
    bench.env.tokens["less"] = Principal(id="u1", claims={"only": "run:a"})
    bench.env.allow = lambda who, scope, _a: scope == who.claims["only"]
    frames = await bench.ask({"type": "auth", "token": "less"})
    assert [(f["type"], f.get("code"), f.get("scope")) for f in frames] == [
        ("authenticated", None, None), ("scopeError", "revoked", "run:b"),
    ]  # fmt: skip


async def test_renewal_may_not_change_the_tenant(bench: Bench) -> None:
    bench.env.tokens["other"] = Principal(id="u1", tenant="t2")
    assert await bench.ask({"type": "auth", "token": "other"}) == []
    assert bench.sink.ended is not None and bench.sink.ended[0] == 4401


async def test_durable_subscriptions_hear_of_the_position(bench: Bench) -> None:
    frames = await bench.sub(durable=True)
    assert frames[-1] == {"type": "caughtUp", "scope": SCOPE, "seq": 0, "durableSeq": 0}
    bench.other_publishes(change("e1"))
    frames = await bench.rest()
    assert [frame["type"] for frame in frames] == ["event", "durable"]
    assert frames[-1] == {"type": "durable", "scope": SCOPE, "epoch": "E", "seq": 1}


async def test_too_many_frames_behind_a_slow_one(bench: Bench) -> None:
    decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    bench.env.allow = lambda _p, _s, _a: decided
    await bench.sub()
    bench.send(*[publish(change("e"))] * 1100)
    assert bench.sink.ended is not None and bench.sink.ended[0] == 1008
    decided.set_result(True)
    assert bench.env.fake.drafts == []
