"""Two devices that keep notes and photos, each in a folder of its own, synced through a server.

A device is a folder with a SQLite file and its photos; it works without the server and catches up
later. Run without arguments to see two devices go through a day: edits while offline, a conflict,
a deletion, a photo each way. With `--folder` it is one device that you use yourself:

    holdfast dev
    python examples/notes_device.py --folder ~/notes --add "buy milk"
    python examples/notes_device.py --folder ~/notes --photo cat.jpg
    python examples/notes_device.py --folder ~/notes --watch
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from holdfast import starkeep

URL = "http://127.0.0.1:8420/keep/notes"
APP = "notes-app"
NAMESPACE = starkeep.AppSyncableNamespace(
    APP, (starkeep.AppSyncableTableInfo("note", ("id",)),), files_enabled=False
)
PIECE_BYTES = 1 << 18


class Bar:
    """One line on standard error for the transfer under way; nothing where it is no terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown = sys.stderr.isatty()
        self.transfers: set[tuple[str, str]] = set()

    def __call__(self, progress: starkeep.Progress) -> None:
        self.transfers.add((progress.direction, progress.key))
        if not self._shown:
            return
        total = max(progress.total, progress.done, 1)
        filled = 24 * progress.done // total
        arrow = "up" if progress.direction == "push" else "down"
        bar = "#" * filled + "." * (24 - filled)
        end = "\n" if progress.done >= total else ""
        sys.stderr.write(f"\r{self._name} {arrow:4} [{bar}] {progress.done:>10} bytes{end}")
        sys.stderr.flush()


class Device:
    """A folder: `notes.db`, `photos/`, and the engine that carries both to the server."""

    def __init__(self, folder: Path, name: str, url: str, token: str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.bar = Bar(name)
        self.node = starkeep.LocalNode(
            folder / "notes.db", _node_id(folder), starkeep.directory_storage(folder / "photos")
        )
        self.node.declare(NAMESPACE)
        header = None if token is None else f"Bearer {token}"
        self.peer = starkeep.HttpPeer(url, get_auth_header=lambda: header)
        self.engine = starkeep.SyncEngine(
            local_database_adapter=self.node.records,
            local_object_storage=self.node.objects,
            remote_object_storage=starkeep.HttpObjectStorage(self.peer),
            transport=starkeep.HttpSyncTransport(self.peer),
            clock=self.node.clock,
            sync_state=self.node.state,
            app_syncable_source=self.node.source,
            on_progress=self.bar,
            change_notifier=self.node.notifier,
        )

    async def declare(self) -> None:
        """Tell the server which tables there are; it keeps rows it does not know yet aside."""
        body = {"tables": [{"name": "note", "pkColumns": ["id"]}]}
        path = f"/sync/namespaces/{APP}"
        headers = await self.peer.headers("PUT", path)
        async with self.peer.session().put(
            self.peer.base + path, json=body, headers=headers
        ) as answer:
            answer.raise_for_status()

    def note(self, id: str, text: str) -> None:
        """Write a note, here and now."""
        self.node.insert(APP, "note", {"id": id, "text": text})

    def notes(self) -> dict[str, str]:
        """All notes that are not deleted."""
        return {row["id"]: row["text"] for row in self.node.tables.rows(APP, "note")}

    async def photo(self, path: Path) -> str:
        """Keep a photo; the id of its record."""
        made = await self.node.create_record(
            "jpg", origin_app_id=APP, content=_pieces(path), mime_type="image/jpeg",
            original_filename=path.name,
        )  # fmt: skip
        return str(made["id"])

    async def photos(self) -> dict[str, int]:
        """Names of photos, with how many bytes of each are here."""
        found: dict[str, int] = {}
        for record in self.node.records.query(starkeep.Query(limit=1000)).records:
            held = await self.node.objects.stat(record["objectStorageKey"])
            found[record["originalFilename"]] = 0 if held is None else held.size
        return found

    async def sync(self) -> starkeep.ExchangeResult:
        """Exchange until both sides have the same."""
        return await self.engine.drain()

    async def watch(self) -> None:
        """Stay, and sync whenever something changes here or there."""
        wanted = asyncio.Event()
        self.node.notifier.subscribe(
            lambda event: wanted.set() if event.event_type != "local-data-synced" else None
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(starkeep.follow_notices(self.peer, self.node.notifier))
            while True:
                await wanted.wait()
                wanted.clear()
                result = await self.sync()
                if result.applied or result.shipped:
                    print(f"{self.name}: {result.applied} taken, {result.shipped} sent", flush=True)
                    _show(self.name, self.notes())

    async def close(self) -> None:
        await self.peer.aclose()
        self.node.close()


def _node_id(folder: Path) -> str:
    """Of this replica alone; a copied folder must get a new one."""
    file = folder / "node-id"
    if not file.exists():
        file.write_text(f"device-{uuid4().hex[:12]}")
    return file.read_text()


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece


def _show(name: str, notes: dict[str, Any]) -> None:
    print(f"{name}: " + ", ".join(f"{id}={text!r}" for id, text in sorted(notes.items())))


async def a_day(url: str, token: str | None, root: Path) -> None:
    """Two devices: what each does alone, and what both have in the end."""
    phone = Device(root / "phone", "phone", url, token)
    laptop = Device(root / "laptop", "laptop", url, token)
    try:
        await phone.declare()
        phone.note("shopping", "milk")
        phone.note("idea", "a boat")
        await phone.sync()
        await laptop.sync()
        # Both are offline now, and both write.
        phone.note("shopping", "milk, bread")
        phone.note("gift", "a book")
        await asyncio.sleep(0.01)  # stamps are in milliseconds: the laptop's edit is the later one
        laptop.note("shopping", "milk, tea")
        laptop.node.delete(APP, "note", {"id": "idea"})
        for device, size in ((phone, 300_000), (laptop, 2_000_000)):
            picture = root / f"{device.name}.jpg"
            picture.write_bytes(os.urandom(size))
            await device.photo(picture)
        print("offline")
        _show("phone", phone.notes())
        _show("laptop", laptop.notes())
        for device in (phone, laptop, phone):
            result = await device.sync()
            print(f"{device.name} syncs: {result.applied} taken, {result.shipped} sent")
        _show("phone", phone.notes())
        _show("laptop", laptop.notes())
        photos = [await device.photos() for device in (phone, laptop)]
        print(f"photos: {photos[0]}")
        if phone.notes() != laptop.notes() or photos[0] != photos[1] or 0 in photos[0].values():
            raise SystemExit("the devices differ")
        print("both devices have the same")
    finally:
        await phone.close()
        await laptop.close()


async def one_device(options: argparse.Namespace) -> None:
    """The device of `--folder`."""
    device = Device(options.folder, options.folder.name, options.url, options.token)
    try:
        await device.declare()
        for text in options.add or ():
            device.note(uuid4().hex[:8], text)
        for path in options.photo or ():
            await device.photo(path)
        await device.sync()
        _show(device.name, device.notes())
        print(f"photos: {await device.photos()}")
        if options.watch:
            await device.watch()
    finally:
        await device.close()


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--url", default=URL, help=f"the space, {URL} unless told")
    parser.add_argument("--token", help="a token that may write it; not needed with holdfast dev")
    parser.add_argument("--folder", type=Path, help="be one device, in this folder")
    parser.add_argument("--add", action="append", metavar="TEXT", help="write a note")
    parser.add_argument("--photo", action="append", type=Path, metavar="FILE", help="keep a photo")
    parser.add_argument("--watch", action="store_true", help="stay and sync at every change")
    options = parser.parse_args()
    if options.folder is not None:
        try:
            asyncio.run(one_device(options))
        except KeyboardInterrupt:
            sys.exit(130)
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(a_day(options.url, options.token, Path(folder)))


if __name__ == "__main__":
    main()
