"""Which servers take part: how each is started, and which adapter speaks to it.

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
PYTHON = [sys.executable, "-m"]
# Replays of 50,000 entries need more than the default retention; nothing else is out of default.
BENCH_SCOPES = {
    "bench:*": {"materialize": False, "retain": 1_000_000},
    "benchm:*": {"materialize": True, "retain": 1_000_000},
}
TOKEN_KEY = f"bench:{secrets.token_hex(32)}"


@dataclass(frozen=True)
class Peer:
    """One server. `command(port)` starts it, `adapter(port, load)` speaks to it; PORT and DIR are
    in its environment, and `{DIR}` in `env` stands for the latter. `skip` names the workloads it
    cannot run."""

    name: str
    command: Callable[[int], list[str]]
    adapter: Callable[[int, str], Adapter]
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


def node_command(port: int) -> list[str]:
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
    command = [*PYTHON, "edge.cli", "token", "new", "--subject", "bench"]
    command += ["--write", "*", "--publish-rate", "unlimited", "--ttl", "1d"]
    env = {**os.environ, "HOLDFAST_TOKEN_KEYS": TOKEN_KEY}
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


_token: list[str] = []


def _holdfast_adapter(port: int, load: str) -> Adapter:
    if not _token:
        _token.append(holdfast_token())
    return Holdfast(port, token=_token[0], kind="benchm" if load.endswith("m") else "bench")


def _plain_adapter(port: int, load: str) -> Adapter:
    return Plain(port)


def _node(sync: str, group: bool, evict_ms: int | None = None) -> Peer:
    name = f"node-{sync.lower()}-{'group' if group else 'each'}"
    env = {"SYNC": sync, "GROUP": "1" if group else "0"}
    if evict_ms is not None:
        name, env["EVICT_MS"] = f"{name}-evict", str(evict_ms)
    return Peer(name, node_command, _plain_adapter, env)


def _holdfast(
    idle_s: float | None = None, *, bucket: bool = False, processes: tuple[int, int] | None = None
) -> Peer:
    env = {
        "HOLDFAST_TOKEN_KEYS": TOKEN_KEY,
        "HOLDFAST_SCOPES": json.dumps(BENCH_SCOPES),
        "HOLDFAST_LOG_LEVEL": "warning",
    }
    name = "holdfast"
    if idle_s is not None:
        name, env["HOLDFAST_IDLE_S"] = "holdfast-evict", str(idle_s)
    if bucket:
        name, env["HOLDFAST_BUCKET"] = "holdfast-bucket", "file:{DIR}-bucket"
    if processes is not None:
        edges, actors = processes
        name = f"holdfast-e{edges}a{actors}"
        env |= {"HOLDFAST_EDGES": str(edges), "HOLDFAST_ACTORS": str(actors)}
    return Peer(name, lambda port: [*PYTHON, "edge.cli", "serve"], _holdfast_adapter, env)


def _null() -> Peer:
    def command(port: int) -> list[str]:
        return [*PYTHON, "bench.peers.null.server", str(port)]

    # Constant answers mean something only where nobody looks at what is delivered.
    skip = ("W1s", "W2", "W3", "W4", "W4x", "W5", "W6c", "W6r", "W7")
    return Peer("null", command, _plain_adapter, skip=skip)


PEERS = {
    peer.name: peer
    for peer in (
        _holdfast(),
        _holdfast(idle_s=1),
        _holdfast(bucket=True),
        _holdfast(processes=(1, 1)),
        _holdfast(processes=(2, 1)),
        _node("FULL", True),
        _node("FULL", True, evict_ms=1000),
        _node("FULL", False),
        _node("NORMAL", True),
        _null(),
    )
}
