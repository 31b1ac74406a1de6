"""Signed scope tokens: a JWT (RFC 7519) with HS256 and a key id. Pure; the time is an argument.

Rules that hold for every accepted token: its header says `HS256` and names a configured key; it is
signed with that key; it has `sub` and `exp`; the time is before `exp` and not before `nbf`. The
algorithm is ours, never the token's, so neither `none` nor a public key used as a secret is taken.
PyJWT is imported on first use: a server without tokens does not pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from edge.auth import UNLIMITED, Credentials, Grant, Principal, PublishLimits
from edge.patterns import check_pattern
from edge.tenancy import tenant_fault
from infra.errors import AuthError, ConfigError
from infra.limits import TENANT_BYTES_MAX

ALGORITHM: Final = "HS256"
KEY_BYTES_MIN: Final = 32  # RFC 7518, section 3.2: no shorter than the hash
TOKEN_CHARS_MAX: Final = 8192
GRANTS_MAX: Final = 100
SUBJECT_CHARS_MAX: Final = 256


class TokenKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signing key. The first of a list signs; all of them verify, so that keys can rotate."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"TokenKey(id={self.id!r}, secret='…')"


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The claims Holdfast reads; others are kept in `Principal.claims` and mean nothing here.

    `exp`, `nbf` and `iat` are seconds since 1970. `publish` absent means the server's limits.
    """

    sub: str
    exp: int | float
    iat: int | float | None = None
    nbf: int | float | None = None
    tenant: str = "default"
    scopes: tuple[Grant, ...] = ()
    admin: bool = False
    publish: Literal["unlimited"] | PublishLimits | None = None


class Inspection(msgspec.Struct, frozen=True):
    """What a token says of itself, believed by nobody. `verdict` is `valid`, `unchecked` (no keys
    were given) or the code of the AuthError that `verify` raised."""

    key_id: str | None
    algorithm: str | None
    claims: dict[str, Any]
    verdict: str
    message: str


def check_keys(keys: Sequence[TokenKey]) -> None:
    """Raise ConfigError for an empty or repeated id, or a secret of fewer than 32 bytes."""
    seen: set[str] = set()
    for key in keys:
        if not key.id or key.id in seen:
            raise ConfigError(f"token key id {key.id!r} is empty or used twice", code="bad_key")
        seen.add(key.id)
        try:
            size = len(key.secret.encode())
        except UnicodeEncodeError as error:  # an environment variable that is not UTF-8
            message = f"the secret of token key {key.id!r} is not UTF-8"
            raise ConfigError(message, code="bad_key") from error
        if size < KEY_BYTES_MIN:
            message = f"token key {key.id!r} has {size} bytes; at least {KEY_BYTES_MIN} are needed"
            raise ConfigError(message, code="bad_key")


def mint(
    key: TokenKey,
    *,
    subject: str,
    now_ms: int,
    ttl_s: int,
    scopes: Sequence[Grant] = (),
    tenant: str = "default",
    admin: bool = False,
    publish: Literal["unlimited"] | PublishLimits | None = None,
) -> str:
    """A signed token for `subject` that expires `ttl_s` seconds after `now_ms`.

    Raises ConfigError for a weak key, a bad pattern or anything that `verify` would refuse.
    """
    check_keys([key])
    issued = now_ms // 1000
    claims = Claims(
        sub=subject,
        exp=issued + ttl_s,
        iat=issued,
        tenant=tenant,
        scopes=tuple(scopes),
        admin=admin,
        publish=publish,
    )
    if ttl_s < 1:
        raise ConfigError(f"a token's life must be at least 1 s, not {ttl_s}", code="bad_token")
    if (fault := _fault(claims)) is not None:
        raise ConfigError(fault, code="bad_token")
    import jwt

    body = {name: value for name, value in msgspec.to_builtins(claims).items() if value is not None}
    token = jwt.encode(body, key.secret, algorithm=ALGORITHM, headers={"kid": key.id})
    if len(token) > TOKEN_CHARS_MAX:
        raise ConfigError(f"the token would exceed {TOKEN_CHARS_MAX} characters", code="bad_token")
    return token


def verify(token: str, keys: Sequence[TokenKey], now_ms: int) -> Principal:
    """The principal a token stands for.

    Raises AuthError with code `token_invalid` (malformed, forged, or claims that cannot be used),
    `token_unknown_key` (its key id is not configured) or `token_expired`.
    """
    header = _header(token)
    if header.get("alg") != ALGORITHM:
        raise AuthError(f"tokens must be signed with {ALGORITHM}", code="token_invalid")
    key_id = header.get("kid")
    if not isinstance(key_id, str):
        raise AuthError("the token names no key (kid)", code="token_invalid")
    key = next((key for key in keys if key.id == key_id), None)
    if key is None:
        raise AuthError("the token's key is not known here", code="token_unknown_key")
    check_keys([key])
    raw = _signed_claims(token, key)
    return _principal(raw, now_ms)


def inspect(token: str, keys: Sequence[TokenKey] = (), *, now_ms: int) -> Inspection:
    """What the token says, and what `verify` thinks of it; raises AuthError if it is no JWT."""
    header = _header(token)
    import jwt

    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise AuthError(f"this is not a token: {error}", code="token_invalid") from error
    verdict, message = "unchecked", "no keys given"
    if keys:
        try:
            verify(token, keys, now_ms)
            verdict, message = "valid", "signature and claims are good"
        except AuthError as error:
            verdict, message = error.code, str(error)
    return Inspection(_text(header.get("kid")), _text(header.get("alg")), claims, verdict, message)


def token_authenticator(
    keys: Sequence[TokenKey], now_ms: Callable[[], int]
) -> Callable[[Credentials], Principal]:
    """The built-in authenticator: the bearer must be a token signed with one of `keys`."""
    check_keys(keys)

    def authenticate(credentials: Credentials, /) -> Principal:
        if credentials.token is None:
            raise AuthError("a token is needed")
        return verify(credentials.token, keys, now_ms())

    return authenticate


def _header(token: str) -> dict[str, Any]:
    if len(token) > TOKEN_CHARS_MAX:
        message = f"a token has at most {TOKEN_CHARS_MAX} characters"
        raise AuthError(message, code="token_invalid")
    import jwt

    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise AuthError("this is not a token", code="token_invalid") from error


def _signed_claims(token: str, key: TokenKey) -> dict[str, Any]:
    import jwt

    # Times are checked by `_principal` against the caller's clock; the library would read its own.
    try:
        return jwt.decode(
            token,
            key.secret,
            algorithms=[ALGORITHM],
            options={
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_aud": False,
                "verify_iss": False,
                "verify_sub": False,
            },
        )
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise AuthError("the token's signature is not good", code="token_invalid") from error


def _principal(raw: dict[str, Any], now_ms: int) -> Principal:
    try:
        claims = msgspec.convert(raw, Claims)
    except msgspec.ValidationError as error:
        raise AuthError(f"the token's claims: {error}", code="token_invalid") from error
    if (fault := _fault(claims)) is not None:
        raise AuthError(fault, code="token_invalid")
    if now_ms >= claims.exp * 1000:
        raise AuthError("the token has expired", code="token_expired")
    if claims.nbf is not None and now_ms < claims.nbf * 1000:
        raise AuthError("the token is not valid yet", code="token_invalid")
    return Principal(
        id=claims.sub,
        tenant=claims.tenant,
        claims=raw,
        expires_at_ms=int(claims.exp * 1000),
        grants=claims.scopes,
        admin=claims.admin,
        publish=UNLIMITED if claims.publish == "unlimited" else claims.publish,
    )


def _fault(claims: Claims) -> str | None:
    """What is wrong with well-typed claims, or None."""
    if not 0 < len(claims.sub) <= SUBJECT_CHARS_MAX:
        return f"sub must have 1 to {SUBJECT_CHARS_MAX} characters"
    if tenant_fault(claims.tenant) is not None:
        return f"tenant must have 1 to {TENANT_BYTES_MAX} printable bytes"
    times = [time for time in (claims.exp, claims.nbf) if time is not None]
    # NaN and infinity pass every comparison with a clock, so they would never expire.
    if not all(math.isfinite(time) and 0 <= time < 2**43 for time in times):
        return "exp and nbf must be seconds since 1970"
    if len(claims.scopes) > GRANTS_MAX:
        return f"a token has at most {GRANTS_MAX} scope patterns"
    if isinstance(claims.publish, PublishLimits) and (
        claims.publish.envelopes_per_s < 0 or claims.publish.bytes_per_s < 0
    ):
        return "publish limits must not be negative"
    try:
        for grant in claims.scopes:
            check_pattern(grant.pattern)
    except ConfigError as error:
        return str(error)
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
