"""Two to five nodes with skewed clocks exchange with a space, over a network that loses and repeats
requests, with blobs that fail and pages of a few items: all end with the same state.

After every exchange: a node's own watermark is past nothing that is not landed there, blobs
included, and its peer map is past nothing that the space lacks.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.clocks import HLC
from actors.dialects.starkeep.wire import Answer, Exchange
from actors.host import Host
from actors.types import Address
from edge.client.starkeep.engine import SyncEngine
from edge.client.starkeep.node import LocalNode
from edge.dialects.starkeep.spaces import Spaces
from infra.stores.directory import DirectoryStore
from tests.support.starkeep import NOTES, NOW, Clock, SpacePeer, Storage
from tests.support.works import Doing

SPACE = Address("default", "keep:home")
ROUNDS_MAX = 400
Step = tuple[str, int, int]

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["record", "row", "update", "patch", "delete", "drop", "tick"]
            + ["blob", "file", "fail"] * 3
            + ["exchange"] * 8
            + ["lose request", "lose answer", "repeat"]
        ),
        st.integers(0, 4),
        st.integers(0, 7),
    ),
    min_size=4,
    max_size=60,
)  # fmt: skip


class Lossy:
    """The way to the space: it loses requests and answers, and repeats what it is told to."""

    def __init__(self, peer: SpacePeer) -> None:
        self.peer = peer
        self.fault = ""

    async def exchange(self, request: Exchange) -> Answer:
        fault, self.fault = self.fault, ""
        if fault == "lose request":
            raise ConnectionError("the request was lost")
        answer = await self.peer.exchange(request)
        if fault == "repeat":
            answer = await self.peer.exchange(request)
        if fault == "lose answer":
            raise ConnectionError("the answer was lost")
        return answer


class Device:
    """A node, its clock, its engine and what it has written."""

    def __init__(self, number: int, peer: SpacePeer, skew_ms: int, page_limit: int) -> None:
        self.clock = Clock(NOW + skew_ms)
        self.objects = Storage()
        chance = random.Random(number)
        self.node = LocalNode(
            Path(":memory:"), f"node-{number}", self.objects, now_ms=self.clock,
            random_bits=chance.getrandbits,
        )  # fmt: skip
        self.node.declare(NOTES)
        self.way = Lossy(peer)
        self.engine = SyncEngine(
            local_database_adapter=self.node.records, local_object_storage=self.objects,
            remote_object_storage=peer.objects, transport=self.way, clock=self.node.clock,
            sync_state=self.node.state, app_syncable_source=self.node.source,
            page_limit=page_limit, scan_page_size=2,
        )  # fmt: skip

    def state(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """(collection, id) to stamp, tombstone and body."""
        rows = self.node.file.db.execute(
            "SELECT coll, id, wall, counter, node, deleted, body FROM items"
        )
        return {(c, i): (HLC(w, k, n), d, msgspec.json.decode(b)) for c, i, w, k, n, d, b in rows}


class World:
    """Everything of one example."""

    def __init__(self, host: Host, spaces: Spaces, skews: list[int], page_limit: int) -> None:
        self.host = host
        self.peer = SpacePeer(spaces, SPACE)
        self.devices = [Device(n, self.peer, s, page_limit) for n, s in enumerate(skews)]
        self.written: dict[tuple[str, str], HLC] = {}

    async def space_state(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """As `Device.state`."""
        spool = await self.host.scan(
            SPACE,
            Doing(
                lambda reader: reader.rows(
                    "SELECT coll, id, stamp1, stamp2, origin, deleted, body FROM rows"
                    " WHERE coll='rec' OR coll GLOB 'app:*'"
                )
            ),
        )
        assert spool is not None
        spool.close()
        return {
            (c, i): (HLC(w, k, n), d, msgspec.json.decode(b))
            for c, i, w, k, n, d, b in spool.result
        }

    async def take(self, step: Step) -> None:
        """One event."""
        what, who, number = step
        device = self.devices[who % len(self.devices)]
        if what == "tick":
            device.clock.ms += number * 3 - 5
        elif what == "fail":
            self._fail(device, number)
        elif what in ("exchange", "lose request", "lose answer", "repeat"):
            device.way.fault = what
            await self.exchange(device)
        else:
            before, failing = device.state(), device.objects.fails
            device.objects.fails = lambda method, key: False  # the device's own disk works
            await self._write(device, what, number)
            device.objects.fails = failing
            for key, (stamp, _, _) in device.state().items():
                if before.get(key, (None,))[0] != stamp:
                    self.written[key] = max(
                        stamp, self.written.get(key, stamp), key=lambda found: found.order
                    )

    def _fail(self, device: Device, number: int) -> None:
        storage = device.objects if number % 2 else self.peer.objects
        if number < 6:
            storage.fails = lambda method, key: method == "write" and hash_of(key) % 4 != number % 4
        else:
            storage.fails = lambda method, key: False

    async def _write(self, device: Device, what: str, number: int) -> None:
        node = device.node
        ids = sorted(id for coll, id in device.state() if coll == "rec")
        if what == "record":
            await node.create_record("jpg", origin_app_id="app")
        elif what == "blob":
            data = f"photo {number}".encode()
            await node.create_record("jpg", origin_app_id="app", content=data)
        elif what == "file":
            await node.register_file(
                "notes", f"f{number % 3}", f"{number}{node.clock.now()}".encode()
            )
        elif what == "row":
            node.insert("notes", "note", {"id": number % 4, "text": number})
        elif what == "patch":
            node.update("notes", "note", {"id": number % 4}, {"text": -number})
        elif what == "drop":
            node.delete("notes", "note", {"id": number % 4})
        elif what == "update" and ids:
            node.update_record(ids[number % len(ids)], label=f"app/{number}")
        elif what == "delete" and ids:
            node.delete_record(ids[number % len(ids)])

    async def exchange(self, device: Device) -> bool:
        """One round and the invariants; whether it moved anything."""
        state = device.node.state
        before = state.get_watermarks(), state.get_peer_watermarks(), device.state()
        try:
            await device.engine.exchange()
        except ConnectionError:
            assert (state.get_watermarks(), state.get_peer_watermarks()) == before[:2]
            return True
        held, space = device.state(), await self.space_state()
        own, peer = state.get_watermarks(), state.get_peer_watermarks()
        for key, (stamp, deleted, body) in space.items():
            seen = own.get(stamp.node_id)
            if seen is None or stamp.position > seen.position:
                continue
            assert key in held, f"{key} is below the watermark and not here"
            assert held[key][0].order >= stamp.order
            blob = body.get("objectStorageKey") or body.get("object_storage_key")
            if held[key][0] == stamp and blob and not deleted:
                assert blob in device.objects.objects, f"{blob} is below the watermark"
        for key, (stamp, _, _) in held.items():
            seen = peer.get(stamp.node_id)
            if seen is not None and stamp.position <= seen.position:
                assert key in space, f"{key} is below the peer watermark and not there"
                assert space[key][0].order >= stamp.order
        return (own, peer, held) != before

    async def settle(self) -> None:
        """Heal everything and exchange until nothing moves."""
        self.peer.objects.fails = lambda method, key: False
        for device in self.devices:
            device.objects.fails = lambda method, key: False
        quiet = 0
        for turn in range(ROUNDS_MAX):
            moved = await self.exchange(self.devices[turn % len(self.devices)])
            quiet = 0 if moved else quiet + 1
            if quiet > len(self.devices):
                return
        raise AssertionError("it does not settle")


def hash_of(key: str) -> int:
    """The same in every run."""
    return sum(key.encode())


def check_blob(device: Device, body: dict[str, Any], *, deleted: bool) -> None:
    """The device has the very bytes that the item names."""
    key = body.get("objectStorageKey") or body.get("object_storage_key")
    if key and not deleted:
        named = body.get("contentHash") or body.get("content_hash")
        held = device.objects.objects[key].data
        assert hashlib.sha256(held).hexdigest() == named, f"{key} has other bytes"


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    skews=st.lists(st.sampled_from([-60_000, -7, 0, 0, 3, 3_600_000]), min_size=2, max_size=5),
    page_limit=st.sampled_from([1, 2, 3, 50]),
    script=steps,
)
def test_all_nodes_converge_and_nothing_is_lost(
    skews: list[int], page_limit: int, script: list[Step]
) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            (path / "files").mkdir()
            async with Host(path) as host:
                spaces = Spaces(
                    host, DirectoryStore(path / "files"), spool_dir=path, now_ms=lambda: NOW
                )
                await spaces.declare(SPACE, NOTES)
                world = World(host, spaces, skews, page_limit)
                for step in script:
                    await world.take(step)
                await world.settle()
                expected = await world.space_state()
                assert expected.keys() == world.written.keys()
                for key, stamp in world.written.items():
                    assert expected[key][0] == stamp, f"the latest write of {key} is lost"
                for device in world.devices:
                    assert device.state() == expected
                    for _, deleted, body in expected.values():
                        check_blob(device, body, deleted=bool(deleted))
                await spaces.aclose()

    asyncio.run(run())
