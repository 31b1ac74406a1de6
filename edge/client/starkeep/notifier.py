"""Who wants to hear of changes. A listener that raises spoils it for nobody else. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge.client.starkeep.types import ChangeEvent, ChangeListener

log = logging.getLogger("holdfast.starkeep")


class ChangeNotifier:
    """Listeners in the order they came; the same one twice counts once."""

    def __init__(self) -> None:
        self._listeners: dict[ChangeListener, None] = {}

    def subscribe(self, listener: ChangeListener) -> Callable[[], None]:
        """Hear every event from now on; the result ends it and may be called again."""
        self._listeners[listener] = None

        def unsubscribe() -> None:
            self._listeners.pop(listener, None)

        return unsubscribe

    def emit(self, event: ChangeEvent) -> None:
        """Call every listener, at once. What one raises is logged."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # the listener's own fault: the others still hear it
                log.exception("a change listener failed event=%s", event.event_type)
