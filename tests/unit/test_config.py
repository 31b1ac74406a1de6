"""Where a value comes from, what is refused, and that the documents say what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.cli.reference import cli_document, configuration_document
from edge.config import Config, ScopeOverride, check, keys, redacted
from edge.config_sources import load_config, load_with_sources
from infra.errors import ConfigError

ROOT = Path(__file__).parents[2]
SECRET = "s" * 32


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "holdfast.toml"
    path.write_text(text)
    return path


def refusal(
    overrides: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    path: Path | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides or {}, environ or {}, path)
    return str(caught.value)


def test_no_source_gives_the_defaults() -> None:
    assert load_config({}, {}, None) == Config()


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = toml(tmp_path, "port = 1\nretain = 1\nidle_s = 1\n")
    environ = {"HOLDFAST_PORT": "2", "HOLDFAST_RETAIN": "2"}
    config, sources = load_with_sources({"port": "3", "retain": None}, environ, path)
    assert (config.port, config.retain, config.idle_s, config.stall_s) == (3, 2, 1.0, 30.0)
    assert sources["port"] == "--port"
    assert sources["retain"] == "HOLDFAST_RETAIN"
    assert sources["idle_s"] == "holdfast.toml: idle_s"
    assert sources["stall_s"] == "default"


def test_plain_names_count_where_the_longer_is_absent() -> None:
    assert load_config({}, {"PORT": "1", "HOST": "::1"}, None).port == 1
    assert load_config({}, {"PORT": "1", "HOLDFAST_PORT": "2"}, None).port == 2
    assert load_config({}, {"NO_COLOR": "1"}, None).color is False
    assert load_config({}, {"NO_COLOR": ""}, None).color is True


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("idle_s", "1.5", 1.5),
        ("compression", "true", True),
        ("compression", "1", True),
        ("compression", "off", False),
        ("uvloop", "off", "off"),
        (
            "cors_origins",
            "https://a.example, https://b.example",
            ("https://a.example", "https://b.example"),
        ),
        ("cors_origins", "", ()),
        ("scopes", '{"log:*": {"retain": 5}}', {"log:*": ScopeOverride(retain=5)}),
    ],
)
def test_text_is_read_by_the_type_of_its_key(name: str, text: str, value: object) -> None:
    assert getattr(load_config({}, {f"HOLDFAST_{name.upper()}": text}, None), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "70000"),
        ("port", "-1"),
        ("port", "1.5"),
        ("port", ""),
        ("idle_s", "nan"),
        ("retain", "0"),
        ("frame_bytes_max", "1"),
        ("durability", "always"),
        ("durability", "replicated"),
        ("compression", "perhaps"),
        ("scopes", "{"),
        ("scopes", '{"a": {"retain": "x"}}'),
        ("scopes", '{"": {"retain": 1}}'),
        ("data_dir", ""),
    ],
)
def test_bad_value_names_its_key(name: str, text: str) -> None:
    told = refusal(environ={f"HOLDFAST_{name.upper()}": text})
    assert name in told or "pattern" in told


def test_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    assert "'retain'" in refusal(environ={"HOLDFAST_RETIAN": "1"})
    assert "'port'" in refusal({"prot": "1"})
    told = refusal(path=toml(tmp_path, "idle = 5\n"))
    assert "'idle_s'" in told
    assert "holdfast.toml" in told
    assert "'retain'" in refusal(path=toml(tmp_path, '[scopes."a:*"]\nretian = 5\n'))


def test_foreign_names_of_the_environment_are_left_alone() -> None:
    environ = {
        "HOLDFAST_PORT": "tcp://10.0.0.1:80",  # what Kubernetes sets for a service `holdfast`
        "HOLDFAST_PORT_80_TCP_ADDR": "10.0.0.1",
        "HOLDFAST_SERVICE_HOST": "10.0.0.1",
        "HOLDFAST_URL": "http://localhost",
        "HOLDFAST_SIM_RUNS": "5",
        "HOLDFASTER": "1",
    }
    assert load_config({}, environ, None) == Config()


@pytest.mark.parametrize(
    "text",
    [
        f"k1:{SECRET},k2:{SECRET}",
        f"# keys\nk1:{SECRET}\n\nk2:{SECRET}\n",
        f'[{{"id": "k1", "secret": "{SECRET}"}}, {{"id": "k2", "secret": "{SECRET}"}}]',
    ],
)
def test_token_keys_from_text_and_file(tmp_path: Path, text: str) -> None:
    direct = load_config({}, {"HOLDFAST_TOKEN_KEYS": text}, None)
    assert [key.id for key in direct.token_keys] == ["k1", "k2"]
    file = tmp_path / "keys"
    file.write_text(text)
    assert load_config({}, {"HOLDFAST_TOKEN_KEYS_FILE": str(file)}, None) == direct
    assert load_config({"token_keys_file": str(file)}, {}, None) == direct
    assert load_config({}, {}, toml(tmp_path, f'token_keys_file = "{file}"\n')) == direct


def test_secret_given_twice_in_one_source_is_refused(tmp_path: Path) -> None:
    environ = {"HOLDFAST_TOKEN_KEYS": f"a:{SECRET}", "HOLDFAST_TOKEN_KEYS_FILE": "/nonexistent"}
    assert "both" in refusal(environ=environ)
    both = f'token_keys = [{{id = "a", secret = "{SECRET}"}}]\ntoken_keys_file = "x"\n'
    assert "both" in refusal(path=toml(tmp_path, both))


def test_file_over_a_weaker_source_is_no_conflict(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"new:{SECRET}")
    environ = {"HOLDFAST_TOKEN_KEYS": f"old:{SECRET}"}
    config = load_config({"token_keys_file": str(file)}, environ, None)
    assert [key.id for key in config.token_keys] == ["new"]


@pytest.mark.parametrize(
    "text", ["k1:short", "k1", f"k1:{SECRET},k1:{SECRET}", '[{"id": "k1"}]', "[1"]
)
def test_bad_token_keys_are_refused_without_showing_them(text: str) -> None:
    told = refusal(environ={"HOLDFAST_TOKEN_KEYS": text})
    assert "short" not in told
    assert SECRET not in told


def test_secrets_are_not_printed() -> None:
    config = load_config({}, {"HOLDFAST_TOKEN_KEYS": f"k1:{SECRET}"}, None)
    assert SECRET not in repr(config)
    assert SECRET not in str(redacted(config))


@pytest.mark.parametrize("text", ["port = ", "\x00", "[scopes]\nx = 1\n", 'port = "x"\n'])
def test_bad_file_is_refused(tmp_path: Path, text: str) -> None:
    refusal(path=toml(tmp_path, text))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot read" in refusal(path=tmp_path / "none.toml")
    assert "cannot read" in refusal(environ={"HOLDFAST_TOKEN_KEYS_FILE": str(tmp_path / "none")})


def test_scope_settings_lay_matching_patterns_over_each_other() -> None:
    config = Config(
        retain_bytes=7,
        scopes={
            "log:*": ScopeOverride(retain=5, materialize=False),
            "log:a": ScopeOverride(retain=9),
            "log:b": ScopeOverride(retain_seconds=3),
        },
    )
    settings = config.settings_for("log:a")
    assert (settings.retain, settings.materialize, settings.retain_bytes) == (9, False, 7)
    assert config.settings_for("doc:a").retain == config.retain
    assert config.settings_for("log:b").retain_seconds == 3


def test_override_fields_are_keys_of_the_whole() -> None:
    assert set(ScopeOverride.__struct_fields__) <= set(Config.__struct_fields__)


def test_every_key_has_a_default_a_unit_and_a_line() -> None:
    for key in keys():
        assert key.unit
        assert key.doc.endswith(".")
        assert msgspec.convert(msgspec.to_builtins(key.default), key.type) == key.default


def test_configuration_document_is_current() -> None:
    written = (ROOT / "docs/configuration.md").read_text()
    assert written == configuration_document(), "run: python -m edge.cli.reference"
    for key in keys():
        assert f"`{key.name}`" in written


def test_cli_document_is_current() -> None:
    assert (ROOT / "docs/cli.md").read_text() == cli_document(), "run: python -m edge.cli.reference"


def test_keep_secrets_are_a_table_in_every_source_and_never_shown(tmp_path: Path) -> None:
    told = '{"home/notes": "verysecret"}'
    file = tmp_path / "secrets"
    file.write_text(told)
    toml = tmp_path / "holdfast.toml"
    toml.write_text('[keep_secrets]\n"home/notes" = "verysecret"\n')
    found = [
        load_config({}, {"HOLDFAST_KEEP_SECRETS": told}, None),
        load_config({}, {"HOLDFAST_KEEP_SECRETS_FILE": str(file)}, None),
        load_config({}, {}, toml),
    ]
    for config in found:
        assert config.keep_secrets == {"home/notes": "verysecret"}
        assert "verysecret" not in str(redacted(config))
    with pytest.raises(ConfigError, match="expected a table") as caught:
        load_config({}, {"HOLDFAST_KEEP_SECRETS": '["verysecret"]'}, None)
    assert "verysecret" not in str(caught.value)


def test_hosts_need_what_they_share() -> None:
    key = {"link_key": "k" * 32}
    good: dict[str, Any] = {"bucket": "file:b", "hosts": "s3", "host_name": "a", **key}
    check(Config(**good))
    assert Config(**good).settings_for("run:1").durability == "replicated"
    wrongs: tuple[dict[str, Any], ...] = (
        {"bucket": ""}, {"link_key": "short"}, {"host_name": ""}, {"edges": 1},
        {"placement": "tenant"}, {"hosts": "static"}, {"hosts": "nats"}, {"durability": "local"},
        {"link_listen": "tcp:0.0.0.0:1"}, {"link_address": "unix:/x"},
        {"hosts": "none", "reuse_port": True},
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            check(Config(**{**good, **wrong}))
    check(Config(**{**good, "link_listen": "tcp:0.0.0.0:1", "link_address": "tcp:a.example:1"}))
    assert "kkk" not in str(redacted(Config(**good)))
