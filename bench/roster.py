"""Which servers take part: how each is started, on what port, and which adapter speaks to it.

The Node baseline needs ws and better-sqlite3: `npm install` runs once, into BENCH_HOME (default: a
folder of the user's cache), and again only when its package.json changes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.gen.adapters.base import Adapter
from bench.gen.adapters.holdfast import Holdfast
from bench.gen.adapters.plain import Plain

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BASELINE = "node-full-group"
# Replays of 50,000 entries need more than the default retention; nothing else is out of default.
BENCH_SCOPES = {
    "bench:*": {"materialize": False, "retain": 1_000_000},
    "benchm:*": {"materialize": True, "retain": 1_000_000},
}
TOKEN_KEY = f"bench:{secrets.token_hex(32)}"


@dataclass(frozen=True)
class Peer:
    """One server. `adapter(load)` is asked per workload; `skip` names those it cannot run."""

    name: str
    port: int
    command: Callable[[], list[str]]
    adapter: Callable[[str], Adapter]
    env: dict[str, str] = field(default_factory=dict)
    settle_s: float = 0.7
    skip: tuple[str, ...] = ()


def cache_dir() -> Path:
    """BENCH_HOME, or a folder of the user's cache."""
    home = os.environ.get("BENCH_HOME")
    if home:
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "holdfast-bench"


def node_command() -> list[str]:
    """The baseline's command, its packages installed where they are not yet."""
    source, target = HERE / "peers" / "nodews", cache_dir() / "nodews"
    wanted = (source / "package.json").read_text()
    stamp = target / ".installed"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "server.mjs", target / "server.mjs")
    if not stamp.exists() or stamp.read_text() != wanted:
        if shutil.which("npm") is None:
            raise RuntimeError("the Node baseline needs node 20 and npm (or --peers holdfast,null)")
        (target / "package.json").write_text(wanted)
        print("installing ws and better-sqlite3 for the baseline", file=sys.stderr)
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=target, check=True, stdout=sys.stderr)
        stamp.write_text(wanted)
    return ["node", str(target / "server.mjs")]


def holdfast_token() -> str:
    """A writer's token without a rate limit, signed with this run's key."""
    command = [sys.executable, "-m", "edge.cli", "token", "new", "--subject", "bench"]
    command += ["--write", "*", "--publish-rate", "unlimited", "--ttl", "1d"]
    env = {**os.environ, "HOLDFAST_TOKEN_KEYS": TOKEN_KEY}
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


_token: list[str] = []


def _holdfast_adapter(port: int) -> Callable[[str], Adapter]:
    def adapter(load: str) -> Adapter:
        if not _token:
            _token.append(holdfast_token())
        return Holdfast(port, token=_token[0], kind="benchm" if load.endswith("m") else "bench")

    return adapter


def _plain_adapter(port: int) -> Callable[[str], Adapter]:
    return lambda load: Plain(port)


def _node(sync: str, group: bool) -> Peer:
    name = f"node-{sync.lower()}-{'group' if group else 'each'}"
    env = {"SYNC": sync, "GROUP": "1" if group else "0"}
    return Peer(name, 5301, node_command, _plain_adapter(5301), env)


def _holdfast() -> Peer:
    command = [sys.executable, "-m", "edge.cli", "serve"]
    env = {
        "HOLDFAST_TOKEN_KEYS": TOKEN_KEY,
        "HOLDFAST_SCOPES": json.dumps(BENCH_SCOPES),
        "HOLDFAST_LOG_LEVEL": "warning",
    }
    return Peer("holdfast", 5302, lambda: command, _holdfast_adapter(5302), env)


def _null() -> Peer:
    command = [sys.executable, "-m", "bench.peers.null.server", "5308"]
    # Constant answers mean something only where nobody looks at what is delivered.
    skip = ("W1s", "W2", "W3", "W4", "W4x", "W6c", "W6r", "W7", "W5")
    return Peer("null", 5308, lambda: command, _plain_adapter(5308), skip=skip)


PEERS = {
    peer.name: peer
    for peer in (
        _holdfast(),
        _node("FULL", True),
        _node("FULL", False),
        _node("NORMAL", True),
        _null(),
    )
}
