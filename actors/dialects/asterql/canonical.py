"""One text per JSON value, and the hashes made of it, so that server and clients can compare. Pure.

canonical(x): members sorted by code point, no spaces, strings escaped as JSON.stringify escapes
them, numbers as ECMAScript's Number::toString writes the double (1.0 is 1, -0.0 is 0, 1e21, 1e-7).
So a record has one version whatever decoder it came through and on whichever side it was computed.

Almost every record is encoded by msgspec, in C; its text differs from the canonical one only in
some numbers and in lone surrogates. Those are recognised in the result and written over again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final

import msgspec

HASH_PREFIX: Final = "h1_"
_HASH_DIGITS: Final = 32

_encode = msgspec.json.Encoder(order="sorted").encode
# A number below the root that may need other spelling: an exponent, a fraction of zero, or sixteen
# digits, from where an integer may be no double. Inside strings a match costs time, nothing else.
_DOUBTFUL_NUMBER = re.compile(rb"[:,\[]-?\d(?:\d{15}|[\d.]*(?:e|\.0(?![0-9])))")
_SURROGATE = re.compile("[\ud800-\udfff]")


def canonical(value: Any) -> str:
    """The canonical JSON text of a decoded JSON value.

    Numbers are finite: a NaN or an infinity is written `null`, as JSON.stringify would.
    """
    return _canonical_bytes(value).decode()


def hash_record_version(record: Any) -> str:
    """The version of a record: "h1_" and 32 hex digits of SHA-256 over its canonical text."""
    return HASH_PREFIX + sha256(_canonical_bytes(record)).hexdigest()[:_HASH_DIGITS]


def snapshot_hash(entities: Iterable[tuple[str, str]]) -> str:
    """The hash of a scope's (key, version) pairs: SHA-256 over `key version LF`, sorted here."""
    lines = "".join([f"{key} {version}\n" for key, version in sorted(entities)])
    return HASH_PREFIX + sha256(lines.encode()).hexdigest()[:_HASH_DIGITS]


def _canonical_bytes(value: Any) -> bytes:
    if type(value) is float or type(value) is int:
        return _number(value).encode()
    try:
        text = _encode(value)
    except UnicodeEncodeError:  # a lone surrogate, which JSON text can carry only as an escape
        text = b""
    if not text or _DOUBTFUL_NUMBER.search(text) is not None:
        parts: list[str] = []
        _write(value, parts.append)
        text = "".join(parts).encode()
    return text


def _write(value: Any, out: Any) -> None:
    """Write `value` piece by piece: the definition itself, without msgspec's liberties."""
    kind = type(value)
    if kind is str:
        out(_string(value))
    elif kind is int or kind is float:
        out(_number(value))
    elif kind is dict:
        separator = "{"
        for name in sorted(value):
            out(separator + _string(name) + ":")
            _write(value[name], out)
            separator = ","
        out("}" if value else "{}")
    elif kind is list:
        separator = "["
        for item in value:
            out(separator)
            _write(item, out)
            separator = ","
        out("]" if value else "[]")
    else:  # null, true, false
        out(_encode(value).decode())


def _string(text: str) -> str:
    try:
        return _encode(text).decode()
    except UnicodeEncodeError:
        # Well-formed JSON.stringify (ECMA-262, QuoteJSONString): a lone surrogate becomes \udxxx.
        parts = _SURROGATE.split(text)
        escapes = [f"\\u{ord(one):04x}" for one in _SURROGATE.findall(text)] + [""]
        inner = (_encode(part).decode()[1:-1] for part in parts)
        return '"' + "".join(map("".join, zip(inner, escapes, strict=True))) + '"'


def _number(value: int | float) -> str:
    """ECMA-262, Number::toString with radix 10. repr() finds the same shortest digits."""
    try:
        text = repr(float(value))
    except OverflowError:
        return "null"  # an integer beyond every double: Infinity to JavaScript
    if text.endswith(".0"):
        return "0" if value == 0 else text[:-2]
    if "n" in text:  # nan, inf
        return "null"
    return _respelled(text) if "e" in text else text


def _respelled(text: str) -> str:
    """repr() turns to exponents at 1e16 and below 1e-4, ECMAScript at 1e21 and below 1e-6."""
    mantissa, _, exponent = text.partition("e")
    sign = "-" if mantissa[0] == "-" else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = whole + fraction
    point = int(exponent) + 1  # the value is 0.digits times ten to this power
    if 0 < point <= 21:  # repr() has at most 17 digits and point is over 16: no fraction is left
        return sign + digits.ljust(point, "0")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    return f"{sign}{whole}{'.' + fraction if fraction else ''}e{point - 1:+d}"
