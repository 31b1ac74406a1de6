"""Objects in a ledger: keys and values, contiguous sequences, all or nothing, kept answers, numbers
that jump after a restore.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.check import check_ledger
from actors.dialects.para.keys import BadKey, check_key, kind_of, version_of
from actors.dialects.para.plan import (
    OBJECTS,
    Answer,
    Change,
    Op,
    answer_of,
    probe_draft,
    refusal_draft,
    set_draft,
    stored_of,
    version_text,
)
from actors.dialects.para.values import BadValue, TooLarge, json_text, same
from actors.host import Host
from actors.host_settings import HostSettings
from actors.ledger import Ledger
from actors.reply import FutureReply
from actors.rows import Row
from actors.types import (
    Address,
    Appended,
    Draft,
    Duplicate,
    EntryPage,
    Outcome,
    Rejected,
    Retention,
    ScopePolicy,
)
from infra.errors import ProtocolError
from infra.paths import ledger_path

SPACE = Address("default", "para:main")


def change(key: str, value: Any = None, version: str = "1.0", **members: Any) -> Change:
    return Change(key, version, value, json_text(value), **members)


async def append(host: Host, *drafts: Draft) -> list[Outcome]:
    reply = FutureReply()
    host.append(SPACE, list(drafts), reply, None)
    async with asyncio.timeout(20):
        outcomes, _ = await reply.future
    return outcomes


async def put(host: Host, *changes: Change, op: Op | None = None) -> Outcome:
    (outcome,) = await append(host, set_draft(list(changes), op))
    return outcome


async def row(host: Host, key: str) -> Row | None:
    (found,) = await host.get(SPACE, [(OBJECTS, key)])
    return found


def revs(outcome: Outcome) -> dict[str, int]:
    assert isinstance(outcome, Appended | Duplicate)
    return answer_of(outcome.outcome).revs


@pytest.mark.parametrize("key", ["a", "user:1", "ü" * 100, "x" * 200, "a:b:c", "a*b", "*"])
def test_keys(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    ["", "a b", "a\tb", "a\u2003b", "a\nb", "\x7f", "a\x00", "x" * 201, "ü" * 101, "\ud800", 7],
)
def test_bad_keys(key: object) -> None:
    with pytest.raises(BadKey):
        check_key(key)


def test_kinds_and_versions() -> None:
    assert [kind_of(key) for key in ("user:1", "a:b:c", "plain")] == ["user", "a", "plain"]
    assert version_of("10.2") == (10, 2)
    for text in ("1", "01.0", "1.x", "x", "1.0.0", "", "1.1234567890"):
        with pytest.raises(ProtocolError):
            version_of(text)


def test_values_are_json() -> None:
    assert json_text({"n": 2**63, "f": 1.5, "l": [None, True, "ü"]}) == (
        '{"n":9223372036854775808,"f":1.5,"l":[null,true,"ü"]}'
    )
    deep: Any = 1
    for _ in range(65):
        deep = [deep]
    for bad in (
        b"x",
        float("nan"),
        float("inf"),
        2**64,
        -(2**63) - 1,
        {1: 2},
        {1, 2},
        "\ud800",
        deep,
    ):
        with pytest.raises(BadValue):
            json_text(bad)
    with pytest.raises(TooLarge):
        json_text("x" * (1 << 20))


def test_equality_is_json_s() -> None:
    assert same({"a": [1, 2.0]}, {"a": [1.0, 2]}) and same(None, None) and same([], ())
    for one, other in ((True, 1), (0, False), ({"a": 1}, {"a": 1, "b": 2}), ([1], [1, 2]),
                       ([True], [1]), ("1", 1), ({}, []), (None, False)):  # fmt: skip
        assert not same(one, other) and not same(other, one)


async def test_each_change_is_one_more(tmp_path: Path) -> None:
    async with Host(tmp_path, HostSettings()) as host:
        assert revs(await put(host, change("user:1", {"n": 1}))) == {"user:1": 1}
        assert revs(await put(host, change("user:1", {"n": 2}))) == {"user:1": 2}
        assert revs(await put(host, change("user:2", {"n": 2}))) == {"user:2": 1}
        again = await put(host, change("user:1", {"n": 2.0}))
        assert again == Appended(4, 3, '{"revs":{"user:1":2}}'), "an equal value is no change"
        assert revs(await put(host, change("user:1", {"n": 2}, "1.1"))) == {"user:1": 3}
        found = await row(host, "user:1")
        assert found is not None and (found.value, found.rev) == ({"n": 2}, 3)
        assert version_text(found) == "1.1"
        page = await host.visible(SPACE, 0, "[]", entries_max=99, bytes_max=1 << 20)
        assert isinstance(page, EntryPage)
        assert [(e.kind, e.ref, stored_of(e).rev) for e in page.entries] == [
            ("put", "user:1", 1), ("put", "user:1", 2), ("put", "user:2", 1), ("put", "user:1", 3),
        ]  # fmt: skip


async def test_delete_then_put_goes_on(tmp_path: Path) -> None:
    """Row 42 of the contract, as the ledger has it."""
    async with Host(tmp_path, HostSettings()) as host:
        gone = change("k", deleted=True)
        assert await put(host, gone) == Appended(1, 0, '{"revs":{"k":0}}'), "there is none"
        await put(host, change("k", 1))
        assert revs(await put(host, gone)) == {"k": 2}
        assert revs(await put(host, gone)) == {"k": 2}, "gone already"
        found = await row(host, "k")
        assert found is not None and found.deleted and found.value is None
        assert revs(await put(host, change("k", 1))) == {"k": 3}


async def test_a_group_is_all_or_nothing(tmp_path: Path) -> None:
    async with Host(tmp_path, HostSettings()) as host:
        assert revs(await put(host, change("a", 1), change("b", 1))) == {"a": 1, "b": 1}
        refused = await put(host, change("a", 2, rev=1), change("b", 2, rev=7))
        assert isinstance(refused, Rejected)
        assert (refused.code, refused.detail) == ("stale", {"key": "b"})
        found = await row(host, "a")
        assert found is not None and (found.rev, found.value) == (1, 1)
        twice = await put(host, change("a", 2), change("a", 3))
        assert isinstance(twice, Rejected) and twice.code == "bad_frame"
        none = await put(host)
        assert isinstance(none, Rejected)
        assert revs(await put(host, change("a", 2, rev=1), change("c", 1, rev=0))) == {
            "a": 2,
            "c": 1,
        }


async def test_repeats_are_answered_as_before(tmp_path: Path) -> None:
    op, other = Op("ada", "c1", "op1", 4), Op("bob", "c1", "op1")
    policy = ScopePolicy(Retention(entries=64))
    async with Host(tmp_path, HostSettings(policy=lambda _: policy)) as host:
        (unknown,) = await append(host, probe_draft(op))
        assert isinstance(unknown, Rejected) and unknown.code == "unknown"
        first = await put(host, change("a", 1, v=4), change("b", 1), op=op)
        again = await put(host, change("a", 9), op=op)
        assert revs(first) == revs(again) == {"a": 1, "b": 1} and isinstance(again, Duplicate)
        (known,) = await append(host, probe_draft(op))
        assert revs(known) == {"a": 1, "b": 1}
        assert revs(await put(host, change("a", 2), op=other)) == {"a": 2}, "another's op1"
        equal = Op("ada", "c1", "op2")
        assert revs(await put(host, change("a", 2), op=equal)) == {"a": 2}
        assert isinstance(await put(host, change("a", 7), op=equal), Duplicate), "no entry, kept"
        no = Op("ada", "c1", "op3")
        await append(host, refusal_draft(no, "no_funds", "you have 3"))
        refused = await put(host, change("a", 7), op=no)
        assert isinstance(refused, Duplicate)
        assert answer_of(refused.outcome) == Answer(code="no_funds", message="you have 3")
        page = await host.visible(SPACE, 0, "[]", entries_max=9, bytes_max=1 << 20)
        assert isinstance(page, EntryPage)
        body = stored_of(page.entries[0])
        assert (page.entries[0].origin, body.opId, body.v) == ("ada/c1", "op1", 4)
        for number in range(300):  # retention takes the entries
            await put(host, change("n", number))
    async with Host(tmp_path, HostSettings(policy=lambda _: policy)) as host:
        assert revs(await put(host, change("a", 9), op=op)) == {"a": 1, "b": 1}
        assert isinstance(await put(host, change("a", 7), op=no), Duplicate)
        found = await row(host, "a")
        assert found is not None and found.value == 2
        assert (await host.bounds(SPACE)).floor > 0, "rows need no entries"
    checked = check_ledger(ledger_path(tmp_path, *SPACE))
    assert checked.problems == []


async def test_32_numbers_jump_where_history_may_have_been_cut(tmp_path: Path) -> None:
    async with Host(tmp_path, HostSettings()) as host:
        for number in range(7):
            await put(host, change("k", number))
        assert (await host.bounds(SPACE)).jump == 0
    ledger = Ledger.open(ledger_path(tmp_path, *SPACE), SPACE)
    ledger.move_epoch("e2", jump=1 << 20, at=1)
    ledger.close()
    async with Host(tmp_path, HostSettings()) as host:
        outcome = await put(host, change("k", "new"))
        bounds = await host.bounds(SPACE)
        assert revs(outcome)["k"] + bounds.jump == 8 + (1 << 20)
    assert check_ledger(ledger_path(tmp_path, *SPACE)).problems == []


async def test_the_file_folds_anew(tmp_path: Path) -> None:
    async with Host(tmp_path, HostSettings()) as host:
        for number in range(20):
            await put(host, change(f"k{number % 3}", {"n": number, "t": "x" * 20_000}))
        await put(host, change("k1", deleted=True), change("k2", "é"))
    checked = check_ledger(ledger_path(tmp_path, *SPACE))
    assert checked.problems == [] and checked.refolded and checked.rows == 3
