"""The parse gate: a value is taken only where its schema says Ok. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

import msgspec

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Ok(msgspec.Struct, Generic[T_co], frozen=True, gc=False):
    """The value, as the schema gives it."""

    tag: ClassVar[Literal["Ok"]] = "Ok"
    value: T_co


class Err(msgspec.Struct, frozen=True, gc=False):
    """Why the value is not taken."""

    tag: ClassVar[Literal["Err"]] = "Err"
    error: Any


class SyncSchema(Protocol[T_co]):
    """What decides whether a value is taken; `parse` may change it. Raising counts as Err."""

    def parse(self, value: Any, /) -> Ok[T_co] | Err: ...


class _Passthrough:
    def parse(self, value: Any) -> Ok[Any]:
        """Whatever comes."""
        return Ok(value)


class _MsgspecSchema(Generic[T]):
    def __init__(self, kind: type[T]) -> None:
        self._kind = kind

    def parse(self, value: Any) -> Ok[T] | Err:
        """The value as the type, or what msgspec finds wrong with it."""
        try:
            return Ok(msgspec.convert(value, self._kind))
        except (msgspec.ValidationError, RecursionError) as error:
            return Err(error)


PASSTHROUGH: Final[SyncSchema[Any]] = _Passthrough()
"""Takes everything: for values that are trusted, said aloud."""


def msgspec_schema(kind: type[T]) -> SyncSchema[T]:
    """A schema from a type that msgspec understands: a Struct, a dataclass, a TypedDict, dict[...].

    Values of the wire become instances of it; an instance passes as it is.
    """
    return _MsgspecSchema(kind)
