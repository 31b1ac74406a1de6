"""The sockets that edges accept from: who connects while an edge is away is kept, or served by the
other.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from edge.processes.listeners import Listeners

NAMES = ["edge-0", "edge-1"]


class Edge:
    """A process that inherits its socket and accepts."""

    def __init__(self, listeners: Listeners, name: str) -> None:
        self.socket = socket.fromfd(listeners.fileno(name), socket.AF_INET, socket.SOCK_STREAM)
        self.socket.listen(64)
        self.socket.settimeout(5)
        listeners.here(name)

    def accept(self, count: int) -> None:
        for _ in range(count):
            self.socket.accept()[0].close()


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners("127.0.0.1", 0, NAMES)
    yield made
    made.close()


def connect(listeners: Listeners, count: int = 1) -> None:
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", listeners.port), 5):
            pass


def test_nobody_is_served_before_an_edge_is_there(listeners: Listeners) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(listeners)
    edge = Edge(listeners, "edge-0")
    connect(listeners, 8)
    edge.accept(8)
    edge.socket.close()


def test_whoever_comes_while_the_only_edge_is_away_is_served_by_the_next(
    listeners: Listeners,
) -> None:
    Edge(listeners, "edge-1").socket.close()
    listeners.away("edge-1")
    connect(listeners, 8)
    edge = Edge(listeners, "edge-1")
    edge.accept(8)
    edge.socket.close()


def test_where_another_is_there_it_serves_all(listeners: Listeners) -> None:
    one, two = (Edge(listeners, name) for name in NAMES)
    one.socket.close()
    listeners.away("edge-0")
    connect(listeners, 16)  # the system would give about half of them to a socket that listens
    two.accept(16)
    one = Edge(listeners, "edge-0")
    two.socket.close()
    listeners.away("edge-1")
    connect(listeners, 16)
    one.accept(16)
    one.socket.close()


def test_after_the_end_all_are_refused(listeners: Listeners) -> None:
    edge = Edge(listeners, "edge-0")
    listeners.close()
    with pytest.raises(ConnectionRefusedError):
        connect(listeners)
    edge.socket.close()


def test_an_address_of_ipv6_takes_that_alone() -> None:
    try:
        listeners = Listeners("::", 0, ["edge-0"])
    except OSError:
        pytest.skip("no IPv6 here")
    fd = listeners.fileno("edge-0")
    with socket.fromfd(fd, socket.AF_INET6, socket.SOCK_STREAM) as edge:
        edge.listen(8)
        with socket.create_connection(("::1", listeners.port), 5):
            pass
        with pytest.raises(ConnectionRefusedError):
            connect(listeners)
    listeners.close()


def test_a_port_of_somebody_else_is_refused(listeners: Listeners) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            Listeners("127.0.0.1", other.getsockname()[1], NAMES)
