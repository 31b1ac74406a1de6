"""One error root. `code` is a stable word that reaches the wire; the message is free text with the
numbers in it.

A caller acts on the class and on `retryable`: `StorageError` is the outside world, `ScopeError` one
scope, `ProtocolError` the peer's fault. A new class stands here only where a caller would act
differently.
"""

from __future__ import annotations


class HoldfastError(Exception):
    """Base of every error Holdfast raises on purpose.

    `retry_after_ms` is a hint for retryable errors; None leaves the delay to the caller.
    """

    code = "internal"
    retryable = False

    def __init__(
        self, message: str = "", *, code: str | None = None, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message or code or self.code)
        if code is not None:
            self.code = code
        self.retry_after_ms = retry_after_ms


class ConfigError(HoldfastError):
    """The configuration or the command line is wrong; nothing was started."""

    code = "bad_config"


class StorageError(HoldfastError):
    """Disk or object store did not do as asked. What was acknowledged before still holds."""

    code = "storage"
    retryable = True


class FileRefused(StorageError):
    """A ledger file cannot be used as it is (newer version, other scope, damage).
    Left untouched.
    """

    code = "unavailable"
    retryable = False


class Fenced(StorageError):
    """Another writer owns the history. Nothing more of this one may be shown; repeat elsewhere."""

    code = "fenced"


class TryLater(StorageError):
    """The bucket does not take it now. What was committed stays and is shown when it does; safe to
    repeat.
    """

    code = "try_later"


class ScopeError(HoldfastError):
    """One scope refuses; others are not affected."""

    code = "scope_error"


class Busy(ScopeError):
    """A bounded queue is full. Nothing was taken; safe to repeat."""

    code = "busy"
    retryable = True


class NoBucket(ScopeError):
    """More durability was asked for than this server has. Nothing was taken."""

    code = "no_bucket"


class Closed(ScopeError):
    """The scope, hub or server is closing. Nothing was taken."""

    code = "closed"
    retryable = True


class Unavailable(ScopeError):
    """The scope's file cannot be trusted or reached; an operator must look."""

    code = "unavailable"
    retryable = True


class ProtocolError(HoldfastError):
    """The peer sent something it must not. The message says what to send instead."""

    code = "bad_frame"


class AuthError(HoldfastError):
    """No valid credentials, or not enough of them."""

    code = "unauthenticated"


class TenantRefused(AuthError):
    """Whoever asks is known, and is not of the tenant whose address this is."""

    code = "wrong_tenant"
