"""Works, results and drafts' data survive the journey, and only those that are known make it."""

from __future__ import annotations

from typing import Any

import pytest

from actors import works
from actors.clocks import HLC
from actors.dialects.para.plan import Change, Changes
from actors.dialects.para.reads import Held as Object
from actors.dialects.para.reads import ObjectsWork
from actors.dialects.starkeep.channels import Channel
from actors.dialects.starkeep.delta import Held
from actors.dialects.starkeep.namespaces import Namespace, TableInfo
from actors.dialects.starkeep.reads import ExchangeWork, MappedWork, NamespacesWork, UnusedWork
from actors.dialects.stratasync.plan import Action, Membership, Mutation
from actors.dialects.stratasync.reads import (
    BootstrapWork,
    Lookup,
    LookupWork,
    Metadata,
    SelectWork,
    Viewer,
)  # fmt: skip
from actors.dialects.vuer.reads import (
    DocumentRead,
    DocumentWork,
    HashWork,
    LamportWork,
    RoomRead,
    RoomWork,
    SessionsWork,
)
from actors.types import Bounds, Entry
from tests.support.works import Doing

AT = Bounds("e", 5, 1, 5, floor_at=3)
VIEWER = Viewer("ann", ("a", "b"), ("a",))
STAMP = HLC(5, 1, "node")
HELD = Held("split", ("rec", "app:x:t"), {("rec", "node"): STAMP, ("app:x:t", "n2"): STAMP})
CASES: list[tuple[Any, Any]] = [
    (BootstrapWork(VIEWER, None, "h"), Metadata("9", {"Task": 3}, "h", ("a",))),
    (BootstrapWork(VIEWER, ("Task",), ""), Metadata("0", {}, "", ())),
    (LookupWork(VIEWER, (Lookup("Task", "k", "v"), Lookup("T", group="g"))), None),
    (SelectWork("Task", "x = :x", {"x": 1.5, "y": None}, 10), ['{"a":1}\n']),
    (ExchangeWork(Channel("combined"), {"node": STAMP}, 50), (HELD, b'{"x":"\xc3\xa9"}')),
    (ExchangeWork(Channel("app", "x"), {}, 0), (HELD, None)),
    (NamespacesWork(), [Namespace("x", (TableInfo("t", ("id",)),), files_enabled=True)]),
    (UnusedWork(7), ["k"]),
    (MappedWork(7), ({"k": ("h1", "h2")}, ["k"])),
    (
        RoomWork(at_head=False, entries_max=9, bytes_max=5),
        RoomRead(AT, 1, 7, [Entry(2, 9, "msg", "m", "{}", 2, flags=1)]),
    ),
    (LamportWork(), 7),
    (HashWork(refold=False), ("h1_0", None)),
    (DocumentWork(), DocumentRead(AT, 7, "scene", 3)),
    (SessionsWork(), {"alice": (3, "m")}),
    (ObjectsWork("a:", 5), [Object("a:1", 2**40, "1.0", '{"n":18446744073709551616}')]),
]


def test_every_work_there_is_has_a_case() -> None:
    assert {type(work) for work, _ in CASES} == set(works.WORKS)


@pytest.mark.parametrize(("work", "result"), CASES)
def test_a_work_and_its_result_come_back_as_they_were(work: Any, result: Any) -> None:
    assert works.decode_work(works.encode_work(work)) == work
    assert works.decode_result(work, works.encode_result(result)) == result


@pytest.mark.parametrize(
    "data",
    [
        Mutation(action="I", model="T", id="1", payload={"a": [1, None, "é"]}, user="u", rev=0),
        Membership(user="u", add=("a",), groups=("b",)),
        Action(action="U", model="T", id="1", data={"x": 2**40}, group="g"),
        Changes([Change("a:1", "1.0", {"n": 2**63}, '{"n":9223372036854775808}', rev=3)]),
    ],
)
def test_data_of_drafts_comes_back_as_it_was(data: Any) -> None:
    assert works.decode_data(works.encode_data(data)) == data


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(works.Unknown, match="WORKS"):
        works.encode_work(Doing(len))
    with pytest.raises(works.Unknown, match="DRAFTS"):
        works.encode_data({"a": 1})
    with pytest.raises(works.Unknown):
        works.decode_work(b"\x81\xa4type\xa4nope")
    with pytest.raises(works.Unknown):
        works.decode_data(b'{"type":"nope"}')
    bad = Action(action="U", model="T", id="1", data={"x": "\ud800"})
    with pytest.raises(works.Unknown, match="JSON"):
        works.encode_data(bad)
