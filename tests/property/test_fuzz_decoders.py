"""Every decoder takes whatever bytes there are: a value or its documented error, nothing else.

Inputs are arbitrary bytes and text, and valid ones with a few bytes changed, cut or doubled: those
reach deeper than noise does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.dialects.asterql.envelope import body_of, parse_envelope
from edge.config import Config
from edge.config_sources import load_config
from edge.dialects.asterql import frames as f
from edge.dialects.asterql.views import Held, HeldViews, Pages, decode_params, params_hash
from edge.problems import Problem
from edge.tokens import TokenKey, mint, verify
from edge.websocket import Socket, SocketSettings
from infra.errors import AuthError, ConfigError, ProtocolError
from tests.support.app import masked
from tests.unit.test_websocket import FakeSession, FakeTransport

MANY = settings(max_examples=300, deadline=None)
KEY = TokenKey("k1", "a secret of well over thirty-two bytes, for tests")
NOW_MS = 1_795_200_000_000
SCOPE = "run:r1"


@st.composite
def damaged(draw: st.DrawFn, *valid: bytes) -> bytes:
    """One of the valid inputs after a few accidents."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = draw(st.binary(max_size=2))
            case 1:
                del data[at : at + draw(st.integers(1, 8))]
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 12))]
            case _:
                data[at:at] = draw(st.sampled_from(SPICE))
    return bytes(data)


SPICE = [b"\\u0000", b"\\ud800", b"\xff", b"9" * 400, b"1e999", b"[" * 200, b"{" * 200, b"null",
         b"NaN", b"-", b'"', b"\\", b"\x00", b"\r\n", b"\xe2\x80\xa8", b"\xed\xa0\x80"]  # fmt: skip

FRAMES = [
    b'{"type":"sub","scope":"run:r1","since":3,"epoch":"e","batch":true,"durable":false}',
    b'{"type":"publish","id":"x","scope":"run:r1","envelopes":[{"a":1},{}],"durable":true}',
    b'{"type":"ping","t":{"a":[1,2,3]}}',
    b'{"type":"auth","token":"abc"}',
    b'{"type":"replay","scope":"run:r1","since":0}',
    b'{"type":"unsub","scope":"run:r1"}',
]
ENVELOPES = [
    b'{"eventId":"e1","kind":"patch","entities":[{"key":"a:1","patches":[{"op":"set","path":"/n",'
    b'"value":[1,2.5,"x",null,{"y":true}]}]},{"key":"a:2","deleted":true}],"at":5,"cause":"c"}',
    b'{"eventId":"e2","kind":"snapshot","entities":[{"key":"b:1","value":{"s":"\\u00e9\\n"},'
    b'"version":"h1_x"}],"extra":{"deep":[[[]]]}}',
    b'{"eventId":"e3","kind":"invalidate","classes":["a"],"classVersions":{"a":3},"scope":"run:r1"}',
]


@MANY
@given(st.one_of(st.binary(max_size=200), st.text(max_size=100), damaged(*FRAMES)))
def test_frames(data: bytes | str) -> None:
    try:
        frame = f.decode_frame(data)
    except f.BadFrame as error:
        assert error.code in ("bad_json", "bad_frame", "unknown_type")
        assert json.loads(f.error(error.code, str(error), error.re))["type"] == "error"
        return
    if isinstance(frame, f.Ping):
        try:
            assert json.loads(f.pong(frame.t, NOW_MS, {}))["now"] == NOW_MS
        except UnicodeDecodeError:
            assert isinstance(data, bytes)  # the connection answers bad_json
    elif not isinstance(frame, f.Auth):
        assert json.loads(f.unsubscribed(frame.scope))["scope"] == frame.scope


@MANY
@given(st.one_of(st.binary(max_size=200), damaged(*ENVELOPES)))
def test_envelopes(data: bytes) -> None:
    try:
        draft = parse_envelope(data, SCOPE)
    except ProtocolError as error:
        assert error.code in ("bad_envelope", "too_large")
        return
    body = body_of(draft, 7, NOW_MS)
    assert "\n" not in body and "\r" not in body
    stored = json.loads(body, parse_constant=_refuse)  # spliced into others' frames: must be JSON
    assert stored["seq"] == 7 and stored["scope"] == SCOPE and stored["eventId"] == draft.cause
    assert body.startswith('{"seq":7,')
    assert json.loads(f.event(body))["envelope"] == stored
    body.encode()


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


WIRE = [
    masked(1, FRAMES[0]) + masked(9, b"x"),
    masked(1, b"a" * 300, final=False) + masked(0, b"b"),
    masked(8, b"\x03\xe8bye"),
    masked(1, b"\x4a\x04\x00", rsv=0x40),
]


@MANY
@given(
    st.lists(st.one_of(st.binary(max_size=60), damaged(*WIRE)), max_size=6),
    st.booleans(),
)
def test_socket_bytes(parts: list[bytes], deflate: bool) -> None:
    limits = SocketSettings(frame_bytes_max=400, compression=deflate, monotonic=lambda: 1.0)
    socket, session, transport = Socket(limits, deflate), FakeSession(), FakeTransport()
    socket.attach(cast(asyncio.Transport, transport))
    socket.session = cast(Any, session)
    for part in parts:
        socket.data_received(part)
    assert all(len(message) <= 400 for message in session.messages)
    assert session.closed or not transport.closed  # the end may wait for the peer's answer
    assert len(socket._rest) <= 400 + 14 or session.closed


PARAMS = [base64.urlsafe_b64encode(b'{"scope":"run:r1","a":[1,2.5,{"b":null}]}'), b"e30", b""]


def as_text(data: bytes) -> str:
    """Bytes as a header or a query may hold them."""
    return data.decode("utf-8", "surrogateescape")


@MANY
@given(st.one_of(st.text(max_size=60), damaged(*PARAMS).map(as_text), st.binary(max_size=60).map(
    lambda raw: base64.urlsafe_b64encode(raw).decode())))  # fmt: skip
def test_view_parameters(text: str) -> None:
    try:
        params = decode_params(text)
    except Problem as error:
        assert error.code == "bad_params"
        return
    assert re.fullmatch("[0-9a-f]{32}", params_hash(params))


@pytest.mark.parametrize("inner", [b"[" * 4000, b'{"a":' * 4000, b"1" + b"0" * 400, b"1e308"])
def test_view_parameters_beyond_reason(inner: bytes) -> None:
    text = base64.urlsafe_b64encode(b'{"a":' + inner + b"}").decode()
    try:
        params_hash(decode_params(text))
    except Problem as error:
        assert error.code == "bad_params"


@MANY
@given(st.one_of(st.text(max_size=40), st.from_regex(r"tok\.\S{0,4}", fullmatch=True)))
def test_page_tokens(token: str) -> None:
    views = HeldViews(lambda: 0.0)
    views._held["tok"] = Held(b"", cast(Pages, [b"0", b"1", b"2"]), "me", 9.0)
    try:
        _, id, index = views.find(token, "me")
    except Problem as error:
        assert error.code == "view_expired"
        return
    assert (id, index) in (("tok", 1), ("tok", 2))


GRANTED = mint(KEY, subject="u", now_ms=NOW_MS, ttl_s=60).encode()
HEAD = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"k1","typ":"JWT"}').rstrip(b"=")


@MANY
@given(st.one_of(st.text(max_size=60), damaged(GRANTED, HEAD + b".e30.x").map(as_text)))
def test_tokens(text: str) -> None:
    try:
        principal = verify(text, [KEY], NOW_MS)
    except AuthError as error:
        assert error.code in ("token_invalid", "token_unknown_key", "token_expired")
        return
    assert principal.id == "u"


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["sub", "exp", "nbf", "iat", "tenant", "scopes", "admin",
       "publish"]), st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5) |
       st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=4)))  # fmt: skip
def test_signed_claims(claims: dict[str, Any]) -> None:
    import jwt

    token = jwt.encode(claims, KEY.secret, algorithm="HS256", headers={"kid": "k1"}) if not any(
        isinstance(claims.get(name), str) is False and name in claims for name in ("sub", "iss")
    ) else _signed(claims)  # fmt: skip
    try:
        principal = verify(token, [KEY], NOW_MS)
    except AuthError as error:
        assert error.code in ("token_invalid", "token_unknown_key", "token_expired")
        return
    assert principal.expires_at_ms is not None and principal.expires_at_ms > NOW_MS


def _signed(claims: dict[str, Any]) -> str:
    """Signed by hand, where the library would not encode such claims."""
    import hashlib
    import hmac

    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    signature = hmac.new(KEY.secret.encode(), HEAD + b"." + body, hashlib.sha256).digest()
    return b".".join((HEAD, body, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


TOML = [
    b'port = 8000\nidle_s = 2.5\ncors_origins = ["a", "b"]\ninsecure = true\nlog_level = "info"\n',
    b'[scopes."run:*"]\nretain = 5\nmaterialize = false\n[[token_keys]]\nid = "a"\nsecret = "'
    + b"x" * 32 + b'"\n',
    b'token_keys_file = "nowhere"\n', b"port = [[[[1]]]]\n", b"silence_s = nan\nstall_s = inf\n",
    b"port = " + b"[" * 5000, b"port = " + b"9" * 5000, b'token_keys_file = "\\u0000"\n',
]  # fmt: skip


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.one_of(st.binary(max_size=60), damaged(*TOML)))
def test_configuration_files(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_bytes(data)
    try:
        config = load_config({}, {}, path)
    except ConfigError as error:
        assert str(error)
        return
    assert isinstance(config, Config)


@pytest.mark.parametrize("data", TOML)
def test_configuration_examples(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_bytes(data)
    try:
        load_config({}, {}, path)
    except ConfigError as error:
        assert str(error)


@MANY
@given(st.text(max_size=40))
def test_last_event_id(text: str) -> None:
    from edge.dialects.asterql.http import _number

    epoch, _, seq = text.rpartition(".")
    try:
        number = _number(seq)
    except Problem as error:
        assert error.code == "bad_since"
        return
    assert number == int(seq) >= 0 and text.endswith(seq) and epoch in text
