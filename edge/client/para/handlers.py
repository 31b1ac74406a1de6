"""The handlers of keys: ordered sets, delivered to in the order they came. Pure.

Always true: a handler stands once under a key; a key without handlers is not kept; an unsubscribe
ends exactly the registration it was made for, however often and however late it is called.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.dialects.para.envelope import SyncEnvelope

Handler = Callable[[SyncEnvelope], None]
Unsubscribe = Callable[[], None]
OnError = Callable[[str, Handler, Exception], None]
"""(key, handler, what it raised)"""


class HandlerTable:
    """Handlers by key. They are told apart by `==`, so a bound method is one handler."""

    def __init__(self) -> None:
        self._keys: dict[str, dict[Handler, object]] = {}
        self._turns: dict[str, tuple[Handler, ...]] = {}  # as it stood when last delivered to

    def __len__(self) -> int:
        """How many keys have a handler."""
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(
        self, key: str, handler: Handler, last: Callable[[], None] | None = None
    ) -> Unsubscribe:
        """Register; the result ends it. `last` is called when it was the key's last handler.

        Raises TypeError for a handler that cannot be called or hashed.
        """
        if not callable(handler):
            raise TypeError(f"a handler is called with envelopes; {handler!r} cannot be")
        handlers = self._keys.setdefault(key, {})
        token = handlers.setdefault(handler, object())
        self._turns.pop(key, None)

        def unsubscribe() -> None:
            held = self._keys.get(key)
            if held is None or held.get(handler) is not token:
                return
            del held[handler]
            self._turns.pop(key, None)
            if not held:
                del self._keys[key]
                if last is not None:
                    last()

        return unsubscribe

    def deliver(self, key: str, envelope: SyncEnvelope, on_error: OnError | None = None) -> None:
        """Call everyone who is registered now; who comes or goes meanwhile changes nothing.

        A handler that raises starves nobody: the others are called, then the first exception is
        raised, unless `on_error` takes each.
        """
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = tuple(self._keys.get(key, ()))
            if not turn:
                del self._turns[key]
                return
        failure: Exception | None = None
        for handler in turn:
            try:
                handler(envelope)
            except Exception as error:
                if on_error is not None:
                    on_error(key, handler, error)
                elif failure is None:
                    failure = error
        if failure is not None:
            raise failure
