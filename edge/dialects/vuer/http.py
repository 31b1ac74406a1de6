"""The socket's route, `GET /rtc/{roomId}` (section 11), for a server of ours or another's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from actors.dialects.vuer.validate import is_session
from edge.auth import Principal
from edge.dialects.vuer import frames as f
from edge.dialects.vuer import limits
from edge.dialects.vuer.connection import RtcConnection
from edge.dialects.vuer.server import RTCServer
from edge.problems import Problem
from edge.requests import SERVER, from_allowed_origin, principal_of
from edge.websocket import SocketSettings, can_take_over, take_over, wants_websocket
from edge.websocket_plain import serve_plain
from infra.errors import AuthError, HoldfastError

Identify = Callable[[web.Request], Awaitable[Principal]]


def add_routes(app: web.Application, rooms: RTCServer, root: str = "", prefix: str = "") -> None:
    """Mount the dialect on a server of ours; `root` is the room that `/rtc` stands for, too."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if not from_allowed_origin(request):
            raise Problem("forbidden", "pages of this origin may not; see cors_origins")
        server = request.app[SERVER]
        server.admit()
        principal = await principal_of(request)
        room_id = request.match_info.get("roomId", root)

        def opened(connection: RtcConnection) -> None:
            server.connections.add(connection)

        return await _upgrade(request, rooms, room_id, principal, server.sockets, opened)

    app.router.add_get(prefix + "/rtc/{roomId}", handle, allow_head=False)
    if root:
        app.router.add_get(prefix + "/rtc", handle, allow_head=False)


def add_route(app: web.Application, path: str, rooms: RTCServer, identify: Identify) -> None:
    """Mount it on somebody else's application; errors are theirs to shape."""
    settings = SocketSettings(
        frame_bytes_max=limits.FRAME_BYTES_MAX, compression=False, monotonic=rooms.monotonic
    )

    async def handle(request: web.Request) -> web.StreamResponse:
        room_id = request.match_info.get("roomId", "")
        try:
            principal = await identify(request)
            return await _upgrade(request, rooms, room_id, principal, settings, None)
        except AuthError as error:
            raise web.HTTPUnauthorized(text=str(error)) from error
        except HoldfastError as error:
            raise web.HTTPBadRequest(text=str(error)) from error

    app.router.add_get(path, handle, allow_head=False)


async def _upgrade(
    request: web.Request, rooms: RTCServer, room_id: str, principal: Principal,
    settings: SocketSettings, opened: Callable[[RtcConnection], None] | None,
) -> web.StreamResponse:  # fmt: skip
    """Raises HoldfastError for what cannot be a client."""
    if not wants_websocket(request):
        raise Problem("bad_frame", "this is a WebSocket endpoint; see docs/vuer-rtc.md")
    session_id = request.query.get("sessionId", "")
    if not is_session(session_id):
        raise Problem("bad_params", "sessionId: 1 to 64 of A-Z a-z 0-9 . _ @ -")
    try:
        format = f.format_of(request.query)
    except f.BadFrame as error:
        raise Problem("bad_params", str(error)) from error
    rooms.address(room_id, principal.tenant)
    if request.transport is None:  # gone while it was being recognised
        raise Problem("closed", "the client has gone")

    def open_session(sink: Any) -> RtcConnection:
        connection = RtcConnection(rooms, sink, room_id, session_id, principal, format)
        rooms.admit(connection)
        if opened is not None:
            opened(connection)
        return connection

    if opened is None or not can_take_over(request):
        return await serve_plain(
            request, settings, open_session, frame_bytes_max=limits.FRAME_BYTES_MAX
        )

    def open_socket(socket: Any) -> RtcConnection:
        socket.frame_bytes_max = limits.FRAME_BYTES_MAX
        socket.silence_s = limits.SILENCE_S
        return open_session(socket)

    return take_over(request, settings, open_socket)
