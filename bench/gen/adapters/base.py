"""What the load client must know of a server: addresses, frames, markers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Session:
    """Protocol state of one connection; a subclass per kind of server."""

    needs_hello = False  # True: not ready before on_hello() returns True
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, ad: Any, room: str, role: str, cursor: int | None, n: int) -> None:
        self.ad, self.room, self.role, self.cursor, self.n = ad, room, role, cursor, n
        self.path = self.make_path()

    def make_path(self) -> str:
        """Request target of the upgrade."""
        raise NotImplementedError

    def hello(self) -> list[tuple[bytes, int]]:
        """(payload, opcode) to send first."""
        return []

    def on_hello(self, ws: Any, data: bytes) -> bool:
        """Whether this frame makes the connection ready."""
        return True

    def encoder(self) -> Callable[[int, bytes], bytes]:
        """`f(i, json_payload)` gives the payload of the i-th publish frame."""
        raise NotImplementedError


class Adapter:
    """One server. `ack_marker` occurs exactly once per acknowledgement; `msg_marker` once per
    message delivered, ending where the 16-digit send time starts, less its first digit."""

    op = 1  # opcode of published frames
    ack_marker = b'"op":"ack"'
    msg_marker = b'"t":1'
    session_class = Session

    def __init__(self, port: int, ip: str = "127.0.0.1") -> None:
        self.ip, self.port, self.host = ip, port, f"{ip}:{port}"

    def session(self, room: str, role: str, cursor: int | None, n: int) -> Session:
        """The state of a new connection."""
        return self.session_class(self, room, role, cursor, n)

    def times(self, data: bytes) -> list[int]:
        """Send times (microseconds) of the messages delivered in one frame."""
        marker, found = self.msg_marker, []
        keep, at = len(marker) - 1, data.find(marker)
        while at >= 0:
            found.append(int(data[at + keep : at + keep + 16]))
            at = data.find(marker, at + 20)
        return found

    def acks(self, data: bytes) -> list[tuple[int, int]]:
        """(id, seq) of the acknowledgements in one frame, for parse mode."""
        raise NotImplementedError

    def seqs(self, data: bytes) -> list[int]:
        """Seqs of the messages delivered in one frame, for parse mode."""
        raise NotImplementedError
