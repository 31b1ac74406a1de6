"""Every way a token can be wrong, and that what we mint is what we accept."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.auth import UNLIMITED, Credentials, Grant, PublishLimits
from edge.tokens import TokenKey, check_keys, inspect, mint, token_authenticator, verify
from infra.errors import AuthError, ConfigError

NOW_MS = 1_800_000_000_000
K1 = TokenKey("k1", "1" * 32)
K2 = TokenKey("k2", "2" * 32)


def encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def forge(
    claims: Any, *, header: Any = None, secret: str = K1.secret, hash_name: str = "sha256"
) -> str:
    """A JWT made by hand, so that the library under test is not its own judge."""
    head = {"alg": "HS256", "kid": "k1"} if header is None else header
    signed = encode(json.dumps(head).encode()) + "." + encode(json.dumps(claims).encode())
    mac = hmac.new(secret.encode(), signed.encode(), hash_name).digest()
    return f"{signed}.{encode(mac)}"


def claims(**changes: Any) -> dict[str, Any]:
    return {"sub": "ada", "exp": NOW_MS // 1000 + 60, **changes}


def code_of(token: str, now_ms: int = NOW_MS) -> str:
    with pytest.raises(AuthError) as caught:
        verify(token, [K1, K2], now_ms)
    return caught.value.code


def test_minted_token_verifies_to_what_was_asked() -> None:
    grants = [Grant("doc:*", "read"), Grant("doc:ada", "write")]
    limits = PublishLimits(5, 1000)
    token = mint(
        K2, subject="ada", now_ms=NOW_MS, ttl_s=60, scopes=grants, tenant="t", publish=limits
    )
    principal = verify(token, [K1, K2], NOW_MS)
    assert (principal.id, principal.tenant, principal.admin) == ("ada", "t", False)
    assert principal.grants == tuple(grants)
    assert principal.publish == limits
    assert principal.expires_at_ms == NOW_MS + 60_000


def test_token_of_another_library_verifies() -> None:
    token = forge(claims(scopes=[{"pattern": "run:*"}], role="editor", publish="unlimited"))
    principal = verify(token, [K1], NOW_MS)
    assert principal.grants == (Grant("run:*", "read"),)
    assert principal.claims["role"] == "editor"
    assert principal.publish == UNLIMITED


def test_token_ends_at_its_exp_and_not_before() -> None:
    token = mint(K1, subject="ada", now_ms=NOW_MS, ttl_s=60)
    assert verify(token, [K1], NOW_MS + 59_999).id == "ada"
    assert code_of(token, NOW_MS + 60_000) == "token_expired"


def test_token_is_not_valid_before_nbf() -> None:
    token = forge(claims(nbf=NOW_MS // 1000 + 10))
    assert code_of(token) == "token_invalid"
    assert verify(token, [K1], NOW_MS + 10_000).id == "ada"


def test_rotated_key_is_told_apart_from_a_forgery() -> None:
    token = mint(K1, subject="ada", now_ms=NOW_MS, ttl_s=60)
    with pytest.raises(AuthError) as caught:
        verify(token, [K2], NOW_MS)
    assert caught.value.code == "token_unknown_key"
    assert code_of(forge(claims(), secret=K2.secret)) == "token_invalid"


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "kid": "k1"},
        {"alg": "HS384", "kid": "k1"},
        {"alg": "HS512", "kid": "k1"},
        {"alg": "RS256", "kid": "k1"},
        {"alg": "hs256", "kid": "k1"},
        {"kid": "k1"},
        {"alg": "HS256"},
        {"alg": "HS256", "kid": 1},
        {"alg": "HS256", "kid": ["k1"]},
        {"alg": ["HS256"], "kid": "k1"},
        {"alg": "HS256", "kid": "k1", "crit": ["b64"], "b64": False},
        [],
        "x",
        None,
    ],
)
def test_header_that_is_not_ours_is_refused(header: Any) -> None:
    # Signed with the right key throughout: only the header is at fault.
    hash_name = "sha512" if header and "HS512" in str(header) else "sha256"
    if header is None:
        token = forge(claims()).replace(".", "", 1)
    else:
        token = forge(claims(), header=header, hash_name=hash_name)
    assert code_of(token) == "token_invalid"


def test_unsigned_token_is_refused() -> None:
    head = encode(b'{"alg":"none","kid":"k1"}')
    assert code_of(f"{head}.{encode(json.dumps(claims()).encode())}.") == "token_invalid"
    signed = forge(claims())
    assert code_of(signed.rpartition(".")[0] + ".") == "token_invalid"


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 257},
        {"exp": None},
        {"exp": "1900000000"},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"exp": 10**30},
        {"exp": -1},
        {"nbf": float("nan")},
        {"tenant": ""},
        {"tenant": "x" * 65},
        {"tenant": "a\x00b"},
        {"tenant": "\ud800"},
        {"admin": "true"},
        {"admin": 1},
        {"scopes": "run:*"},
        {"scopes": ["run:*"]},
        {"scopes": [{"pattern": "run:*", "access": "admin"}]},
        {"scopes": [{"pattern": ""}]},
        {"scopes": [{"pattern": "a"}] * 101},
        {"publish": "lots"},
        {"publish": {"envelopes_per_s": -1}},
    ],
)
def test_claims_that_cannot_be_used_are_refused(changes: dict[str, Any]) -> None:
    assert code_of(forge(claims(**changes))) == "token_invalid"


def test_claims_must_be_an_object() -> None:
    assert code_of(forge([1])) == "token_invalid"
    assert code_of(forge(json.loads("[" * 500 + "]" * 500))) == "token_invalid"


@given(st.text(max_size=60) | st.binary(max_size=60).map(encode) | st.just("a" * 9000))
def test_any_text_is_a_token_or_an_auth_error(text: str) -> None:
    with pytest.raises(AuthError):
        verify(text, [K1], NOW_MS)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_changed_signature_or_claims_are_refused(at: int, change: int) -> None:
    token = forge(claims())
    head, body, mac = token.split(".")
    raw = bytearray(base64.urlsafe_b64decode(mac + "=="))
    raw[at % len(raw)] ^= change
    with pytest.raises(AuthError):
        verify(f"{head}.{body}.{encode(bytes(raw))}", [K1], NOW_MS)
    other = encode(json.dumps(claims(admin=True)).encode())
    with pytest.raises(AuthError):
        verify(f"{head}.{other}.{mac}", [K1], NOW_MS)


@pytest.mark.parametrize(
    "keys",
    [
        [TokenKey("a", "x" * 31)],
        [TokenKey("", "x" * 32)],
        [TokenKey("a", "x" * 32), TokenKey("a", "y" * 32)],
    ],
)
def test_weak_and_ambiguous_keys_are_refused(keys: list[TokenKey]) -> None:
    with pytest.raises(ConfigError):
        check_keys(keys)


def test_short_key_verifies_nothing() -> None:
    weak = TokenKey("k1", "short")
    with pytest.raises(ConfigError):
        verify(forge(claims(), secret="short"), [weak], NOW_MS)


@pytest.mark.parametrize("bad", ["sub", "ttl", "pattern", "tenant"])
def test_mint_refuses_what_verify_would(bad: Literal["sub", "ttl", "pattern", "tenant"]) -> None:
    with pytest.raises(ConfigError):
        mint(
            K1,
            subject="" if bad == "sub" else "ada",
            now_ms=NOW_MS,
            ttl_s=0 if bad == "ttl" else 60,
            scopes=[Grant("" if bad == "pattern" else "a")],
            tenant="" if bad == "tenant" else "t",
        )


def test_inspect_tells_without_believing() -> None:
    token = forge(claims(), secret=K2.secret)
    assert inspect(token, now_ms=NOW_MS).verdict == "unchecked"
    found = inspect(token, [K1], now_ms=NOW_MS)
    assert (found.verdict, found.key_id, found.claims["sub"]) == ("token_invalid", "k1", "ada")
    good = inspect(forge(claims()), [K1], now_ms=NOW_MS)
    assert good.verdict == "valid"


def test_authenticator_asks_for_a_token_and_reads_the_clock_each_time() -> None:
    now = [NOW_MS]
    authenticate = token_authenticator([K1], lambda: now[0])
    token = forge(claims())
    assert authenticate(Credentials(token)).id == "ada"
    with pytest.raises(AuthError, match="needed"):
        authenticate(Credentials())
    now[0] += 3_600_000
    with pytest.raises(AuthError, match="expired"):
        authenticate(Credentials(token))


def test_key_does_not_print_its_secret() -> None:
    assert K1.secret not in repr(K1)
    assert K1.secret not in str([K1])
