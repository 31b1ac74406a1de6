"""Hooks may be plain or async, and authorization fails closed."""

from __future__ import annotations

from typing import Any

import pytest

from edge.auth import (
    Action,
    Allow,
    Authorize,
    Credentials,
    Deny,
    Grant,
    Principal,
    allow_all,
    authorize_by_grants,
    decide,
    recognise,
)
from infra.errors import AuthError

ADA = Principal(id="ada", grants=(Grant("doc:*"), Grant("doc:ada", "write")))


@pytest.mark.parametrize(
    ("scope", "action", "allowed"),
    [
        ("doc:x", Action.READ, True),
        ("doc:x", Action.WRITE, False),
        ("doc:ada", Action.WRITE, True),
        ("doc:ada", Action.READ, True),
        ("run:x", Action.READ, False),
        ("doc:ada", Action.ADMIN, False),
    ],
)
def test_grants_decide(scope: str, action: Action, allowed: bool) -> None:
    assert isinstance(authorize_by_grants(ADA, scope, action), Allow) is allowed


def test_write_grant_includes_read() -> None:
    writer = Principal(id="w", grants=(Grant("doc:*", "write"),))
    assert authorize_by_grants(writer, "doc:1", Action.READ) == Allow()


@pytest.mark.parametrize("action", list(Action))
def test_admin_may_do_everything(action: Action) -> None:
    assert authorize_by_grants(allow_all(Credentials()), "any", action) == Allow()


async def test_async_and_plain_hooks_are_the_same() -> None:
    async def slow(credentials: Credentials) -> Principal:
        return ADA

    assert await recognise(slow, Credentials()) is ADA
    assert await recognise(lambda credentials: ADA, Credentials()) is ADA


async def test_nobody_is_an_auth_error() -> None:
    with pytest.raises(AuthError) as caught:
        await recognise(lambda credentials: None, Credentials())
    assert caught.value.code == "unauthenticated"


def answers(value: Any) -> Authorize:
    def hook(principal: Principal, scope: str, action: Action, resource: Any, /) -> Any:
        return value

    return hook


@pytest.mark.parametrize("value", [False, None, 1, "yes", Deny("no")])
async def test_anything_but_allow_or_true_denies(value: Any) -> None:
    assert isinstance(await decide(answers(value), ADA, "s:1", Action.READ), Deny)


@pytest.mark.parametrize("value", [True, Allow()])
async def test_allow_and_true_allow(value: Any) -> None:
    assert await decide(answers(value), ADA, "s:1", Action.READ) == Allow()


async def test_hook_that_raises_denies_and_tells_the_client_nothing() -> None:
    def broken(principal: Principal, scope: str, action: Action, resource: Any, /) -> bool:
        raise RuntimeError("the password of the database")

    decision = await decide(broken, ADA, "s:1", Action.READ)
    assert isinstance(decision, Deny)
    assert "password" not in decision.reason


def test_credentials_do_not_print_their_secrets() -> None:
    credentials = Credentials("tok-1", {"cookie": "tok-2"}, {"token": "tok-3"}, "127.0.0.1")
    assert "tok-" not in repr(credentials)
