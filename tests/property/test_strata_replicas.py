"""Whatever clients write, lose, repeat and miss: in the end every replica equals the server's rows
of its groups, and what was logged folds to what is stored.

The scope runs without a loop (tests/support/ledgers.py). A client is a replica, a cursor, groups
and transactions it has had no answer to. Sockets are the real feed over a sink that may be full.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dialects.stratasync.models import MEMBERS, Registry
from actors.dialects.stratasync.plan import Membership, Mutation, StrataDialect
from actors.ledger import Ledger
from actors.mailbox import Request
from actors.scope import Scope
from actors.types import Address, Appended, Draft, Duplicate, EntryPage, Retention, ScopePolicy
from edge.dialects.stratasync import frames as f
from edge.dialects.stratasync.feed import Audience, StrataFeed
from edge.wire import Frames
from tests.support.ledgers import NOW, FakeReply, FakeShell, fold
from tests.support.strata import NOTICE, TASK, TASK_LABEL, Replica

ADDRESS = Address("default", "strata:acme")
GROUPS = ("a", "b", "c")
USERS = ("u1", "u2", "u3")
REGISTRY = Registry([TASK, NOTICE, TASK_LABEL])

rows = st.sampled_from(["r1", "r2", "r3"])
writes = st.one_of(
    st.tuples(st.just("I"), st.just("Task"), rows, st.sampled_from(GROUPS)),
    st.tuples(st.just("U"), st.just("Task"), rows, st.sampled_from([*GROUPS, None, None])),
    st.tuples(st.sampled_from("AVD"), st.just("Task"), rows, st.none()),
    st.tuples(st.sampled_from("IUD"), st.just("Notice"), rows, st.none()),
    st.tuples(st.sampled_from("ID"), st.just("TaskLabel"), rows, st.sampled_from(GROUPS)),
)
steps = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(USERS), st.lists(writes, min_size=1, max_size=4)),
    st.tuples(st.just("lose"), st.sampled_from(USERS), writes),  # the answer never comes
    st.tuples(st.just("repeat"), st.sampled_from(USERS), st.none()),
    st.tuples(st.just("member"), st.sampled_from(USERS), st.tuples(
        st.booleans(), st.sampled_from(GROUPS))),
    st.tuples(st.just("burst"), st.sampled_from(USERS), st.tuples(  # all of it in one commit
        st.lists(writes, max_size=3), st.booleans(), st.sampled_from(GROUPS),
        st.lists(writes, max_size=3))),
    st.tuples(st.just("stall"), st.sampled_from(USERS), st.none()),
    st.tuples(st.just("drain"), st.sampled_from(USERS), st.none()),
    st.tuples(st.just("reconnect"), st.sampled_from(USERS), st.none()),
    st.tuples(st.just("bootstrap"), st.sampled_from(USERS), st.none()),
    st.tuples(st.just("crash"), st.sampled_from(USERS), st.none()),
)  # fmt: skip


class World:
    """One database and its clients."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dialect = StrataDialect(REGISTRY)
        Ledger.create(
            path, ADDRESS, dialect="stratasync", epoch="e", at=NOW, materialize=True
        ).close()
        self.feed = StrataFeed(ADDRESS, lambda *_: Frames([]))
        self.old: list[Ledger] = []
        self.open()
        self.keys = 0
        for user, groups in zip(USERS, ("ab", "bc", "abc"), strict=True):
            change = Membership(user=user, add=tuple(groups))
            self.ask(Draft(f"~/first-{user}", "member", "", 100, change))
        self.clients = {user: Client(self, user) for user in USERS}

    def open(self) -> None:
        self.shell = FakeShell()
        ledger = Ledger.open(self.path, ADDRESS)
        policy = ScopePolicy(Retention(100_000))
        self.scope = Scope(ADDRESS, ledger, policy, self.shell, [self.feed], self.dialect)
        self.shell.settle()

    def close(self) -> None:
        for ledger in [*self.old, self.scope.ledger]:
            ledger.close()

    def ask(self, *drafts: Draft) -> list[Any]:
        reply = FakeReply()
        self.scope.append(Request(list(drafts), reply, None))
        self.shell.settle()
        return reply.outcomes

    def stored(self, user: str) -> list[str]:
        (row,) = self.scope.rows([(MEMBERS, user)])
        return [] if row is None else row.value["groups"]

    def visible(self, groups: frozenset[str]) -> dict[tuple[str, str], Any]:
        """The rows the file has, restricted to groups."""
        db = self.scope.ledger._db
        found = db.execute("SELECT coll, id, grp, body FROM rows WHERE coll<>?", (MEMBERS,))
        return {
            (coll, id): {"id": id, **msgspec.json.decode(body)}
            for coll, id, grp, body in found
            if grp is None or grp in groups
        }


class Client:
    """Fits edge.dialects.stratasync.feed.Shown."""

    def __init__(self, world: World, user: str) -> None:
        self.world = world
        self.user = user
        self.replica = Replica()
        self.audience = Audience(user, [user], 0)
        self.groups = frozenset([user, *world.stored(user)])
        self.cursor = self.ahead = 0
        self.batched = self.congested = False
        self.sent: list[Draft] = []
        self.seen: list[int] = []
        self.connect()

    def offer(self, frames: Frames) -> bool:
        if self.congested:
            return False
        for text in frames.texts:
            (action,) = msgspec.json.decode(text)["packet"]["actions"]
            self.take(action)
        return True

    def take(self, action: Any) -> None:
        seq = int(action["syncId"])
        assert not self.seen or seq > self.seen[-1], "order, and each once"
        self.seen.append(seq)
        assert action.get("groupId") in (None, *self.may), "only what it may see"
        if action["action"] == "G":
            groups = frozenset(action["data"]["subscribedSyncGroups"])
            if seq > self.known_at:
                self.may &= groups
            self.regroup(groups, seq)
        else:
            self.replica.apply(action)

    def regroup(self, groups: frozenset[str], seq: int) -> None:
        """As the client: rows of lost groups go; new groups are fetched by subscribing anew."""
        self.replica.cursor = max(self.replica.cursor, seq)
        gained, self.groups = groups - self.groups, groups
        for key, row in list(self.replica.rows.items()):
            if row.get("workspaceId") not in (None, *groups) and key[0] != "Notice":
                del self.replica.rows[key]
        self.stale = self.stale or bool(gained)

    def lagging(self) -> None:
        """Replays when it drains."""

    def durable(self, bounds: Any) -> None: ...
    def reset(self, bounds: Any) -> None: ...

    def bootstrap(self) -> None:
        self.groups = frozenset([self.user, *self.world.stored(self.user)])
        self.replica.rows = self.world.visible(self.groups)
        self.replica.cursor = self.world.scope.head

    stale = False

    def connect(self) -> None:
        """Subscribe from the replica's cursor with the groups it has."""
        world = self.world
        world.feed.live.pop(self, None)
        self.congested = False
        (row,) = world.scope.rows([(MEMBERS, self.user)])
        may = frozenset([self.user, *world.stored(self.user)])
        self.audience = Audience(self.user, may & self.groups, 0 if row is None else row.seq)
        self.may, self.known_at = self.audience.groups, self.audience.known_at
        self.cursor = self.replica.cursor
        self.seen = []
        self.replay()

    def replay(self) -> None:
        world = self.world
        while self.cursor < world.scope.released:
            groups = msgspec.json.encode(sorted(self.audience.groups)).decode()
            page = world.scope.visible(self.cursor, groups, entries_max=3, bytes_max=10_000)
            assert isinstance(page, EntryPage)
            for entry in page.entries:  # one by one, because a change narrows on the way
                for shown in self.audience.pick([entry]):
                    self.take(msgspec.json.decode(f.action(shown)))
            self.cursor = page.last
        world.feed.live[self] = None

    def settle(self) -> None:
        """Whatever it missed: drain, and fetch the rows of groups it has gained."""
        if self.stale:
            self.stale = False
            self.bootstrap()
            self.connect()
        elif self.congested or self not in self.world.feed.live:
            self.congested = False
            self.replay()


def draft_of(world: World, user: str, write: Any) -> Draft:
    action, model, id, group = write
    payload: dict[str, Any] = {"title": f"{world.keys}", "text": f"{world.keys}", "archivedAt": 1}
    if group is not None:
        payload["workspaceId"] = group
    if model == "TaskLabel":
        payload.update(taskId=id, labelId="l")
    world.keys += 1
    mutation = Mutation(action=action, model=model, id=id, payload=payload, user=user)
    return Draft(f.cause_of(user, str(world.keys)), "mutate", "", 100, mutation, user)


def member_draft(world: World, user: str, add: bool, group: str) -> Draft:
    change = Membership(user=user, add=(group,) if add else (), remove=() if add else (group,))
    world.keys += 1
    return Draft(f"~/{world.keys}", "member", "", 100, change)


def again(draft: Draft) -> Draft:
    return Draft(draft.cause, draft.kind, "", 100, draft.data, draft.origin)


def step(world: World, kind: str, user: str, what: Any) -> None:
    client = world.clients[user]
    match kind:
        case "write":
            world.ask(*[draft_of(world, user, write) for write in what])
        case "lose":
            draft = draft_of(world, user, what)
            if isinstance(world.ask(draft)[0], Appended):
                client.sent.append(draft)
        case "repeat":
            head = world.scope.head
            for draft in client.sent:
                assert isinstance(world.ask(again(draft))[0], Duplicate)
            assert world.scope.head == head
        case "member":
            add, group = what
            world.ask(member_draft(world, user, add, group))
        case "burst":
            before, add, group, after = what
            other = USERS[USERS.index(user) - 1]
            world.ask(
                *[draft_of(world, other, write) for write in before],
                member_draft(world, user, add, group),
                *[draft_of(world, other, write) for write in after],
            )
        case "stall":
            client.congested = True
        case "drain":
            client.settle()
        case "reconnect":
            client.connect()
        case "bootstrap":
            client.stale = False
            client.bootstrap()
            client.connect()
        case "crash":
            world.old.append(world.scope.ledger)
            world.open()


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, min_size=8, max_size=50))
def test_replicas_equal_the_servers_rows(history: list[Any]) -> None:
    with TemporaryDirectory() as directory:
        world = World(Path(directory) / "s.db")
        try:
            for kind, user, what in history:
                step(world, kind, user, what)
            for client in world.clients.values():
                client.settle()
                client.settle()  # what the first brought may have been a membership
                assert client.replica.rows == world.visible(client.groups), client.user
                assert client.groups == {client.user, *world.stored(client.user)}
            entries = world.scope.ledger.entries(0, world.scope.head)
            again = fold("stratasync", entries, {}, None)
            stored = world.scope.ledger._db.execute("SELECT coll, id, body, grp FROM rows")
            assert {key: (row.value, row.grp) for key, row in again.items()} == {
                (coll, id): (msgspec.json.decode(body), grp) for coll, id, body, grp in stored
            }
        finally:
            world.close()
