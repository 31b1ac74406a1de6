"""W11 of StrataSync's document: two processes without Redis never see each other's live actions.
Ours do: real edge and actor processes, and sockets that the kernel has spread over the edges.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.support.app import PATIENCE_S
from tests.support.process import ServerProcess, sockets_held
from tests.support.strata import NAME, Socket, tx

pytestmark = pytest.mark.e2e

APP = """
from tests.support.strata import Calls, make_app
calls = Calls()
calls.groups = {"ann": ["ws1"]}
app = make_app(calls)
"""
SOCKETS = 16
WRITES = 12
ANN = {"Authorization": "Bearer ann"}


async def test_w11_every_edge_hears_of_every_action(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    flags = ("serve", "app:app", "--edges", "2", "--actors", "2")
    with ServerProcess(tmp_path, *flags, HOLDFAST_PLACEMENT="hash") as server:
        base = f"{server.url}/strata/{NAME}/sync"
        edges = server.children("edge")
        before = {edge: sockets_held(edge) for edge in edges}
        async with ClientSession() as session, asyncio.timeout(4 * PATIENCE_S):
            readers = [
                Socket(await session.ws_connect(f"{base}/ws?token=ann"), "ann")
                for _ in range(SOCKETS)
            ]
            for reader in readers:
                await reader.subscribe()
            assert len(edges) == 2
            assert all(sockets_held(edge) > before[edge] for edge in edges), "one has them all"
            for number in range(WRITES):
                write = tx("INSERT", "Task", f"t{number}", {"workspaceId": "ws1", "title": "x"})
                # A connection of its own each: writes, too, reach both edges.
                async with ClientSession(headers=ANN) as writer:
                    body = {"batchId": "b", "transactions": [write]}
                    async with writer.post(f"{base}/mutate", json=body) as answer:
                        assert answer.status == 200, await answer.text()
            for reader in readers:
                heard = [await reader.action() for _ in range(WRITES)]
                assert [action["modelId"] for action in heard] == [f"t{n}" for n in range(WRITES)]
                await reader.close()


async def test_messages_beside_the_log_reach_every_edge(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    flags = ("serve", "app:app", "--edges", "2", "--actors", "2")
    with ServerProcess(tmp_path, *flags, HOLDFAST_PLACEMENT="hash") as server:
        url = f"{server.url}/strata/{NAME}/sync/ws?token=ann"
        before = {edge: sockets_held(edge) for edge in server.children("edge")}
        async with ClientSession() as session, asyncio.timeout(4 * PATIENCE_S):
            sockets = [Socket(await session.ws_connect(url), "ann") for _ in range(SOCKETS)]
            for socket in sockets:
                await socket.subscribe()
            assert all(sockets_held(edge) > held for edge, held in before.items())
            for number, socket in enumerate(sockets):
                update = {"type": "yjs_update", "seq": number}
                await socket.send(update)
                for other in sockets:
                    if other is not socket:
                        assert await other.frame() == {**update, "from": "ann"}
            for socket in sockets:
                await socket.close()
