"""Who is live, what a host may claim, and what the engine's absence means: times are made up."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import ConfigError, ProtocolError
from infra.placement.hosts import (
    HostInfo,
    HostState,
    View,
    decode_host,
    encode_host,
    parse_host,
)
from infra.placement.membership import Membership, Record
from infra.placement.static import StaticPlacement

TTL = 15.0
A, B, C = (HostInfo(name=name, link=f"tcp:{name}:8421", life=f"{name}1") for name in "abc")
DRAINING = msgspec.structs.replace(B, state=HostState.DRAINING)


def names(view: View) -> list[str]:
    return [host.name for host in view.hosts]


def seen_every(member: Membership, start: int, end: int, *silent: str, step: int = 5) -> None:
    """Rounds in which all hosts but the silent ones have renewed."""
    for now in range(start, end, step):
        hosts = [host for host in (A, B, C) if host.name not in silent]
        records = [Record(host, now) for host in hosts]
        records += [Record(host, -1) for host in (A, B, C) if host.name in silent]
        member.shown(now, records)
        if "a" not in silent:
            member.renewed(now, now)


def test_a_host_that_renews_no_more_is_dead_after_ttl() -> None:
    member = Membership(A, ttl_s=TTL)
    seen_every(member, 0, 20)
    assert names(member.view(15)) == ["a", "b", "c"]
    member.shown(20, [Record(A, 20), Record(B, 20), Record(C, 15)])
    member.shown(25, [Record(A, 25), Record(B, 25), Record(C, 15)])
    member.shown(30, [Record(A, 30), Record(B, 30), Record(C, 15)])
    assert names(member.view(30)) == ["a", "b", "c"]
    member.shown(35, [Record(A, 35), Record(B, 35), Record(C, 15)])
    assert names(member.view(35)) == ["a", "b"]
    member.shown(40, [Record(A, 40), Record(B, 40), Record(C, 40)])
    assert names(member.view(40)) == ["a", "b", "c"]


def test_while_the_engine_is_away_the_view_stays_and_nothing_is_claimed() -> None:
    member = Membership(A, ttl_s=TTL)
    seen_every(member, 0, 20)
    assert member.may_claim(30) and member.view(30).fresh
    assert not member.may_claim(31) and not member.view(31).fresh
    assert names(member.view(10_000)) == ["a", "b", "c"]
    # It is back with every record expired: nobody had the time to renew.
    member.shown(10_000, [])
    member.renewed(10_001, 90)
    assert member.may_claim(10_001)
    member.shown(10_005, [Record(A, 90), Record(B, 91)])
    assert names(member.view(10_005)) == ["a", "b", "c"]
    # Who then does not come back is dead.
    for now in (10_010, 10_015, 10_020):
        member.shown(now, [Record(A, now), Record(B, now)])
    assert names(member.view(10_020)) == ["a", "b"]


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    member = Membership(A, ttl_s=TTL)
    assert not member.may_claim(0)
    member.renewed(100, 1)  # the answer may have come at 114
    assert member.may_claim(115) and not member.may_claim(115.1)


def test_a_draining_host_owns_nothing_and_leaves_at_once() -> None:
    member = Membership(A, ttl_s=TTL)
    seen_every(member, 0, 5)
    keys = [("default", f"run:{number}") for number in range(64)]
    assert {member.view(5).owner(key) for key in keys} == {A, B, C}
    member.shown(5, [Record(A, 5), Record(DRAINING, 5), Record(C, 5)])
    view = member.view(5)
    assert {view.owner(key) for key in keys} == {A, C}
    assert all(view.candidates(key)[-1] == DRAINING for key in keys)
    member.shown(6, [Record(A, 5), Record(C, 5)])
    assert names(member.view(6)) == ["a", "c"]


def test_a_draining_host_takes_nothing_new() -> None:
    member = Membership(B, ttl_s=TTL)
    member.renewed(0, 1)
    assert member.may_claim(1)
    assert member.drain() == DRAINING
    assert not member.may_claim(1)
    assert member.view(1).hosts == (DRAINING,)


def test_a_later_life_of_the_name_ends_the_earlier_one() -> None:
    member = Membership(A, ttl_s=TTL)
    later = msgspec.structs.replace(A, life="a2", link="tcp:elsewhere:1")
    member.shown(0, [Record(later, 7)])  # what was there before us: we go past it
    assert not member.superseded and names(member.view(0)) == []
    member.renewed(0, 8)
    member.shown(1, [Record(later, 9)])
    assert member.superseded and not member.may_claim(1)
    assert member.view(1).hosts == (later,)


def test_what_was_dead_for_long_is_forgotten_and_a_stale_record_raises_nobody() -> None:
    member = Membership(None, ttl_s=TTL)
    for now in range(0, 100, 5):
        member.shown(now, [Record(B, now), Record(C, -1)])
    assert names(member.view(100)) == ["b"]
    for now in range(100, 400, 5):
        member.shown(now, [Record(B, now)])
    assert list(member._seen) == ["b"]


steps = st.lists(
    st.tuples(st.floats(0.1, 60), st.sets(st.sampled_from("bc")), st.booleans()), max_size=40
)


@given(steps)
def test_against_a_plain_model(found: list[tuple[float, set[str], bool]]) -> None:
    """Live is who was heard of within ttl of time in contact; gaps count for half a ttl at most."""
    member = Membership(A, ttl_s=TTL)
    now, clock, mark = 0.0, 0.0, 0
    heard: dict[str, float] = {}
    marks = {"b": 0, "c": 0}
    contact: float | None = None
    for pause, renewing, answers in found:
        now += pause
        mark += 1
        if not answers:  # the engine is away
            assert member.view(now).fresh == (contact is not None and now - contact <= TTL)
            continue
        clock += 0 if contact is None else min(now - contact, TTL / 2)
        contact = now
        for name in ("b", "c"):
            if name in renewing or name not in heard:
                marks[name] = mark
                heard[name] = clock
        member.shown(now, [Record(B, marks["b"]), Record(C, marks["c"])])
        live = [name for name in ("b", "c") if clock - heard[name] <= TTL]
        forgotten = [name for name in ("b", "c") if clock - heard[name] > 10 * TTL]
        assert names(member.view(now)) == live or forgotten
        assert member.view(now).fresh


def test_records_survive_the_way_through_an_engine() -> None:
    host = HostInfo(name="a", link="tcp:[fe80::1]:8421", life="x", weight=3, instance="i-1")
    assert decode_host(encode_host(host)) == host
    assert decode_host(b'{"name":"a","link":"tcp:h:1","later":{}}').name == "a"


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"name":"a"}', b'{"name":"","link":"tcp:h:1"}',
     b'{"name":"a/b","link":"tcp:h:1"}',
     b'{"name":"a","link":"tcp:h"}', b'{"name":"a","link":"tcp:h:99999"}',
     b"[1]", b"\xff",
     b" " * 5000,
     b'{"name":"a","link":"tcp:h:1","weight":0}', b'{"name":"a","link":"tcp:h:1","state":"gone"}'],
)  # fmt: skip
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_host(data)


def test_hosts_as_configured() -> None:
    assert parse_host("a@tcp:10.0.0.1:8421") == HostInfo(name="a", link="tcp:10.0.0.1:8421")
    assert parse_host("b@tcp:h:1*4").weight == 4
    for wrong in (
        "a",
        "a@h:1",
        "a@tcp:h",
        "@tcp:h:1",
        "a@tcp:h:1*",
        "a@tcp:h:1*x",
        "a@tcp:h:1*0",
        "a@tcp:h:1*65",
        "a b@tcp:h:1",
    ):
        with pytest.raises(ConfigError):
            parse_host(wrong)


async def test_static_hosts_are_always_there() -> None:
    hosts = [parse_host("b@tcp:h:2"), parse_host("a@tcp:h:1")]
    placement = StaticPlacement(hosts, "a")
    assert names(placement.view) == ["a", "b"] and placement.view.fresh
    assert placement.may_claim()
    await placement.drain()
    assert not placement.may_claim()
    for wrong in ("c", ""):
        with pytest.raises(ConfigError):
            StaticPlacement(hosts, wrong)
    with pytest.raises(ConfigError):
        StaticPlacement([*hosts, hosts[0]], "a")


def test_a_host_that_was_silent_too_long_knows_it_when_it_is_back() -> None:
    member = Membership(A, ttl_s=TTL)
    seen_every(member, 0, 20)
    assert member.lapses == 0
    member.renewed(30, 30)  # 15 s after the one before: not too long
    assert member.lapses == 0
    member.renewed(45.1, 31)
    assert member.lapses == 1 and member.may_claim(45.2)
    member.renewed(50, 32)
    assert member.lapses == 1
    member.renewed(64, 33, 66)  # 14 s after it, but stored perhaps after 16
    assert member.lapses == 2
