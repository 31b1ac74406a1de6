"""What an application says of its objects: the schema of each kind of key, and the rules of its
fields, versions and intents. Pure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from actors.dialects.para.envelope import majors_differ
from actors.dialects.para.keys import check_key, kind_of, version_of
from actors.dialects.para.values import check_json, json_text
from edge.client.para.schema import SyncSchema
from edge.dialects.para.fields import SERVER, Authority, Visibility
from edge.patterns import check_pattern, matches
from infra.errors import ConfigError, ProtocolError, ScopeError

Upcast = Callable[[Any], Any]
MAJORS_MAX = 100


class ParseGateError(ProtocolError):
    """The schema does not take the value; nothing was stored or published."""

    code = "parse_failed"


class SchemaSkew(ScopeError):
    """The stored value is of another major version than the server's, and no upcaster leads there.

    `stored` and `wanted` are versions.
    """

    code = "schema_skew"

    def __init__(self, key: str, stored: str, wanted: str) -> None:
        super().__init__(f"{key!r} is of schema {stored}; this server has {wanted}")
        self.stored = stored
        self.wanted = wanted


class UnknownKind(ProtocolError):
    """No kind is declared for the key."""

    code = "not_found"


class IntentRejected(ScopeError):
    """Raised by an intent handler: the intent is refused for good; code and message reach the
    client.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message, code=code)


@dataclass(frozen=True, slots=True)
class Intent:
    """What a client wants of one object: `value` in place of it, or `name` with an `input`.

    `current` is the stored value, None where there is none; `value` is already under the rules of
    its fields.
    """

    key: str
    current: Any
    value: Any = None
    name: str | None = None
    input: Any = None


Handler = Callable[[str, Intent, Any], "Awaitable[Any] | Any"]
"""`on_intent(key, intent, user)`: the new value. Raises IntentRejected."""

Named = Callable[[Any, Any, Any], "Awaitable[Any] | Any"]
"""`intent(current, input, user)`: the new value. Raises IntentRejected."""

H = TypeVar("H", bound=Handler)
N = TypeVar("N", bound=Named)


@dataclass(slots=True)
class SyncedKind:
    """One kind of objects; made by `Application.synced`."""

    name: str
    schema: SyncSchema[Any]
    version: str = "1.0"
    authority: Mapping[str, Authority] = field(default_factory=dict)
    visible: Visibility = field(default_factory=lambda: Visibility({}, {}))
    upcast: Mapping[int, Upcast] = field(default_factory=dict)
    handler: Handler | None = None
    named: dict[str, Named] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "*" in self.name:
            check_pattern(self.name)
        else:
            check_key(self.name)
        try:
            version_of(self.version)
        except ProtocolError as error:
            raise ConfigError(f"synced {self.name!r}: {error}") from error
        for name, rule in self.authority.items():
            if rule not in (SERVER, "lww") and not callable(rule):
                raise ConfigError(f"synced {self.name!r}: {name}: 'server', 'lww' or a function")

    def on_intent(self, handler: H) -> H:
        """Decorator: decides on every intent that has no handler of its own."""
        if self.handler is not None:
            raise ConfigError(f"synced {self.name!r}: on_intent is registered twice")
        self.handler = handler
        return handler

    def intent(self, name: str) -> Callable[[N], N]:
        """Decorator: `handler(current, input, user)` gives the new value for intents so named."""
        if name in self.named:
            raise ConfigError(f"synced {self.name!r}: intent {name!r} is registered twice")

        def register(handler: N) -> N:
            self.named[name] = handler
            return handler

        return register

    def gate(self, value: Any) -> tuple[Any, str]:
        """(the value as it is stored, its JSON text). Raises ParseGateError, BadValue, TooLarge."""
        if not isinstance(value, msgspec.Struct):
            check_json(value)  # before a schema could make JSON of what is none
        try:
            parsed = self.schema.parse(value)
        except Exception as error:  # user code: a schema that fails has not said Ok
            raise ParseGateError(f"the schema of {self.name!r} failed: {error}") from error
        if parsed.tag != "Ok":
            raise ParseGateError(f"not a {self.name!r}: {str(parsed.error)[:200]}")
        plain = msgspec.to_builtins(parsed.value)
        return plain, json_text(plain)

    def is_current(self, version: str) -> bool:
        """Whether values of the version need no upcaster."""
        return version == self.version or not majors_differ(version, self.version)

    def current(self, key: str, value: Any, version: str) -> tuple[Any, str]:
        """(value, version) as of this server's major. Raises SchemaSkew."""
        if self.is_current(version):
            return value, version
        major, minor = version_of(version)
        wanted, _ = version_of(self.version)
        try:
            for step in range(major, wanted):
                value = self.upcast[step](value)
        except Exception as error:  # none for this step, or user code
            raise SchemaSkew(key, f"{major}.{minor}", self.version) from error
        if major > wanted:
            raise SchemaSkew(key, version, self.version)
        return msgspec.to_builtins(value), self.version


class Kinds:
    """The kinds of one application: by the word before the colon, else by pattern, first match."""

    def __init__(self, kinds: Iterable[SyncedKind] = ()) -> None:
        self._exact: dict[str, SyncedKind] = {}
        self._patterns: dict[str, SyncedKind] = {}
        for kind in kinds:
            self.add(kind)

    def __bool__(self) -> bool:
        return bool(self._exact or self._patterns)

    def add(self, kind: SyncedKind) -> None:
        """Raises ConfigError for a name that is declared already."""
        held = self._patterns if "*" in kind.name else self._exact
        if kind.name in held:
            raise ConfigError(f"synced {kind.name!r} is declared twice")
        held[kind.name] = kind

    def of(self, key: str) -> SyncedKind:
        """The kind of a well-formed key. Raises UnknownKind."""
        found = self._exact.get(key) or self._exact.get(kind_of(key))
        if found is not None:
            return found
        for pattern, kind in self._patterns.items():
            if matches(pattern, key):
                return kind
        raise UnknownKind(f"no objects of kind {kind_of(key)!r} are declared")
