"""The objectfeed in trouble: rubbish, sockets that do not drain, limits; sources, transports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge.client.para import InProcessTransport, ObjectFeedClient, SyncEnvelope
from edge.dialects.para import connection as connection_module
from edge.dialects.para.authority import SyncedAuthority
from infra import limits
from tests.support.app import running, url_of
from tests.support.para import Bench, bench, make_app

pytestmark = pytest.mark.e2e


async def test_41_a_slow_consumer_gets_one_envelope(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        for n in range(1, 11):
            await b.objects.put("num:1", {"n": n})
        feed, other = await b.open(), await b.open("bob")
        for one in (feed, other):
            await one.sub("num:1", sequence=10)
            await one.sub("num:2")
        assert b.server.para is not None
        (slow,) = [c for c in b.server.para.connections if c.principal.id == "ada"]
        socket: Any = slow.sink
        socket.pause_writing()  # what the transport does when the peer takes nothing
        for n in range(11, 16):
            await b.objects.put("num:1", {"n": n})
        await b.objects.put("num:2", {"n": 1})
        frames = await other.frames(6)
        assert [f["envelope"]["sequence"] for f in frames[:5]] == [11, 12, 13, 14, 15]
        assert len(slow._behind) <= 2, "one for each key, or one of them being read"
        socket.resume_writing()
        seen = {f["key"]: f for f in await feed.frames(2)}
        assert seen["num:1"]["envelope"]["sequence"] == 15 and seen["num:1"]["baseline"] is True
        assert seen["num:2"]["envelope"]["sequence"] == 1 and "baseline" not in seen["num:2"]
        await b.objects.put("num:1", {"n": 16})
        last = await feed.frame()
        assert last["envelope"]["sequence"] == 16 and "baseline" not in last
        assert await feed.quiet() == []


async def test_a_socket_that_takes_nothing_slows_nobody(tmp_path: Path) -> None:
    async with bench(tmp_path, stall_s=4.0) as b:  # both ends share this loop: be patient
        deaf, other = await b.open(), await b.open("bob")
        keys = [f"free:{n}" for n in range(40)]
        for one in (deaf, other):
            for key in keys:
                await one.sub(key)
        transport: Any = deaf.socket._response.connection.transport  # type: ignore[union-attr]
        transport.pause_reading()
        for turn in range(4):
            for key in keys:
                await b.objects.put(key, "x" * 200_000 + str(turn))
        last: dict[str, int] = {}
        while any(last.get(key, 0) < 4 for key in keys):
            frame = await other.until("envelope")
            last[frame["key"]] = frame["envelope"]["sequence"]
        assert b.server.para is not None
        async with asyncio.timeout(60):  # cut off: 4429
            while any(c.principal.id == "ada" for c in b.server.para.connections):
                await asyncio.sleep(0.05)
        transport.resume_reading()


HOSTILE: list[bytes | str] = [
    "", "null", "[]", "{}", '{"type":"sub"}', '{"type":"sub","key":7}', '{"type":"nothing"}',
    '{"type":"sub","key":"k","sequence":"9"}', "{" * 1000, '"' + "x" * 1000,
    '{"type":"ping","t":{}',
    '{"type":"intent","clientId":1,"opId":"a","key":"num:1"}', b"\x81\xa4type\xa3sub", b"\xc1" * 50,
]  # fmt: skip


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_rubbish_is_answered_and_disturbs_nobody(tmp_path: Path, codec: str) -> None:
    async with bench(tmp_path) as b:
        other = await b.open("bob")
        await other.sub("num:1")
        for message in HOSTILE:
            feed = await b.open(codec=codec)
            if isinstance(message, bytes):
                await feed.socket.send_bytes(message)
            else:
                await feed.socket.send_str(message)
            frame = await feed.frame()
            assert frame["type"] == "error" and "Traceback" not in frame["message"], message
            assert await feed.quiet() == []
            await feed.socket.close()
        await b.objects.put("num:1", {"n": 1})
        assert (await other.frame())["envelope"]["sequence"] == 1


async def test_bad_members_are_refused_by_name(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        feed = await b.open()
        for key, code in (
            ("a b", "bad_key"), ("", "bad_key"), ("x" * 201, "bad_key"), ("no:1", "not_found"),
            ("num:" + "é" * 100, "bad_key"),
        ):  # fmt: skip
            await feed.send("sub", key=key)
            error = await feed.until("keyError")
            assert (error["key"], error["code"]) == (key, code)
            await feed.send("fetch", id=1, key=key)
            assert (await feed.until("fetched"))["error"]["code"] == code
            assert (await feed.intent(key, "1", value=1))["code"] == code
        assert (await feed.intent("num:1", "", value={"n": 1}))["code"] == "bad_frame"
        assert (await feed.intent("num:1", "x" * 129, value={"n": 1}))["code"] == "bad_frame"
        big = await feed.intent("free:1", "big", value="x" * ((1 << 20) - 1))
        assert big["code"] == "too_large"
        deep: Any = 1
        for _ in range(70):
            deep = [deep]
        assert (await feed.intent("free:1", "deep", value=deep))["code"] == "bad_value"
        await feed.send("intent", clientId="c1", opId="h", key="free:1", value="x" * (1 << 21))
        assert (await feed.until_closed()) == 1009
        packed = await b.open(codec="msgpack")
        assert (await packed.intent("free:1", "b", value=b"bytes"))["code"] == "bad_value"
        assert (await packed.intent("free:1", "n", value=float("nan")))["code"] == "bad_value"
        assert await b.objects.get("free:1") is None
        for path in ("/para/main/objectfeed?token=bad", "/para/a%2Fb/objectfeed?token=ada",
                     "/para/main/objectfeed?token=ada&codec=xml"):  # fmt: skip
            headers = {"Upgrade": "websocket", "Connection": "Upgrade",
                       "Sec-WebSocket-Version": "13",
                       "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
            async with b.session.get(url_of(b.server, path), headers=headers) as response:
                assert response.status in (400, 401)
                assert (await response.json(content_type=None))["code"] != "internal"


async def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "KEYS_MAX", 3)
    async with bench(tmp_path, publish_envelopes_per_s=2) as b:
        feed = await b.open()
        for n in range(3):
            await feed.sub(f"num:{n}")
        await feed.send("sub", key="num:4")
        assert (await feed.until("keyError"))["code"] == "too_many_keys"
        await feed.sub("num:2")  # again: it is one of the three
        for n in range(6):
            await feed.send("intent", clientId="c", opId=str(n), key="num:1", value={"n": n})
        answers = [await feed.answer() for _ in range(6)]
        limited = [a for a in answers if a.get("code") == "rate_limited"]
        assert limited and all(a["retryAfterMs"] > 0 for a in limited)
        for _ in range(limits.PROTOCOL_ERRORS_MAX):
            await feed.socket.send_str("rubbish")
        assert await feed.until_closed() == 1008


async def test_another_origin_may_not(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        url = url_of(b.server, "/para/main/objectfeed?token=ada")
        with pytest.raises(Exception, match="403"):
            await b.session.ws_connect(url, headers={"Origin": "https://evil.example"})


async def test_changes_are_published_for_services_in_order(tmp_path: Path) -> None:
    transport = InProcessTransport()
    heard: list[SyncEnvelope] = []
    transport.subscribe("num:1", heard.append)
    async with bench(tmp_path, feed={"transport": transport}) as b:
        feed = await b.open()
        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(b.objects.put("num:1", {"n": n}))
        await feed.intent("num:1", "1", value={"n": 99})
        await b.objects.delete("num:1")
    assert [envelope.sequence for envelope in heard] == list(range(1, 23))
    assert heard[-1].deleted and heard[-2].value == {"n": 99}


async def test_an_authority_of_ones_own(tmp_path: Path) -> None:
    from edge.client.para import msgspec_schema
    from tests.support.para import Num

    async with running(tmp_path) as server:
        authority = SyncedAuthority(server.runtime, {"num": msgspec_schema(Num)})
        assert (await authority.put("num:1", Num(1))).changed
        once = await authority.put("num:1", {"n": 2}, op="a")
        again = await authority.put("num:1", {"n": 3}, op="a")
        assert once.changed and not again.changed and again.envelope == once.envelope
        async with asyncio.TaskGroup() as group:
            for _ in range(30):
                group.create_task(authority.mutate("num:1", lambda value: {"n": value["n"] + 1}))
        found = await authority.get("num:1")
        assert found is not None and (found.value, found.sequence) == ({"n": 32}, 32)

        def spoil(value: Any) -> Any:
            value["n"] = "spoilt"
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await authority.mutate("num:1", spoil)
        assert (await authority.get("num:1")) == found, "what it was given is its own"


async def test_all_objects_of_a_prefix(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        keys = ["free:a", "free:a\U0010ffff", "free:a\ud7ff", "free:ab", "free:b", "num:1"]
        for key in keys:
            await b.objects.put(key, {"n": 1})
        await b.objects.delete("free:ab")
        await b.objects.put("free:x/1", 1)  # of another scope
        assert list(await b.objects.all("free:a")) == ["free:a", "free:a\ud7ff", "free:a\U0010ffff"]
        assert list(await b.objects.all("free:a\ud7ff")) == ["free:a\ud7ff"]
        assert list(await b.objects.all("free:a\U0010ffff")) == ["free:a\U0010ffff"]
        assert len(await b.objects.all()) == 5 and len(await b.objects.all(limit=2)) == 2
        assert list(await b.objects.all("free:", scope="x")) == ["free:x/1"]
        assert await b.objects.all("free:", scope="nowhere") == {}


async def test_sources(tmp_path: Path) -> None:
    app = make_app()
    triggers: list[Any] = []
    ended: list[str] = []
    started, go = asyncio.Event(), asyncio.Event()
    runs = 0

    def on(trigger: Any) -> Any:
        triggers.append(trigger)
        return lambda: ended.append("off")

    @app.source("num:once", once=True, namespace="main")
    async def once() -> Any:
        return {"n": 1}

    @app.source("num:on", on=on, namespace="main")
    async def on_trigger() -> Any:
        nonlocal runs
        runs += 1
        started.set()
        await go.wait()
        return {"n": runs}

    @app.source("num:every", every=0.02, namespace="main")
    def every() -> Any:
        return {"n": len(triggers)}

    async with running(tmp_path, mode="serve", app=app) as server:
        b = Bench(server, None, None)  # type: ignore[arg-type]
        for _ in range(3):
            triggers[0]()
        await started.wait()
        for _ in range(3):
            triggers[0]()
        go.set()

        async def value(key: str) -> Any:
            found = await b.objects.get(key)
            return None if found is None else found.value

        async with asyncio.timeout(20):
            while [await value(f"num:{k}") for k in ("once", "on", "every")] != [
                {"n": 1}, {"n": 2}, {"n": 1},
            ]:  # fmt: skip
                await asyncio.sleep(0.01)
        assert runs == 2, "one run, and one for all triggers during it"
    assert ended == ["off"]


async def test_answers_wait_for_a_socket_that_does_not_drain(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.objects.put("free:1", "x" * 100_000)
        feed = await b.open()
        await feed.quiet()
        assert b.server.para is not None
        (slow,) = b.server.para.connections
        socket: Any = slow.sink
        socket.pause_writing()
        for id in range(50):
            await feed.send("fetch", id=id, key="free:1")
        other = await b.open("bob")
        await other.sub("free:1")  # by now the server has read what came before
        assert socket._transport.get_write_buffer_size() == 0
        socket.resume_writing()
        for id in range(50):
            assert (await feed.until("fetched"))["id"] == id


async def test_all_keys_at_once_and_again(tmp_path: Path) -> None:
    keys = [f"free:{n}" for n in range(connection_module.KEYS_MAX)]
    async with bench(tmp_path) as b:
        client = ObjectFeedClient(url_of(b.server, "/para/main/objectfeed"), "ada")
        async with client:
            heard: dict[str, int] = {}

            def listen(key: str) -> None:
                client.subscribe(key, lambda envelope: heard.update({key: envelope.value}))

            for key in keys:
                listen(key)
            for turn in (1, 2):
                if turn == 2:
                    for connection in list(b.server.para.connections):  # type: ignore[union-attr]
                        connection.end(1001, "for the test")
                await b.objects.tx(dict.fromkeys(keys, turn))
                async with asyncio.timeout(20):
                    while heard != dict.fromkeys(keys, turn):
                        await asyncio.sleep(0.01)


async def test_a_late_handler_gets_the_current_envelope(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.objects.put("free:1", 1)
        errors: list[tuple[str | None, str]] = []
        client = ObjectFeedClient(
            url_of(b.server, "/para/main/objectfeed"), "ada",
            on_error=lambda key, error: errors.append((key, error.code)),
        )  # fmt: skip
        async with client, asyncio.timeout(20):
            first: list[SyncEnvelope] = []
            late: list[SyncEnvelope] = []
            client.subscribe("free:1", first.append)
            while not first:
                await asyncio.sleep(0.005)
            off = client.subscribe("free:1", late.append)
            while not late:
                await asyncio.sleep(0.005)
            assert late[0].value == 1
            off()
            # Who may write and not read is held up by no baseline.
            b.calls.denied = {("ada", "num:1", "read")}
            client.subscribe("num:1", late.append)
            assert await client.intent("num:1", value={"n": 1}) == {"num:1": 1}
            assert errors == [("num:1", "forbidden")]


async def test_one_namespace_at_the_root(tmp_path: Path) -> None:
    async with bench(tmp_path, feed={"root": "main"}) as b:
        await b.objects.put("free:1", 1)
        socket = await b.session.ws_connect(url_of(b.server, "/objectfeed?token=ada"))
        await socket.send_str('{"type":"sub","key":"free:1"}')
        assert (await socket.receive_json())["sequence"] == 1
        await socket.close()
        url = url_of(b.server, "/objectfeed/snapshot/free:1?token=ada")
        async with b.session.get(url) as response:
            assert (await response.json())["value"] == 1
