"""Starkeep's share of a server, made of its configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from actors.port import StatePort
from edge.config import Config
from edge.dialects.starkeep.http import Keep
from edge.dialects.starkeep.signatures import Presigner
from edge.dialects.starkeep.spaces import Spaces, SpaceSettings
from infra import ids
from infra.errors import ConfigError
from infra.objects import open_store, store_prefix


def open_keep(config: Config, port: StatePort, now_ms: Callable[[], int]) -> Keep:
    """Raises ConfigError for a store that cannot be used. Connects to nothing yet."""
    directory = Path(config.data_dir)
    # With a bucket the bytes go there as well: a scope that is restored elsewhere finds them.
    url = config.keep_store or config.bucket
    if not url:
        files = directory / "files"
        try:
            files.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {files}: {error.strerror}") from error
        url = f"file:{files}"
    settings = SpaceSettings(
        drift_ms=int(config.keep_drift_s * 1000),
        body_bytes_max=config.keep_body_bytes_max,
        file_bytes_max=config.keep_file_bytes_max,
    )
    spaces = Spaces(
        port, open_store(url), spool_dir=directory / "incoming", now_ms=now_ms,
        prefix=store_prefix(url), settings=settings,
    )  # fmt: skip
    # Of the first token key where there is one, so that a URL outlives a restart.
    secret = config.token_keys[0].secret if config.token_keys else ids.new_id()
    key = hashlib.sha256(b"starkeep presigned urls\0" + secret.encode()).digest()
    return Keep(
        spaces, secrets=config.keep_secrets, presigner=Presigner(key), root=config.keep_root
    )
