"""Errors carried across a link: by class name, and nothing but what can be told. Pure.

A class the receiver does not know becomes its nearest known base, so a peer of another version is
still understood: a caller acts on `code` and `retryable`, and these always come across.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from infra.errors import Busy, HoldfastError, ScopeError

TEXT_CHARS_MAX: Final = 2000
_MEMBERS_MAX: Final = 16


class LinkLost(ScopeError):
    """The link ended while the answer was awaited: it may have been done or not."""

    code = "link_lost"
    retryable = True


class DeadlinePassed(ScopeError):
    """The answer did not come in time: it may have been done or not."""

    code = "try_later"
    retryable = True


class Told(msgspec.Struct, array_like=True):
    """An error on the wire. `names`: its class and the bases of it that are ours, nearest first."""

    names: list[str]
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    members: dict[str, Any] = {}


_decode = msgspec.msgpack.Decoder(Told).decode
_encode = msgspec.msgpack.Encoder().encode


def tell(error: BaseException) -> Told:
    """The error as it crosses. What is none of ours says no more than that it happened."""
    if not isinstance(error, HoldfastError):
        return Told(["HoldfastError"], "internal", f"{type(error).__name__} in an actor", False)
    names = [c.__name__ for c in type(error).__mro__ if issubclass(c, HoldfastError)]
    members = {
        name: value
        for name, value in list(vars(error).items())[:_MEMBERS_MAX]
        if name not in ("code", "retry_after_ms") and _plain(value)
    }
    text = str(error)[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode()
    return Told(names, error.code, text, error.retryable, error.retry_after_ms, members)


def told(found: Told) -> HoldfastError:
    """The error at the other end: of the same class where this process has it."""
    known = _classes()
    for name in found.names:
        cls = known.get(name)
        if cls is not None:
            break
    else:
        cls = Busy if found.retryable else HoldfastError
    error = cls.__new__(cls)
    Exception.__init__(error, found.message)
    for name, value in found.members.items():
        if name.isidentifier() and not name.startswith("_"):
            setattr(error, name, value)
    error.code = found.code
    error.retry_after_ms = found.retry_after_ms
    if error.retryable is not found.retryable:
        error.retryable = found.retryable
    return error


def encode_error(error: BaseException) -> msgspec.Raw:
    """For a `Fail` frame."""
    return msgspec.Raw(_encode(tell(error)))


def decode_error(raw: msgspec.Raw) -> HoldfastError:
    """Of a `Fail` frame; what cannot be read is an error as well."""
    try:
        return told(_decode(raw))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return HoldfastError(f"an error that cannot be read: {error}")


def _plain(value: Any) -> bool:
    try:
        return len(_encode(value)) <= TEXT_CHARS_MAX
    except (TypeError, UnicodeError, OverflowError, RecursionError, ValueError):
        return False


def _classes() -> dict[str, type[HoldfastError]]:
    found: dict[str, type[HoldfastError]] = {}
    waiting: list[type[HoldfastError]] = [HoldfastError]
    while waiting:
        cls = waiting.pop()
        found.setdefault(cls.__name__, cls)
        waiting.extend(cls.__subclasses__())
    return found
