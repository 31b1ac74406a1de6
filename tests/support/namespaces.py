"""Machines on a network that tests can break: network namespaces joined by one that routes.

Each `Node` is a namespace with one interface, wired to a router namespace. Nothing is added to the
machine's own namespace, so addresses cannot clash with it or with another run. A cut is a rule of
the router: packets of one direction vanish without a word, as on a broken cable, while connections
stay open on both sides. Needs root and `ip` (iproute2) and nothing else of the kernel's filters.

    with Network() as network:
        a, b = network.node("a"), network.node("b")
        subprocess.Popen([*a.prefix, "program"])  # in a
        network.cut_one_way(a, b)                 # b hears nothing of a, a still hears b
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Final, Self

import pytest

from infra import ids

WAIT_S = 30
_PREFIX: Final = "hft"  # every namespace is called hft-PID-RANDOM-NODE
_NET: Final = "10.213"  # PREFIX.N.0/30 joins node N to the router
_CLONE_NEWNET: Final = 0x4000_0000
_OF_A_RUN: Final = re.compile(_PREFIX + r"-(\d+)-\w+-\w+")


class NoNamespaces(Exception):
    """Why none can be made here."""


class Node:
    """One machine. Whatever runs in its namespace belongs to it and is killed or paused with it."""

    def __init__(self, name: str, namespace: str, address: str) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address

    @property
    def prefix(self) -> tuple[str, ...]:
        """In front of a command: it runs here, under the process id that was started."""
        return (_ip_program(), "netns", "exec", self.namespace)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets that this thread opens, and threads and processes that it starts, are here."""
        with contextlib.ExitStack() as stack:
            back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            stack.callback(os.close, back)
            there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
            stack.callback(os.close, there)
            _enter(there)
            try:
                yield
            finally:
                _enter(back)

    def pids(self) -> list[int]:
        """Every process whose network is this one's, but for the one that asks."""
        found = _run("netns", "pids", self.namespace).split()
        return [pid for pid in map(int, found) if pid != os.getpid()]

    def pause(self) -> None:
        """Stop all processes where they are; the network goes on taking packets for them."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """After `pause`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all, those included that are being started meanwhile."""
        end = time.monotonic() + WAIT_S
        while pids := self.pids():
            assert time.monotonic() < end, f"{self.name}: {pids} do not end"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _signal(self, number: signal.Signals) -> None:
        """Until no process is there that has not got it: one may be forking."""
        told: set[int] = set()
        while new := set(self.pids()) - told:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= new


class Network:
    """Nodes that reach each other through one router. Gone at the end of its block, with whatever
    still runs in it.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._run_name = f"{_PREFIX}-{os.getpid()}-{ids.new_id()[:6]}"
        self._router = f"{self._run_name}-router"
        self._cuts: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        """Raises NoNamespaces with the reason."""
        if (reason := why_not()) is not None:
            raise NoNamespaces(reason)
        _add_router(self._router)
        return self

    def __exit__(self, *exc: object) -> None:
        _remove([node.namespace for node in self.nodes.values()] + [self._router])

    def node(self, name: str) -> Node:
        """The machine of that name; made at the first call."""
        if (found := self.nodes.get(name)) is not None:
            return found
        number = len(self.nodes) + 1
        link, router = f"{_NET}.{number}.2", f"{_NET}.{number}.1"
        node = Node(name, f"{self._run_name}-{name}", link)
        _run("netns", "add", node.namespace)
        self.nodes[name] = node
        _run("-n", self._router, "-batch", "-", stdin=(
            f"link add v{number} type veth peer name eth0 netns {node.namespace}\n"
            f"addr add {router}/30 dev v{number}\nlink set v{number} up\n"
        ))  # fmt: skip
        _run("-n", node.namespace, "-batch", "-", stdin=(
            f"link set lo up\naddr add {link}/30 dev eth0\nlink set eth0 up\n"
            f"route add default via {router}\n"
        ))  # fmt: skip
        return node

    def cut(self, one: Node, *others: Node) -> None:
        """Nothing passes between `one` and the others, either way, until it is healed."""
        for other in others:
            self.cut_one_way(one, other)
            self.cut_one_way(other, one)

    def cut_one_way(self, source: Node, target: Node) -> None:
        """What `source` sends to `target` is lost; what comes back is not."""
        if (source.address, target.address) not in self._cuts:
            self._rule("add", source.address, target.address)
            self._cuts.add((source.address, target.address))

    def cut_off(self, node: Node) -> None:
        """From every other node that there is by now, as if its cable were pulled."""
        self.cut(node, *(other for other in self.nodes.values() if other is not node))

    def heal(self) -> None:
        """Take all cuts back."""
        for source, target in sorted(self._cuts):
            self._rule("del", source, target)
        self._cuts.clear()

    def _rule(self, change: str, source: str, target: str) -> None:
        # Before the rule for the main table; the kernel drops what matches and tells nobody.
        _run("-n", self._router, "rule", change, "pref", "100", "from", source, "to", target,
             "blackhole")  # fmt: skip


@functools.cache
def why_not() -> str | None:
    """Why no network can be made here; None where one can. Removes what killed runs have left."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no `ip` on the path (Debian: apt-get install iproute2)"
    probe = f"{_PREFIX}-{os.getpid()}-{ids.new_id()[:6]}-probe"
    try:
        _remove_leftovers()
        _add_router(probe)
        rule = ("pref", "100", "from", "10.213.1.2", "to", "10.213.2.2", "blackhole")
        _run("-n", probe, "rule", "add", *rule)
        _run("-n", probe, "link", "add", "v1", "type", "veth", "peer", "name", "v2")
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted: {error.stderr.strip()}"
    finally:
        _remove([probe])
    return None


@pytest.fixture
def network() -> Iterator[Network]:
    """A network; the test itself runs on its node `clients`. Skips with the reason."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Network() as made, made.node("clients").inside():
        yield made


def _add_router(namespace: str) -> None:
    _run("netns", "add", namespace)
    _run("netns", "exec", namespace, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def _remove(namespaces: list[str]) -> None:
    for namespace in namespaces:
        with contextlib.suppress(subprocess.CalledProcessError):
            Node(namespace, namespace, "").kill()
            _run("netns", "del", namespace)


def _remove_leftovers() -> None:
    """Of runs whose process is gone, so that it could not clean up."""
    lines = _run("netns", "list").splitlines()
    for name in [line.split()[0] for line in lines if line]:
        found = _OF_A_RUN.fullmatch(name)
        if found is not None and not os.path.exists(f"/proc/{found[1]}"):
            _remove([name])


def _enter(namespace_fd: int) -> None:
    # os.setns is there from Python 3.12 on.
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(namespace_fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip_program() -> str:
    found = shutil.which("ip")
    assert found is not None
    return found


def _run(*words: str, stdin: str = "") -> str:
    done = subprocess.run(
        [_ip_program(), *words], input=stdin, capture_output=True, text=True, timeout=WAIT_S,
        check=True,
    )  # fmt: skip
    return done.stdout
