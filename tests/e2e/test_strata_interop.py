"""The published StrataSync client, unmodified, against a real server process.

Each test starts `holdfast serve` on a directory of its own and drives devices in Node
(tests/interop/driver.mjs): client, transport and IndexedDB storage are the packages from npm at the
versions that docs/stratasync.md names.
"""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import create_composite_sync_id
from tests.support.node import Driver
from tests.support.process import ServerProcess
from tests.support.strata import NAME, tx

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

APP = """
import json
from aiohttp import web
from tests.support.strata import Calls, NAME, make_app
calls = Calls()
calls.groups = {"ann": ["ws1"], "bob": ["ws1"], "eve": ["ws2"]}
app = make_app(calls)
told = app.declared_strata.hooks.on_message

async def on_message(socket, message, context):
    # Tests change memberships over the socket of a user called `admin`.
    if context.user_id == "admin" and message.get("type") == "members":
        database = app.strata(NAME)
        change = getattr(database, message["change"])
        socket.send({"done": await change(message["user"], message["group"])})

object.__setattr__(app.declared_strata.hooks, "on_message", on_message)
"""


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver() as started:
        yield started


class Site(ServerProcess):
    """A server whose databases the devices use."""

    def base(self, name: str = NAME) -> str:
        return f"{self.url}/strata/{name}/sync"

    def ask(self, path: str, body: Any = None, user: str = "ann") -> bytes:
        """An answer of the server to a plain request."""
        headers = {"Authorization": f"Bearer {user}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base() + path, data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: bytes = answer.read()
            return found

    def mutate(self, *transactions: Any, user: str = "ann") -> Any:
        body = {"batchId": "b", "transactions": list(transactions)}
        return json.loads(self.ask("/mutate", body, user))

    def log(self, user: str = "ann") -> list[Any]:
        found: list[Any] = json.loads(self.ask("/deltas?limit=5000", None, user))["actions"]
        return found

    def rows(self, model: str, user: str = "ann") -> dict[str, Any]:
        lines = self.ask(f"/bootstrap?onlyModels={model}", None, user).decode().split("\n")[1:-1]
        return {row["id"]: row for row in map(json.loads, lines)}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "app.py").write_text(APP)
    with Site(tmp_path, "serve", "app:app") as started:
        yield started


def begin(driver: Driver, site: Site, name: str = "a", user: str = "ann", **more: Any) -> None:
    options = {"url": site.base(), "token": user, "user": user, **more}
    driver.run("await device(args.name, args.options)", name=name, options=options)


def insert(id: str, group: str = "ws1", **more: Any) -> dict[str, Any]:
    return tx("INSERT", "Task", id, {"title": id, "workspaceId": group, **more}, client="server")


def test_bootstrap_and_all_five_actions(driver: Driver, site: Site) -> None:
    site.mutate(insert("t0", dueOn=86_400_000, createdAt=5))
    begin(driver, site)
    begin(driver, site, "b", "bob")
    assert driver.run("return await devices.a.titles()") == ["t0:t0"]
    driver.run("""
        const { client } = devices.a;
        await client.create("Task", { id: "t1", title: "one", workspaceId: "ws1", createdAt: 7 });
        await client.update("Task", "t1", { title: "two" });
        await client.archive("Task", "t1", { archivedAt: 9 });
        await client.unarchive("Task", "t1");
        await client.update("Task", "t0", { title: "kept" });
        await client.delete("Task", "t0");
        await settled(devices.a);
        await until("the other device", async () => (await devices.b.titles()).join() === "t1:two");
    """)
    assert [action["action"] for action in site.log()] == list("IIUAVUD")
    (mine,) = driver.run('return await devices.a.all("Task")')
    (theirs,) = driver.run('return await devices.b.all("Task")')
    stored = site.rows("Task")["t1"]
    for row in (mine, theirs):
        assert {key: row.get(key) for key in stored if key != "__class"} == {
            key: value for key, value in stored.items() if key != "__class"
        } or row["title"] == "two"
    assert theirs["createdAt"] == 7 and theirs["archivedAt"] is None


def test_composite_rows_live(driver: Driver, site: Site) -> None:
    begin(driver, site)
    begin(driver, site, "b", "bob")
    id = create_composite_sync_id("TaskLabel", ["t", "l"])
    driver.run("""
        const row = { id: args.id, taskId: "t", labelId: "l", workspaceId: "ws1" };
        await devices.a.client.create("TaskLabel", row);
        await settled(devices.a);
        await until("the row", async () => (await devices.b.all("TaskLabel")).length === 1);
        await devices.b.client.delete("TaskLabel", args.id);
        await until("its end", async () => (await devices.a.all("TaskLabel")).length === 0);
    """, id=id)  # fmt: skip
    assert [(a["action"], a["modelId"]) for a in site.log()] == [("I", id), ("D", id)]


def test_outbox_while_offline(driver: Driver, site: Site) -> None:
    """Also case 69: a reload with a stored outbox sends it once, as the same client."""
    begin(driver, site)
    begin(driver, site, "b", "bob")
    driver.run("""
        devices.a.network.cut();
        for (let n = 0; n < 5; n++)
            await devices.a.client.create("Task", { id: `o${n}`, title: "x", workspaceId: "ws1" });
        await devices.b.client.create("Task", { id: "other", title: "x", workspaceId: "ws1" });
        await settled(devices.b);
        devices.a.network.join();
        await devices.a.restart();
        await settled(devices.a);
        for (const one of [devices.a, devices.b])
            await until("six", async () => (await one.all("Task")).length === 6);
    """)
    inserted = [action["modelId"] for action in site.log() if action["action"] == "I"]
    assert sorted(inserted) == ["o0", "o1", "o2", "o3", "o4", "other"]
    assert len({a["clientId"] for a in site.log() if a["modelId"] != "other"}) == 1


def test_a_lost_answer_is_asked_for_again(driver: Driver, site: Site) -> None:
    begin(driver, site)
    driver.run("""
        const { network, client } = devices.a;
        network.deafen(); // or the action itself would come and settle it
        network.loseAnswers = 2;
        await client.create("Task", { id: "once", title: "x", workspaceId: "ws1" });
        const sent = () => network.requests.filter((one) => one === "POST mutate").length;
        await until("two repeats", () => sent() === 3);
        network.join();
        await settled(devices.a);
    """)
    assert [action["modelId"] for action in site.log()] == ["once"]


def test_refusals_roll_back_and_neighbours_stay(driver: Driver, site: Site) -> None:
    """Case 52, and codec refusals."""
    site.mutate(insert("t0"))
    begin(driver, site)
    driver.run("""
        const { client } = devices.a;
        const quiet = (promise) => promise.catch(() => {});
        await Promise.all([
            quiet(client.create("Task", { id: "ok", title: "x", workspaceId: "ws1" })),
            quiet(client.create("Task", { id: "day", title: "x", workspaceId: "ws1", dueOn: 5 })),
            quiet(client.create("Task", { id: "denied", title: "x", workspaceId: "ws2" })),
            quiet(client.update("Task", "t0", { createdAt: "now" })),
        ]);
        await until("the end", async () => (await devices.a.pending()) === 0);
    """)
    assert driver.run("return await devices.a.titles()") == ["ok:x", "t0:t0"]
    assert set(site.rows("Task")) == {"ok", "t0"}


def test_groups_are_apart(driver: Driver, site: Site) -> None:
    begin(driver, site)
    begin(driver, site, "e", "eve")
    driver.run("""
        await devices.a.client.create("Task", { id: "a", title: "x", workspaceId: "ws1" });
        await devices.e.client.create("Task", { id: "e", title: "x", workspaceId: "ws2" });
        await devices.e.client.create("Notice", { id: "n", text: "all" });
        await settled(devices.a); await settled(devices.e);
        await until("the notice", async () => (await devices.a.all("Notice")).length === 1);
    """)
    assert driver.run("return [await devices.a.titles(), await devices.e.titles()]") == [
        ["a:x"], ["e:x"],
    ]  # fmt: skip


def change_members(driver: Driver, site: Site, change: str, user: str, group: str) -> None:
    driver.run("""
        const { WebSocket } = await import("ws");
        const socket = new WebSocket(`${args.base.replace("http", "ws")}/ws?token=admin`);
        const once = (what) => new Promise((resolve) => socket.once(what, resolve));
        const heard = async () => JSON.parse(await once("message"));
        await once("open");
        const ask = { type: "subscribe", token: "admin", afterSyncId: "999999999" };
        socket.send(JSON.stringify(ask));
        while ((await heard()).type !== "subscribed");
        socket.send(JSON.stringify({ type: "members", ...args.change }));
        while (!(await heard()).done);
        socket.terminate();
    """, base=site.base(), change={"change": change, "user": user, "group": group})  # fmt: skip


def test_membership_gain_and_loss(driver: Driver, site: Site) -> None:
    """Case 70: added rows appear, removed rows go, the live stream follows."""
    site.mutate(insert("theirs", "ws2"), user="eve")
    begin(driver, site)
    begin(driver, site, "offline")
    driver.run("await devices.offline.client.stop()")
    assert driver.run("return await devices.a.titles()") == []
    change_members(driver, site, "add_member", "ann", "ws2")
    driver.run('await until("their row", async () => (await devices.a.titles()).length === 1)')
    site.mutate(insert("more", "ws2"), user="eve")
    driver.run('await until("a live one", async () => (await devices.a.titles()).length === 2)')
    change_members(driver, site, "remove_member", "ann", "ws2")
    driver.run('await until("their end", async () => (await devices.a.titles()).length === 0)')
    site.mutate(insert("secret", "ws2"), user="eve")
    site.mutate(insert("mine", "ws1"))
    driver.run(
        'await until("own rows", async () => (await devices.a.titles()).join() === "mine:mine")'
    )
    driver.run("""
        devices.offline.make(); await devices.offline.client.start();
        const same = async () => (await devices.offline.titles()).join() === "mine:mine";
        await until("the same", same);
    """)


def test_unauthorized_and_refresh(driver: Driver, site: Site) -> None:
    begin(driver, site, refresh="ann:new")
    driver.run("""
        devices.a.token = "old";
        await devices.a.client.create("Task", { id: "t", title: "x", workspaceId: "ws1" });
        await settled(devices.a);
    """)
    assert driver.run("return [devices.a.refreshed > 0, devices.a.token]") == [True, "ann:new"]
    assert list(site.rows("Task")) == ["t"]


def test_no_gap_while_others_write(driver: Driver, site: Site) -> None:
    """Cases 65 and 66: drops and reconnects during 300 writes of two devices."""
    begin(driver, site)
    begin(driver, site, "b", "bob")
    driver.run("""
        await devices.b.client.create("Task", { id: "t", title: "0", workspaceId: "ws1" });
        await settled(devices.b);
        for (let n = 1; n <= 300; n++) {
            await devices.b.client.update("Task", "t", { title: `${n}` });
            const row = { id: `x${n}`, title: "x", workspaceId: "ws1" };
            if (n % 3 === 0) await devices.b.client.create("Task", row);
            if (n % 60 === 30) devices.a.network.cut();
            if (n % 60 === 0) devices.a.network.join();
        }
        await settled(devices.b);
        const wanted = (await devices.b.titles()).join();
        await until("the same rows", async () => (await devices.a.titles()).join() === wanted);
    """)
    rows = site.rows("Task")
    assert len(rows) == 101 and rows["t"]["title"] == "300"
    shown = driver.run("return await devices.a.titles()")
    assert shown == sorted(f"{id}:{row['title']}" for id, row in rows.items())


def test_ten_thousand_rows_and_a_long_absence(driver: Driver, site: Site) -> None:
    """Cases 7 and 67: 10,000 rows at once; 2,500 actions later no second bootstrap."""
    for start in range(0, 9_900, 100):
        site.mutate(*[insert(f"t{n:05}") for n in range(start, start + 100)])
    begin(driver, site)
    count = 'return (await devices.a.all("Task")).length'
    assert driver.run(count) == 9_900
    driver.run("await devices.a.client.stop()")
    for start in range(0, 2_500, 100):
        site.mutate(*[
            tx("UPDATE", "Task", f"t{n:05}", {"title": "new"}) for n in range(start, start + 100)
        ])  # fmt: skip
    driver.run(
        "devices.a.network.requests.length = 0; devices.a.make(); await devices.a.client.start()"
    )
    driver.run("""await until("the last", async () =>
        (await devices.a.client.get("Task", "t02499")).title === "new")""")
    assert "GET bootstrap" not in driver.run("return devices.a.network.requests")


def test_retention_makes_it_bootstrap(driver: Driver, tmp_path: Path) -> None:
    """Case 68: the log is pruned past the device's cursor; its offline writes survive."""
    (tmp_path / "app.py").write_text(APP)
    with Site(tmp_path, "serve", "app:app", HOLDFAST_RETAIN="100") as site:
        site.mutate(insert("t0"))
        begin(driver, site)
        driver.run("""
            devices.a.network.cut();
            await devices.a.client.create("Task", { id: "off", title: "x", workspaceId: "ws1" });
            await devices.a.client.stop();
        """)
        for start in range(0, 600, 100):
            site.mutate(*[insert(f"n{n}") for n in range(start, start + 100)])
        with pytest.raises(urllib.error.HTTPError) as stale:
            site.ask("/deltas?after=1")
        assert stale.value.code == 409
        driver.run("""
            devices.a.network.requests.length = 0;
            devices.a.network.join(); devices.a.make(); await devices.a.client.start();
            await settled(devices.a);
            await until("everything", async () => (await devices.a.all("Task")).length === 602);
        """)
        assert "GET bootstrap" in driver.run("return devices.a.network.requests")
        assert "off" in site.rows("Task")


def test_undo_and_redo(driver: Driver, site: Site) -> None:
    begin(driver, site)
    titles = driver.run("""
        const { client } = devices.a, seen = [];
        const note = async () => {
            await settled(devices.a);
            seen.push((await devices.a.titles()).join());
        };
        await client.create("Task", { id: "t", title: "one", workspaceId: "ws1" }); await note();
        await client.update("Task", "t", { title: "two" }); await note();
        await client.undo(); await note();
        await client.redo(); await note();
        await client.delete("Task", "t"); await note();
        await client.undo(); await note();
        return seen;
    """)
    assert titles == ["t:one", "t:two", "t:one", "t:two", "", "t:two"]
    assert site.rows("Task")["t"]["title"] == "two"


def test_lazy_models_are_loaded_by_key(driver: Driver, site: Site) -> None:
    for number in range(3):
        payload = {"body": f"c{number}", "taskId": "t", "workspaceId": "ws1"}
        site.mutate(tx("INSERT", "Comment", f"c{number}", payload))
    begin(driver, site)
    found = driver.run("""
        const one = await devices.a.client.ensureModel("Comment", "c1");
        return one && one.body;
    """)
    assert found == "c1"


def test_the_server_is_killed_between_writes(driver: Driver, site: Site) -> None:
    begin(driver, site)
    driver.run("""
        await devices.a.client.create("Task", { id: "before", title: "x", workspaceId: "ws1" });
        await settled(devices.a);
    """)
    site.stop(signal.SIGKILL)
    driver.run(
        'await devices.a.client.create("Task", { id: "during", title: "x", workspaceId: "ws1" })'
    )
    site.start()
    driver.run("await devices.a.restart(); await settled(devices.a)")
    assert set(site.rows("Task")) == {"before", "during"}
