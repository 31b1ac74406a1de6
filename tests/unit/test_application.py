"""What an Application collects, and that the loader says which part was not found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.access import choose_access
from edge.application import Alarm, Application, load_application
from edge.auth import Credentials, Principal, allow_all, authorize_by_grants
from edge.client.para.schema import PASSTHROUGH
from edge.config import Config
from edge.tokens import TokenKey, mint
from infra.errors import AuthError, ConfigError

KEY = TokenKey("k1", "1" * 32)


@dataclass
class Stored:
    envelope: dict[str, Any]
    duplicate: bool = False


class FakeRuntime:
    """Keeps what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def set_alarm(self, tenant: str, scope: str, name: str, at_ms: int, payload: Any) -> None:
        self.calls.append(("set", tenant, scope, name, at_ms, payload))

    async def cancel_alarm(self, tenant: str, scope: str, name: str) -> bool:
        self.calls.append(("cancel", tenant, scope, name))
        return True

    async def publish(self, tenant: str, scope: str, envelope: Any) -> Stored:
        self.calls.append(("publish", tenant, scope, envelope))
        return Stored(envelope(1) if callable(envelope) else dict(envelope))

    def strata(self, name: str, tenant: str) -> Any:
        self.calls.append(("strata", tenant, name))

    def para(self, name: str, tenant: str) -> Any:
        self.calls.append(("para", tenant, name))


async def test_calls_reach_the_runtime() -> None:
    app, runtime = Application(), FakeRuntime()
    app.on_alarm("ring")(lambda alarm: None)
    app.bind(runtime)
    await app.alarm("doc:1", "ring", at_ms=5, payload={"x": 1}, tenant="t")
    assert await app.cancel_alarm("doc:1", "ring") is True
    published = await app.publish("doc:1", lambda seq: {"seq": seq})
    assert published.envelope == {"seq": 1}
    assert [call[:3] for call in runtime.calls] == [
        ("set", "t", "doc:1"),
        ("cancel", "default", "doc:1"),
        ("publish", "default", "doc:1"),
    ]


async def test_calls_need_a_server() -> None:
    app = Application()
    with pytest.raises(RuntimeError):
        await app.publish("doc:1", {})
    app.bind(FakeRuntime())
    with pytest.raises(RuntimeError):
        app.bind(FakeRuntime())
    app.bind(None)
    with pytest.raises(RuntimeError):
        await app.publish("doc:1", {})


async def test_alarm_nobody_handles_is_refused() -> None:
    app = Application()
    app.bind(FakeRuntime())
    with pytest.raises(ConfigError, match="on_alarm"):
        await app.alarm("doc:1", "ring", at_ms=5)


async def test_alarm_reaches_plain_and_async_handlers() -> None:
    app, heard = Application(), []

    @app.on_alarm("plain")
    def plain(alarm: Alarm) -> None:
        heard.append(alarm.payload)

    @app.on_alarm("slow")
    async def slow(alarm: Alarm) -> None:
        heard.append(alarm.payload)

    await app.ring(Alarm(scope="s", name="plain", at_ms=1, payload=1))
    await app.ring(Alarm(scope="s", name="slow", at_ms=1, payload=2))
    assert heard == [1, 2]


async def test_stop_hooks_run_backwards_and_all_of_them() -> None:
    app, order = Application(), []
    app.on_start(lambda: order.append("start"))
    app.on_stop(lambda: order.append("first"))

    @app.on_stop
    async def broken() -> None:
        raise ValueError("no")

    app.on_stop(lambda: order.append("last"))
    await app.start()
    with pytest.raises(ExceptionGroup):
        await app.stop()
    assert order == ["start", "last", "first"]


@dataclass
class FakeView:
    id: str


def test_nothing_is_registered_twice() -> None:
    app = Application()
    app.authenticate(allow_all)
    app.authorize(authorize_by_grants)
    app.on_alarm("ring")(lambda alarm: None)
    app.register_view(FakeView("v"))
    with pytest.raises(ConfigError):
        app.authenticate(allow_all)
    with pytest.raises(ConfigError):
        app.authorize(authorize_by_grants)
    with pytest.raises(ConfigError):
        app.on_alarm("ring")
    with pytest.raises(ConfigError):
        app.register_view(FakeView("v"))


def test_serve_without_authentication_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_access(Config(), Application(), "serve", lambda: 0)
    assert caught.value.code == "insecure"
    assert choose_access(Config(insecure=True), Application(), "serve", lambda: 0).open_to_all
    assert choose_access(Config(), Application(), "dev", lambda: 0).open_to_all


def test_own_hooks_come_before_tokens() -> None:
    app = Application()
    app.authenticate(lambda credentials: Principal(id="own"))
    access = choose_access(Config(token_keys=(KEY,), insecure=True), app, "serve", lambda: 0)
    assert access.authenticate is app.authenticator
    assert not access.open_to_all


def test_serve_with_keys_needs_a_token_and_dev_takes_one() -> None:
    config = Config(token_keys=(KEY,))
    serve = choose_access(config, Application(), "serve", lambda: 0)
    with pytest.raises(AuthError):
        serve.authenticate(Credentials())
    dev = choose_access(config, Application(), "dev", lambda: 0)
    token = mint(KEY, subject="ada", now_ms=0, ttl_s=60)
    principals = [dev.authenticate(Credentials()), dev.authenticate(Credentials(token))]
    assert [p.id for p in principals if isinstance(p, Principal)] == ["dev", "ada"]
    with pytest.raises(AuthError):
        dev.authenticate(Credentials("x"))


@pytest.fixture
def user_code(tmp_path: Path) -> Iterator[Path]:
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_loader_finds_the_application(user_code: Path) -> None:
    (user_code / "hf_good.py").write_text(
        "from edge.application import Application\n"
        "app = Application()\nclass box:\n    inner = app\n"
    )
    app = load_application("hf_good:app", directory=user_code)
    assert load_application("hf_good", directory=user_code) is app
    assert load_application("hf_good:box.inner", directory=user_code) is app


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("hf_none:app", "no module 'hf_none'"),
        ("hf_bad:nope", "no attribute 'nope'"),
        ("hf_bad:other", "is a int"),
        ("hf_bad:app:x", "not of the form"),
        ("hf_bad.py", "no module"),
        ("../x:app", "not of the form"),
        ("", "not of the form"),
        ("hf_needs:app", "needs 'hf_missing'"),
        ("hf_raises:app", "ZeroDivisionError"),
    ],
)
def test_loader_says_what_is_wrong(user_code: Path, target: str, told: str) -> None:
    (user_code / "hf_bad.py").write_text("other = 1\n")
    (user_code / "hf_needs.py").write_text("import hf_missing\n")
    (user_code / "hf_raises.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=told):
        load_application(target, directory=user_code)


def test_objects_are_declared_once() -> None:
    app = Application()
    with pytest.raises(ConfigError, match="no objects"):
        app.para("main")
    kind = app.synced("post", PASSTHROUGH)
    app.objectfeed(root="main")
    kind.intent("like")(lambda current, given, user: current)
    kind.on_intent(lambda key, intent, user: intent.value)
    app.presence("room", PASSTHROUGH)
    app.query()(lambda spec, user, objects: [])
    again: list[Any] = [
        lambda: app.synced("post", PASSTHROUGH),
        app.objectfeed,
        lambda: kind.intent("like"),
        lambda: kind.on_intent(lambda key, intent, user: None),
        lambda: app.presence("room", PASSTHROUGH),
        app.query,
        lambda: app.source("post:1")(lambda: 1),
    ]
    for twice in again:
        with pytest.raises(ConfigError):
            twice()
    with pytest.raises(RuntimeError):
        app.para("main")
