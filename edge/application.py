"""What a user declares in `app.py`: who may come in, what happens at an alarm, which views exist.

An Application only collects; the server reads it and binds itself as the runtime. Until then, and
after the server has stopped, the calls that need one raise RuntimeError. Hooks may be plain or
async functions; they run outside every transaction, so a slow one holds up no scope.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from actors.dialects import Dialect
from actors.dialects.stratasync.models import SyncModel
from actors.dialects.stratasync.plan import StrataDialect
from actors.dialects.stratasync.trial import try_models
from edge.auth import Authenticate, Authorize, resolve
from edge.client.para.schema import SyncSchema
from edge.client.para.transport import SyncTransport
from edge.dialects.para.access import KeyAuthorize
from edge.dialects.para.authority import SyncedAuthority
from edge.dialects.para.declared import ParaDeclared
from edge.dialects.para.fields import Authority, Resolver, Visibility
from edge.dialects.para.kinds import SyncedKind, Upcast
from edge.dialects.para.queries import DeclaredQuery, Evaluate, PartOf, ReadSet
from edge.dialects.para.sources import Compute, On, Source
from edge.dialects.para.spaces import ScopeOf
from edge.dialects.stratasync.auth import StrataAuth
from edge.dialects.stratasync.database import StrataDatabase
from edge.dialects.stratasync.declared import Declared, SocketHooks
from infra.errors import ConfigError

A = TypeVar("A", bound=Authenticate)
Z = TypeVar("Z", bound=Authorize)

Envelope = Mapping[str, Any]
EnvelopeFactory = Callable[[int], Envelope]


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One due alarm. It may come again after a crash: handlers must bear a repeat.

    `at_ms` is when it was due, in wall milliseconds; after a failed attempt, when it was to be
    tried again. `payload` is any JSON value, `attempt` counts from 1.
    """

    scope: str
    name: str
    at_ms: int
    payload: Any = None
    tenant: str = "default"
    attempt: int = 1


AlarmHandler = Callable[[Alarm], Awaitable[None] | None]
Hook = Callable[[], Awaitable[None] | None]
H = TypeVar("H", bound=AlarmHandler)
K = TypeVar("K", bound=Hook)


class RegisteredView(Protocol):
    """What the server needs of a view to register it; the dialect's `View` fits."""

    @property
    def id(self) -> str: ...


class Published(Protocol):
    """The answer to `publish`: the envelope as stored, and whether it was already there.

    The envelope is None where it was there and retention has taken it since.
    """

    @property
    def envelope(self) -> Mapping[str, Any] | None: ...

    @property
    def duplicate(self) -> bool: ...


class Runtime(Protocol):
    """The running server, as an Application sees it."""

    async def set_alarm(
        self, tenant: str, scope: str, name: str, at_ms: int, payload: Any
    ) -> None: ...

    async def cancel_alarm(self, tenant: str, scope: str, name: str) -> bool: ...

    async def publish(
        self, tenant: str, scope: str, envelope: Envelope | EnvelopeFactory
    ) -> Published: ...

    def strata(self, name: str, tenant: str) -> StrataDatabase: ...

    def para(self, name: str, tenant: str) -> SyncedAuthority: ...


class Application:
    """Hooks, views and handlers of one deployment; `holdfast serve app:app` loads it."""

    def __init__(self) -> None:
        self.authenticator: Authenticate | None = None
        self.authorizer: Authorize | None = None
        self.alarm_handlers: dict[str, AlarmHandler] = {}
        self.views: dict[str, RegisteredView] = {}
        self.declared_strata: Declared | None = None
        self.declared_para: ParaDeclared | None = None
        self._start_hooks: list[Hook] = []
        self._stop_hooks: list[Hook] = []
        self._runtime: Runtime | None = None

    def authenticate(self, hook: A) -> A:
        """Decorator: `hook(credentials)` returns a Principal, or None or AuthError for nobody."""
        if self.authenticator is not None:
            raise ConfigError("authenticate is registered twice")
        self.authenticator = hook
        return hook

    def authorize(self, hook: Z) -> Z:
        """Decorator: `hook(principal, scope, action, resource)` returns Allow, Deny or a bool."""
        if self.authorizer is not None:
            raise ConfigError("authorize is registered twice")
        self.authorizer = hook
        return hook

    def on_alarm(self, name: str) -> Callable[[H], H]:
        """Decorator: `handler(alarm)` runs at least once for every due alarm called `name`."""
        if name in self.alarm_handlers:
            raise ConfigError(f"on_alarm({name!r}) is registered twice")

        def register(handler: H) -> H:
            self.alarm_handlers[name] = handler
            return handler

        return register

    def on_start(self, hook: K) -> K:
        """Decorator: runs once the server is bound and before it takes connections."""
        self._start_hooks.append(hook)
        return hook

    def on_stop(self, hook: K) -> K:
        """Decorator: runs when connections are closed and before the ledgers are; last first."""
        self._stop_hooks.append(hook)
        return hook

    def register_view(self, view: RegisteredView) -> None:
        """Offer a view under its id."""
        if view.id in self.views:
            raise ConfigError(f"view {view.id!r} is registered twice")
        self.views[view.id] = view

    def stratasync(
        self, *, models: Iterable[SyncModel], auth: StrataAuth, hooks: SocketHooks | None = None,
        root: str | None = None,
    ) -> None:  # fmt: skip
        """Serve StrataSync clients at `/strata/{name}/sync`; docs/stratasync.md.

        `root` is the database that `/sync` stands for as well, where there is only one. Raises
        ConfigError for a declaration that cannot work, and when called twice.
        """
        if self.declared_strata is not None:
            raise ConfigError("stratasync is registered twice")
        declared = Declared(tuple(models), auth, hooks or SocketHooks(), root)
        try_models(declared.registry)
        self.declared_strata = declared

    def dialects(self) -> dict[str, Dialect]:
        """For the server: the dialects this application configures, by name."""
        if self.declared_strata is None:
            return {}
        dialect = StrataDialect(self.declared_strata.registry)
        return {dialect.name: dialect}

    def strata(self, name: str, *, tenant: str = "default") -> StrataDatabase:
        """The server's own access to a StrataSync database."""
        if self.declared_strata is None:
            raise ConfigError("no models are declared; call app.stratasync(...) first")
        return self._bound().strata(name, tenant)

    def synced(
        self, name: str, schema: SyncSchema[Any], *, version: str = "1.0",
        authority: Mapping[str, Authority] | None = None,
        visible: Mapping[str, str] | None = None,
        visibility: Mapping[str, Resolver] | None = None,
        upcast: Mapping[int, Upcast] | None = None,
    ) -> SyncedKind:  # fmt: skip
        """Declare objects of a kind (`post`, for keys `post:…`) or of a key pattern (`post:*`).

        `authority` says who owns a field: `server`, `lww` or a merge function. `visible` tags
        fields, `visibility` decides who sees a tag; without a resolver nobody does. `upcast` makes
        of a value of that major one of the next. Serves `/para/{name}/objectfeed`;
        docs/para-sync.md. Raises ConfigError.
        """
        kind = SyncedKind(
            name, schema, version, dict(authority or {}),
            Visibility(visible or {}, visibility or {}), dict(upcast or {}),
        )  # fmt: skip
        self._para().kinds.add(kind)
        return kind

    def presence(self, name: str, schema: SyncSchema[Any]) -> None:
        """Declare presence channels of a kind; a value passes its schema or is not shown."""
        if name in self._para().presence:
            raise ConfigError(f"presence {name!r} is declared twice")
        self._para().presence[name] = schema

    def query(
        self, *, reads: ReadSet | None = None, part_of: PartOf | None = None
    ) -> Callable[[Evaluate], Evaluate]:
        """Decorator: `evaluate(spec, user, objects)` gives the keys of a query, in order.

        `reads(spec, keys)` says whether a write of these keys can change it; without it any can.
        """
        if self._para().query is not None:
            raise ConfigError("query is registered twice")

        def register(evaluate: Evaluate) -> Evaluate:
            self._para().query = DeclaredQuery(evaluate, reads, part_of)
            return evaluate

        return register

    def source(
        self, key: str, *, every: float | None = None, on: On | None = None, once: bool = False,
        namespace: str = "default",
    ) -> Callable[[Compute], Compute]:  # fmt: skip
        """Decorator: the object is what the function returns, computed every so many seconds, on a
        trigger, or once. Raises ConfigError unless exactly one of the three is given.
        """

        def register(compute: Compute) -> Compute:
            self._para().sources.append(Source(key, compute, every, on, once, namespace))
            return compute

        return register

    def objectfeed(
        self, *, authorize: KeyAuthorize | None = None, scope_of: ScopeOf | None = None,
        transport: SyncTransport | None = None, root: str | None = None,
    ) -> None:  # fmt: skip
        """Say more of the objects declared by `synced`; not needed where the defaults will do.

        `authorize(user, key, action)` decides by key in place of the application's hook. `scope_of`
        divides a namespace into scopes by key. `transport`: publish every change there as well.
        `root` is the namespace that `/objectfeed` stands for, too.
        """
        declared = self._para()
        if declared.configured:
            raise ConfigError("objectfeed is configured twice")
        declared.configured = True
        declared.authorize, declared.scope_of = authorize, scope_of
        declared.transport, declared.root = transport, root

    def para(self, name: str = "default", *, tenant: str = "default") -> SyncedAuthority:
        """The server's own access to the objects of a namespace."""
        if self.declared_para is None:
            raise ConfigError("no objects are declared; call app.synced(...) first")
        return self._bound().para(name, tenant)

    def _para(self) -> ParaDeclared:
        if self.declared_para is None:
            self.declared_para = ParaDeclared()
        return self.declared_para

    def bind(self, runtime: Runtime | None) -> None:
        """For the server: make the calls below work; None unbinds."""
        if runtime is not None and self._runtime is not None:
            raise RuntimeError("this application is bound to a running server already")
        self._runtime = runtime

    async def start(self) -> None:
        """For the server: run the start hooks in order; the first error stops the start."""
        for hook in self._start_hooks:
            await resolve(hook())

    async def stop(self) -> None:
        """For the server: run every stop hook, last first, then raise what went wrong."""
        errors: list[Exception] = []
        for hook in reversed(self._stop_hooks):
            try:
                await resolve(hook())
            except Exception as error:  # one bad hook must not keep the others from cleaning up
                errors.append(error)
        if errors:
            raise ExceptionGroup("stop hooks failed", errors)

    async def ring(self, alarm: Alarm) -> None:
        """For the server: run the handler of a due alarm. KeyError where none has its name."""
        await resolve(self.alarm_handlers[alarm.name](alarm))

    async def alarm(
        self,
        scope: str,
        name: str,
        *,
        at_ms: int,
        payload: Any = None,
        tenant: str = "default",
    ) -> None:
        """Have the handler of `name` run at `at_ms` or soon after, also across a restart.

        On disk on return. A second alarm of that scope and name replaces the first. Raises
        ConfigError where no handler has this name: nobody would ever hear it.
        """
        if name not in self.alarm_handlers:
            raise ConfigError(f"no handler for alarm {name!r}; register one with on_alarm")
        await self._bound().set_alarm(tenant, scope, name, at_ms, payload)

    async def cancel_alarm(self, scope: str, name: str, *, tenant: str = "default") -> bool:
        """Take the alarm back; whether there was one. One that is ringing rings to its end."""
        return await self._bound().cancel_alarm(tenant, scope, name)

    async def publish(
        self, scope: str, envelope: Envelope | EnvelopeFactory, *, tenant: str = "default"
    ) -> Published:
        """Append one envelope without `seq`, or what a plain function makes of the seq handed out.

        Saved on return. Raises what the dialect raises for a refused envelope, Busy when the
        scope has too much waiting; with an `eventId` both are safe to repeat.
        """
        return await self._bound().publish(tenant, scope, envelope)

    def _bound(self) -> Runtime:
        if self._runtime is None:
            raise RuntimeError("this application is not running; the call needs a server")
        return self._runtime


def load_application(target: str, *, directory: Path) -> Application:
    """The Application that `module:attribute` names, looked up from `directory` first.

    `attribute` may be dotted and is `app` where left out. Raises ConfigError that says which part
    was not found; an error inside the user's module is chained with its own traceback.
    """
    module_name, _, attribute = target.partition(":")
    attribute = attribute or "app"
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ConfigError(f"{target!r} is not of the form module:attribute")
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    found: object = _import(module_name, directory)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"module {module_name!r} has no attribute {attribute!r}")
        found = getattr(found, part)
    if not isinstance(found, Application):
        kind = type(found).__name__
        raise ConfigError(f"{target} is a {kind}; it must be a holdfast.Application")
    return found


def _import(name: str, directory: Path) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A missing dependency of the user's module is another mistake than a missing module.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(f"no module {name!r} in {directory} or among the packages") from error
        raise ConfigError(f"module {name!r} needs {error.name!r}, not installed") from error
    except Exception as error:
        raise ConfigError(f"module {name!r} failed: {type(error).__name__}: {error}") from error
