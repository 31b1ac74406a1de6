"""What hosts say to each other beside what an edge asks of a scope (actors/link_wire.py). Pure."""

from __future__ import annotations

import msgspec

from actors.link_wire import Decoding
from infra.placement.hosts import HostInfo


class Release(msgspec.Struct, array_like=True):
    """`release`: the asker is about to claim the scope. Answered with whether it is kept here."""

    tenant: str
    scope: str
    asker: str


class Agree(msgspec.Struct, array_like=True):
    """`agree`: the asker has these scopes and takes them for the answerer's. Answered with whether
    it may hand over each.
    """

    scopes: list[tuple[str, str]]


class Standing(msgspec.Struct, array_like=True):
    """`host`: how the answerer is doing."""

    scopes_open: int
    may_claim: bool


class News(msgspec.Struct, array_like=True):
    """`news`: how the asker is, from itself."""

    host: HostInfo


decode_release = Decoding(Release)
decode_agree = Decoding(Agree)
decode_agreed = Decoding(list[bool])
decode_standing = Decoding(Standing)
decode_news = Decoding(News)
