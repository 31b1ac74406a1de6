"""Hosts find each other through NATS: a JetStream key-value bucket, one key a host.

Each record carries a time to live of its own (`Nats-TTL`), so that what a dead host leaves goes by
itself; the marker that the server puts in its place expires as well (`limit_marker_ttl`). Every
renewal is conditional on the revision before, so one process alone holds a name. Changes are heard
at once, as ordinary messages on the bucket's subjects, without a consumer that could be lost with
its server; the records themselves are read anew in each round.

Needs the extra `nats`, and a NATS server of 2.11 or later with JetStream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.errors import ConfigError, ProtocolError
from infra.placement.hosts import HostInfo, decode_host, encode_host
from infra.placement.membership import Record
from infra.placement.placement import EngineUnavailable, NameTaken
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

log = logging.getLogger("holdfast.placement.nats")

BUCKET_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
TRIES: Final = 4
REQUEST_S: Final = 2.0
LOOK_S: Final = 5.0  # all of a look
WRONG_REVISION: Final = (10071, 10164)
REPLICAS: Final = 3  # where there are as many servers
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


class NatsEngine:
    """Records in the key-value bucket `bucket`, each for `ttl_s`, a whole number of seconds."""

    def __init__(
        self,
        servers: Sequence[str],
        *,
        bucket: str,
        ttl_s: float,
        credentials: Path | None = None,
    ) -> None:
        if not BUCKET_NAME.fullmatch(bucket):
            raise ConfigError(f"{bucket!r} is no name of a NATS bucket: letters, digits, - and _")
        self._servers = list(servers)
        self._bucket = bucket
        self._stream = f"KV_{bucket}"
        self._subjects = f"$KV.{bucket}."
        self._ttl_s = max(1, round(ttl_s))
        self._credentials = credentials
        self._client: Client | None = None
        self._tasks = TaskOwner()
        self._changed: Callable[[], None] = lambda: None
        self._revision: int | None = None  # of our newest record
        self._known: dict[str, HostInfo] = {}
        self._ready = False  # the bucket exists

    async def open(self, changed: Callable[[], None]) -> None:
        try:
            from nats.aio.client import Client
        except ImportError as error:
            raise ConfigError("hosts by NATS need the extra: pip install holdfast[nats]") from error
        self._changed = changed
        self._client = Client()
        self._tasks.spawn(self._connect(self._client), name="nats-connect")

    async def renew(self, host: HostInfo) -> int:
        body = encode_host(host)
        async with self._asking() as js:
            for _ in range(TRIES):
                if self._revision is None:
                    last = (await self._last(js, host.name))[0]
                else:
                    last = self._revision
                if await self._put(js, host.name, body, last):
                    assert self._revision is not None
                    return self._revision
                await self._give_way(js, host)
        raise EngineUnavailable(f"host {host.name}: its record is written by others all the time")

    async def look(self) -> list[Record]:
        async with self._asking() as js:
            subjects = await self._subject_names(js)
            records = []
            for subject in subjects:
                revision, data = await self._last(js, subject.removeprefix(self._subjects))
                with contextlib.suppress(ProtocolError):
                    if data is not None:
                        records.append(Record(decode_host(data), revision))
        self._known = {record.host.name: record.host for record in records}
        return records

    async def leave(self, host: HostInfo) -> None:
        if self._revision is None:
            return
        headers = {_EXPECTED: str(self._revision), "KV-Operation": "PURGE", "Nats-Rollup": "sub"}
        async with self._asking() as js:
            await js.publish(
                self._subjects + host.name, headers=headers, msg_ttl=self._ttl_s, timeout=REQUEST_S
            )

    async def close(self) -> None:
        await self._tasks.aclose()
        if self._client is not None:
            with contextlib.suppress(Exception):  # whatever it holds, we are done with it
                async with asyncio.timeout(REQUEST_S):
                    await self._client.close()

    # -- the connection ----------------------------------------------------------------------------

    async def _connect(self, client: Client) -> None:
        """Until it is there; from then on it finds a living server by itself."""
        options: dict[str, Any] = {}
        if self._credentials is not None:
            options["user_credentials"] = str(self._credentials)
        await client.connect(
            self._servers, name="holdfast", error_cb=_told, max_reconnect_attempts=-1,
            reconnect_time_wait=1, connect_timeout=2, ping_interval=2, max_outstanding_pings=2,
            # Nothing of a time without a server is sent later: a record of then would be a lie.
            pending_size=0, **options,
        )  # fmt: skip
        await client.subscribe(self._subjects + ">", cb=self._overheard)

    async def _overheard(self, message: Any) -> None:
        name = message.subject.removeprefix(self._subjects)
        try:
            host: HostInfo | None = decode_host(message.data) if message.data else None
        except ProtocolError:
            return
        before = self._known.get(name)
        if before is None or host is None or (before.life, before.state) != (host.life, host.state):
            self._changed()

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[JetStreamContext]:
        """A JetStream to ask, within LOOK_S. Raises EngineUnavailable for whatever fails."""
        import nats.errors
        import nats.js.errors

        if self._client is None or not self._client.is_connected:
            raise EngineUnavailable("NATS is not connected")
        js = self._client.jetstream(timeout=REQUEST_S)
        try:
            async with asyncio.timeout(LOOK_S):
                if not self._ready:
                    await self._make_bucket(js)
                    self._ready = True
                yield js
        except nats.js.errors.NotFoundError as error:
            self._ready = False  # somebody deleted it, or all servers lost it
            self._revision = None
            raise EngineUnavailable(f"NATS: bucket {self._bucket}: {error}") from error
        except (nats.errors.Error, OSError, ValueError) as error:  # TimeoutError is an OSError
            text = str(error) or type(error).__name__
            raise EngineUnavailable(f"NATS: {text}") from error

    async def _make_bucket(self, js: JetStreamContext) -> None:
        import nats.js.errors
        from nats.js.api import KeyValueConfig

        with contextlib.suppress(nats.js.errors.NotFoundError):
            await js.stream_info(self._stream)
            return
        assert self._client is not None
        replicas = REPLICAS if len(self._client.servers) >= REPLICAS else 1
        with contextlib.suppress(nats.js.errors.BadRequestError):  # another host was first
            await js.create_key_value(KeyValueConfig(
                bucket=self._bucket, history=1, replicas=replicas, limit_marker_ttl=self._ttl_s,
            ))  # fmt: skip

    # -- records -----------------------------------------------------------------------------------

    async def _put(self, js: JetStreamContext, name: str, body: bytes, last: int) -> bool:
        """Whether it is stored; False where `last` is not the newest revision."""
        import nats.js.errors

        try:
            done = await js.publish(
                self._subjects + name, body, headers={_EXPECTED: str(last)},
                msg_ttl=self._ttl_s, timeout=REQUEST_S,
            )  # fmt: skip
        except nats.js.errors.APIError as error:
            if error.err_code in WRONG_REVISION:
                return False
            raise
        self._revision = done.seq
        return True

    async def _give_way(self, js: JetStreamContext, host: HostInfo) -> None:
        """What stands there is newer than we thought. A reply of ours that was lost, a record that
        expired: go on from there. Raises NameTaken for another life, if we have renewed before.
        """
        revision, data = await self._last(js, host.name)
        other: HostInfo | None = None
        with contextlib.suppress(ProtocolError):
            other = decode_host(data) if data is not None else None
        if self._revision is not None:
            if other is not None and other.life != host.life:
                raise NameTaken(f"another process runs as host {host.name}")
            self._revision = revision

    async def _last(self, js: JetStreamContext, name: str) -> tuple[int, bytes | None]:
        """Revision and bytes of the newest record; 0 where there never was one, no bytes where it
        has gone.
        """
        import nats.js.errors

        try:
            found = await js.get_last_msg(self._stream, self._subjects + name)
        except nats.js.errors.NotFoundError as error:
            if error.err_code == _NO_MESSAGE:
                return 0, None
            raise
        return found.seq or 0, found.data or None

    async def _subject_names(self, js: JetStreamContext) -> list[str]:
        info = await js.stream_info(self._stream, subjects_filter=self._subjects + ">")
        return sorted(info.state.subjects or {})


_NO_MESSAGE: Final = 10037


async def _told(error: Exception) -> None:
    # Whether records can be renewed is what counts, and that is told (infra/placement/renewing.py).
    log.debug("nats error=%s", error)
