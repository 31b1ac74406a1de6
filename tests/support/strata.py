"""An application with StrataSync models of every sort, and a client without rules of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from edge.server import Server
from holdfast import (
    MODEL_ID,
    Application,
    Bootstrap,
    Change,
    Composite,
    CompositeCursor,
    Field,
    SimpleCursor,
    SocketHooks,
    Standard,
    StrataDatabase,
    SyncModel,
    User,
    auth,
    create_composite_sync_id,
)
from infra import ids
from tests.support.app import PATIENCE_S, running, url_of

Json = dict[str, Any]
NAME = "acme"

TASK = SyncModel(
    "Task",
    "workspaceId",
    Bootstrap(
        fields=["id", "title", "workspaceId", "done", "dueOn", "createdAt", "archivedAt"],
        instant_fields=["createdAt", "archivedAt"], date_only_fields=["dueOn"],
        allowed_indexed_keys=["id"],
    ),
    Standard(
        insert_fields={
            "title": "string", "workspaceId": "string", "done": Field("string", False),
            "dueOn": "dateOnly", "createdAt": "dateNow",
        },
        update_fields=["title", "done", "dueOn", "createdAt", "workspaceId"],
    ),
)  # fmt: skip
COMMENT = SyncModel(
    "Comment",
    "workspaceId",
    Bootstrap(
        fields=["id", "body", "taskId", "workspaceId", "score"],
        allowed_indexed_keys=["id", "taskId", "score"],
    ),
    Standard(
        insert_fields={
            "body": "stringNull", "taskId": "string", "workspaceId": "string", "score": "number",
        },
        update_fields=["body"], actions="IUD",
    ),
    table="comments",
)  # fmt: skip
WORKSPACE = SyncModel(
    "Workspace", MODEL_ID, Bootstrap(fields=["id", "name"]),
    Standard(insert_fields={"name": "string"}, update_fields=["name"]),
)  # fmt: skip
NOTICE = SyncModel(
    "Notice", None, Bootstrap(fields=["id", "text"]),
    Standard(insert_fields={"text": "string"}, update_fields=["text"], actions="IUD"),
)  # fmt: skip
TASK_LABEL = SyncModel(
    "TaskLabel",
    "workspaceId",
    Bootstrap(
        fields=["taskId", "labelId", "workspaceId"],
        cursor=CompositeCursor(["taskId", "labelId"]),
    ),
    Composite(
        insert_fields={"taskId": "string", "labelId": "string", "workspaceId": "string"},
        delete_key=["taskId", "labelId"],
        compute_id=lambda model, id, payload: create_composite_sync_id(
            model, [payload["taskId"], payload["labelId"]]
        ),
    ),
)  # fmt: skip
RANKED = SyncModel(
    "Ranked", None, Bootstrap(fields=["rank", "label"], cursor=SimpleCursor("rank")),
    Standard(insert_fields={"rank": "number", "label": "string"}, actions="ID"),
)  # fmt: skip


class Calls:
    """What the application's callbacks saw, and what they are told to do."""

    def __init__(self) -> None:
        self.groups: dict[str, list[str]] = {}
        self.changes: list[Change] = []
        self.before: list[tuple[str, str]] = []
        self.refuse_with: str | None = None
        self.after_raises = False
        self.resolver_raises = False
        self.gate: asyncio.Event | None = None  # hooks wait for it
        self.messages: list[Any] = []
        self.subscribed: list[tuple[str, str | None]] = []
        self.closed: list[str] = []
        self.expires: dict[str, int] = {}


def make_app(calls: Calls, *more: SyncModel, root: str | None = None) -> Application:
    """Tokens are `user` or `user:anything`; `bad` is nobody, `old` has expired."""
    app = Application()

    def verify(token: str, name: str) -> User | None:
        if token == "old":
            raise ValueError("jwt expired")
        if token == "boom":
            raise RuntimeError("secret detail")
        if token == "bad" or name == "forbidden":
            return None
        user = token.partition(":")[0]
        return User(user, f"{user}@example.org", expires_at_ms=calls.expires.get(user))

    def resolve(user: str, name: str) -> Sequence[str]:
        if calls.resolver_raises:
            raise RuntimeError("the directory is down")
        return calls.groups.get(user, [])

    async def on_subscribe(socket: Any, context: Any, previous: Any) -> None:
        calls.subscribed.append((context.user_id, None if previous is None else previous.user_id))
        if context.user_id == "unwelcome":
            raise RuntimeError("no")
        socket.join("room")

    async def on_message(socket: Any, message: Any, context: Any) -> None:
        if calls.gate is not None:
            await calls.gate.wait()
        calls.messages.append((context.user_id, message))
        if isinstance(message, dict) and message.get("type") == "yjs_update":
            socket.broadcast("room", {**message, "from": context.user_id})

    def on_close(socket: Any, context: Any) -> None:
        calls.closed.append(context.user_id)

    app.stratasync(
        models=[TASK, COMMENT, WORKSPACE, NOTICE, TASK_LABEL, RANKED, hooked(calls), *more],
        auth=auth(verify, resolve), hooks=SocketHooks(on_subscribe, on_message, on_close),
        root=root,
    )  # fmt: skip
    return app


def hooked(calls: Calls) -> SyncModel:
    """A model with every hook."""

    async def before(id: str, payload: Mapping[str, Any], data: Json, user: Any) -> Json:
        calls.before.append((id, user.user_id))
        if calls.gate is not None:
            await calls.gate.wait()
        if calls.refuse_with is not None:
            raise ValueError(calls.refuse_with)
        return {**data, "stampedBy": user.user_id}

    def before_delete(id: str, payload: Mapping[str, Any], user: Any) -> None:
        calls.before.append((id, user.user_id))
        if calls.refuse_with is not None:
            raise ValueError(calls.refuse_with)

    async def after(change: Change) -> None:
        calls.changes.append(change)
        if calls.after_raises:
            raise RuntimeError("mail is down")

    return SyncModel(
        "Hooked",
        "workspaceId",
        Bootstrap(fields=["id", "text", "workspaceId", "stampedBy", "count"]),
        Standard(
            insert_fields={"text": "string", "workspaceId": "string", "count": "number"},
            update_fields=["text", "count"], on_before_insert=before, on_before_update=before,
            on_before_delete=before_delete, on_after_mutation=after,
        ),
    )  # fmt: skip


class Strata:
    """A user of one database: HTTP by `get` and `post`, sockets by `connect`."""

    def __init__(self, server: Server, session: ClientSession, calls: Calls, user: str) -> None:
        self.server = server
        self.session = session
        self.calls = calls
        self.user = user
        self.base = f"/strata/{NAME}/sync"
        self.token: str | None = user

    def as_user(self, user: str) -> Strata:
        """Somebody else on the same server."""
        return Strata(self.server, self.session, self.calls, user)

    @property
    def database(self) -> StrataDatabase:
        return self.server.application.strata(NAME)

    def _headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    async def get(self, path: str, **options: Any) -> tuple[int, bytes]:
        headers = {**self._headers(), **options.pop("headers", {})}
        url = url_of(self.server, self.base + path)
        async with self.session.get(url, headers=headers, **options) as answer:
            return answer.status, await answer.read()

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self._headers()}
        url = url_of(self.server, self.base + path)
        async with self.session.post(url, data=BytesIO(data), headers=headers, **options) as answer:
            return answer.status, await answer.read()

    async def bootstrap(self, query: str = "") -> tuple[Json, list[Json]]:
        """(metadata, rows)."""
        status, body = await self.get("/bootstrap" + (f"?{query}" if query else ""))
        assert status == 200, body
        assert body.endswith(b"\n")
        meta, *rows = [json.loads(line) for line in body.decode().split("\n")[:-1]]
        return meta, rows

    async def rows(self, model: str) -> dict[str, Json]:
        """The model's visible rows by id."""
        _, rows = await self.bootstrap(f"onlyModels={model}")
        return {row["id"]: row for row in rows}

    async def deltas(self, query: str = "") -> Json:
        status, body = await self.get("/deltas" + (f"?{query}" if query else ""))
        assert status == 200, body
        found: Json = json.loads(body)
        return found

    async def batch(self, *requests: Json, **more: Any) -> list[Json]:
        status, body = await self.post("/batch", {"requests": list(requests), **more})
        assert status == 200, body
        return [json.loads(line) for line in body.decode().split("\n")[:-1]]

    async def mutate(self, *transactions: Json) -> Json:
        status, body = await self.post(
            "/mutate", {"batchId": "b1", "transactions": list(transactions)}
        )
        assert status == 200, body
        found: Json = json.loads(body)
        return found

    async def write(
        self, action: str, model: str, id: str, payload: Json | None = None, **more: Any
    ) -> Json:
        """One transaction; its result."""
        answer = await self.mutate(tx(action, model, id, payload, **more))
        found: Json = answer["results"][0]
        return found

    async def insert(self, id: str, group: str = "ws1", **more: Any) -> int:
        """One Task; its syncId."""
        payload = {"title": id, "workspaceId": group, **more}
        result = await self.write("INSERT", "Task", id, payload)
        assert result["success"], result
        return int(result["syncId"])

    async def connect(self, token: str | None = None) -> Socket:
        given = self.user if token is None else token
        url = url_of(self.server, f"{self.base}/ws?token={given}")
        return Socket(await self.session.ws_connect(url, max_msg_size=0), given)

    async def live(self, after: int | None = None, groups: list[str] | None = None) -> Socket:
        """A socket that is subscribed."""
        socket = await self.connect()
        await socket.subscribe(after, groups)
        return socket


def tx(
    action: str, model: str, id: str, payload: Json | None = None, *,
    client: str = "c1", key: str | None = None,
) -> Json:  # fmt: skip
    """A transaction of a mutate request."""
    return {
        "action": action, "clientId": client, "clientTxId": key or ids.new_id(), "modelId": id,
        "modelName": model, "payload": payload or {},
    }  # fmt: skip


class Socket:
    """A WebSocket and what came over it."""

    def __init__(self, socket: ClientWebSocketResponse, token: str) -> None:
        self.socket = socket
        self.token = token
        self.seen: list[Json] = []

    async def send(self, frame: Any) -> None:
        await self.socket.send_str(frame if isinstance(frame, str) else json.dumps(frame))

    async def frame(self) -> Json:
        """The next frame, or {"closed": code, "reason": …}."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.socket.receive()
        if message.type is WSMsgType.TEXT:
            found: Json = json.loads(message.data)
            self.seen.append(found)
            return found
        code = message.data if message.type is WSMsgType.CLOSE else self.socket.close_code
        return {"closed": code, "reason": message.extra}

    async def ask(self, after: int | None = None, groups: list[str] | None = None) -> None:
        frame: Json = {"type": "subscribe", "token": self.token}
        if after is not None:
            frame["afterSyncId"] = str(after)
        if groups is not None:
            frame["groups"] = groups
        await self.send(frame)

    async def subscribe(
        self, after: int | None = None, groups: list[str] | None = None
    ) -> tuple[list[int], Json]:
        """(syncIds replayed, the acknowledgement)."""
        await self.ask(after, groups)
        replayed: list[int] = []
        while True:
            frame = await self.frame()
            if frame.get("type") != "delta":
                assert frame.get("type") == "subscribed", frame
                return replayed, frame
            replayed += ids_of(frame)

    async def action(self) -> Json:
        """The action of the next delta frame."""
        frame = await self.frame()
        assert frame.get("type") == "delta", frame
        (found,) = frame["packet"]["actions"]
        assert frame["packet"]["lastSyncId"] == found["syncId"]
        action: Json = found
        return action

    async def upto(self, sync_id: int) -> list[Json]:
        """The actions from here to the one numbered so."""
        found = [await self.action()]
        while int(found[-1]["syncId"]) < sync_id:
            found.append(await self.action())
        return found

    async def close(self) -> None:
        await self.socket.close()


def ids_of(frame: Json) -> list[int]:
    return [int(action["syncId"]) for action in frame["packet"]["actions"]]


@asynccontextmanager
async def strata(
    directory: Path, *more: SyncModel, groups: dict[str, list[str]] | None = None,
    root: str | None = None, **config: Any,
) -> AsyncIterator[Strata]:  # fmt: skip
    """A started server, seen by user `ann` (of ws1, unless `groups` says otherwise)."""
    calls = Calls()
    calls.groups = {"ann": ["ws1"], "bob": ["ws1"], "eve": ["ws2"]} if groups is None else groups
    app = make_app(calls, *more, root=root)
    async with running(directory, app=app, **config) as server, ClientSession() as session:
        yield Strata(server, session, calls, "ann")


class Replica:
    """What a client makes of what it is sent: rows by model and id, a cursor."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Json] = {}
        self.cursor = 0

    def load(self, meta: Json, rows: list[Json]) -> Self:
        self.cursor = int(meta["lastSyncId"])
        self.rows = {}
        for row in rows:
            shown = dict(row)
            self.rows[(shown.pop("__class"), row["id"])] = shown
        return self

    def apply(self, action: Json) -> None:
        """As the client does: ids at or below the cursor are dropped."""
        seq = int(action["syncId"])
        if seq <= self.cursor:
            return
        self.cursor = seq
        key = (action["modelName"], action["modelId"])
        match action["action"]:
            case "I":
                self.rows[key] = {"id": action["modelId"], **action["data"]}
            case "U" | "A" | "V":
                self.rows.setdefault(key, {"id": action["modelId"]}).update(action["data"])
            case "D":
                self.rows.pop(key, None)
