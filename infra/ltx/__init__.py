"""LTX, the file format of a Litestream replica: the pages that changed between two transactions.

A file is a header, page frames in ascending order, an index of the frames, and a trailer with
checksums. Nothing here reads a disk or network: bytes, or a `read` or `write` function, are given.
"""

from infra.ltx.decoder import decode, decode_stream
from infra.ltx.encoder import Encoder, encode
from infra.ltx.header import (
    HEADER_BYTES,
    Header,
    LtxError,
    decode_header,
    encode_header,
    lock_page,
)

__all__ = [
    "HEADER_BYTES",
    "Encoder",
    "Header",
    "LtxError",
    "decode",
    "decode_header",
    "decode_stream",
    "encode",
    "encode_header",
    "lock_page",
]
