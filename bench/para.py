"""para-sync's figures: publishing in process and over NATS, and what a replica applies.

    python bench/para.py [--messages 20000] [--rounds 5]

Publishing over NATS stands beside nats-py alone in the same run, round by round, against the same
`nats-server` (a child process): same payload, decoded by the same library. "1 handler": one
subscription each. "100 handlers": for nats-py once as 100 subscriptions, which is what its users
have, and once as a loop over 100 functions below one subscription, decoded once, which is the least
that could be done. Medians of the rounds; only ratios within a run mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sysconfig
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import nats

from holdfast import nats_connection, para

KEY = "user:1"
SUBJECT = "bench.user:1"
WAIT_S = 20
VALUE = {"id": "user:1", "name": "Ada Lovelace", "likes": 128, "tags": ["math", "engines"]}


def envelope(sequence: int) -> Any:
    return para.SyncEnvelope(VALUE, "1.0", sequence)


def rate(count: int, work: Callable[[], None]) -> float:
    """Per second."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def in_process(handlers: int, count: int) -> float:
    """Publishes a second to so many handlers."""
    transport = para.InProcessTransport()
    for _ in range(handlers):
        transport.subscribe(KEY, handler_of(Arrivals(0)))
    one = envelope(1)

    def work() -> None:
        for _ in range(count):
            transport.publish(KEY, one)

    return rate(count, work)


def applied(count: int, schema: Any) -> float:
    """Envelopes in order that a replica applies in a second, through the transport."""
    transport = para.InProcessTransport()
    replica = para.create_client_replica(
        key=KEY, schema=schema, transport=transport, seed=envelope(0)
    )
    envelopes = [envelope(number) for number in range(1, count + 1)]

    def work() -> None:
        for one in envelopes:
            transport.publish(KEY, one)

    result = rate(count, work)
    assert replica.stats.applied == count + 1
    return result


class Arrivals:
    """Counts calls, and tells of the last."""

    def __init__(self, wanted: int) -> None:
        self._left = wanted
        self.done = asyncio.Event()

    def __call__(self, _: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self.done.set()


async def raw(url: str, handlers: int, count: int, *, shared: bool) -> float:
    """nats-py alone: messages a second from publish to the last handler."""
    sender, receiver = await nats.connect(url), await nats.connect(url)
    arrivals = Arrivals(handlers * count)
    functions = [handler_of(arrivals) for _ in range(handlers)]
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.Decoder(para.SyncEnvelope).decode

    async def one(message: Any) -> None:
        arrivals(decode(message.data))

    async def all_of_them(message: Any) -> None:
        value = decode(message.data)
        for function in functions:
            function(value)

    for _ in range(1 if shared else handlers):
        await receiver.subscribe(SUBJECT, cb=all_of_them if shared else one)
    await receiver.flush()
    await receiver.flush()  # the first may overtake the subscriptions, which are written later
    start = time.perf_counter()
    for number in range(count):
        await sender.publish(SUBJECT, encode(envelope(number)))
        if number % 512 == 511:
            await asyncio.sleep(0)
    async with asyncio.timeout(WAIT_S):
        await arrivals.done.wait()
    took = time.perf_counter() - start
    await sender.close()
    await receiver.close()
    return count / took


def handler_of(arrivals: Arrivals) -> Callable[[Any], None]:
    """A handler of its own: equal ones would be one registration."""

    def handle(given: Any) -> None:
        arrivals(given)

    return handle


async def ours(url: str, handlers: int, count: int) -> float:
    """The same through two NatsTransports."""
    sender, receiver = await nats.connect(url), await nats.connect(url)
    arrivals = Arrivals(handlers * count)
    async with nats_connection(sender) as out, nats_connection(receiver) as into:
        publish = para.NatsTransport(out).publish
        transport = para.NatsTransport(into)
        for _ in range(handlers):
            transport.subscribe(KEY, handler_of(arrivals))
        await into.ready()
        start = time.perf_counter()
        for number in range(count):
            publish(KEY, envelope(number))
            if number % 512 == 511:
                await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_S):
            await arrivals.done.wait()
        took = time.perf_counter() - start
    await sender.close()
    await receiver.close()
    return count / took


async def over_nats(url: str, messages: int, rounds: int) -> None:
    """Side by side, round by round, so that both meet the same weather."""
    rows: list[tuple[str, list[Callable[[], Awaitable[float]]]]] = [
        (
            "1 handler, beside one subscription",
            [lambda: ours(url, 1, messages), lambda: raw(url, 1, messages, shared=False)],
        ),
        (
            "100 handlers, beside 100 subscriptions",
            [
                lambda: ours(url, 100, messages // 20),
                lambda: raw(url, 100, messages // 20, shared=False),
            ],
        ),
        (
            "100 handlers, beside a loop below one subscription",
            [
                lambda: ours(url, 100, messages // 20),
                lambda: raw(url, 100, messages // 20, shared=True),
            ],
        ),
    ]
    for name, (mine, theirs) in rows:
        pairs = [(await mine(), await theirs()) for _ in range(rounds)]
        ratios = statistics.median(one / other for one, other in pairs)
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        print(f"NATS, {name}: {medians[0]:,.0f}/s, nats-py {medians[1]:,.0f}/s, ratio {ratios:.2f}")


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    class User(msgspec.Struct):
        id: str
        name: str
        likes: int
        tags: list[str]

    def median(measure: Callable[[], float]) -> float:
        return statistics.median(measure() for _ in range(options.rounds))

    print(f"in process, 1 handler: {median(lambda: in_process(1, 300_000)):,.0f} publishes/s")
    print(f"in process, 100 handlers: {median(lambda: in_process(100, 10_000)):,.0f} publishes/s")
    print(
        f"replica, passthrough: {median(lambda: applied(200_000, para.PASSTHROUGH)):,.0f} applied/s"
    )
    schema = para.msgspec_schema(User)
    print(f"replica, msgspec schema: {median(lambda: applied(200_000, schema)):,.0f} applied/s")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sysconfig.get_path("scripts")) / "nats-server"
    server = subprocess.Popen(
        [str(program), "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        while "Server is ready" not in server.stderr.readline():
            pass
        asyncio.run(over_nats(f"nats://127.0.0.1:{port}", options.messages, options.rounds))
    finally:
        server.kill()
        server.communicate()


if __name__ == "__main__":
    main()
