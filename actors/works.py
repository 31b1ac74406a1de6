"""Every work there is (actors/scan.py), and the data of drafts that have no body: what a dialect
asks of a scope, as it is sent to where the scope's file is. A dialect adds its own here, one line
each. Pure.

Bodies of drafts and rows are JSON, whatever carries them; `data` crosses only where there is no
body that says the same.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from actors.dialects.para.plan import DRAFTS as PARA_DRAFTS
from actors.dialects.para.reads import WORKS as PARA
from actors.dialects.starkeep.reads import WORKS as STARKEEP
from actors.dialects.stratasync.plan import DRAFTS as STRATASYNC_DRAFTS
from actors.dialects.stratasync.reads import WORKS as STRATASYNC
from actors.dialects.vuer.reads import WORKS as VUER
from actors.scan import Work
from infra.errors import ProtocolError

WORKS: Final = (*PARA, *STARKEEP, *STRATASYNC, *VUER)
DRAFTS: Final = (*PARA_DRAFTS, *STRATASYNC_DRAFTS)


class Unknown(ProtocolError):
    """The value belongs to another version of Holdfast, or to none."""

    code = "bad_link"


def _union(types: tuple[Any, ...]) -> Any:
    found = types[0]
    for one in types[1:]:
        found |= one
    return found


_works = msgspec.msgpack.Decoder(_union(WORKS))
_results = {work: msgspec.msgpack.Decoder(work.result) for work in WORKS}
_drafts = msgspec.json.Decoder(_union(DRAFTS))
_encode = msgspec.msgpack.Encoder().encode


def encode_work(work: Work) -> bytes:
    """Raises Unknown for one that only this process knows."""
    if type(work) not in _results:
        raise Unknown(f"{type(work).__name__} is not among actors.works.WORKS: it cannot be sent")
    return _sent(work)


def decode_work(data: bytes) -> Work:
    """Raises Unknown."""
    try:
        work: Work = _works.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Unknown(f"not a work: {error}") from error
    return work


def encode_result(result: Any) -> bytes:
    """What a work returned."""
    return _sent(result)


def decode_result(work: Work, data: bytes) -> Any:
    """Raises Unknown."""
    try:
        return _results[type(work)].decode(data)  # type: ignore[index]
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Unknown(f"not a result of {type(work).__name__}: {error}") from error


def encode_data(data: Any) -> bytes:
    """The data of a draft without a body. Raises Unknown for what is no JSON."""
    if not isinstance(data, DRAFTS):
        raise Unknown(f"{type(data).__name__} is not among actors.works.DRAFTS: it cannot be sent")
    try:
        return msgspec.json.encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Unknown(f"not JSON: {error}") from error


def decode_data(data: bytes) -> Any:
    """Raises Unknown."""
    try:
        return _drafts.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Unknown(f"not the data of a draft: {error}") from error


def _sent(value: Any) -> bytes:
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Unknown(f"{type(value).__name__} cannot be sent: {error}") from error
