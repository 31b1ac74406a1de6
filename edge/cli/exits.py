"""Which error ends the program with which code: the one table, so that scripts can rely on it."""

from __future__ import annotations

from enum import IntEnum

from infra.errors import AuthError, ConfigError, HoldfastError, StorageError


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    AUTH = 5
    VERIFICATION = 6
    UNAVAILABLE = 7
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "done",
    Exit.FAILURE: "something failed, see the message",
    Exit.USAGE: "wrong arguments or configuration; nothing was started",
    Exit.NOT_FOUND: "no such scope",
    Exit.CONFLICT: "a conflict, or another owner has taken over",
    Exit.AUTH: "no valid credentials, or not enough of them",
    Exit.VERIFICATION: "what was checked is not as it must be",
    Exit.UNAVAILABLE: "the server, disk or another dependency cannot be reached",
    Exit.INTERRUPTED: "interrupted from the keyboard",
}

_BY_CODE = {
    "not_found": Exit.NOT_FOUND,
    "unknown_scope": Exit.NOT_FOUND,
    "conflict": Exit.CONFLICT,
    "fenced": Exit.CONFLICT,
    "stale_owner": Exit.CONFLICT,
    "forbidden": Exit.AUTH,
    "unauthenticated": Exit.AUTH,
    "revoked": Exit.AUTH,
    "bad_params": Exit.USAGE,
    "bad_scope": Exit.USAGE,
    "no_bucket": Exit.USAGE,
    "verification_failed": Exit.VERIFICATION,
    "bad_import": Exit.VERIFICATION,
    "corrupt": Exit.VERIFICATION,
    "unreachable": Exit.UNAVAILABLE,
    "unavailable": Exit.UNAVAILABLE,
    "busy": Exit.UNAVAILABLE,
    "closed": Exit.UNAVAILABLE,
    "try_later": Exit.UNAVAILABLE,
}


def exit_for(error: HoldfastError) -> Exit:
    """The exit code of an error that reached the top: by its code, else by its class."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    if isinstance(error, ConfigError):
        return Exit.USAGE
    if isinstance(error, AuthError):
        return Exit.AUTH
    if isinstance(error, StorageError):
        return Exit.UNAVAILABLE
    return Exit.FAILURE
