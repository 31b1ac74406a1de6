"""The baseline's protocol:
connect  /room/<name>?role=w|s[&cursor=N][&batch=K]
publish  {"op":"pub","id":n,"d":{...}}   ->  {"op":"ack","id":n,"seq":s}
deliver  {"op":"msg","seq":s,"d":{...}}  or  {"op":"batch","items":[{"seq":s,"d":{...}},...]}
"""

from __future__ import annotations

import json
from collections.abc import Callable

from bench.gen.adapters.base import Adapter, Session

REPLAY_BATCH = 200


class PlainSession(Session):
    """A room is in the address; nothing to say hello with."""

    def make_path(self) -> str:
        path = f"/room/{self.room}?role={self.role}"
        return path if self.cursor is None else f"{path}&cursor={self.cursor}&batch={REPLAY_BATCH}"

    def encoder(self) -> Callable[[int, bytes], bytes]:
        return lambda i, body: b'{"op":"pub","id":%d,"d":%b}' % (1000000000 + i, body)


class Plain(Adapter):
    """The Node baseline and the null peer."""

    session_class = PlainSession

    def acks(self, data: bytes) -> list[tuple[int, int]]:
        message = json.loads(data)
        return [(message["id"], message["seq"])]

    def seqs(self, data: bytes) -> list[int]:
        message = json.loads(data)
        items = message["items"] if message["op"] == "batch" else [message]
        return [item["seq"] for item in items]
