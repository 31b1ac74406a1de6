"""Named maxima, in one place: every queue, frame, page, body and wait has one.

Sizes are in bytes, times carry their unit. Those of the AsterQL dialect are its contract.
"""

from __future__ import annotations

from typing import Final

INTEGER_MAX: Final = 2**53 - 1  # what a JavaScript number holds exactly

SCOPE_BYTES_MAX: Final = 200
TENANT_BYTES_MAX: Final = 64
ENTITY_REST_BYTES_MAX: Final = 900
EVENT_ID_CHARS_MAX: Final = 128
CAUSE_CHARS_MAX: Final = 128
VERSION_CHARS_MAX: Final = 128
ENVELOPE_BYTES_MAX: Final = 262_144
ENVELOPE_ENTITIES_MAX: Final = 1000
ENVELOPE_PATCHES_MAX: Final = 1000
RECORD_BYTES_MAX: Final = 1 << 20
NESTING_MAX: Final = 64
POINTER_CHARS_MAX: Final = 1024

FRAME_BYTES_MAX: Final = 262_144  # inbound, one WebSocket message
PUBLISH_ENVELOPES_MAX: Final = 512  # in one `publish` frame
PING_BYTES_MAX: Final = 64
SUBSCRIPTIONS_MAX: Final = 1000  # per connection
CONNECTIONS_MAX: Final = 20_000  # per process
CONTROL_FRAMES_PER_S: Final = 200
CONTROL_FRAMES_BURST: Final = 400
PROTOCOL_ERRORS_MAX: Final = 20  # on one connection, then 1008
SILENCE_MAX_S: Final = 75  # no inbound frame: 4408
STALL_MAX_S: Final = 30  # no byte accepted by the peer: 4429
AUTH_FRAME_WAIT_S: Final = 10
AUTHORIZE_WAIT_S: Final = 5

QUEUE_FRAMES_MAX: Final = 1024  # outbound, per connection; low mark a quarter
QUEUE_BYTES_MAX: Final = 1 << 20
PAGE_ENTRIES_MAX: Final = 512
PAGE_BYTES_MAX: Final = 1 << 20
EVENTS_BYTES_MAX: Final = 256 << 10  # one `events` frame

MAILBOX_DRAFTS_MAX: Final = 8192  # per scope
MAILBOX_BYTES_MAX: Final = 16 << 20
COMMIT_DRAFTS_MAX: Final = 512  # in one transaction
COMMIT_BYTES_MAX: Final = 4 << 20
UNRELEASED_BATCHES_MAX: Final = 64  # commits that wait for disk or bucket, per scope
UNSHIPPED_ENTRIES_MAX: Final = 1 << 31  # half of what numbers jump by after a restore (I6)

VIEW_PAGE_ENTITIES: Final = 1000
VIEW_PAGE_BYTES: Final = 4 << 20
VIEW_HELD_S: Final = 60
VIEWS_HELD_MAX: Final = 64
