"""Where configuration comes from: flags over environment over one TOML file over defaults.

Names in the environment are `HOLDFAST_` and the key in upper case; `PORT`, `HOST` and `NO_COLOR`
count where the longer name is absent. Text is converted by the type of its key: lists are separated
by commas, tables are JSON, token keys are `id:secret`. A secret key may also be given as the name
of a file, by the same key with `_file` appended, in any source.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edge.config import SECRET_KEYS, Config, Key, check, keys
from infra.errors import ConfigError

PREFIX: Final = "HOLDFAST_"
PLAIN: Final = {"PORT": "port", "HOST": "host"}  # what hosts set for every program
SECRET_FILE_BYTES_MAX: Final = 64 << 10
TOML_BYTES_MAX: Final = 1 << 20

# Read elsewhere: by the client commands, and by the tests and benchmarks.
_OTHER_NAMES: Final = {"HOLDFAST_CONFIG", "HOLDFAST_URL", "HOLDFAST_TOKEN"}
_OTHER_PREFIXES: Final = ("HOLDFAST_SIM_", "HOLDFAST_TEST_", "HOLDFAST_BENCH_")
# Kubernetes describes a service called `holdfast` to every pod by names that look like ours.
_SERVICE_PREFIXES: Final = ("HOLDFAST_SERVICE_", "HOLDFAST_PORT_")


class _Given(NamedTuple):
    key: str
    value: Any
    source: str  # as told to the reader: `--port`, `HOLDFAST_PORT`, `holdfast.toml`


def load_config(
    overrides: Mapping[str, Any], environ: Mapping[str, str], toml_path: Path | None
) -> Config:
    """The configuration of this start. Reads `toml_path` and files named by `_file` keys only.

    `overrides` are flags by key; None means not given. Raises ConfigError with the key, where it
    was set and what it should be.
    """
    return load_with_sources(overrides, environ, toml_path)[0]


def load_with_sources(
    overrides: Mapping[str, Any], environ: Mapping[str, str], toml_path: Path | None
) -> tuple[Config, dict[str, str]]:
    """`load_config`, and for each key where its value comes from (`default` where from none)."""
    known = {key.name: key for key in keys()}
    values: dict[str, Any] = {}
    sources = dict.fromkeys(known, "default")
    for given in (*_from_toml(toml_path), *_from_environ(environ), *_from_flags(overrides)):
        name, value = given.key, given.value
        if name not in known:
            secret = name.removesuffix("_file")
            if name == secret or secret not in SECRET_KEYS:
                raise ConfigError(_unknown(name, given.source, known))
            if sources[secret] == given.source.removesuffix("_FILE").removesuffix("_file"):
                raise ConfigError(f"{secret} and {name} are both given; keep one")
            name, value = secret, _read_secret(Path(str(value)), given.source)
        values[name] = _convert(known[name], value, given.source)
        sources[name] = given.source
    config = Config(**values)
    check(config)
    return config, sources


def _from_flags(overrides: Mapping[str, Any]) -> Iterator[_Given]:
    for name, value in overrides.items():
        if value is not None:
            yield _Given(name, value, "--" + name.replace("_", "-"))


def _from_environ(environ: Mapping[str, str]) -> Iterator[_Given]:
    for plain, name in PLAIN.items():
        if plain in environ:
            yield _Given(name, environ[plain], plain)
    if environ.get("NO_COLOR"):  # any text counts, by the convention of that name
        yield _Given("color", False, "NO_COLOR")
    # `_FILE` after its plain name, so that giving both is noticed whatever the order.
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in _OTHER_NAMES:
            continue
        if name.startswith(_OTHER_PREFIXES + _SERVICE_PREFIXES):
            continue
        if name == "HOLDFAST_PORT" and environ[name].startswith("tcp://"):
            continue
        yield _Given(name.removeprefix(PREFIX).lower(), environ[name], name)


def _from_toml(path: Path | None) -> Iterator[_Given]:
    if path is None:
        return
    try:
        with path.open("rb") as file:
            text = file.read(TOML_BYTES_MAX + 1)
        if len(text) > TOML_BYTES_MAX:
            raise ConfigError(f"{path} is larger than {TOML_BYTES_MAX} bytes")
        table = tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOML, UTF-8, digits or nesting beyond reason
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name in sorted(table):
        yield _Given(name, table[name], f"{path.name}: {name}")


def _convert(key: Key, value: Any, source: str) -> Any:
    is_text = isinstance(value, str)
    try:
        given = _from_text(key, value) if is_text else value
        return msgspec.convert(given, key.type, strict=not is_text)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        shown = "" if key.secret else f", not {value!r}"
        default = key.default
        wanted = "a table" if isinstance(default, dict) else "a list of id:secret"
        wanted = "text" if isinstance(default, str) else wanted
        detail = str(error) if not key.secret else f"expected {wanted}"
        if "unknown field" in detail:
            detail, shown = _unknown_field(detail, key), ""
        raise ConfigError(f"{key.name} (from {source}): {detail}{shown}") from error


def _from_text(key: Key, text: str) -> Any:
    """What `text` stands for before its type is checked."""
    if isinstance(key.default, dict):
        return msgspec.json.decode(text or "{}")
    if key.secret and isinstance(key.default, tuple):
        return _key_list(text)
    if isinstance(key.default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(key.default, bool):
        return {"on": "true", "yes": "true", "off": "false", "no": "false"}.get(text.lower(), text)
    return text


def _key_list(text: str) -> Any:
    """Token keys from JSON, or from `id:secret` parts on lines of their own or between commas."""
    if text.lstrip().startswith("["):
        return msgspec.json.decode(text)
    found = []
    for line in text.replace(",", "\n").splitlines():
        if not (part := line.strip()) or part.startswith("#"):
            continue
        name, colon, secret = part.partition(":")
        if not colon:
            raise msgspec.ValidationError("expected id:secret")
        found.append({"id": name.strip(), "secret": secret.strip()})
    return found


def _read_secret(path: Path, source: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(SECRET_FILE_BYTES_MAX).decode().strip()
    except (OSError, ValueError) as error:  # also a name with a null byte, and bad UTF-8
        raise ConfigError(f"{source}: cannot read {path}: {error}") from error


def _unknown(name: str, source: str, known: Iterable[str]) -> str:
    names = [*known, *(f"{secret}_file" for secret in sorted(SECRET_KEYS))]
    return f"unknown key {name!r} (from {source}){_nearest(name, names)}"


def _unknown_field(detail: str, key: Key) -> str:
    """msgspec's message, with the nearest field of an override: it names the wrong one only."""
    from edge.config import ScopeOverride

    wrong = detail.split("`")[1] if "`" in detail else ""
    names = ScopeOverride.__struct_fields__ if key.name == "scopes" else ()
    return f"{detail}{_nearest(wrong, names)}"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
