"""An application with objects of every sort, and an objectfeed client without rules of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from edge.auth import Credentials, Principal
from edge.client.para.schema import PASSTHROUGH, msgspec_schema
from edge.dialects.para.access import Allowed
from edge.dialects.para.authority import DELETE, SyncedAuthority
from edge.dialects.para.fields import LWW, SERVER
from edge.dialects.para.kinds import Intent, IntentRejected
from edge.server import Server
from holdfast import Application
from tests.support.app import PATIENCE_S, running, url_of

Json = dict[str, Any]


class Num(msgspec.Struct):
    """What the contract's cases use: `{"n": number}`."""

    n: float | int


class Post(msgspec.Struct):
    """With a field the server owns, one that is merged, and one that only some may see."""

    title: str
    likes: int = 0
    tags: list[str] = []
    secret: str | None = None
    odd: str | None = None


class Cursor(msgspec.Struct):
    """A presence."""

    x: int


class Calls:
    """What the application saw, and what it is told to do."""

    def __init__(self) -> None:
        self.intents: list[tuple[str, str]] = []
        self.denied: set[tuple[str, str, str]] = set()
        self.reject: set[str] = set()
        self.gate: asyncio.Event | None = None


def merge_tags(mine: Any, theirs: Any, base: Any) -> list[str]:
    """What either added, without what either removed."""
    ours, others, old = set(mine or ()), set(theirs or ()), set(base or ())
    return sorted((ours | others) - (old - ours) - (old - others))


def make_app(calls: Calls | None = None, **feed: Any) -> Application:
    """Tokens are user names; `bad` is nobody. Keys `part/…` lie in scopes of their own."""
    app, seen = Application(), calls or Calls()

    @app.authenticate
    def authenticate(credentials: Credentials) -> Principal | None:
        token = credentials.token
        return None if token in (None, "bad") else Principal(id=str(token))

    def authorize(user: Principal, key: str, action: str) -> bool | Allowed:
        if (user.id, key, action) in seen.denied:
            return False
        if user.id == "cut":
            return Allowed(lambda value: {"title": value["title"]})
        if user.id == "broken":
            return Allowed(lambda value: value["no such member"])
        return True

    app.objectfeed(
        authorize=authorize,
        scope_of=lambda key: key.partition(":")[2].partition("/")[0] if "/" in key else "", **feed,
    )  # fmt: skip
    app.synced("num", msgspec_schema(Num))
    app.synced("free", PASSTHROUGH)
    app.presence("room", msgspec_schema(Cursor))
    post = app.synced(
        "post", msgspec_schema(Post), version="2.1",
        authority={"likes": SERVER, "tags": merge_tags, "title": LWW},
        visible={"secret": "owner", "odd": "nobody knows this tag", "likes": "broken"},
        visibility={
            "owner": lambda user, key, value: user.id == "ada",
            "broken": lambda user, key, value: user.id != "eve" or bool(1 / 0),
        },
        upcast={1: lambda old: {"title": old["name"]}},
    )  # fmt: skip

    @post.intent("like")
    async def like(current: Any, by: Any, user: Principal) -> Any:
        seen.intents.append((user.id, "like"))
        if seen.gate is not None:
            await seen.gate.wait()
        if current is None:
            raise IntentRejected("no_post", "there is no such post")
        if user.id in seen.reject:
            raise IntentRejected("no_likes", "not you")
        return {**current, "likes": current["likes"] + (by or 1)}

    @post.intent("remove")
    def remove(current: Any, given: Any, user: Principal) -> Any:
        return DELETE

    @post.intent("explode")
    def explode(current: Any, given: Any, user: Principal) -> Any:
        raise RuntimeError("a secret of the server")

    counter = app.synced("counter", PASSTHROUGH)

    @counter.on_intent
    def count(key: str, intent: Intent, user: Principal) -> Any:
        seen.intents.append((user.id, intent.name or "value"))
        if intent.name == "add":
            return (intent.current or 0) + intent.input
        if user.id in seen.reject:
            raise IntentRejected("no", "not you")
        return intent.value

    @app.query()
    async def evaluate(spec: Any, user: Principal, objects: SyncedAuthority) -> list[str]:
        if spec == "fail":
            raise RuntimeError("a secret of the server")
        found = await objects.all(str(spec))
        return sorted(found, key=lambda key: str(found[key].value))

    return app


class Feed:
    """One socket: frames in, frames out, in order."""

    def __init__(self, socket: ClientWebSocketResponse, binary: bool) -> None:
        self.socket = socket
        self._binary = binary

    async def send(self, type: str, **members: Any) -> None:
        await self.raw({"type": type, **members})

    async def raw(self, frame: Any) -> None:
        if self._binary:
            await self.socket.send_bytes(msgspec.msgpack.encode(frame))
        else:
            await self.socket.send_str(msgspec.json.encode(frame).decode())

    async def frame(self) -> Json:
        """The next frame; {"closed": code} once the server has closed."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.socket.receive()
        if message.type is WSMsgType.TEXT:
            found: Json = msgspec.json.decode(message.data)
            return found
        if message.type is WSMsgType.BINARY:
            found = msgspec.msgpack.decode(message.data)
            return found
        code = message.data if message.type is WSMsgType.CLOSE else self.socket.close_code
        return {"type": "closed", "closed": code}

    async def until_closed(self) -> int:
        """The close code."""
        while (frame := await self.frame())["type"] != "closed":
            pass
        code: int = frame["closed"]
        return code

    async def frames(self, count: int) -> list[Json]:
        return [await self.frame() for _ in range(count)]

    async def until(self, type: str, **members: Any) -> Json:
        """The next frame of the type with these members; others are passed over."""
        while True:
            frame = await self.frame()
            if frame["type"] == type and all(frame.get(k) == v for k, v in members.items()):
                return frame
            assert frame["type"] != "closed", frame

    async def quiet(self) -> list[Json]:
        """Whatever came before the answer to a ping sent now."""
        token = f"t{id(self)}"
        await self.send("ping", t=token)
        seen = []
        while (frame := await self.frame()) != {**frame, "type": "pong", "t": token}:
            seen.append(frame)
        return seen

    async def sub(self, key: str, **members: Any) -> Json:
        """Follow, and return `subscribed`."""
        await self.send("sub", key=key, **members)
        return await self.until("subscribed", key=key)

    async def intent(self, key: str, op: str, client: str = "c1", v: int = 1, **what: Any) -> Json:
        """Send an intent and wait for its answer."""
        await self.send("intent", clientId=client, opId=op, key=key, v=v, **what)
        return await self.answer(opId=op)

    async def answer(self, **members: Any) -> Json:
        """The next confirm or reject with these members."""
        while True:
            frame = await self.frame()
            assert frame["type"] != "closed", frame
            if frame["type"] in ("confirm", "reject") and frame.items() >= members.items():
                return frame


class Bench:
    """A running server with the application, its objects, and sockets to it."""

    def __init__(self, server: Server, session: ClientSession, calls: Calls) -> None:
        self.server = server
        self.session = session
        self.calls = calls
        self.sockets: list[ClientWebSocketResponse] = []

    @property
    def objects(self) -> SyncedAuthority:
        return self.server.application.para("main")

    async def open(self, user: str = "ada", codec: str = "json", name: str = "main") -> Feed:
        url = url_of(self.server, f"/para/{name}/objectfeed?token={user}&codec={codec}")
        socket = await self.session.ws_connect(url, max_msg_size=0, compress=0)
        self.sockets.append(socket)
        return Feed(socket, codec == "msgpack")

    async def get(self, key: str, user: str = "ada", **headers: str) -> tuple[int, Any, str]:
        """(status, body, ETag) of the snapshot route."""
        url = url_of(self.server, f"/para/main/objectfeed/snapshot/{key}?token={user}")
        async with self.session.get(url, headers=headers) as response:
            text = await response.read()
            body = msgspec.json.decode(text) if text else None
            return response.status, body, response.headers.get("ETag", "")


@asynccontextmanager
async def bench(
    directory: Path, *, feed: Json | None = None, **config: Any
) -> AsyncIterator[Bench]:
    """A started server."""
    calls = Calls()
    app = make_app(calls, **(feed or {}))
    async with (
        running(directory, mode="serve", app=app, **config) as server,
        ClientSession() as session,
    ):
        made = Bench(server, session, calls)
        try:
            yield made
        finally:
            for socket in made.sockets:
                await socket.close()


__all__ = ["Bench", "Calls", "Feed", "Post", "bench", "make_app"]
