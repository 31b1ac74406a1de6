"""What is said beside a scope's history: among the parties of one process, over a stream that has
no credit, and between edges over the process that has the scope.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from actors import ephemeral as module
from actors import ephemeral_wire
from actors.ephemeral import Ephemera, Line, Said, Taken
from actors.ephemeral_wire import Exchange, Unsaid, Whole
from actors.link_wire import decode_plain, encode
from actors.types import Address, Bounds
from infra.errors import Busy, ProtocolError
from tests.support.edges import Ears, Edges, until
from tests.support.placed import Placed

A = Address("default", "rtc:r1")
B = Address("default", "rtc:r2")
NOW = 1_000


def hub(name: str = "one", now: int = NOW) -> Ephemera:
    return Ephemera(name, lambda: now)


def both(ephemera: Ephemera) -> tuple[Line, Ears, Line, Ears]:
    one, other = Ears(), Ears()
    return ephemera.open(A, one), one, ephemera.open(A, other), other


# -- one process ---------------------------------------------------------------------------------


def test_others_of_the_scope_hear_and_the_speaker_does_not() -> None:
    ephemera = hub()
    line, ears, _, other = both(ephemera)
    elsewhere = Ears()
    ephemera.open(B, elsewhere)
    line.say("t", "ada", "hello")
    assert (ears.bodies, other.bodies, elsewhere.bodies) == ([], ["hello"], [])


def test_who_comes_later_finds_what_is_kept_and_nothing_that_passed() -> None:
    ephemera = hub()
    line, _, _, _ = both(ephemera)
    line.say("t", "ada", "1", kept=True)
    line.say("t", "ada", "2", kept=True)
    line.say("t", "bob", "gone by")
    late = ephemera.open(A, Ears())
    assert [said.body for said in late.others()] == ["2"]
    assert not line.others()


def test_a_line_that_ends_takes_back_what_it_kept() -> None:
    ephemera = hub()
    line, _, other_line, other = both(ephemera)
    line.say("t", "ada", "1", kept=True)
    other_line.say("t", "bob", "2", kept=True)
    line.close()
    line.close()
    assert other.present == {} and [said.sender for said in other.withdrawn_all] == ["ada"]
    line.say("t", "ada", "after the end", kept=True)
    assert other.bodies == ["1"]
    other_line.close()
    assert len(ephemera) == 0


def test_only_who_keeps_it_takes_it_back() -> None:
    line, _, other_line, other = both(hub())
    line.say("t", "ada", "1", kept=True)
    other_line.take_back("t", "ada")
    assert other.present == {("t", "ada"): "1"} and not other.withdrawn_all
    line.take_back("t", "ada")
    assert other.present == {}


def test_a_sender_that_speaks_elsewhere_is_held_there() -> None:
    line, ears, other_line, _ = both(hub())
    line.say("t", "ada", "1", user="u", kept=True)
    other_line.say("t", "ada", "2", user="u", kept=True)
    assert ears.present == {("t", "ada"): "2"}
    line.take_back("t", "ada")
    line.close()
    assert [said.body for said in other_line.mine()] == ["2"]


def test_a_name_is_its_users_while_it_is_held() -> None:
    line, ears, other_line, _ = both(hub())
    line.say("t", "ada", "1", user="u", kept=True)
    with pytest.raises(Taken):
        other_line.say("t", "ada", "2", user="mallory", kept=True)
    assert ears.bodies == []
    line.take_back("t", "ada")
    other_line.say("t", "ada", "2", user="mallory", kept=True)
    assert ears.bodies == ["2"]


def test_the_later_stamp_holds_whichever_comes_last() -> None:
    first, second = (
        Said("t", "ada", "1", "u", True, 5, "a"),
        Said("t", "ada", "2", "u", True, 5, "b"),
    )
    for order in ([first, second], [second, first]):
        ephemera = hub()
        ears = Ears()
        ephemera.open(A, ears)
        for said in order:
            ephemera.open(A, Ears()).pass_on(said)
        assert ears.present == {("t", "ada"): "2"}


def test_what_is_said_is_later_than_what_was_heard() -> None:
    """Also where the other's clock is ahead."""
    heard, _, own, _ = both(hub())
    heard.pass_on(Said("t", "ada", "ahead", "u", True, NOW + 10**6, "z"))
    own.say("t", "ada", "mine", user="u", kept=True)
    assert [said.body for said in own.mine()] == ["mine"]
    assert own.mine()[0].at > NOW + 10**6


def test_the_same_by_another_way_stays_when_the_first_way_ends() -> None:
    ephemera = hub()
    ears = Ears()
    ephemera.open(A, ears)
    said = Said("t", "ada", "1", "u", True, 5, "a")
    old, new = ephemera.open(A, Ears()), ephemera.open(A, Ears())
    old.pass_on(said)
    new.pass_on(said)
    old.close()
    assert ears.present == {("t", "ada"): "1"} and ears.bodies == ["1"]


def test_what_is_kept_and_said_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 2)
    monkeypatch.setattr(module, "KEPT_BYTES_MAX", 10)
    line, _, _, other = both(hub())
    line.say("t", "a", "1", kept=True)
    line.say("t", "b", "1", kept=True)
    with pytest.raises(Busy):
        line.say("t", "c", "1", kept=True)
    line.say("t", "a", "1" * 9, kept=True)
    with pytest.raises(Busy):
        line.say("t", "b", "22", kept=True)
    line.take_back("t", "a")
    line.say("t", "b", "2" * 10, kept=True)
    with pytest.raises(ProtocolError):
        line.say("t", "a", "1" * (module.BODY_BYTES_MAX + 1))
    assert other.present == {("t", "b"): "2" * 10}


# -- a stream ------------------------------------------------------------------------------------


class Pipe:
    """What an exchange has sent, while `open`."""

    def __init__(self, ephemera: Ephemera) -> None:
        self.open = True
        self.sent: list[ephemeral_wire.Told] = []
        self.exchange = Exchange()
        self.exchange.line = ephemera.open(A, self.exchange)
        self.exchange.send = self.send

    def send(self, payload: msgspec.Raw) -> bool:
        if self.open:
            self.sent.append(ephemeral_wire.decode_told(payload))
        return self.open

    def take(self) -> list[ephemeral_wire.Told]:
        sent, self.sent = self.sent, []
        return sent


def test_a_stream_begins_with_everything() -> None:
    ephemera = hub()
    line = ephemera.open(A, Ears())
    line.say("t", "ada", "1", kept=True)
    pipe = Pipe(ephemera)
    pipe.exchange.begin()
    pipe.exchange.flush()
    begin, said, whole = pipe.take()
    assert isinstance(begin, ephemeral_wire.Begin) and isinstance(whole, Whole)
    assert isinstance(said, Said) and said.body == "1"


def test_without_credit_only_names_wait_and_the_last_value_is_told() -> None:
    ephemera = hub()
    line = ephemera.open(A, Ears())
    pipe = Pipe(ephemera)
    pipe.open = False
    for number in range(1000):
        line.say("t", "ada", str(number), kept=True)
        line.say("t", "bob", str(number), kept=True)
        line.say("t", "ada", "passing")
    line.take_back("t", "bob")
    pipe.exchange.flush()
    assert pipe.exchange.waiting and not pipe.take()
    pipe.open = True
    pipe.exchange.flush()
    said, unsaid = pipe.take()
    assert isinstance(said, Said) and (said.sender, said.body) == ("ada", "999")
    assert isinstance(unsaid, Unsaid) and unsaid.sender == "bob"
    assert not pipe.exchange.waiting


def test_names_of_what_is_gone_are_not_gathered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ephemeral_wire, "KEPT_MAX", 10)
    ephemera = hub()
    line = ephemera.open(A, Ears())
    pipe, target = Pipe(ephemera), hub("two")
    ears = Ears()
    target.open(A, ears)
    end = Exchange()
    end.line = target.open(A, end)
    line.say("t", "ada", "1", kept=True)
    for told in pipe.take():
        end.receive(encode(told))
    pipe.open = False
    line.take_back("t", "ada")
    for number in range(100):
        line.say("t", f"s{number}", "1", kept=True)
        line.take_back("t", f"s{number}")
    line.say("t", "eve", "1", kept=True)
    assert len(pipe.exchange._due) <= 11
    pipe.open = True
    pipe.exchange.flush()
    for told in pipe.take():
        end.receive(encode(told))
    assert ears.present == {("t", "eve"): "1"}


def test_another_user_on_the_same_line_takes_the_place_of_one_that_left() -> None:
    """What was taken back between is not told where the line had no credit."""
    ephemera = hub()
    ears = Ears()
    ephemera.open(A, ears)
    line = ephemera.open(A, Ears())
    line.pass_on(Said("t", "ada", "1", "u", True, 5, "a"))
    assert line.pass_on(Said("t", "ada", "2", "v", True, 6, "a")) is None
    assert ears.present == {("t", "ada"): "2"}


def test_messages_are_arrays_with_a_tag() -> None:
    said = Said("t", "ada", "1", "u", True, 5, "a")
    assert decode_plain(encode(said)) == [0, "t", "ada", "1", "u", True, 5, "a"]
    unsaid = encode(Unsaid("t", "ada", 5, "a"))
    assert ephemeral_wire.decode_told(unsaid) == Unsaid("t", "ada", 5, "a")


# -- edges ---------------------------------------------------------------------------------------


@pytest.fixture
async def edges(tmp_path: Path) -> AsyncIterator[Edges]:
    async with Edges(tmp_path) as edges:
        yield edges


async def test_edges_hear_each_other(edges: Edges) -> None:
    one, two = await edges.edge(), await edges.edge()
    ears, late = Ears(), Ears()
    line = one.ephemeral(A, Ears())
    line.say("t", "ada", "here", user="u", kept=True)
    other = two.ephemeral(A, ears)
    await other.settled()
    assert ears.present == {("t", "ada"): "here"}
    two.ephemeral(A, late)
    line.say("t", "ada", "passing")
    await until(lambda: late.bodies == ["passing"])
    line.say("t", "ada", "moved", user="u", kept=True)
    await until(lambda: ears.present == {("t", "ada"): "moved"})
    line.take_back("t", "ada")
    await until(lambda: not ears.present)


async def test_the_scope_is_not_opened(edges: Edges) -> None:
    one, two = await edges.edge(), await edges.edge()
    ears = Ears()
    two.ephemeral(A, ears)
    line = one.ephemeral(A, Ears())
    line.say("t", "ada", "here", kept=True)
    await until(lambda: ears.present)
    assert not edges.host.open_scopes
    assert await edges.host.bounds(A) == Bounds("", 0, 0, 0)


async def test_what_an_edge_kept_goes_with_its_link(edges: Edges) -> None:
    one, two = await edges.edge(), await edges.edge()
    ears = Ears()
    two.ephemeral(A, ears)
    line = one.ephemeral(A, Ears())
    line.say("t", "ada", "here", kept=True)
    await until(lambda: ears.present)
    await one.aclose()
    await until(lambda: not ears.present)


async def test_an_edge_whose_link_was_cut_is_there_again(edges: Edges) -> None:
    one, two = await edges.edge(), await edges.edge()
    ears, own = Ears(), Ears()
    away = two.ephemeral(A, ears)
    away.say("t", "bob", "here", kept=True)
    line = one.ephemeral(A, own)
    line.say("t", "ada", "here", kept=True)
    await until(lambda: ears.present and own.present)
    for link in tuple(edges.serving.links):
        if link.peer == "edge-0":
            link.close()
    await until(lambda: ears.withdrawn_all)
    await until(lambda: ears.present == {("t", "ada"): "here"})
    assert not own.withdrawn_all, "who lost the link keeps what it knew for a while"


async def test_a_process_that_starts_anew_learns_it_again(edges: Edges) -> None:
    one, two = await edges.edge(), await edges.edge()
    one.beside.return_s = two.beside.return_s = 0.3
    ears, own = Ears(), Ears()
    away = two.ephemeral(A, ears)
    away.say("t", "bob", "here", kept=True)
    away.say("t", "eve", "here", kept=True)
    line = one.ephemeral(A, own)
    line.say("t", "ada", "here", kept=True)
    await until(lambda: ears.present and len(own.present) == 2)
    await edges.end()
    away.take_back("t", "eve")
    line.say("t", "ada", "moved", kept=True)
    await edges.begin()
    await until(lambda: ears.present == {("t", "ada"): "moved"})
    await until(lambda: own.present == {("t", "bob"): "here"})
    assert [said.sender for said in own.withdrawn_all] == ["eve"]
    assert not ears.withdrawn_all


async def test_without_a_process_what_was_heard_stands_for_a_while(edges: Edges) -> None:
    one, two = await edges.edge(), await edges.edge()
    two.beside.absent_s = 0.1
    ears = Ears()
    two.ephemeral(A, ears)
    line = one.ephemeral(A, Ears())
    line.say("t", "ada", "here", kept=True)
    await until(lambda: ears.present)
    await edges.end()
    await until(lambda: not ears.present)
    await edges.begin()
    await until(lambda: ears.present == {("t", "ada"): "here"})


async def test_a_scope_that_moves_is_joined_where_it_is(edges: Edges) -> None:
    one, two = await edges.edge(), await edges.edge()
    ears = Ears()
    two.ephemeral(A, ears)
    line = one.ephemeral(A, Ears())
    line.say("t", "ada", "here", kept=True)
    await until(lambda: ears.present)
    edges.serving.move(lambda address: address == A)
    line.say("t", "ada", "moved", kept=True)
    await until(lambda: ears.present == {("t", "ada"): "moved"})
    assert not ears.withdrawn_all


async def test_two_users_of_one_name_on_two_edges(edges: Edges) -> None:
    """Who was first keeps it, whatever an edge that did not know of it thought."""
    one, two = await edges.edge(), await edges.edge()
    first, second, third = Ears(), Ears(), Ears()
    line = one.ephemeral(A, first)
    line.say("t", "ada", "hers", user="u", kept=True)
    await until(lambda: edges.host.ephemera.lines_in(A))
    other = two.ephemeral(A, second)
    other.say("t", "ada", "stolen", user="mallory", kept=True)  # before it has heard of anybody
    await until(lambda: second.present == {("t", "ada"): "hers"})
    two.ephemeral(A, third)
    line.take_back("t", "ada")
    await until(lambda: not second.present and third.withdrawn_all)
    assert first.bodies == []
    asked = edges.host.ephemera.open(A, Ears())
    assert not asked.others()


async def test_a_stream_without_parties_ends(edges: Edges) -> None:
    one = await edges.edge()
    one.beside.linger_s = 0.05
    line = one.ephemeral(A, Ears())
    await until(lambda: edges.host.ephemera.lines_in(A) == 1)
    line.close()
    again = one.ephemeral(A, Ears())
    again.close()
    await until(lambda: edges.host.ephemera.lines_in(A) == 0 and not len(one.beside))


async def test_a_process_stays_while_edges_hear_each_other_over_it(edges: Edges) -> None:
    one, two = await edges.edge(), await edges.edge()
    for port in (one, two):
        port.beside.linger_s = 0.05
    line, other = one.ephemeral(A, Ears()), two.ephemeral(A, Ears())
    await until(lambda: edges.host.ephemera.lines_in(A) == 2)
    assert edges.host.ephemera.shared
    assert not await edges.serving.sleep()
    other.close()
    await until(lambda: edges.host.ephemera.lines_in(A) == 1)
    assert await edges.serving.sleep(), "one edge alone needs nobody"
    line.close()


async def test_edges_meet_over_a_tenants_process_that_nobody_else_wants(edges: Edges) -> None:
    """The one that wants it first has it started, and the other is told."""
    started: list[str] = []
    one, two = await edges.tenant_edge(started.append), await edges.tenant_edge(started.append)
    ears = Ears()
    one.ephemeral(A, ears)
    await until(lambda: edges.host.ephemera.lines_in(A) == 1)
    assert await edges.serving.sleep(), "one edge alone keeps no process"
    one.sleeps("default", asleep=True)
    for link in tuple(edges.serving.links):
        link.close()
    await until(lambda: edges.host.ephemera.lines_in(A) == 0)
    line = two.ephemeral(A, Ears())
    line.say("t", "bob", "here", kept=True)
    await until(lambda: edges.host.ephemera.lines_in(A) == 1)
    assert started == ["default"] * 2 and not ears.present
    one.beside.awake("other")
    one.beside.awake("default")
    await until(lambda: ears.present == {("t", "bob"): "here"})


async def test_more_than_a_link_takes_at_once(edges: Edges) -> None:
    """Megabytes in one turn: beyond the credit only last values arrive, and all of them do."""
    one, two = await edges.edge(), await edges.edge()
    ears = Ears()
    two.ephemeral(A, ears)
    line = one.ephemeral(A, Ears())
    body = "x" * 16_000
    for number in range(300):
        line.say("t", f"s{number}", body, kept=True)
        line.say("t", f"s{number}", f"{number}", kept=True)
        line.say("t", "much", body)
    for number in range(300):
        line.say("kept", f"s{number}", body, kept=True)
    await until(lambda: len(ears.present) == 600)
    late = Ears()
    (await edges.edge()).ephemeral(A, late)
    await until(lambda: late.present == ears.present)
    await until(
        lambda: all(ears.present[("t", f"s{number}")] == f"{number}" for number in range(300))
    )


async def test_a_claim_that_was_decided_otherwise_is_taken_back(edges: Edges) -> None:
    """Or it would hold once the other has left, with nobody to take it back."""
    one, two = await edges.edge(), await edges.edge()
    line, ears = one.ephemeral(A, Ears()), Ears()
    line.say("t", "ada", "hers", user="u", kept=True)
    await until(lambda: edges.host.ephemera.lines_in(A))
    other = two.ephemeral(A, ears)
    await other.settled()
    uplink = two.beside._uplinks[A]
    sent: list[ephemeral_wire.Told] = []

    def send(payload: msgspec.Raw) -> bool:
        sent.append(ephemeral_wire.decode_told(payload))
        return True

    uplink.send = send
    uplink.line.pass_back("t", "ada", (1 << 60, ""))
    other.say("t", "ada", "stolen", user="mallory", kept=True)
    uplink.receive(encode(Said("t", "ada", "hers", "u", True, 1, "a")))
    said, unsaid = sent
    assert isinstance(said, Said) and isinstance(unsaid, Unsaid)
    assert (unsaid.sender, unsaid.at, unsaid.by) == ("ada", said.at, said.by)
    assert [one.body for one in ears.heard_all] == ["hers"] * len(ears.heard_all)


# -- hosts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["a", "b", "c"])
async def test_hosts_hear_each_other_wherever_the_scope_is(tmp_path: Path, owner: str) -> None:
    async with Placed(tmp_path) as hosts:
        address = hosts.address_of(owner)
        ears = {name: Ears() for name in "abc"}
        lines = {name: hosts.ports[name].ephemeral(address, ears[name]) for name in "abc"}
        for name, line in lines.items():
            line.say("t", name, "here", kept=True)
        await until(lambda: all(set(ears[name].present) == all_but(name) for name in "abc"))
        lines["a"].say("t", "a", "passing")
        lines["b"].say("t", "b", "passing")
        await until(lambda: ears["c"].bodies[2:] == ["passing"] * 2)
        lines["a"].close()
        await until(lambda: ("t", "a") not in ears["b"].present | ears["c"].present)
        assert not hosts.ports[owner].host.open_scopes


def all_but(name: str) -> set[tuple[str, str]]:
    return {("t", other) for other in "abc" if other != name}


async def test_a_scope_that_goes_to_another_host_is_followed_there(tmp_path: Path) -> None:
    async with Placed(tmp_path) as hosts:
        address = hosts.address_of("c")
        ears = {name: Ears() for name in "ab"}
        lines = {name: hosts.ports[name].ephemeral(address, ears[name]) for name in "ab"}
        lines["a"].say("t", "a", "here", kept=True)
        lines["b"].say("t", "b", "here", kept=True)
        await until(lambda: ears["a"].present and ears["b"].present)
        await hosts.see("ab")  # c is gone: its scope is a's or b's, who speaks there itself
        lines["a"].say("t", "a", "moved", kept=True)
        lines["b"].say("t", "b", "moved", kept=True)
        await until(lambda: ears["a"].present == {("t", "b"): "moved"})
        await until(lambda: ears["b"].present == {("t", "a"): "moved"})
        assert not ears["a"].withdrawn_all and not ears["b"].withdrawn_all
        await hosts.see("abc")  # and back
        lines["a"].take_back("t", "a")
        await until(lambda: not ears["b"].present)
        assert ears["a"].present == {("t", "b"): "moved"}
