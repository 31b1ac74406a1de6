"""The LTX codec as it runs on a machine without the optional C packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import infra.crc64
import infra.lz4block


@contextmanager
def pure_python() -> Iterator[None]:
    """Inside, checksums and LZ4 are our own even where `fastcrc` and `lz4` are installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infra.crc64, "fast_crc64", None)
        patch.setattr(infra.lz4block, "lz4_compress", None)
        patch.setattr(infra.lz4block, "lz4_decompress", None)
        yield
