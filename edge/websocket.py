"""A WebSocket server endpoint as a bare asyncio protocol: 3.3 KiB per idle connection, one write
per batch.

aiohttp parses the upgrade request; then the transport gets this protocol in place of aiohttp's
(`take_over`, which alone leans on aiohttp's private parts; edge/websocket_plain.py is the fallback
on its public ones). Outbound data is bounded by the transport's high mark: above it the socket is
`congested` and its subscriptions read the ledger later instead of queueing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from aiohttp import web

from edge import wire
from edge.wire import Frames
from infra import limits

try:
    from aiohttp._websocket.helpers import websocket_mask
except ImportError:  # pragma: no cover - another aiohttp

    def websocket_mask(mask: bytes, data: bytearray) -> None:
        size = len(data)
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
        data[:] = (int.from_bytes(data, "little") ^ key).to_bytes(size, "little")


_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PROTOCOL_ERROR = 1002
TOO_BIG = 1009
NO_FRAME = 4408
SLOW_CONSUMER = 4429
CLOSE_LINGER_S = 2.0


class Session(Protocol):
    """The dialect's side of a socket."""

    closed: bool

    def handle(self, data: bytes | bytearray | str) -> None:
        """One text message, the last at hand."""

    def receive(self, data: bytes | bytearray | str) -> None:
        """One of several text messages that came together."""

    def received(self) -> None:
        """That was the last of them."""

    def protocol_error(self, code: str, message: str, re: str | None = None) -> None:
        """A message of a kind the dialect does not take."""

    def close(self) -> None:
        """The socket is gone."""


@runtime_checkable
class TakesBinary(Protocol):
    """What a session has besides whose dialect speaks in binary messages, too."""

    def receive_binary(self, data: bytes) -> None:
        """As `receive`."""


class SocketSettings:
    """What all sockets of a server share."""

    __slots__ = ("compression", "frame_bytes_max", "monotonic", "sockets")

    def __init__(
        self, *, frame_bytes_max: int, compression: bool, monotonic: Callable[[], float]
    ) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.compression = compression
        self.monotonic = monotonic
        self.sockets: set[Socket] = set()


class Socket(asyncio.Protocol):
    """One open WebSocket; fits the dialects' Sink."""

    __slots__ = (
        "_accepted", "_closing_at", "_deaf", "_deflate", "_drained", "_fd", "_message", "_rest",
        "_settings", "_stalled_at", "_transport", "_written", "congested", "frame_bytes_max",
        "heard_at", "session", "silence_s", "silent_close",
    )  # fmt: skip

    def __init__(self, settings: SocketSettings, deflate: bool) -> None:
        self.session: Session | None = None
        self.congested = False
        # Where the dialect has its own: how it ends after how long a silence, how much it takes.
        self.silent_close: tuple[int, str] | None = None
        self.silence_s: float | None = None
        self.frame_bytes_max = settings.frame_bytes_max
        self.heard_at = settings.monotonic()
        self._settings = settings
        self._deflate = deflate
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._message: bytearray | None = None  # fragments so far; first byte: whether deflated
        self._drained: asyncio.Future[None] | None = None
        self._closing_at: float | None = None
        self._deaf = False  # the stream cannot be made sense of any more
        self._fd = -1  # for writing past the transport; none where that would skip encryption
        self._written = 0
        self._accepted = 0
        self._stalled_at = 0.0

    def attach(self, transport: asyncio.Transport) -> None:
        """Take the transport over; call once, then `data_received` with what came early."""
        self._transport = transport
        self._settings.sockets.add(self)
        carrier = transport.get_extra_info("socket")
        if carrier is not None and transport.get_extra_info("sslcontext") is None:
            self._fd = carrier.fileno()
        transport.set_write_buffer_limits(limits.QUEUE_BYTES_MAX, limits.QUEUE_BYTES_MAX // 4)

    # -- inbound ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take whole frames off the stream; what is left of one waits for more."""
        if self._deaf:
            return
        if self._rest:
            data = self._rest + data
        position = 0
        end = len(data)
        session = self.session
        limit = self.frame_bytes_max
        while end - position >= 6:
            first, second = data[position], data[position + 1]
            size = second & 127
            start = position + 6
            if size > 125:
                wide = 2 if size == 126 else 8
                start += wide
                if start > end:
                    break
                size = int.from_bytes(data[position + 2 : position + 2 + wide], "big")
            if second < 128 or size > limit:
                self._give_up(masked=second >= 128)
                break
            if start + size > end:
                break
            if self._closing_at is not None:  # only the peer's own close still matters
                position = start + size
                if first & 15 == wire.CLOSE:
                    self._transport.close()  # type: ignore[union-attr]
                    break
                continue
            payload = bytearray(data[start : start + size])
            websocket_mask(data[start - 4 : start], payload)
            position = start + size
            if first == 0x81 and self._message is None:
                session.receive(payload)  # type: ignore[union-attr]
            else:
                self._frame(first, payload)
        if position:
            session.received()  # type: ignore[union-attr]
            self.heard_at = self._settings.monotonic()
        self._rest = b"" if self._deaf else data[position:]

    def _give_up(self, *, masked: bool) -> None:
        """What follows are no frames for us. It is still read: unread input would turn the end of
        the stream into a reset, and the peer would not see why.
        """
        self._deaf = True
        if masked:
            self.close(TOO_BIG, f"a message may have {self.frame_bytes_max} bytes")
        else:
            self.close(PROTOCOL_ERROR, "client frames must be masked")

    def _frame(self, first: int, payload: bytearray) -> None:
        """Anything but a whole plain text message."""
        opcode, final = first & 15, first & 0x80
        deflated = bool(first & 0x40)
        if first & 0x30 or (deflated and not (self._deflate and opcode in (1, 2))):
            self.close(PROTOCOL_ERROR, "reserved bits")
        elif opcode >= wire.CLOSE:
            self._control(opcode, payload, bool(final))
        elif (opcode == 0) != (self._message is not None) or opcode > wire.BINARY:
            self.close(PROTOCOL_ERROR, "frame out of order")
        else:
            if self._message is None:
                self._message = bytearray((opcode | (0x40 if deflated else 0),))
            self._message += payload
            if len(self._message) > self.frame_bytes_max + 1:
                self.close(TOO_BIG, f"a message may have {self.frame_bytes_max} bytes")
            elif final:
                message, self._message = self._message, None
                self._whole(message)

    def _whole(self, message: bytearray) -> None:
        kind, body = message[0], bytes(message[1:])
        if kind & 0x40:
            inflated = wire.inflate(body, self.frame_bytes_max)
            if inflated is None:
                self.close(TOO_BIG, f"a message may have {self.frame_bytes_max} bytes")
                return
            body = inflated
        session = self.session
        assert session is not None
        if kind & 15 != wire.BINARY:
            session.receive(body)
        elif isinstance(session, TakesBinary):
            session.receive_binary(body)
        else:
            session.protocol_error("bad_frame", "send text frames, not binary ones")

    def _control(self, opcode: int, payload: bytearray, final: bool) -> None:
        if len(payload) > 125 or not final or opcode > wire.PONG:
            self.close(PROTOCOL_ERROR, "bad control frame")
        elif opcode == wire.PING:
            self._write(wire.control_frame(wire.PONG, bytes(payload)))
        elif opcode == wire.CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1000
            self.close(code if code in range(1000, 5000) and code not in (1005, 1006) else 1002, "")
            if self._transport is not None:
                self._transport.close()

    def eof_received(self) -> None:
        """The peer has gone; returning nothing closes the transport."""

    def connection_lost(self, exc: BaseException | None) -> None:
        self._settings.sockets.discard(self)
        self._transport = None
        self._fd = -1  # closed by the transport: the number may be somebody else's now
        self.resume_writing()
        if self.session is not None:
            self.session.close()
            self.session = None  # a cycle less: the memory of a socket goes at once

    # -- outbound (the dialects' Sink) -------------------------------------------------------------

    def send(self, texts: Sequence[wire.Message]) -> None:
        """Frames for this client alone, as one write."""
        if self._deflate:
            self._write(b"".join([wire.deflated_frame(text) for text in texts]))
        else:
            self._write(b"".join([wire.message_frame(text) for text in texts]))

    def send_shared(self, frames: Frames) -> None:
        """Frames that others get alike: their bytes are built once."""
        if self._transport is not None and self._closing_at is None:
            data = frames.deflated if self._deflate else frames.plain
            size = len(data)
            self._written += size
            if self._fd >= 0 and not self._transport.get_write_buffer_size():
                # Nothing waits, so this may go ahead of the transport's own machinery, which
                # costs a fifth of a delivery. Errors are left to the transport to find.
                try:
                    sent = os.write(self._fd, data)
                except OSError:
                    sent = 0
                if sent == size:
                    return
                data = data[sent:]
            self._put(data)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and self._closing_at is None:
            self._written += len(data)
            self._put(data)

    def _put(self, data: bytes) -> None:
        # A transport that is lost and has not said so yet would drop it, and log a line each
        # time: a peer could fill the log by asking much and going away.
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    async def drained(self) -> None:
        if self.congested and self._transport is not None:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def close(self, code: int, reason: str) -> None:
        """Send the close frame after what is queued, and end once the peer has answered it.

        Ending at once would lose what is under way: the peer's unread bytes turn the end of the
        stream into a reset. `tick` ends it for a peer that does not answer.
        """
        if self._transport is None or self._closing_at is not None:
            return
        self._transport.write(wire.control_frame(wire.CLOSE, wire.close_payload(code, reason)))
        self._closing_at = self._settings.monotonic()
        if self.session is not None:
            self.session.close()

    def abort(self) -> None:
        """End at once, whatever is unsent."""
        if self._transport is not None:
            self._transport.abort()

    # -- time --------------------------------------------------------------------------------------

    def tick(self, now: float, *, silence_s: float, stall_s: float) -> None:
        """Every few seconds: ping the silent, close the dead, cut off who accepts nothing."""
        transport = self._transport
        if transport is None:
            return
        silence_s = self.silence_s or silence_s
        if self._closing_at is not None:
            if now - self._closing_at > max(CLOSE_LINGER_S, stall_s):
                transport.abort()
            elif now - self._closing_at > CLOSE_LINGER_S:
                transport.close()
            return
        if self._stalled(transport.get_write_buffer_size(), now) > stall_s:
            self.close(SLOW_CONSUMER, f"no byte accepted for {stall_s:.0f} s")
        elif now - self.heard_at > silence_s:
            self.close(*(self.silent_close or (NO_FRAME, f"no frame for {silence_s:.0f} s")))
        elif now - self.heard_at > silence_s * 0.4:
            self._write(wire.control_frame(wire.PING))

    def _stalled(self, unsent: int, now: float) -> float:
        """Seconds since the peer last took anything, while something waits for it."""
        accepted = self._written - unsent  # what is unsent may grow though the peer reads
        if unsent == 0 or accepted != self._accepted or not self._stalled_at:
            self._stalled_at = now if unsent else 0.0
        self._accepted = accepted
        return now - self._stalled_at if self._stalled_at else 0.0


class Detached(web.Response):
    """What a handler returns once the transport is no longer aiohttp's: nothing more is sent."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def accept_key(key: str) -> str:
    """The handshake's answer to the client's key (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()  # noqa: S324


def wants_websocket(request: web.Request) -> bool:
    """Whether the request is a well-formed WebSocket upgrade."""
    headers = request.headers
    return (
        headers.get("Upgrade", "").lower() == "websocket"
        and "upgrade" in headers.get("Connection", "").lower()
        and headers.get("Sec-WebSocket-Version") == "13"
        and _KEY.fullmatch(headers.get("Sec-WebSocket-Key", "")) is not None
    )


def can_take_over(request: web.Request) -> bool:
    """Whether this aiohttp has the parts `take_over` leans on."""
    handler = request.protocol
    return request.transport is not None and all(
        hasattr(handler, name) for name in ("_message_tail", "transport", "connection_lost")
    )


def take_over(
    request: web.Request, settings: SocketSettings, open_session: Callable[[Socket], Session]
) -> web.Response:
    """Answer the upgrade and put a Socket in the place of aiohttp's protocol."""
    extensions = request.headers.get("Sec-WebSocket-Extensions", "")
    deflate = settings.compression and "permessage-deflate" in extensions
    handler = cast(Any, request.protocol)
    transport = cast(asyncio.Transport, request.transport)
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(request.headers['Sec-WebSocket-Key'])}",
    ]
    if deflate:
        lines.append(
            "Sec-WebSocket-Extensions: permessage-deflate;"
            " server_no_context_takeover; client_no_context_takeover"
        )
    early = handler._message_tail
    handler._message_tail = b""
    socket = Socket(settings, deflate)
    handler.transport = None  # so that its farewell does not close our transport
    transport.set_protocol(socket)
    handler.connection_lost(None)
    transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    socket.attach(transport)
    socket.session = open_session(socket)
    if early:
        socket.data_received(early)
    return Detached()
