"""What may happen at once in a StrataSync database: memberships that end while somebody lags behind
or reads, storms of reconnects, subscribes on top of each other. Nobody is shown what is not theirs,
nobody misses what is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.strata import Strata, strata

pytestmark = pytest.mark.e2e


async def stall(ann: Strata, count: int = 100) -> int:
    """Notices until no socket that is not read takes more; the last syncId."""
    last = 0
    for number in range(count):
        payload = {"text": "x" * 100_000}
        last = int((await ann.write("INSERT", "Notice", f"big{number}", payload))["syncId"])
        if all(socket.congested for socket in ann.server.sockets.sockets):
            break
    return last


async def test_a_membership_that_ends_while_its_reader_lags(tmp_path: Path) -> None:
    """Also for a reader that asked for the group alone, and not for its own."""
    async with strata(tmp_path, groups={"eve": ["team"]}) as ann:
        await ann.database.add_member("ann", "team")
        socket = await ann.live(1, ["team"])
        await stall(ann)
        seen = await ann.as_user("eve").insert("seen", "team")
        await ann.database.remove_member("ann", "team")
        await ann.as_user("eve").insert("secret", "team")
        last = int((await ann.write("INSERT", "Notice", "last", {"text": "x"}))["syncId"])
        shown = await socket.upto(last)
        assert [a["syncId"] for a in shown if a["modelName"] == "Task"] == [str(seen)]


async def test_a_membership_that_ends_while_its_reader_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the memberships and the page that is read by them."""
    async with strata(tmp_path, groups={"eve": ["team"]}) as ann:
        eve, service = ann.as_user("eve"), ann.server.strata
        assert service is not None
        await ann.database.add_member("ann", "team")
        seen = await eve.insert("seen", "team")
        read = service.port.visible

        async def late(*args: Any, **options: Any) -> Any:
            monkeypatch.undo()
            await ann.database.remove_member("ann", "team")
            await eve.insert("secret", "team")
            return await read(*args, **options)

        monkeypatch.setattr(service.port, "visible", late)
        page = await ann.deltas("after=1&syncGroups=team")
        assert [action["syncId"] for action in page["actions"]] == [str(seen)]
        assert (await ann.deltas("after=1&syncGroups=team"))["actions"] == []


async def test_hooks_see_the_groups_that_are_the_users_by_now(tmp_path: Path) -> None:
    async with strata(tmp_path, groups={"ann": ["ws1"]}) as ann:
        await ann.database.add_member("ann", "team")
        socket = await ann.live(1)
        (held,) = ann.server.strata.connections  # type: ignore[union-attr]
        assert held.context.groups == ("ws1", "team", "ann")
        await ann.database.remove_member("ann", "team")
        await socket.action()
        assert held.context.groups == ("ws1", "ann")


async def test_topics_of_one_user_are_not_the_next_ones(tmp_path: Path) -> None:
    """A socket that subscribes as somebody else; the example's hook joins `room` for everybody."""
    async with strata(tmp_path, groups={}) as ann:
        socket = await ann.live(0)
        (held,) = ann.server.strata.connections  # type: ignore[union-attr]
        held.join("anns")
        await socket.subscribe(0)
        assert ann.database.broadcast("anns", {"type": "doc_note"}) == 1
        assert await socket.frame() == {"type": "doc_note"}
        socket.token = "bob"
        await socket.subscribe(0)
        assert ann.database.broadcast("anns", {"type": "doc_note"}) == 0
        assert ann.database.broadcast("room", {"type": "doc_note"}) == 1
