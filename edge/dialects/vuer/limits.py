"""The vuer-rtc dialect's maxima and times, by name (contract sections 5, 10 to 12)."""

from __future__ import annotations

from typing import Final

FRAME_BYTES_MAX: Final = 1 << 20  # inbound, one WebSocket message
PRESENCE_BYTES_MAX: Final = 4 << 10
NESTING_MAX: Final = 64
CLOCK_SESSIONS_MAX: Final = 10_000  # entries of a vector clock in a heartbeat or a sync

MESSAGES_PER_S: Final = 120  # of one session
MESSAGES_BURST: Final = 600
CONTROL_PER_S: Final = 200  # every other frame
CONTROL_BURST: Final = 400
PRESENCE_EVERY_S: Final = 0.033  # of one session, the newest wins
ERRORS_MAX: Final = 100  # unreadable frames on one connection, then 1008
INBOX_MAX: Final = 1024  # frames that wait behind one that awaits
INBOX_BYTES_MAX: Final = 4 << 20

JOIN_WAIT_S: Final = 10.0
SILENCE_S: Final = 45.0  # no frame: 4408
MEMBER_TTL_S: Final = 45.0  # a member without a socket is removed
HEARTBEAT_EVERY_S: Final = 15.0  # clients; the server answers each

BATCH_MESSAGES_MAX: Final = 256
BATCH_BYTES_MAX: Final = 256 << 10
BATCH_WINDOW_S: Final = 0.033
SNAPSHOT_EVERY: Final = 1000
KEEP_TAIL: Final = 100
SNAPSHOT_INTERVAL_S: Final = 3600.0

JOURNAL_MESSAGES_MAX: Final = 1000  # in one `state` or `broadcast` frame
JOURNAL_BYTES_MAX: Final = 1 << 20
MEMBERS_MAX: Final = 10_000  # of one room
