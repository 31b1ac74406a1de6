"""The objectfeed and the authority, over a real server: cases 30 to 44 of the contract as far as
the server answers for them, both codecs, snapshots.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge.dialects.para.authority import CrossScope
from edge.dialects.para.kinds import ParseGateError
from edge.dialects.para.presence import TTL_MS
from tests.support.para import bench

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_30_31_catch_up_at_sub(tmp_path: Path, codec: str) -> None:
    async with bench(tmp_path) as b:
        for n in range(1, 10):
            await b.objects.put("num:1", {"n": n})
        feed = await b.open(codec=codec)
        subscribed = await feed.sub("num:1", sequence=3)
        assert subscribed["sequence"] == 9 and subscribed["schema_version"] == "1.0"
        assert subscribed["epoch"]
        assert await feed.frame() == {
            "type": "envelope", "key": "num:1", "baseline": True,
            "envelope": {"value": {"n": 9}, "schema_version": "1.0", "sequence": 9},
        }  # fmt: skip
        other = await b.open(codec=codec)
        assert (await other.sub("num:1", sequence=9))["sequence"] == 9
        assert await other.quiet() == [], "31: subscribed only"
        await b.objects.put("num:1", {"n": 10})
        for one in (feed, other):
            frame = await one.frame()
            assert frame["envelope"]["sequence"] == 10 and "baseline" not in frame
        late = await b.open(codec=codec)
        await late.sub("num:1", sequence=10, epoch="another")
        assert (await late.frame())["baseline"] is True, "the epoch is not the client's"


async def test_no_such_object(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        feed = await b.open()
        subscribed = await feed.sub("num:1")
        assert (subscribed["sequence"], subscribed["epoch"]) == (0, "")
        assert await feed.quiet() == []
        await b.objects.put("num:1", {"n": 1})
        assert (await feed.frame())["envelope"]["sequence"] == 1
        await feed.send("unsub", key="num:1")
        assert await feed.quiet() == []
        await b.objects.put("num:1", {"n": 2})
        assert await feed.quiet() == []


async def test_33_34_equal_and_unfit_values(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        feed = await b.open()
        await feed.sub("num:1")
        first = await b.objects.put("num:1", {"n": 1})
        assert first.changed and first.envelope is not None and first.envelope.sequence == 1
        again = await b.objects.put("num:1", {"n": 1.0})
        assert not again.changed and again.envelope is not None
        assert again.envelope.sequence == 1
        with pytest.raises(ParseGateError):
            await b.objects.put("num:1", {"n": "one"})
        with pytest.raises(ParseGateError):
            await b.objects.put("num:2", {})
        assert [frame["envelope"]["sequence"] for frame in await feed.quiet()] == [1]
        assert await b.objects.get("num:2") is None


async def test_35_concurrent_puts_are_in_writer_order(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        feed = await b.open()
        await feed.sub("num:1")
        async with asyncio.TaskGroup() as group:
            puts = [group.create_task(b.objects.put("num:1", {"n": n})) for n in range(50)]
        by_sequence = {p.result().envelope.sequence: p.result().envelope.value for p in puts}  # type: ignore[union-attr]
        frames = await feed.frames(50)
        assert [f["envelope"]["sequence"] for f in frames] == list(range(1, 51))
        assert [f["envelope"]["value"] for f in frames] == [by_sequence[n] for n in range(1, 51)]


async def test_36_an_intent_sent_twice(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.objects.put("post:1", {"title": "t"})
        feed, other = await b.open(), await b.open("bob")
        for one in (feed, other):
            await one.sub("post:1")
            await one.until("envelope")
        for _ in range(2):
            await feed.send("intent", clientId="c1", opId="a", key="post:1", v=3, name="like")
        first, second = await feed.answer(), await feed.answer()
        assert first == second == {
            "type": "confirm", "clientId": "c1", "opId": "a", "sequences": {"post:1": 2},
        }  # fmt: skip
        assert b.calls.intents == [("ada", "like")], "the handler ran once"
        seen = await other.quiet()
        assert [f["envelope"]["sequence"] for f in seen] == [2] and "opId" not in seen[0]
        # From another connection, and as another user with the same ids.
        again = await b.open()
        assert (await again.intent("post:1", "a", name="like"))["sequences"] == {"post:1": 2}
        assert (await other.intent("post:1", "a", name="like"))["sequences"] == {"post:1": 3}


async def test_the_author_is_told_which_intent_it_was(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.objects.put("counter:1", 1)
        feed = await b.open()
        await feed.sub("counter:1", sequence=1)
        await feed.send("intent", clientId="c1", opId="a", key="counter:1", v=7, value=5)
        frames = await feed.frames(2)
        assert {frame["type"] for frame in frames} == {"confirm", "envelope"}
        (echo,) = [frame for frame in frames if frame["type"] == "envelope"]
        assert (echo["opId"], echo["v"], echo["envelope"]["value"]) == ("a", 7, 5)


async def test_refusals_are_kept_and_store_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.objects.put("post:1", {"title": "t"})
        feed = await b.open()
        b.calls.reject = {"ada"}
        refused = await feed.intent("post:1", "a", name="like")
        assert (refused["type"], refused["code"], refused["message"]) == (
            "reject", "no_likes", "not you",
        )  # fmt: skip
        b.calls.reject = set()
        assert (await feed.intent("post:1", "a", name="like"))["code"] == "no_likes"
        assert (await feed.intent("post:1", "b", name="like"))["type"] == "confirm"
        assert (await feed.intent("post:1", "c", name="nothing"))["code"] == "unknown_intent"
        assert (await feed.intent("post:1", "d", value={"no": 1}))["code"] == "parse_failed"
        assert (await feed.intent("else:1", "e", value=1))["code"] == "not_found"
        failed = await feed.intent("post:1", "f", name="explode")
        assert failed["code"] == "internal" and "secret" not in failed["message"]
        b.calls.denied = {("ada", "post:1", "write")}
        assert (await feed.intent("post:1", "g", name="like"))["code"] == "forbidden"
        assert (await feed.intent("post:1", "h"))["code"] == "bad_frame"
        found = await b.objects.get("post:1")
        assert found is not None and found.sequence == 2


async def test_39_40_groups(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.objects.tx({"post:1": {"title": "a"}, "post:2": {"title": "b"}})
        feed = await b.open()

        async def tx(op: str, *intents: dict[str, Any]) -> dict[str, Any]:
            await feed.send("tx", clientId="c", groupOpId=op, intents=list(intents))
            return await feed.answer(groupOpId=op)

        like = {"name": "like", "v": 1}
        crossed = await tx("1", {"key": "post:1", **like}, {"key": "post:x/1", **like})
        assert crossed["code"] == "cross_scope"
        with pytest.raises(CrossScope):
            await b.objects.tx({"post:1": {"title": "a"}, "post:x/1": {"title": "b"}})
        refused = await tx("2", {"key": "post:1", **like}, {"key": "post:none", **like})
        assert refused["code"] == "no_post"
        for key in ("post:1", "post:2"):
            found = await b.objects.get(key)
            assert found is not None and found.sequence == 1, "nothing stored"
        assert (await tx("2", {"key": "post:1", **like}))["code"] == "no_post", "kept"
        good = await tx("3", {"key": "post:1", **like}, {"key": "post:2", **like})
        assert good["sequences"] == {"post:1": 2, "post:2": 2}
        assert await tx("3", {"key": "post:1", **like}) == good
        assert (await tx("4", {"key": "post:1", **like}, {"key": "post:1", **like}))["code"] == (
            "bad_frame"
        )
        assert (await tx("5"))["code"] == "bad_frame"


async def test_42_delete_then_put_and_membership(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.objects.put("num:1", {"n": 1})
        await b.objects.put("num:2", {"n": 2})
        feed = await b.open()
        await feed.send("query", qid="q", spec="num:")
        first = await feed.until("membership")
        assert first["keys"] == ["num:1", "num:2"] and first["seeds"].keys() == {"num:1", "num:2"}
        assert first["seeds"]["num:2"] == {
            "value": {"n": 2}, "schema_version": "1.0", "sequence": 1,
        }  # fmt: skip
        await feed.sub("num:1", sequence=1)
        gone = await b.objects.delete("num:1")
        assert gone.changed and gone.envelope is not None and gone.envelope.sequence == 2
        seen = [await feed.frame(), await feed.frame()]
        (deleted,) = [frame for frame in seen if frame["type"] == "envelope"]
        assert deleted["deleted"] is True
        assert deleted["envelope"] == {"value": None, "schema_version": "1.0", "sequence": 2}
        (dropped,) = [frame for frame in seen if frame["type"] == "membership"]
        assert (dropped["keys"], dropped["seeds"]) == (["num:2"], {})
        assert await b.objects.get("num:1") is None
        await b.objects.put("num:1", {"n": 3})
        seen = [await feed.frame(), await feed.frame()]
        (back,) = [frame for frame in seen if frame["type"] == "envelope"]
        assert back["envelope"]["sequence"] == 3 and "deleted" not in back
        (added,) = [frame for frame in seen if frame["type"] == "membership"]
        assert added["keys"] == ["num:2", "num:1"] and list(added["seeds"]) == ["num:1"]
        await b.objects.put("num:2", {"n": 2.5})
        assert await feed.quiet() == [], "the list is the same"
        await feed.send("query", qid="bad", spec="fail")
        failed = await feed.until("error", qid="bad")
        assert failed["code"] == "internal" and "secret" not in failed["message"]
        await feed.send("unquery", qid="q")
        await feed.send("unquery", qid="bad")
        assert await feed.quiet() == []
        await b.objects.put("num:3", {"n": 3})
        assert await feed.quiet() == []


async def test_43_presence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(tmp_path) as b:
        ada, bob, eve = await b.open("ada"), await b.open("bob"), await b.open("eve")
        await ada.send("presence", channel="room:1", value={"x": 1}, peerId="ada-1")
        await ada.quiet()
        await bob.send("presence", channel="room:1", watch=True)
        assert await bob.frame() == {
            "type": "presence", "channel": "room:1", "peerId": "ada-1", "value": {"x": 1},
        }  # fmt: skip
        await bob.send("presence", channel="room:1", value={"x": 2})
        assert await ada.quiet() == [] and await bob.quiet() == [], "no own echo, not watching"
        await eve.send("presence", channel="room:1", value={"x": 9}, peerId="ada-1")
        assert (await eve.until("keyError"))["code"] == "forbidden"
        await eve.send("presence", channel="room:1", value={"x": "nine"})
        assert (await eve.until("keyError"))["code"] == "parse_failed"
        await eve.send("presence", channel="other:1", value={"x": 1})
        assert (await eve.until("keyError"))["code"] == "not_found"
        await ada.send("presence", channel="room:1", leave=True, peerId="ada-1")
        assert (await bob.until("presence"))["leave"] is True
        await ada.send("presence", channel="room:1", value={"x": 3}, peerId="ada-1")
        await bob.until("presence", value={"x": 3})
        # 43: the socket is open and silent; only the clock moves.
        service = b.server.para
        assert service is not None
        (silent,) = [c for c in service.connections if c.principal.id == "ada"]
        silent.presence.heard_at_ms -= TTL_MS + 1
        assert (await bob.until("presence"))["leave"] is True
        await ada.send("presence", channel="room:1", value={"x": 4}, peerId="ada-1")
        await bob.until("presence", value={"x": 4})
        await ada.socket.close()
        assert (await bob.until("presence"))["leave"] is True
        room = (b.objects.spaces.part(""), "room:1")
        assert list(service.channels.peers(room)) != ["ada-1"]


async def test_44_visibility(tmp_path: Path) -> None:
    value = {"title": "t", "likes": 3, "secret": "s", "odd": "o"}
    shown: dict[str, dict[str, Any]] = {
        "ada": {"title": "t", "likes": 3, "tags": [], "secret": "s"},
        "bob": {"title": "t", "likes": 3, "tags": []},
        "eve": {"title": "t", "tags": []},  # a resolver raises
        "cut": {"title": "t"},
    }
    async with bench(tmp_path) as b:
        await b.objects.put("post:1", value)
        feeds = {user: await b.open(user) for user in shown}
        for user, feed in feeds.items():
            await feed.sub("post:1")
            assert (await feed.until("envelope"))["envelope"]["value"] == shown[user]
            await feed.send("fetch", id=1, key="post:1")
            assert (await feed.until("fetched"))["envelope"]["value"] == shown[user]
            await feed.send("query", qid="q", spec="post:")
            assert (await feed.until("membership"))["seeds"]["post:1"]["value"] == shown[user]
            assert (await b.get("post:1", user))[1]["value"] == shown[user]
        await b.objects.put("post:1", {**value, "secret": "s2"})
        for user, feed in feeds.items():
            frame = await feed.until("envelope")
            assert frame["envelope"]["sequence"] == 2, "numbers are the same for all"
            hidden = {k: v for k, v in frame["envelope"]["value"].items() if k != "secret"}
            assert hidden == {k: v for k, v in shown[user].items() if k != "secret"}
        broken = await b.open("broken")
        await broken.send("sub", key="post:1")
        assert (await broken.until("keyError"))["code"] == "forbidden"
        assert (await b.get("post:1", "broken"))[0] == 403
        await feeds["bob"].send("unquery", qid="q")
        await feeds["bob"].quiet()
        b.calls.denied = {("bob", "post:1", "read")}
        await feeds["bob"].send("fetch", id=2, key="post:1")
        assert (await feeds["bob"].until("fetched"))["error"]["code"] == "forbidden"
        assert b.server.para is not None
        for connection in list(b.server.para.connections):
            await connection.reauthorize()
        assert (await feeds["bob"].until("keyError"))["code"] == "forbidden"
        await b.objects.put("post:1", value)
        assert await feeds["bob"].quiet() == []
        await feeds["bob"].send("query", qid="q2", spec="post:")
        again = await feeds["bob"].until("membership", qid="q2")
        assert (again["keys"], again["seeds"]) == ([], {})


async def test_field_authority(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.objects.put("post:1", {"title": "t", "likes": 5, "tags": ["a"], "secret": "s"})
        bob = await b.open("bob")
        answer = await bob.intent(
            "post:1", "1", value={"title": "u", "likes": 99, "tags": ["a", "b"], "secret": "x"},
            base={"tags": ["a"]},
        )  # fmt: skip
        assert answer["type"] == "confirm"
        found = await b.objects.get("post:1")
        assert found is not None
        assert found.value == {
            "title": "u", "likes": 5, "tags": ["a", "b"], "secret": "s", "odd": None,
        }, "likes is the server's, the secret is nothing bob sees"  # fmt: skip
        cut = await b.open("cut")
        assert (await cut.intent("post:1", "1", value={"title": "v"}))["code"] == "forbidden"
        assert (await cut.intent("post:1", "2", name="like"))["type"] == "confirm"


async def test_upcasters_and_skew(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        from actors.dialects.para.plan import Change
        from edge.dialects.para.objects import write

        address = b.objects.address("post:1")
        await write(
            b.objects.port, address, [Change("post:1", "1.4", {"name": "x"}, '{"name":"x"}')]
        )
        found = await b.objects.get("post:1")
        assert found is not None and found.value == {"title": "x"}
        assert (found.schema_version, found.sequence) == ("2.1", 1)
        feed = await b.open()
        subscribed = await feed.sub("post:1", schema_version="1.0")
        assert subscribed["schema_version"] == "2.1"
        assert (await feed.frame())["envelope"]["value"] == {"title": "x"}
        refused = await feed.intent("post:1", "1", value={"name": "y"})
        assert refused["code"] == "schema_skew", "an old client overwrites nothing"
        assert (await feed.intent("post:1", "2", name="remove"))["type"] == "confirm"
        await write(b.objects.port, address, [Change("post:2", "9.0", {"a": 1}, '{"a":1}')])
        await feed.sub("post:2")
        assert (await feed.frame())["envelope"]["schema_version"] == "9.0"
        assert (await feed.intent("post:2", "3", name="like"))["code"] == "schema_skew"


async def test_snapshots(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        assert (await b.get("num:1"))[0] == 404
        await b.objects.put("num:1", {"n": 1})
        status, body, tag = await b.get("num:1")
        assert (status, body) == (200, {"value": {"n": 1}, "schema_version": "1.0", "sequence": 1})
        epoch = (await b.objects.port.bounds(b.objects.address("num:1"))).epoch
        assert tag == f'W/"{epoch}-1"'
        assert (await b.get("num:1", **{"If-None-Match": tag}))[0] == 304
        await b.objects.put("num:1", {"n": 2})
        assert (await b.get("num:1", **{"If-None-Match": tag}))[0] == 200
        await b.objects.delete("num:1")
        status, body, _ = await b.get("num:1")
        assert (status, body["code"]) == (410, "deleted")
        assert (await b.get("num:1", "bad"))[0] == 401
        b.calls.denied = {("ada", "num:2", "read")}
        assert (await b.get("num:2"))[0] == 403
        assert (await b.get("a%20b"))[1]["code"] == "bad_key"
        assert (await b.get("else:1"))[0] == 404


async def test_wide_integers_in_both_codecs(tmp_path: Path) -> None:
    most = 2**63 - 1
    async with bench(tmp_path) as b:
        text, packed = await b.open(), await b.open(codec="msgpack")
        for feed in (text, packed):
            await feed.sub("free:1")
        assert (await packed.intent("free:1", "1", value={"n": [most, 7]}))["type"] == "confirm"
        assert (await text.until("envelope"))["envelope"]["value"] == {
            "n": [{"$int": "9223372036854775807"}, 7]
        }
        answer = await text.intent("free:1", "2", value={"n": {"$int": str(-most)}})
        assert answer["type"] == "confirm"
        assert (await packed.until("envelope", key="free:1"))["envelope"]["value"]["n"] in (
            [most, 7], -most,
        )  # fmt: skip
        found = await b.objects.get("free:1")
        assert found is not None and found.value == {"n": -most}
        body = (await b.get("free:1"))[1]
        assert body["value"] == {"n": {"$int": str(-most)}}
