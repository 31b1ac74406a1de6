"""Holdfast's AsterQL socket: one envelope per `publish` frame, subscriptions with `batch`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

from bench.gen.adapters.base import Adapter, Session

ENTITIES = 100


class HoldfastSession(Session):
    """A writer publishes at once; a live subscriber is ready at `caughtUp`, a replay at once."""

    def __init__(self, ad: Holdfast, room: str, role: str, cursor: int | None, n: int) -> None:
        super().__init__(ad, room, role, cursor, n)
        self.scope = f"{ad.kind}:{room}"
        self.needs_hello = role == "s" and cursor is None

    def make_path(self) -> str:
        return f"/api/sync/socket?token={self.ad.token}"

    def hello(self) -> list[tuple[bytes, int]]:
        if self.role == "w":
            return []
        frame = {"type": "sub", "scope": self.scope, "batch": True}
        if self.cursor is not None:
            frame["since"] = self.cursor
        return [(json.dumps(frame).encode(), 1)]

    def on_hello(self, ws: object, data: bytes) -> bool:
        if b'"type":"scopeError"' in data or b'"type":"error"' in data:
            raise RuntimeError(data[:300].decode())
        return b'"type":"caughtUp"' in data

    def encoder(self) -> Callable[[int, bytes], bytes]:
        # eventIds must differ between writers and between runs, or publishes are duplicates.
        unique = secrets.token_hex(6).encode()
        head = b'{"type":"publish","id":%%d,"scope":"%b","envelopes":[{"eventId":"%b-%%d",'
        entity = b'"kind":"patch","entities":[{"key":"e:%02d","patches":[{"op":"set",'
        text = head % (self.scope.encode(), unique) + entity + b'"path":"/v","value":%b}]}]}]}'
        return lambda i, body: text % (1000000000 + i, i, i % ENTITIES, body)


class Holdfast(Adapter):
    """`kind` chooses the scopes' settings: `bench` is not materialised, `benchm` is."""

    ack_marker = b'"type":"published"'
    session_class = HoldfastSession

    def __init__(self, port: int, token: str = "", kind: str = "bench") -> None:
        super().__init__(port)
        self.token, self.kind = token, kind

    def acks(self, data: bytes) -> list[tuple[int, int]]:
        frame = json.loads(data)
        if frame["type"] != "published":
            return []
        return [(frame["id"], result["seq"]) for result in frame["results"]]

    def seqs(self, data: bytes) -> list[int]:
        frame = json.loads(data)
        if frame["type"] == "event":
            return [frame["envelope"]["seq"]]
        return [envelope["seq"] for envelope in frame.get("envelopes", ())]
