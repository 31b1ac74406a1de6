"""The style as a test: direction of imports, purity, sizes, docstrings, dead files, banned words.

Pure is the default. A file that touches the outside world is listed here by name, so that a new
one is seen in review; a name without its file fails as well.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("infra", "actors", "edge")  # each may import itself and those before it
LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# Synchronous, may import sqlite3; never await.
STORE: set[str] = {
    "edge/client/para/intent_store.py",
    "actors/dialects/stratasync/trial.py",
    "actors/check.py",
    "actors/identity.py",
    "actors/index.py",
    "actors/ledger.py",
    "actors/ledger_file.py",
    "actors/line_files.py",
    "actors/scan.py",
    "actors/schema.py",
    "actors/snapshot.py",
    "edge/client/starkeep/storage.py",
    "actors/supersede.py",
    "infra/sqlite.py",
}

# Event loop, sockets, files, processes, clock, randomness.
SHELL: set[str] = {
    "edge/dialects/para/query_authority.py",
    "edge/client/para/feed_socket.py",
    "edge/client/para/feed_client.py",
    "edge/dialects/para/sources.py",
    "edge/dialects/para/service.py",
    "edge/dialects/para/publishing.py",
    "edge/dialects/para/presence_desk.py",
    "edge/dialects/para/locks.py",
    "edge/dialects/para/intents.py",
    "edge/dialects/para/http.py",
    "edge/dialects/para/connection.py",
    "edge/dialects/para/coalesce.py",
    "edge/dialects/para/access.py",
    "edge/loop.py",
    "actors/sent.py",
    "edge/processes/tenants.py",
    "actors/receiving.py",
    "edge/serving.py",
    "edge/processes/supervisor.py",
    "edge/processes/running.py",
    "edge/processes/store.py",
    "edge/processes/siblings.py",
    "edge/processes/edge.py",
    "edge/processes/listeners.py",
    "edge/processes/boot.py",
    "edge/processes/children.py",
    "edge/processes/forkserver.py",
    "edge/processes/actor.py",
    "edge/processes/control.py",
    "actors/serving.py",
    "actors/handing.py",
    "actors/hosts_port.py",
    "actors/first_day.py",
    "actors/hosts_alarms.py",
    "actors/hosts_admin.py",
    "actors/routed.py",
    "edge/cli/hosts.py",
    "edge/processes/hosts.py",
    "infra/link/tls.py",
    "actors/remote.py",
    "actors/peer.py",
    "actors/layout_stamp.py",
    "actors/inspection.py",
    "actors/followed.py",
    "actors/ephemeral_remote.py",
    "actors/alarms.py",
    "actors/moving.py",
    "actors/repinning.py",
    "edge/processes/moves.py",
    "actors/hosts_transfers.py",
    "actors/transfer_links.py",
    "actors/hosts_attendance.py",
    "actors/attendance.py",
    "actors/attendance_links.py",
    "edge/actors.py",
    "actors/closing.py",
    "actors/history.py",
    "actors/host.py",
    "actors/installing.py",
    "actors/replication.py",
    "actors/reply.py",
    "actors/scope.py",
    "actors/state.py",
    "actors/transfers.py",
    "actors/waking.py",
    "edge/admin.py",
    "edge/app.py",
    "edge/application.py",
    "edge/cli/bucket.py",
    "edge/cli/dev.py",
    "edge/cli/doctor.py",
    "edge/cli/events.py",
    "edge/cli/export.py",
    "edge/cli/fork.py",
    "edge/cli/import.py",
    "edge/cli/options.py",
    "edge/cli/program.py",
    "edge/cli/publish.py",
    "edge/cli/reference.py",
    "edge/cli/remote.py",
    "edge/cli/restore.py",
    "edge/cli/starting.py",
    "edge/cli/token.py",
    "edge/cli/verify.py",
    "edge/cli/version.py",
    "edge/client/client.py",
    "edge/client/follow.py",
    "edge/client/para/replica.py",
    "edge/client/starkeep/blocking.py",
    "edge/client/starkeep/engine.py",
    "edge/client/starkeep/files.py",
    "edge/client/starkeep/node.py",
    "edge/client/starkeep/notices.py",
    "edge/client/starkeep/objects.py",
    "edge/client/starkeep/transport.py",
    "edge/client/starkeep/types.py",
    "edge/client/transport.py",
    "edge/client/vuer/client.py",
    "edge/config_sources.py",
    "edge/contents.py",
    "edge/dialects/asterql/connection.py",
    "edge/dialects/asterql/http.py",
    "edge/dialects/asterql/hub.py",
    "edge/dialects/asterql/ledger_port.py",
    "edge/dialects/asterql/ledgers.py",
    "edge/dialects/asterql/stream.py",
    "edge/dialects/asterql/views.py",
    "edge/dialects/stratasync/auth.py",
    "edge/dialects/stratasync/connection.py",
    "edge/dialects/stratasync/database.py",
    "edge/dialects/stratasync/http.py",
    "edge/dialects/stratasync/service.py",
    "edge/dialects/stratasync/subscription.py",
    "edge/dialects/stratasync/writes.py",
    "edge/dialects/vuer/actor_broker.py",
    "edge/dialects/vuer/connection.py",
    "edge/dialects/vuer/http.py",
    "edge/dialects/vuer/journal.py",
    "edge/dialects/vuer/place.py",
    "edge/dialects/vuer/relay.py",
    "edge/dialects/vuer/repositories.py",
    "edge/dialects/vuer/server.py",
    "edge/embed.py",
    "edge/dialects/starkeep/embedding.py",
    "edge/dialects/starkeep/handler.py",
    "edge/dialects/starkeep/http.py",
    "edge/dialects/starkeep/notices.py",
    "edge/dialects/starkeep/opening.py",
    "edge/dialects/starkeep/spaces.py",
    "edge/metrics.py",
    "edge/replaying.py",
    "edge/requests.py",
    "edge/runtime.py",
    "edge/sending.py",
    "edge/server.py",
    "edge/tenant_paths.py",
    "edge/transfer.py",
    "edge/waiting.py",
    "edge/websocket.py",
    "edge/websocket_plain.py",
    "infra/barrier.py",
    "infra/bus/nats.py",
    "infra/bus/queued.py",
    "infra/bus/redis.py",
    "infra/clock.py",
    "infra/ids.py",
    "infra/link/connection.py",
    "infra/link/sockets.py",
    "infra/notify.py",
    "infra/objects.py",
    "infra/pagefile.py",
    "infra/pages.py",
    "infra/paths.py",
    "infra/placement/nats.py",
    "infra/placement/renewing.py",
    "infra/placement/s3.py",
    "infra/process.py",
    "infra/replica.py",
    "infra/replicator.py",
    "infra/requests.py",
    "infra/restore.py",
    "infra/stores/directory.py",
    "infra/stores/metered.py",
    "infra/stores/remote.py",
    "infra/stores/s3.py",
    "infra/stores/serving.py",
    "infra/tasks.py",
    "infra/wal.py",
}

# Started by name, so nothing imports them.
ENTRY_POINTS = {"holdfast", "edge.cli", "edge.cli.__main__"}
# Finished and tested, and opened by no command yet.
WAITING: set[str] = set()

# What makes a file impure. Modules of ours are listed where they stand for such a thing.
OUTSIDE = {
    "aiohttp", "asyncio", "boto3", "concurrent", "ctypes", "fcntl", "http.client", "http.server",
    "importlib", "mmap", "multiprocessing", "os", "pathlib", "prometheus_client", "queue", "random",
    "resource", "secrets", "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess",
    "tempfile", "threading", "time", "urllib.error", "urllib.request", "uuid", "uvloop",
    "infra.clock", "infra.ids", "infra.tasks",
}  # fmt: skip
BANNED_CALLS = {"create_task", "ensure_future", "gather", "wait_for", "run_until_complete"}

# Paths and names of single machines; a product has none.
BANNED_TEXT = re.compile(
    r"(?<![\w.])/(?:work|root)(?![\w-])|/home/\w+|\.internal\b|(?:[a-z0-9-]+\.)+corp\b"
)
TEXT_SUFFIXES = {".py", ".md", ".js", ".mjs", ".html", ".css", ".toml", ".txt", ".json", ".yml", ""}
SKIPPED = {".git", ".venv", "node_modules", "build", "dist", "__pycache__", ".hypothesis"}


@cache
def product_files() -> tuple[str, ...]:
    files = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
    if (ROOT / "holdfast.py").exists():
        files.append(ROOT / "holdfast.py")
    return tuple(path.relative_to(ROOT).as_posix() for path in files)


@cache
def tree_of(name: str) -> ast.Module:
    with tokenize.open(ROOT / name) as file:
        return ast.parse(file.read(), name)


def imports_of(name: str, *, with_types: bool = False) -> Iterator[str]:
    """Modules a file imports, anywhere in it; those under TYPE_CHECKING only where asked for.

    `from a import b` yields `a` and `a.b`, because b may be a module.
    """
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.If) and not with_types and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside_of(name: str) -> set[str]:
    """The impure modules a file imports at run time."""
    found = set()
    for module in imports_of(name):
        parts = module.split(".")
        prefixes = {".".join(parts[: count + 1]) for count in range(len(parts))}
        found |= prefixes & OUTSIDE
    return found


def has_await(name: str) -> bool:
    asynchronous = (ast.Await, ast.AsyncFor, ast.AsyncWith, ast.AsyncFunctionDef)
    return any(isinstance(node, asynchronous) for node in ast.walk(tree_of(name)))


def module_name(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_imports_go_down_only() -> None:
    wrong = []
    for name in product_files():
        layer = name.split("/")[0]
        allowed = LAYERS[: LAYERS.index(layer) + 1] if layer in LAYERS else LAYERS
        for module in imports_of(name, with_types=True):
            top = module.split(".")[0]
            if top in ("tests", "bench", "examples") or (top in LAYERS and top not in allowed):
                wrong.append(f"{name} imports {module}")
    assert not wrong


def test_listed_files_exist() -> None:
    assert not (STORE | SHELL) - set(product_files())
    assert not STORE & SHELL


def test_files_are_pure_unless_listed() -> None:
    wrong = {}
    for name in product_files():
        found = outside_of(name)
        if name in STORE:
            found -= OUTSIDE - {"asyncio", "aiohttp", "infra.tasks"}
        elif name in SHELL:
            found = set()
        if found:
            wrong[name] = sorted(found)
    assert not wrong, "list the file in STORE or SHELL on purpose, or take the import out"


def test_listed_files_need_to_be() -> None:
    idle = [
        name
        for name in sorted(STORE | SHELL)
        if not outside_of(name) and not (name in SHELL and has_await(name))
    ]
    assert not idle, "these are pure: take them off the list"


def test_no_file_holds_sqlite_and_await() -> None:
    # The one rule that makes a transaction across an await impossible to write.
    wrong = [name for name in product_files() if "sqlite3" in outside_of(name) and has_await(name)]
    assert not wrong


def test_store_files_never_await() -> None:
    assert not [name for name in sorted(STORE) if has_await(name)]


def test_tasks_are_born_in_one_place() -> None:
    wrong = []
    for name in product_files():
        groups = _task_groups(name)
        for node in ast.walk(tree_of(name)):
            if not isinstance(node, ast.Attribute) or node.attr not in BANNED_CALLS:
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in groups):
                wrong.append(f"{name}:{node.lineno} {node.attr}")
    assert [entry for entry in wrong if not entry.startswith("infra/tasks.py")] == []


def _task_groups(name: str) -> set[str]:
    """Names bound by `async with asyncio.TaskGroup() as name`: such tasks have an owner too."""
    return {
        item.optional_vars.id
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and "TaskGroup" in ast.dump(item.context_expr)
    }


def test_files_and_functions_are_short() -> None:
    wrong = []
    for name in product_files():
        lines = len((ROOT / name).read_text().splitlines())
        if lines > LINES_MAX:
            wrong.append(f"{name}: {lines} lines")
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    wrong.append(f"{name}:{node.lineno} {node.name}: {length} lines")
    assert not wrong


def test_modules_and_public_classes_have_docstrings() -> None:
    wrong = []
    for name in product_files():
        tree = tree_of(name)
        if tree.body and ast.get_docstring(tree) is None:
            wrong.append(name)
        for node in tree.body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                wrong.append(f"{name}:{node.lineno} {node.name}")
    assert not wrong


def test_every_module_is_used() -> None:
    used = ENTRY_POINTS | WAITING
    for name in product_files():
        used.update(imports_of(name, with_types=True))
    used |= _commands()
    dead = []
    for name in product_files():
        module = module_name(name)
        is_package = name.endswith("__init__.py")
        # A package is used where anything inside it is; one without code needs no use.
        inside = not tree_of(name).body or any(other.startswith(module + ".") for other in used)
        if module not in used and not (is_package and inside):
            dead.append(name)
    assert not dead


def _commands() -> set[str]:
    from edge.cli.program import COMMANDS

    return {f"edge.cli.{command}" for command in COMMANDS}


def _texts() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if SKIPPED & set(parts) or any(part.endswith((".egg-info", "_cache")) for part in parts):
            continue
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path != Path(__file__).resolve():
            try:
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_no_name_of_one_machine() -> None:
    wrong = [
        f"{name}: {found.group()}"
        for name, text in _texts()
        for found in BANNED_TEXT.finditer(text)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("cd /" + "work/main", True),
        ('"/root"', True),
        ("/home/ada/x", True),
        ("build.mirror.internal", True),
        ("https://example.org/" + "work/item", False),
        ("/working", False),
        ("examples/root.py", False),
    ],
)
def test_banned_text_catches_what_it_should(text: str, caught: bool) -> None:
    assert bool(BANNED_TEXT.search(text)) is caught
