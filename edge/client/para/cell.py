"""Where a replica keeps its value: a cell, injected or a `Signal`. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

Listener = Callable[[Any], None]

_SCALARS: Final = frozenset({bool, int, float, str, bytes, type(None)})


class Cell(Protocol):
    """What a replica needs of a cell; signals of any user-interface library fit with a line."""

    def get(self) -> Any:
        """The value, as a tracked read where the library tracks."""

    def peek(self) -> Any:
        """The value, untracked."""

    def set(self, value: Any, /) -> None:
        """Replace the value and tell whoever watches."""


class Signal:
    """A cell that calls its listeners at once, in the order they came.

    They are not called for the identical object or an equal scalar of the same type. All are called
    even where one raises; the first exception is raised then. A listener that sets the cell again
    ends the round it was called in: nobody sees an older value after a newer one.
    """

    __slots__ = ("_listeners", "_round", "_value")

    def __init__(self, value: Any = None) -> None:
        self._value = value
        self._listeners: dict[object, Listener] = {}
        self._round = 0

    def get(self) -> Any:
        """The value."""
        return self._value

    def peek(self) -> Any:
        """The value."""
        return self._value

    def set(self, value: Any) -> None:
        """Replace the value. Raises what a listener raised, after all were called."""
        old, self._value = self._value, value
        if same(old, value) or not self._listeners:
            return
        self._round += 1
        now = self._round
        failure: Exception | None = None
        for listener in tuple(self._listeners.values()):
            try:
                listener(value)
            except Exception as error:
                failure = failure or error
            if self._round != now:
                break
        if failure is not None:
            raise failure

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have the listener called with each new value; returns what ends that, once or more."""
        token = object()
        self._listeners[token] = listener

        def unsubscribe() -> None:
            self._listeners.pop(token, None)

        return unsubscribe


def same(old: Any, new: Any) -> bool:
    """Whether nobody could tell: the identical object, or an equal scalar of the same type."""
    kind = type(new)
    return old is new or (kind in _SCALARS and type(old) is kind and bool(old == new))
