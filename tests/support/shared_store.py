"""A store served over a link by a thread of this process, as a store process serves it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from pathlib import Path

from infra.link.sockets import Listener
from infra.objects import ObjectStore
from infra.stores.remote import RemoteStore
from infra.stores.serving import StoreService

KEY = b"k" * 32
WAIT_S = 30


class SharedStore(RemoteStore):
    """Asks the store through a link; closing it ends the serving side and the store as well.

    `restart` ends the serving side as a crash does (its links are cut, whatever is under way) and
    starts another.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hf-"))
        self.place = f"unix:{self.directory}/store"
        super().__init__("file:/shared", self.place, "actor", KEY)
        self.url = store.url
        self.behind = store
        self._serve()

    def _serve(self) -> None:
        self.serving = asyncio.new_event_loop()
        begun = threading.Event()
        self._stopped = asyncio.Event()
        self._server = threading.Thread(target=self._run, args=(begun,))
        self._server.start()
        assert begun.wait(WAIT_S)

    def _run(self, begun: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self.serving) as runner:
            runner.run(self._serve_until_stopped(begun))

    async def _serve_until_stopped(self, begun: threading.Event) -> None:
        self.service = StoreService(self.behind, self.directory)
        self.listener = Listener("store", KEY, self.service)
        await self.listener.listen(self.place)
        begun.set()
        await self._stopped.wait()
        for link in list(self.listener.links):
            link._end(None)  # whatever is still to be sent is not
        await self.listener.aclose()
        await asyncio.sleep(0)

    def stop_serving(self) -> None:
        """Cut every link, and listen no more."""
        self.serving.call_soon_threadsafe(self._stopped.set)
        self._server.join(WAIT_S)
        assert not self._server.is_alive()

    def restart(self) -> None:
        """Serve anew."""
        self._serve()

    def close(self) -> None:
        super().close()
        if self._server.is_alive():
            self.stop_serving()
        self.behind.close()
        shutil.rmtree(self.directory, ignore_errors=True)
