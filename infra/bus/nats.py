"""A bus over NATS (nats-py, extra `nats`): core publish and subscribe, nothing stored.

nats-py reconnects and subscribes again by itself; what was published meanwhile by others is lost,
and it drops messages of a subscription whose queue is full. Both reach `on_loss`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from infra.bus.queued import BusGone, Message, QueuedBus, log

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription


CONFIRM_WAIT_S: Final = 2


class NatsBus(QueuedBus):
    """Of a connected nats-py client, which stays its owner's: `aclose` does not close it."""

    name = "NATS bus"

    def __init__(self, client: Client, *, pending_messages_max: int | None = None) -> None:
        """`pending_messages_max`: per subject, what may wait for its handlers before nats-py drops
        (its default: 524,288).
        """
        from nats import errors

        super().__init__()
        self._errors = errors
        self._client = client
        self._options: dict[str, Any] = {}
        if pending_messages_max is not None:
            self._options["pending_msgs_limit"] = pending_messages_max
        self._held: dict[str, Subscription] = {}
        self._back = asyncio.Event()
        # nats-py takes callbacks only at connect, and this client is connected already.
        _chain(client, "_reconnected_cb", self._reconnected)
        _chain(client, "_closed_cb", self._gone)
        _chain(client, "_error_cb", self._failed)

    @property
    def payload_bytes_max(self) -> int:
        """What the server said."""
        return self._client.max_payload

    async def aclose(self) -> None:
        """Stop, and end the subscriptions."""
        await super().aclose()
        self._handlers.clear()
        if not self._client.is_closed:
            with contextlib.suppress(BusGone):
                await self._sync()

    async def _send(self, messages: Sequence[Message]) -> None:
        publish, errors = self._client.publish, self._errors
        for subject, payload in messages:
            while True:
                try:
                    await publish(subject, payload)
                except errors.OutboundBufferLimitError:
                    # Away, and the client's own buffer is full: wait, so that order is kept.
                    await self._reconnect()
                    continue
                except (errors.ConnectionClosedError, errors.ConnectionDrainingError) as error:
                    raise BusGone(str(error)) from error
                except errors.Error as error:
                    self.send_errors += 1
                    log.warning("not published subject=%s error=%s", subject, error)
                break

    async def _sync(self) -> None:
        try:
            for subject in [held for held in self._held if held not in self._handlers]:
                await self._held.pop(subject).unsubscribe()
            for subject in [wanted for wanted in self._handlers if wanted not in self._held]:
                self._held[subject] = await self._client.subscribe(
                    subject, cb=self._receiver(subject), **self._options
                )
        except (self._errors.ConnectionClosedError, self._errors.ConnectionDrainingError) as error:
            raise BusGone(str(error)) from error

    async def _confirm(self) -> None:
        while True:
            try:
                # Twice, because its ping overtakes commands that it has not written yet: the answer
                # to the first says that they are written, to the second that they have arrived.
                await self._client.flush(CONFIRM_WAIT_S)
                await self._client.flush(CONFIRM_WAIT_S)
                return
            except self._errors.ConnectionClosedError as error:
                raise BusGone(str(error)) from error
            except self._errors.Error:  # an answer is lost with its connection: ask again
                await self._reconnect()

    async def _reconnect(self) -> None:
        """Return once there is a connection. Raises BusGone."""
        while not self._client.is_connected:
            if self._client.is_closed:
                raise BusGone("the client is closed")
            self._back.clear()
            await self._back.wait()

    def _receiver(self, subject: str) -> Callable[[Msg], Awaitable[None]]:
        heard = self._heard

        async def receive(message: Msg) -> None:
            heard(subject, message.data)

        return receive

    def _reconnected(self) -> None:
        self._back.set()
        self._lost(None)

    def _gone(self) -> None:
        self._back.set()
        self._end()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, self._errors.SlowConsumerError):
            self._lost(error.subject)


def nats_connection(client: Client, *, pending_messages_max: int | None = None) -> NatsBus:
    """The bus of a connected nats-py client. Call it on the client's event loop."""
    return NatsBus(client, pending_messages_max=pending_messages_max)


def _chain(client: Client, name: str, ours: Callable[..., None]) -> None:
    """Have `ours` called before the callback that the client has under this name."""
    before: Callable[..., Awaitable[None]] | None = getattr(client, name)

    async def both(*args: Any) -> None:
        ours(*args)
        if before is not None:
            await before(*args)

    setattr(client, name, both)
